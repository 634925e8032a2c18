"""Synthetic models: exact sizes, every block type, and nothing half-written."""

import dataclasses
from pathlib import Path

import pytest
from gguf import GGUFReader

from quant.gguf_file import read_model
from quant.model import Tensor
from quant.synthetic import Shape, calibration_shape, like_shape, write_random_model

TINY = Shape(layers=2, embedding=256, feed_forward=512, heads=4, kv_heads=2, vocabulary=32)


def test_calibration_model_has_the_asked_layers_and_type(tmp_path: Path) -> None:
    path = tmp_path / "calibration.gguf"
    write_random_model(path, calibration_shape(2), "Q4_0")
    reader = GGUFReader(path)
    matrices = [tensor for tensor in reader.tensors if len(tensor.shape) == 2]
    assert {tensor.tensor_type.name for tensor in matrices} == {"Q4_0"}
    assert [int(n) for n in matrices[1].shape] == [1024, 1024]
    assert reader.fields["llama.block_count"].contents() == 2
    layer_weights = sum(tensor.n_elements for tensor in matrices if tensor.name.startswith("blk.0."))
    assert layer_weights == 15_204_352


@pytest.mark.parametrize(
    "tensor_type", ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q8_0", "Q4_K", "Q6_K", "IQ4_XS", "MXFP4"]
)
def test_every_block_type_gives_a_file_that_ends_with_its_last_tensor(tmp_path: Path, tensor_type: str) -> None:
    path = tmp_path / "model.gguf"
    write_random_model(path, TINY, tensor_type)
    last = GGUFReader(path).tensors[-1]
    assert path.stat().st_size - (last.data_offset + last.n_bytes) in range(32)
    assert list(tmp_path.iterdir()) == [path]


def test_unknown_type_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^Q9_Z is no ggml tensor type$"):
        write_random_model(tmp_path / "model.gguf", TINY, "Q9_Z")
    assert list(tmp_path.iterdir()) == []


def test_width_that_blocks_do_not_fill_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    shape = Shape(layers=1, embedding=576, feed_forward=1536, heads=9, kv_heads=3, vocabulary=32)
    message = "^token_embd: a row of 576 weights is no whole number of Q4_K blocks of 256$"
    with pytest.raises(ValueError, match=message):
        write_random_model(tmp_path / "model.gguf", shape, "Q4_K")
    assert list(tmp_path.iterdir()) == []


def test_failed_write_leaves_the_former_file(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.mkdir()
    with pytest.raises(OSError, match="directory"):
        write_random_model(path, TINY, "Q4_0")
    assert list(tmp_path.iterdir()) == [path]


def test_kv_width_is_head_size_times_kv_heads() -> None:
    assert calibration_shape(4).kv_width == 256


def test_a_like_shape_has_the_widths_of_the_model(tmp_path: Path) -> None:
    write_random_model(tmp_path / "model.gguf", TINY, "Q4_0")
    assert like_shape(read_model(tmp_path / "model.gguf"), 7) == dataclasses.replace(TINY, layers=7)


def test_a_like_shape_of_experts_has_the_width_of_one(tmp_path: Path) -> None:
    write_random_model(tmp_path / "model.gguf", TINY, "Q4_0")
    dense = read_model(tmp_path / "model.gguf")
    experts = Tensor("blk.0.ffn_up_exps.weight", "Q4_0", (256, 768, 8), 0, 0)
    assert like_shape(dataclasses.replace(dense, tensors=(experts,)), 2).feed_forward == 768
