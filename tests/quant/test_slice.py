"""Models cut to their first layers: whole tensors, consistent metadata, loadable by the engine."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter

from orchestrator.engine.store import Engine
from quant.errors import SliceError
from quant.gguf_file import read_model
from quant.slice import MIB, shape_digest, slice_depths, write_slice
from quant.synthetic import Shape, write_random_model

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


def test_arrays_with_one_item_per_layer_are_cut_too(tmp_path: Path) -> None:
    path = tmp_path / "arrays.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(3)
    writer.add_context_length(64)
    writer.add_embedding_length(8)
    writer.add_head_count([2, 4, 2])
    writer.add_array("llama.rope.dimension_sections", [1, 1, 1])
    writer.add_array("tokenizer.ggml.tokens", ["a", "b", "c"])
    writer.add_leading_dense_block_count(3)
    for layer in range(3):
        writer.add_tensor(f"blk.{layer}.attn_q.weight", np.ones((8, 8), dtype=np.float32))
    writer.add_tensor("token_embd.weight", np.ones((3, 8), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    write_slice(read_model(path), 2, tmp_path / "cut.gguf")
    fields = {name: field.contents() for name, field in GGUFReader(tmp_path / "cut.gguf").fields.items()}
    assert fields["llama.attention.head_count"] == [2, 4]
    assert fields["llama.rope.dimension_sections"] == [1, 1, 1]
    assert fields["tokenizer.ggml.tokens"] == ["a", "b", "c"]
    assert (fields["llama.block_count"], fields["llama.leading_dense_block_count"]) == (2, 2)


def test_a_model_of_two_stacks_cannot_be_cut(tmp_path: Path) -> None:
    path = tmp_path / "t5.gguf"
    writer = GGUFWriter(path, "t5")
    writer.add_block_count(2)
    writer.add_context_length(64)
    writer.add_embedding_length(8)
    writer.add_head_count(2)
    writer.add_tensor("enc.blk.0.attn_q.weight", np.ones((8, 8), dtype=np.float32))
    writer.add_tensor("token_embd.weight", np.ones((3, 8), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(SliceError, match="more than one stack"):
        write_slice(read_model(path), 1, tmp_path / "cut.gguf")
    assert not (tmp_path / "cut.gguf").exists()


def test_the_depths_leave_the_cache_and_stay_within_memory(demo_model: Path) -> None:
    """The demo model's layers of 2 MiB each fit a cache: then the whole model is the deep slice."""
    small = read_model(demo_model)
    assert slice_depths(small) == (10, 30)
    shallow, deep = slice_depths(small, 30 * MIB)
    assert shallow < deep < 30
    assert slice_depths(small, 1) == (1, 1)


def test_the_digest_tells_models_by_their_shapes(tmp_path: Path) -> None:
    write_random_model(tmp_path / "a.gguf", SHAPE, "Q4_0")
    write_random_model(tmp_path / "b.gguf", SHAPE, "Q8_0")
    one, same, other = (read_model(tmp_path / name) for name in ("a.gguf", "a.gguf", "b.gguf"))
    assert shape_digest(one) == shape_digest(same) != shape_digest(other)


@pytest.mark.engine
def test_slices_of_one_file_and_of_shards_are_equal_and_the_engine_computes_with_them(
    engine: Engine, demo_model: Path, tmp_path: Path
) -> None:
    """Tensors byte for byte those of the source; the same from shards; and what the engine's own tool cuts."""
    split = [str(engine.program("llama-gguf-split")), "--split", "--split-max-size", "40M", str(demo_model)]
    subprocess.run([*split, str(tmp_path / "sharded")], check=True, capture_output=True, timeout=120)
    shards = read_model(tmp_path / "sharded-00001-of-00003.gguf")
    write_slice(read_model(demo_model), 4, tmp_path / "cut.gguf")
    write_slice(shards, 4, tmp_path / "cut_of_shards.gguf")
    source = {tensor.name: tensor for tensor in GGUFReader(demo_model).tensors}
    for name in ("cut.gguf", "cut_of_shards.gguf"):
        for tensor in GGUFReader(tmp_path / name).tensors:
            assert np.array_equal(tensor.data, source[tensor.name].data)
    words = [str(engine.program("llama-bench")), "--model", str(tmp_path / "cut.gguf"), "-p", "8", "-n", "4"]
    done = subprocess.run(
        [*words, "-r", "1", "-t", "1", "-o", "json"], check=True, capture_output=True, timeout=120, env={**os.environ}
    )
    assert [row["n_gen"] for row in json.loads(done.stdout)] == [0, 4]
