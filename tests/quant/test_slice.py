"""Models cut to their first layers: whole tensors, consistent metadata, loadable by the engine."""

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter

from orchestrator.engine.store import Engine
from quant.errors import ModelFileError, SliceError
from quant.gguf_file import read_model
from quant.gguf_header import read_header
from quant.model import Model, Tensor
from quant.slice import MIB, shape_digest, slice_depths, write_slice
from quant.synthetic import Shape, write_random_model
from tests.quant.architectures import EXPERTS, KINDS

SHAPE = Shape(layers=6, embedding=256, feed_forward=512, heads=4, kv_heads=2, vocabulary=128)


def test_a_slice_has_the_first_layers_and_everything_else(tmp_path: Path) -> None:
    write_random_model(tmp_path / "whole.gguf", SHAPE, "Q4_0")
    whole = read_model(tmp_path / "whole.gguf")
    write_slice(whole, 2, tmp_path / "cut.gguf")
    cut = read_model(tmp_path / "cut.gguf")
    assert cut.block_count == 2
    kept = [tensor.name for tensor in whole.tensors if tensor.block is None or tensor.block < 2]
    assert [tensor.name for tensor in cut.tensors] == kept
    assert (cut.vocabulary, cut.output_tied, cut.head_count_kv) == (128, False, (2, 2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.gguf", "whole.gguf"]


def write_model(path: Path, writer: GGUFWriter, tensors: Mapping[str, tuple[int, ...]]) -> None:
    """Give a writer with some facts the rest of a model: the facts that every one has, and F32 tensors of ones."""
    writer.add_context_length(64)
    writer.add_embedding_length(8)
    for name, shape in tensors.items():
        writer.add_tensor(name, np.ones(shape, dtype=np.float32))
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def facts_of(path: Path) -> dict[str, object]:
    return {name: field.contents() for name, field in GGUFReader(path).fields.items()}


EMBEDDING = {"token_embd.weight": (3, 8)}
THREE_LAYERS = EMBEDDING | {f"blk.{layer}.attn_q.weight": (8, 8) for layer in range(3)}


def test_arrays_with_one_item_per_layer_are_cut_too(tmp_path: Path) -> None:
    writer = GGUFWriter(None, "llama")
    writer.add_block_count(3)
    writer.add_head_count([2, 4, 2])
    writer.add_array("llama.attention.sliding_window_pattern", [True, False, True])
    writer.add_array("llama.rope.dimension_sections", [1, 1, 1])
    writer.add_array("tokenizer.ggml.tokens", ["a", "b", "c"])
    writer.add_leading_dense_block_count(3)
    write_model(tmp_path / "whole.gguf", writer, THREE_LAYERS)
    write_slice(read_model(tmp_path / "whole.gguf"), 2, tmp_path / "cut.gguf")
    whole, cut = facts_of(tmp_path / "whole.gguf"), facts_of(tmp_path / "cut.gguf")
    changed = {name: value for name, value in cut.items() if value != whole[name]}
    assert list(cut) == list(whole)
    assert changed == {
        "GGUF.tensor_count": 3,
        "llama.block_count": 2,
        "llama.attention.head_count": [2, 4],
        "llama.attention.sliding_window_pattern": [True, False],
        "llama.leading_dense_block_count": 2,
    }


@pytest.mark.parametrize(("layers", "predicting"), [(1, 0), (2, 0), (3, 1)])
def test_layers_that_predict_several_tokens_are_the_last_to_go(tmp_path: Path, layers: int, predicting: int) -> None:
    """Arrays may have an item for each layer or for each but those."""
    writer = GGUFWriter(None, "glm4moe")
    writer.add_block_count(3)
    writer.add_nextn_predict_layers(1)
    writer.add_head_count([2, 4, 2])
    writer.add_array("glm4moe.xielu.eps", [0.5, 0.25])
    write_model(tmp_path / "whole.gguf", writer, THREE_LAYERS)
    write_slice(read_model(tmp_path / "whole.gguf"), layers, tmp_path / "cut.gguf")
    facts = facts_of(tmp_path / "cut.gguf")
    assert (facts["glm4moe.block_count"], facts["glm4moe.nextn_predict_layers"]) == (layers, predicting)
    assert facts["glm4moe.attention.head_count"] == [2, 4, 2][:layers]
    assert facts["glm4moe.xielu.eps"] == [0.5, 0.25][:layers]


def test_words_that_are_no_text_and_another_alignment_are_kept(tmp_path: Path) -> None:
    writer = GGUFWriter(None, "llama")
    writer.add_block_count(3)
    writer.add_head_count(2)
    writer.add_custom_alignment(256)
    writer.add_array("tokenizer.ggml.tokens", [b"\xff\xfe", b"b"])
    write_model(tmp_path / "whole.gguf", writer, THREE_LAYERS)
    write_slice(read_model(tmp_path / "whole.gguf"), 2, tmp_path / "cut.gguf")
    reader = GGUFReader(tmp_path / "cut.gguf")
    assert [tensor.data_offset % 256 for tensor in reader.tensors] == [0, 0, 0]
    assert all(np.array_equal(tensor.data, np.ones(tensor.data.shape)) for tensor in reader.tensors)
    assert bytes(reader.fields["tokenizer.ggml.tokens"].parts[-3]) == b"\xff\xfe"


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        ("enc.blk.0.attn_q.weight", "a t5 model has more than one stack of layers"),
        ("per_layer_token_embd.weight", "per_layer_token_embd.weight of a t5 model belongs to all layers at once"),
    ],
)
def test_a_model_whose_layers_hang_together_cannot_be_cut(tmp_path: Path, tensor: str, message: str) -> None:
    writer = GGUFWriter(None, "t5")
    writer.add_name("T")
    writer.add_block_count(2)
    writer.add_head_count(2)
    write_model(tmp_path / "whole.gguf", writer, EMBEDDING | {tensor: (8, 8)})
    with pytest.raises(SliceError, match=f"^T: {message}$"):
        write_slice(read_model(tmp_path / "whole.gguf"), 1, tmp_path / "cut.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["whole.gguf"]


def test_a_file_that_becomes_shorter_leaves_nothing_behind(tmp_path: Path) -> None:
    write_random_model(tmp_path / "whole.gguf", SHAPE, "Q4_0")
    model = read_model(tmp_path / "whole.gguf")
    os.truncate(model.path, model.path.stat().st_size - 1000)
    with pytest.raises(ModelFileError, match="truncated"):
        write_slice(model, 6, tmp_path / "cut.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["whole.gguf"]


def test_the_depths_leave_the_cache_and_stay_within_memory(demo_model: Path) -> None:
    """The demo model's layers of 2 MiB each fit a cache: then the whole model is the deep slice."""
    small = read_model(demo_model)
    assert slice_depths(small) == (10, 30)
    shallow, deep = slice_depths(small, 30 * MIB)
    assert shallow < deep < 30
    assert slice_depths(small, 1) == (1, 1)


def layered(*names: str, size_bytes: int) -> Model:
    """A model whose layers have one tensor each, of these names."""
    tensors = tuple(Tensor(f"blk.{n}.{name}.weight", "F32", (8,), size_bytes, 0) for n, name in enumerate(names))
    path = Path("m.gguf")
    return Model(path, (path,), "m", "x", "F32", 0, len(names), 1, 8, 1, (1,) * len(names), 8, 8, 3, True, tensors)


@pytest.mark.parametrize(
    ("names", "layer_mib", "depths"),
    [
        (("ffn_up",) * 9, 25, (3, 9)),
        (("ffn_up",) * 30, 50, (2, 6)),
        (("ffn_up",) * 30, 100, (2, 4)),
        (("ffn_up",) * 50, 9, (9, 29)),
        (("ffn_up",) * 9, 129, (1, 3)),
        (("ffn_up",) * 2, 129, (1, 2)),
        (("ffn_up",), 129, (1, 1)),
        (("ffn_up",) * 3 + ("ffn_up_exps",) * 9, 200, (3, 4)),
        (("ffn_up",) * 3 + ("ffn_up_exps",) * 9, 25, (3, 11)),
    ],
)
def test_the_depths_follow_the_size_and_the_kinds_of_the_layers(
    names: tuple[str, ...], layer_mib: int, depths: tuple[int, int]
) -> None:
    assert slice_depths(layered(*names, size_bytes=layer_mib * MIB)) == depths


def test_the_digest_tells_models_by_their_shapes(tmp_path: Path) -> None:
    write_random_model(tmp_path / "a.gguf", SHAPE, "Q4_0")
    write_random_model(tmp_path / "b.gguf", SHAPE, "Q8_0")
    one, same, other = (read_model(tmp_path / name) for name in ("a.gguf", "a.gguf", "b.gguf"))
    assert shape_digest(one) == shape_digest(same) != shape_digest(other)


def tensors_of(path: Path) -> dict[str, tuple[str, bytes]]:
    return {tensor.name: (tensor.tensor_type.name, tensor.data.tobytes()) for tensor in GGUFReader(path).tensors}


def run(engine: Engine, program: str, *words: str | Path) -> bytes:
    command = [str(engine.program(program)), *map(str, words)]
    return subprocess.run(command, check=True, capture_output=True, timeout=120).stdout


BENCH = ("-p", "8", "-n", "4", "-r", "1", "-t", "1", "-o", "json")


@pytest.mark.engine
def test_slices_of_one_file_and_of_shards_are_what_the_engine_itself_cuts(
    engine: Engine, demo_model: Path, tmp_path: Path
) -> None:
    """Tensors byte for byte those of the engine's tool, from one file and from several; and the engine runs them."""
    run(engine, "llama-gguf-split", "--split", "--split-max-size", "40M", demo_model, tmp_path / "parts")
    pruned = ",".join(str(layer) for layer in range(4, 30))
    run(engine, "llama-quantize", "--prune-layers", pruned, demo_model, tmp_path / "pruned.gguf", "COPY")
    write_slice(read_model(demo_model), 4, tmp_path / "cut.gguf")
    write_slice(read_model(tmp_path / "parts-00001-of-00003.gguf"), 4, tmp_path / "cut_of_parts.gguf")
    expected = tensors_of(tmp_path / "pruned.gguf")
    for name in ("cut.gguf", "cut_of_parts.gguf"):
        assert tensors_of(tmp_path / name) == expected
        done = run(engine, "llama-bench", "--model", tmp_path / name, *BENCH)
        assert [row["n_gen"] for row in json.loads(done)] == [0, 4]


def header_only(path: Path) -> Model:
    """As a model is kept that is not here: whole in its size, with a hole for its weights."""
    first, size = read_header(path).tensors[0], path.stat().st_size
    os.truncate(path, first.end - first.size_bytes)
    os.truncate(path, size)
    return read_model(path)


def test_of_a_model_that_is_not_here_the_weights_are_made_up_so_that_tokens_take_different_experts(
    tmp_path: Path,
) -> None:
    model = header_only(KINDS["experts"].write(tmp_path / "experts.gguf"))
    write_slice(model, 2, tmp_path / "cut.gguf", made_up=True)
    assert read_model(tmp_path / "cut.gguf").block_count == 2
    tensors = {tensor.name: tensor.data for tensor in GGUFReader(tmp_path / "cut.gguf").tensors}
    assert (tensors["blk.0.attn_norm.weight"] == 1).all()
    for layer in range(2):
        wanted = tensors["token_embd.weight"] @ tensors[f"blk.{layer}.ffn_gate_inp.weight"].T
        assert set(wanted.argmax(axis=1)) == set(range(EXPERTS))


@pytest.mark.engine
def test_the_engine_runs_slices_with_made_up_weights(engine: Engine, demo_model: Path, tmp_path: Path) -> None:
    for path in (KINDS["experts"].write(tmp_path / "experts.gguf"), demo_model):
        write_slice(read_model(path), 2, tmp_path / "cut.gguf", made_up=True)
        done = run(engine, "llama-bench", "--model", tmp_path / "cut.gguf", *BENCH)
        assert [row["n_gen"] for row in json.loads(done)] == [0, 4]
