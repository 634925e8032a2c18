"""Splitting and joining: the same bytes again, the very files of the engine's tool, and all files or none."""

import dataclasses
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter

from orchestrator.engine.store import Engine
from quant import shards
from quant.errors import ModelFileError, NoRoomError, SplitError
from quant.gguf_file import read_model
from quant.model import Model
from quant.shards import join_model, split_model
from quant.slice import write_slice
from quant.synthetic import Shape, write_random_model

SHAPE = Shape(layers=6, embedding=256, feed_forward=512, heads=4, kv_heads=2, vocabulary=300)
MIB = 1024 * 1024


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    path = tmp_path / "whole.gguf"
    write_random_model(path, SHAPE, "Q8_0", reads_text=True)
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("max_bytes", [MIB, MIB // 3, 2 * MIB + 17])
def test_what_is_joined_again_is_the_same_file(whole: Path, tmp_path: Path, max_bytes: int) -> None:
    made = split_model(whole, tmp_path / "parts", max_bytes)
    assert len(made) > 1
    assert names(tmp_path / "parts") == [path.name for path in made]
    assert [path.name for path in made][-1] == f"whole-{len(made):05}-of-{len(made):05}.gguf"
    assert max(path.stat().st_size for path in made) <= max_bytes
    join_model(made[0], tmp_path / "again.gguf")
    assert (tmp_path / "again.gguf").read_bytes() == whole.read_bytes()


def test_shards_are_as_full_as_they_get(whole: Path, tmp_path: Path) -> None:
    """The first tensor of each would not have fitted into the one before."""
    made = split_model(whole, tmp_path / "parts", MIB)
    model = read_model(made[0])
    for number, path in enumerate(made[:-1]):
        following = next(tensor for tensor in model.tensors if tensor.shard == number + 1)
        assert path.stat().st_size + following.size_bytes > MIB


def test_shards_are_the_model(whole: Path, tmp_path: Path) -> None:
    one, many = read_model(whole), read_model(split_model(whole, tmp_path / "parts", MIB)[0])
    assert without_places(one) == without_places(many)


def without_places(model: Model) -> Model:
    tensors = tuple(dataclasses.replace(tensor, shard=0, offset=0) for tensor in model.tensors)
    return dataclasses.replace(model, path=Path(), shards=(), tensors=tensors, files_digest="")


def test_shards_are_split_again_and_sliced(whole: Path, tmp_path: Path) -> None:
    made = split_model(whole, tmp_path / "parts", 2 * MIB)
    finer = split_model(made[0], tmp_path / "finer", MIB)
    assert [path.read_bytes() for path in finer] == [
        path.read_bytes() for path in split_model(whole, tmp_path / "direct", MIB)
    ]
    assert finer[0].name == f"whole-00001-of-{len(finer):05}.gguf"
    write_slice(read_model(whole), 2, tmp_path / "slice.gguf")
    write_slice(read_model(finer[0]), 2, tmp_path / "slice_of_parts.gguf")
    assert (tmp_path / "slice.gguf").read_bytes() == (tmp_path / "slice_of_parts.gguf").read_bytes()


def write_odd_model(path: Path) -> None:
    """Of an alignment of 256, with a word that is no text; 160 bytes fill up the last tensor."""
    writer = GGUFWriter(None, "llama")
    for add, value in ((writer.add_block_count, 1), (writer.add_context_length, 8), (writer.add_embedding_length, 8)):
        add(value)
    writer.add_head_count(2)
    writer.add_custom_alignment(256)
    writer.add_array("tokenizer.ggml.tokens", [b"\xff\xfe", b"b"])
    for name in ("token_embd.weight", "blk.0.attn_q.weight", "output.weight"):
        writer.add_tensor(name, np.ones((3, 8), dtype=np.float32))
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_alignment_version_and_words_that_are_no_text_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "odd.gguf"
    write_odd_model(path)
    data = bytearray(path.read_bytes())
    data[4] = 2  # the version: both are laid out the same
    path.write_bytes(data)
    made = split_model(path, tmp_path / "parts", path.stat().st_size - 200)
    join_model(made[0], tmp_path / "again.gguf")
    assert (tmp_path / "again.gguf").read_bytes() == data


@pytest.mark.parametrize(
    ("max_bytes", "message", "hint"),
    [
        (
            64 * MIB,
            "whole.gguf takes 3.8 MiB: it fits into one file of 64.0 MiB",
            "name a smaller --max-size",
        ),
        (
            MIB // 8,
            "blk.0.ffn_gate.weight alone takes 136 KiB, 136 KiB with what stands before it in its shard; 128 KiB are "
            "too little",
            "name a --max-size of at least 1MiB",
        ),
    ],
)
def test_sizes_that_make_no_sense_are_refused_with_the_right_ones(
    whole: Path, tmp_path: Path, max_bytes: int, message: str, hint: str
) -> None:
    with pytest.raises(SplitError) as caught:
        split_model(whole, tmp_path / "parts", max_bytes)
    assert (str(caught.value), caught.value.hint) == (message, hint)
    assert names(tmp_path) == ["whole.gguf"]


def test_more_shards_than_can_be_numbered_are_refused(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "_MOST_SHARDS", 2)
    with pytest.raises(SplitError, match=r"^whole\.gguf would be 4 shards; 2 are possible$"):
        split_model(whole, tmp_path, MIB)


def test_a_whole_model_is_not_joined(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(SplitError, match=r"whole\.gguf is a whole model, not one of several shards$"):
        join_model(whole, tmp_path / "again.gguf")


def test_files_that_exist_stay_unless_forced(whole: Path, tmp_path: Path) -> None:
    made = split_model(whole, tmp_path / "parts", MIB)
    made[2].write_bytes(b"mine")
    with pytest.raises(SplitError) as caught:
        split_model(whole, tmp_path / "parts", MIB)
    assert str(caught.value) == f"{made[0]} and {len(made) - 1} more exist already"
    assert caught.value.hint == "--force replaces them; or name another place with --out"
    assert made[2].read_bytes() == b"mine"
    split_model(whole, tmp_path / "parts", MIB, force=True)
    (tmp_path / "again.gguf").write_bytes(b"mine")
    with pytest.raises(SplitError, match=r"again\.gguf exists already$"):
        join_model(made[0], tmp_path / "again.gguf")
    join_model(made[0], tmp_path / "again.gguf", force=True)
    assert (tmp_path / "again.gguf").read_bytes() == whole.read_bytes()


def test_a_models_own_files_are_never_written(whole: Path, tmp_path: Path) -> None:
    made = split_model(whole, tmp_path / "parts", MIB)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "parts")
    with pytest.raises(SplitError, match=r"belongs to the model itself$"):
        split_model(made[0], link, MIB, force=True)
    with pytest.raises(SplitError, match=r"belongs to the model itself$"):
        join_model(made[0], made[3], force=True)
    assert read_model(made[0]).shards == made


def test_a_folder_is_no_place_for_a_file(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = split_model(whole, tmp_path / "parts", MIB)
    monkeypatch.chdir(tmp_path / "parts")
    for folder, named in ((tmp_path, f"{tmp_path}/whole.gguf"), (Path(), "whole.gguf")):
        for force in (False, True):
            with pytest.raises(SplitError) as caught:
                join_model(made[0], folder, force=force)
            assert str(caught.value) == f"{folder} is a folder"
            assert caught.value.hint == f"name a file in it: --out {named}"
    assert names(tmp_path) == ["parts", "whole.gguf"]


@pytest.mark.parametrize(
    ("end", "how"),
    [(b"tail!", "5 bytes shorter"), (b"", "160 bytes longer"), (bytes(160), "")],
    ids=["more", "less", "as"],
)
def test_what_will_not_be_the_same_file_again_is_said(tmp_path: Path, end: bytes, how: str) -> None:
    """Some writers leave out what fills the last tensor up to the alignment, some have something behind it."""
    path, said = tmp_path / "odd.gguf", list[str]()
    write_odd_model(path)
    filled = path.read_bytes()
    path.write_bytes((filled if how.endswith("shorter") else filled[:-160]) + end)
    made = split_model(path, tmp_path / "parts", len(filled) - 200, say=said.append)
    join_model(made[0], tmp_path / "again.gguf")
    assert (tmp_path / "again.gguf").read_bytes() == filled
    kept = "metadata and weights are the same, not how its writer left the end, nor marks of earlier shards"
    assert said == ([f"joined again it will be {how} than odd.gguf: {kept}"] if how else [])


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("after", [1, 40, 60])
def test_what_is_stopped_leaves_nothing(whole: Path, tmp_path: Path, after: int) -> None:
    calls = 0

    def stop(done: int, total: int) -> None:
        nonlocal calls
        calls += 1
        if calls == after:
            raise StoppedError

    with pytest.raises(StoppedError):
        split_model(whole, tmp_path / "parts", MIB, on_progress=stop)
    assert names(tmp_path / "parts") == []


def test_what_is_stopped_while_the_disk_takes_it_leaves_nothing(whole: Path, tmp_path: Path) -> None:
    """All bytes are written then, and waiting for the disk takes the longest."""
    told: list[int] = []

    def stop(done: int, total: int) -> None:
        told.append(done)
        if told.count(total) == 2:
            raise StoppedError

    with pytest.raises(StoppedError):
        split_model(whole, tmp_path / "parts", MIB, on_progress=stop)
    assert names(tmp_path / "parts") == []


def test_progress_goes_to_the_end(whole: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    made = split_model(whole, tmp_path / "parts", MIB, on_progress=lambda done, total: told.append((done, total)))
    total = sum(path.stat().st_size for path in made)
    assert told[-1] == (total, total)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_a_model_that_changes_meanwhile_is_not_split(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"has changed since it was read$"):
        split_model(whole, tmp_path / "parts", MIB, on_progress=lambda done, total: os.utime(whole, (1, 1)))
    assert names(tmp_path / "parts") == []


def test_a_full_disk_is_told_before_anything_is_written(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=MIB))
    with pytest.raises(NoRoomError) as caught:
        split_model(whole, tmp_path / "parts", MIB)
    assert str(caught.value) == (f"writing 4 shards needs 67.8 MiB of disk; {tmp_path / 'parts'} has 1.0 MiB free")
    assert names(tmp_path / "parts") == []


def run_split(engine: Engine, *words: str | Path) -> None:
    command = [str(engine.program("llama-gguf-split")), *map(str, words)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)


@pytest.mark.engine
def test_the_engines_shards_are_ours_and_joined_to_the_same_file(
    engine: Engine, demo_model: Path, tmp_path: Path
) -> None:
    """Its tool counts tensors only: where the limits fall between the same tensors, every byte is the same."""
    run_split(engine, "--split", "--split-max-size", "60M", demo_model, tmp_path / "its")
    its = read_model(tmp_path / "its-00001-of-00002.gguf")
    ours = split_model(demo_model, tmp_path / "ours", max(path.stat().st_size for path in its.shards))
    assert [path.read_bytes() == same.read_bytes() for path, same in zip(ours, its.shards, strict=True)] == [True] * 2
    join_model(its.path, tmp_path / "joined.gguf")
    assert (tmp_path / "joined.gguf").read_bytes() == demo_model.read_bytes()


@pytest.mark.engine
def test_the_engine_merges_our_shards(engine: Engine, demo_model: Path, tmp_path: Path) -> None:
    """Into the same tensors; it leaves the numbers of shards in the metadata, which splitting takes out again."""
    ours = split_model(demo_model, tmp_path, 40 * MIB)
    run_split(engine, "--merge", ours[0], tmp_path / "merged.gguf")
    merged, whole = read_model(tmp_path / "merged.gguf"), read_model(demo_model)
    assert without_places(merged) == without_places(whole)
    for one, other in zip(merged.tensors, whole.tensors, strict=True):
        assert bytes_of(merged, one.offset, one.size_bytes) == bytes_of(whole, other.offset, other.size_bytes)
    again = split_model(merged.path, tmp_path / "again", 40 * MIB)
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in ours]


def bytes_of(model: Model, start: int, count: int) -> bytes:
    with model.path.open("rb") as file:
        file.seek(start)
        return file.read(count)


@pytest.mark.engine
def test_the_engine_loads_our_shards(engine: Engine, demo_model: Path, tmp_path: Path) -> None:
    ours = split_model(demo_model, tmp_path, 40 * MIB)
    words = ("--model", str(ours[0]), "-p", "8", "-n", "4", "-r", "1", "-t", "1")
    done = subprocess.run([str(engine.program("llama-bench")), *words], capture_output=True, timeout=120)
    assert (done.returncode, b"tg4" in done.stdout) == (0, True)
