"""Synthetic models: exact sizes, every block type, and nothing half-written."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader
from gguf.quants import dequantize

from quant.gguf_file import read_model
from quant.model import Tensor
from quant.synthetic import Shape, calibration_shape, distinct_weights, like_shape, write_random_model

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


def test_the_heads_of_a_like_shape_are_whole_blocks_of_a_quantised_kv_cache(tmp_path: Path) -> None:
    """Heads of 16 elements become eight of 32: those that the engine keeps as q8_0, too."""
    write_random_model(tmp_path / "model.gguf", dataclasses.replace(TINY, heads=16, kv_heads=4), "Q4_0")
    like = like_shape(read_model(tmp_path / "model.gguf"), 2)
    assert like == dataclasses.replace(TINY, heads=8, kv_heads=8)


def test_a_like_shape_of_experts_has_the_width_of_one(tmp_path: Path) -> None:
    write_random_model(tmp_path / "model.gguf", TINY, "Q4_0")
    dense = read_model(tmp_path / "model.gguf")
    experts = Tensor("blk.0.ffn_up_exps.weight", "Q4_0", (256, 768, 8), 0, 0)
    assert like_shape(dataclasses.replace(dense, tensors=(experts,)), 2).feed_forward == 768


@pytest.mark.parametrize(
    "kind",
    ["F32", "F16", "BF16", "Q4_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ3_S", "IQ4_XS", "MXFP4"],
)
def test_weights_at_random_are_small_of_either_sign_and_send_words_to_different_experts(kind: str) -> None:
    """Words of this type, and a router as most models have it."""
    width, words, experts = 1024, 64, 8
    values = matrix("token_embd.weight", kind, width, words)
    assert values.shape == (words, width)
    assert 1e-5 < np.abs(values).max() < 10
    assert 0.2 < (values > 0).mean() < 0.8
    assert len({row.tobytes() for row in values}) == words
    normed = values / np.sqrt((values**2).mean(axis=1, keepdims=True))
    chosen = (normed @ matrix("blk.0.ffn_gate_inp.weight", "F32", width, experts).T).argmax(axis=1)
    assert len(set(chosen)) > experts // 2


def matrix(name: str, kind: str, width: int, rows: int) -> "np.ndarray[tuple[int, int], np.dtype[np.float32]]":
    """As the engine reads it."""
    data = distinct_weights(name, kind, (width, rows))
    return dequantize(data.reshape(rows, -1), GGMLQuantizationType[kind])


def test_norms_are_ones_and_what_is_no_weight_is_zero() -> None:
    assert (distinct_weights("blk.0.attn_norm.weight", "F32", (8,)).view(np.float32) == 1).all()
    assert (distinct_weights("blk.0.ffn_gate_tid2eid.weight", "I32", (8, 4)) == 0).all()
