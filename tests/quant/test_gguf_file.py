"""Whole models from files: facts, shards, and what is wrong with them."""

import dataclasses
import struct
from pathlib import Path

import pytest
from gguf import GGUFReader

from quant.errors import ModelFileError
from quant.gguf_file import read_model
from quant.model import Model, Tensor
from quant.synthetic import Shape, write_random_model
from quant.whole_file import files_digest
from tests.quant.gguf_bytes import ARRAY, LLAMA, fact, gguf, number, tensor, words

TINY = Shape(layers=2, embedding=256, feed_forward=512, heads=4, kv_heads=2, vocabulary=32)


def test_facts_of_a_model_are_read(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_random_model(path, TINY, "Q4_0")
    model = read_model(path)
    first = int(GGUFReader(path).tensors[0].data_offset)
    assert dataclasses.replace(model, tensors=model.tensors[:2]) == Model(
        path=path,
        shards=(path,),
        name="meshctl synthetic",
        architecture="llama",
        quantisation="Q4_0",
        parameters=1_197_312,
        block_count=2,
        context_length=131_072,
        embedding_length=256,
        head_count=4,
        head_count_kv=(2, 2),
        key_length=64,
        value_length=64,
        vocabulary=32,
        output_tied=False,
        tensors=(
            Tensor("token_embd.weight", "Q4_0", (256, 32), 4608, 0, offset=first),
            Tensor("blk.0.attn_norm.weight", "F32", (256,), 1024, 0, offset=first + 4608),
        ),
        files_digest=files_digest([path]),
    )


@pytest.mark.parametrize("tensor_type", ["F16", "Q4_1", "Q6_K", "IQ4_XS"])
def test_tensors_are_those_that_the_gguf_package_sees(tmp_path: Path, tensor_type: str) -> None:
    path = tmp_path / "model.gguf"
    write_random_model(path, TINY, tensor_type)
    expected = [
        (t.name, t.tensor_type.name, tuple(map(int, t.shape)), t.n_bytes, t.data_offset)
        for t in GGUFReader(path).tensors
    ]
    found = [(t.name, t.type, t.shape, t.size_bytes, t.offset) for t in read_model(path).tensors]
    assert found == expected


def shard(number_: int, count: int, *tensors: bytes, announced: int = 2) -> bytes:
    facts = (number("split.no", number_), number("split.count", count), number("split.tensors.count", announced))
    return gguf((*(LLAMA if number_ == 0 else ()), *facts), tensors, data_bytes=128)


TWO_SHARDS = {
    "m-00001-of-00002.gguf": shard(0, 2, tensor("token_embd.weight", (8, 4))),
    "m-00002-of-00002.gguf": shard(1, 2, tensor("output.weight", (8, 4))),
}


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder / next(iter(files))


def test_shards_are_found_from_the_first(tmp_path: Path) -> None:
    model = read_model(write(tmp_path, TWO_SHARDS))
    assert model.shards == (tmp_path / "m-00001-of-00002.gguf", tmp_path / "m-00002-of-00002.gguf")
    assert [(tensor.name, tensor.shard) for tensor in model.tensors] == [("token_embd.weight", 0), ("output.weight", 1)]
    assert (model.output_tied, model.vocabulary) == (False, 4)


FIRST, SECOND = TWO_SHARDS.values()
HEADS_OF_TWO_LAYERS = fact("llama.attention.head_count", ARRAY, struct.pack("<IQ2I", 4, 2, 8, 8))
ONE = tensor("token_embd.weight", (8, 4))
BAD: dict[str, tuple[dict[str, bytes], str]] = {
    "another shard": (
        {"m-00002-of-00002.gguf": SECOND},
        "m-00002-of-00002.gguf is shard 2 of 2; a model is named by its first shard",
    ),
    "missing shard": (
        {"m-00001-of-00002.gguf": FIRST},
        "m-00001-of-00002.gguf is the first of 2 shards; missing beside it: m-00002-of-00002.gguf",
    ),
    "renamed shard": (
        {"model.gguf": FIRST},
        "model.gguf is the first of 2 shards, but its name does not end in -00001-of-00002.gguf",
    ),
    "shard of another model": (
        {"m-00001-of-00002.gguf": FIRST, "m-00002-of-00002.gguf": shard(2, 3, ONE)},
        "m-00002-of-00002.gguf is not shard 2 of 2 of this model: it says shard 3 of 3",
    ),
    "no shard at all": (
        {"m-00001-of-00002.gguf": FIRST, "m-00002-of-00002.gguf": gguf(LLAMA)},
        "m-00002-of-00002.gguf is not shard 2 of 2 of this model: it says nothing of shards",
    ),
    "truncated shard": (
        {"m-00001-of-00002.gguf": FIRST, "m-00002-of-00002.gguf": SECOND[:-100]},
        "m-00002-of-00002.gguf is truncated: 100 of 320 bytes are missing",
    ),
    "the same tensors twice": (
        {"m-00001-of-00002.gguf": FIRST, "m-00002-of-00002.gguf": shard(1, 2, ONE)},
        "m-00001-of-00002.gguf: its shards repeat the same tensors",
    ),
    "too few tensors": (
        {"m-00001-of-00002.gguf": shard(0, 2, ONE, announced=7), "m-00002-of-00002.gguf": SECOND},
        "m-00001-of-00002.gguf: 7 tensors are announced, its shards have 2",
    ),
    "vocabulary only": ({"m.gguf": gguf(LLAMA)}, "m.gguf has no tensors: it holds a vocabulary only"),
    "no architecture": (
        {"m.gguf": gguf(LLAMA[1:], (ONE,), data_bytes=128)},
        "m.gguf does not state general.architecture",
    ),
    "no layers stated": (
        {"m.gguf": gguf((LLAMA[0],), (ONE,), data_bytes=128)},
        "m.gguf does not state llama.block_count",
    ),
    "no layers": (
        {"m.gguf": gguf((LLAMA[0], number("llama.block_count", 0)), (ONE,), data_bytes=128)},
        "m.gguf: llama.block_count is 0",
    ),
    "text for a number": (
        {"m.gguf": gguf((LLAMA[0], words("llama.block_count", "many")), (ONE,), data_bytes=128)},
        "m.gguf: llama.block_count is 'many', not a possible number",
    ),
    "heads for too few layers": (
        {
            "m.gguf": gguf(
                (LLAMA[0], number("llama.block_count", 3), *LLAMA[2:4], HEADS_OF_TWO_LAYERS),
                (ONE,),
                data_bytes=128,
            )
        },
        "m.gguf: llama.attention.head_count has 2 items for 3 layers",
    ),
    "image part": (
        {"m.gguf": gguf((words("general.architecture", "clip"),), (ONE,), data_bytes=128)},
        "m.gguf is the image part (mmproj) of a model",
    ),
    "adapter": (
        {"m.gguf": gguf((LLAMA[0], words("general.type", "adapter")), (ONE,), data_bytes=128)},
        "m.gguf is a LoRA adapter, not a model",
    ),
}


@pytest.mark.parametrize(("files", "message"), BAD.values(), ids=BAD.keys())
def test_bad_model_is_named_with_what_is_wrong(tmp_path: Path, files: dict[str, bytes], message: str) -> None:
    path = write(tmp_path, files)
    with pytest.raises(ModelFileError) as caught:
        read_model(path)
    assert str(caught.value) == f"{tmp_path}/{message}"
    assert caught.value.hint


def test_another_shard_than_the_first_is_answered_with_the_first(tmp_path: Path) -> None:
    write(tmp_path, TWO_SHARDS)
    with pytest.raises(ModelFileError) as caught:
        read_model(tmp_path / "m-00002-of-00002.gguf")
    assert caught.value.hint == f"use {tmp_path}/m-00001-of-00002.gguf"
