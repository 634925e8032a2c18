"""Broken and hostile GGUF headers: each gets its exact message, quickly and without much memory."""

import contextlib
import os
import struct
from pathlib import Path

import pytest

from quant import gguf_header
from quant.errors import ModelFileError, UnfinishedHeaderError
from quant.gguf_header import Array, TensorInfo, read_header
from tests.quant.gguf_bytes import ARRAY, LLAMA, STRING, fact, gguf, number, tensor, words

F32_TENSOR = tensor("a.weight", (8, 4))


def test_metadata_and_tensors_are_read(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    few = fact("few", ARRAY, struct.pack("<IQ3I", 4, 3, 7, 8, 9))
    many = fact("many", ARRAY, struct.pack("<IQ", 0, 5000) + bytes(5000))
    names = fact("names", ARRAY, struct.pack("<IQ", STRING, 2) + struct.pack("<Q1sQ2s", 1, b"a", 2, b"bc"))
    path.write_bytes(gguf((words("name", "x"), few, many, names), (F32_TENSOR,), data_bytes=128))
    header = read_header(path)
    assert header.facts == {"name": "x", "few": Array(3, (7, 8, 9)), "many": Array(5000, ()), "names": Array(2, ())}
    assert header.tensors == (TensorInfo("a.weight", "F32", (8, 4), 128, path.stat().st_size),)


@pytest.mark.parametrize("piece_bytes", [8, 9, 31, 100, 1024])
def test_words_are_skipped_wherever_pieces_end(
    tmp_path: Path, piece_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_header, "_SKIP_PIECE_BYTES", piece_bytes)
    words_ = b"".join(struct.pack("<Q", length) + b"x" * length for length in (0, 1, 7, 8, 9, 40, 0, 0, 200, 3))
    listed = fact("words", ARRAY, struct.pack("<IQ", STRING, 10) + words_)
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf((listed, number("after", 7)), (F32_TENSOR,), data_bytes=128))
    header = read_header(path)
    assert header.facts == {"words": Array(10, ()), "after": 7}
    assert header.places["after"] == (24 + len(listed), 24 + len(listed) + len(number("after", 7)))
    for length in range(60, 24 + len(listed)):
        os.truncate(path, length)
        with pytest.raises(ModelFileError, match=r"end within the metadata$"):
            read_header(path)
        path.write_bytes(gguf((listed, number("after", 7)), (F32_TENSOR,), data_bytes=128))


BAD = {
    "empty": (b"", "is empty"),
    "html": (b"<!DOCTYPE html><html>", "is not a GGUF file; it seems to be an HTML page"),
    "html after blanks": (b"\n\n <HTML><body>no", "is not a GGUF file; it seems to be an HTML page"),
    "safetensors": (
        struct.pack("<Q", 300) + b'{"a": {"dtype"',
        "is not a GGUF file; it seems to be a safetensors file",
    ),
    "zip": (b"PK\x03\x04rest", "is not a GGUF file; it seems to be a zip archive or a PyTorch checkpoint"),
    "old ggml": (b"tjgg\x01\0\0\0", "is not a GGUF file; it seems to be a GGML file, the format before GGUF"),
    "git lfs": (
        b"version https://git-lfs.github.com/spec/v1",
        "is not a GGUF file; it seems to be a Git LFS pointer, which stands for the real file",
    ),
    "zeros": (bytes(64), "is not a GGUF file; it seems to be an unfinished download: it starts with zeros"),
    "json": (b'{"error": "not found"}', "is not a GGUF file; it seems to be a JSON file"),
    "other bytes": (b"\x7fELF...........", "is not a GGUF file"),
    "three bytes": (b"GGU", "is not a GGUF file"),
    "magic only": (b"GGUF", "is truncated or damaged: its 4 bytes end within the first bytes"),
    "version 1": (gguf(version=1), "has GGUF version 1; the engine reads versions 2 and 3"),
    "version 9": (gguf(version=9), "has GGUF version 9; the engine reads versions 2 and 3"),
    "big-endian": (gguf(version=3 << 24), "is a big-endian GGUF file"),
    "cut in the metadata": (gguf(LLAMA)[:60], "is truncated or damaged: its 60 bytes end within the metadata"),
    "cut in the tensors": (
        gguf((), (F32_TENSOR,))[:50],
        "is truncated or damaged: its 50 bytes end within the list of tensors",
    ),
    "cut in the weights": (
        gguf((), (F32_TENSOR,), data_bytes=28),
        "is truncated: 100 of 224 bytes are missing",
    ),
    "without weights": (gguf((), (F32_TENSOR,)), "is truncated: 128 of 224 bytes are missing"),
    "many facts": (
        b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60),
        "is damaged: it announces 1,152,921,504,606,846,976 metadata entries",
    ),
    "many tensors": (b"GGUF" + struct.pack("<IQQ", 3, 2**40, 0), "is damaged: it announces 1,099,511,627,776 tensors"),
    "long array": (
        gguf((fact("a", ARRAY, struct.pack("<IQ", 0, 2**60)),)),
        "is truncated or damaged: its 64 bytes end within the metadata",
    ),
    "long array of texts": (
        gguf((fact("a", ARRAY, struct.pack("<IQ", STRING, 2**60)),)),
        "is truncated or damaged: its 64 bytes end within the metadata",
    ),
    "long text": (
        gguf((fact("a", STRING, struct.pack("<Q", 2**63)),)),
        "is truncated or damaged: its 64 bytes end within the metadata",
    ),
    "text beyond the limit": (
        gguf((words("a", "x" * 5_000_000),)),
        "is damaged: it has a text of 5,000,000 bytes",
    ),
    "nested array": (gguf((fact("a", ARRAY, struct.pack("<IQ", ARRAY, 1)),)), "is damaged: it has an array of arrays"),
    "unknown value type": (gguf((fact("a", 77, b""),)), "is damaged: it has a value of the unknown type 77"),
    "key twice": (gguf((number("a", 1), number("a", 2))), "is damaged: a is there twice"),
    "tensor twice": (gguf((), (F32_TENSOR, F32_TENSOR), data_bytes=128), "is damaged: two tensors have the same name"),
    "alignment": (
        gguf((number("general.alignment", 33),)),
        "is damaged: general.alignment is 33, not a power of two up to 1,048,576",
    ),
    "nine dimensions": (gguf((), (tensor("a", (1,) * 9),)), "is damaged: tensor a has 9 dimensions"),
    "long name of a tensor": (
        gguf((), (tensor("n" * 64, (8, 4)),), data_bytes=128),
        "is damaged: a tensor has a name of 64 bytes; 63 are possible",
    ),
    "no elements": (gguf((), (tensor("a", (0, 4)),)), "is damaged: tensor a has the impossible shape 0x4 for F32"),
    "huge shape": (
        gguf((), (tensor("a", (2**40, 2**40)),)),
        "is damaged: tensor a has the impossible shape 1099511627776x1099511627776 for F32",
    ),
    "broken blocks": (
        gguf((), (tensor("a", (33, 1), 2),)),
        "is damaged: tensor a has the impossible shape 33x1 for Q4_0",
    ),
    "unknown tensor type": (
        gguf((), (tensor("a", (8,), 999),)),
        ": tensor a has the type 999, which meshctl does not know",
    ),
}


@pytest.mark.parametrize(("data", "message"), BAD.values(), ids=BAD.keys())
def test_bad_file_is_named_with_what_is_wrong(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    with pytest.raises(ModelFileError) as caught:
        read_header(path)
    separator = "" if message.startswith(":") else " "
    assert str(caught.value) == f"{path}{separator}{message}"
    assert caught.value.hint


def test_a_header_that_is_still_coming_is_told_from_one_that_is_wrong(tmp_path: Path) -> None:
    """A file of the full size with a hole for what has not come."""
    whole = gguf(LLAMA, (F32_TENSOR,), data_bytes=128)
    header_bytes = 24 + len(b"".join((*LLAMA, F32_TENSOR)))
    path = tmp_path / "model.gguf"
    for come in range(4, header_bytes):
        path.write_bytes(whole[:come] + bytes(len(whole) - come))
        with pytest.raises(UnfinishedHeaderError):
            read_header(path, come)
    for come in range(header_bytes, len(whole) + 1):
        path.write_bytes(whole[:come] + bytes(len(whole) - come))
        assert len(read_header(path, come).tensors) == 1
    path.write_bytes(b"none" + whole[4:])
    with pytest.raises(ModelFileError, match=r"is not a GGUF file$"):
        read_header(path, 100)


def test_every_truncation_of_a_good_file_is_reported(tmp_path: Path) -> None:
    whole = gguf(LLAMA, (F32_TENSOR,), data_bytes=128)
    path = tmp_path / "model.gguf"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ModelFileError):
            read_header(path)
    path.write_bytes(whole)
    assert len(read_header(path).tensors) == 1


def test_every_flipped_byte_is_read_or_reported(tmp_path: Path) -> None:
    whole = gguf(LLAMA, (F32_TENSOR,), data_bytes=128)
    path = tmp_path / "model.gguf"
    for position in range(len(whole) - 128):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0xFF]) + whole[position + 1 :])
        with contextlib.suppress(ModelFileError):
            read_header(path)


def test_folder_and_missing_file_and_pipe_are_refused(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    answers = []
    for path in (tmp_path, tmp_path / "none.gguf", pipe):
        with pytest.raises(ModelFileError) as caught:
            read_header(path)
        answers.append(str(caught.value))
    assert answers == [
        f"{tmp_path} is a folder, not a GGUF file",
        f"{tmp_path}/none.gguf does not exist",
        f"{pipe} is not a regular file",
    ]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_unreadable_file_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf())
    path.chmod(0)
    with pytest.raises(ModelFileError, match=r"cannot be read: Permission denied$"):
        read_header(path)
