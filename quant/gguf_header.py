"""Read the header of one GGUF file: metadata and the list of tensors, never their contents.

The file may be broken or made to harm: every length is checked against what the file has left before it is used,
nothing longer than it needs to be is kept, and every failure is a ModelFileError. The `gguf` package's own reader
trusts counts (2^60 numbers in an array keep it busy for ever) and takes seconds on large vocabularies; the sizes of
the tensor types are its.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from quant.errors import ModelFileError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
FETCH_AGAIN = "fetch the file again, and compare its size or checksum with what its publisher states"

_HEADER_LIMIT_BYTES = 64 * 1024 * 1024
"""Four times what the largest vocabularies (262,144 words with merges) take."""

_FACT_LIMIT = 10_000
_TENSOR_LIMIT = 100_000
_KEPT_ARRAY_ITEMS = 4096
_TEXT_LIMIT_BYTES = 4 * 1024 * 1024
_NAME_LIMIT_BYTES = 65535
_LARGEST_DIMENSIONS = 4
_LARGEST_COUNT = 2**48

_SCALARS = {
    GGUFValueType.UINT8: "<B",
    GGUFValueType.INT8: "<b",
    GGUFValueType.UINT16: "<H",
    GGUFValueType.INT16: "<h",
    GGUFValueType.UINT32: "<I",
    GGUFValueType.INT32: "<i",
    GGUFValueType.FLOAT32: "<f",
    GGUFValueType.BOOL: "<?",
    GGUFValueType.UINT64: "<Q",
    GGUFValueType.INT64: "<q",
    GGUFValueType.FLOAT64: "<d",
}

_OTHER_FORMATS = (
    (b"version https://git-lfs", "a Git LFS pointer, which stands for the real file"),
    (b"<!doctype", "an HTML page"),
    (b"<html", "an HTML page"),
    (b"<?xml", "an XML page"),
    (b"PK\x03\x04", "a zip archive or a PyTorch checkpoint"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive"),
    (b"\x80\x02", "a Python pickle"),
    (b"lmgg", "a GGML file, the format before GGUF"),
    (b"fmgg", "a GGML file, the format before GGUF"),
    (b"tjgg", "a GGML file, the format before GGUF"),
    (b"algg", "a GGML adapter, the format before GGUF"),
    (b"{", "a JSON file"),
    (b"\0" * 16, "an unfinished download: it starts with zeros"),
)

Scalar = int | float | bool | str


@dataclass(frozen=True)
class Array:
    """An array of the metadata: how many items, and the items themselves when they are few numbers."""

    count: int
    items: tuple[Scalar, ...]


@dataclass(frozen=True)
class TensorInfo:
    """One entry of the list of tensors; `end` is where it ends, in bytes from the file's start."""

    name: str
    type: str
    shape: tuple[int, ...]
    size_bytes: int
    end: int


@dataclass(frozen=True)
class Header:
    """The metadata by key, and the tensors in the file's order.

    `places`: where each fact's entry (key, type and value) starts and ends, in bytes from the file's start.
    """

    facts: Mapping[str, Scalar | Array]
    places: Mapping[str, tuple[int, int]]
    tensors: tuple[TensorInfo, ...]


def read_header(path: Path) -> Header:
    """Read one file's header and check that every tensor lies inside the file; ModelFileError otherwise."""
    try:
        if path.is_dir():
            raise ModelFileError(f"{path} is a folder, not a GGUF file", hint="name the .gguf file itself")
        if path.exists() and not path.is_file():
            raise ModelFileError(f"{path} is not a regular file", hint="name the .gguf file itself")
        size_bytes = path.stat().st_size
        with path.open("rb") as file:
            return _HeaderReader(path, file, size_bytes).read()
    except FileNotFoundError as error:
        raise ModelFileError(
            f"{path} does not exist", hint="check the path; it may be relative to another folder"
        ) from error
    except OSError as error:
        raise ModelFileError(
            f"{path} cannot be read: {error.strerror}", hint="check its owner and permissions"
        ) from error


class _HeaderReader:
    """A position in one file that never goes beyond the file's end or the header limit."""

    def __init__(self, path: Path, file: BinaryIO, size_bytes: int) -> None:
        self._path = path
        self._file = file
        self._size_bytes = size_bytes
        self._position = 0
        self._part = "the first bytes"

    def read(self) -> Header:
        self._check_magic()
        tensor_count, fact_count = self._count("tensors", _TENSOR_LIMIT), self._count("metadata entries", _FACT_LIMIT)
        self._part = "the metadata"
        facts: dict[str, Scalar | Array] = {}
        places: dict[str, tuple[int, int]] = {}
        for _ in range(fact_count):
            start, key = self._position, self._text(_NAME_LIMIT_BYTES)
            if key in facts:
                raise self._damaged(f"{key} is there twice")
            facts[key] = self._value()
            places[key] = start, self._position
        self._part = "the list of tensors"
        entries = self._tensor_entries(tensor_count)
        return Header(facts, places, self._placed(entries, facts))

    def _check_magic(self) -> None:
        start = self._file.read(64)
        if not start:
            raise ModelFileError(f"{self._path} is empty", hint=FETCH_AGAIN)
        if start[:4] != MAGIC:
            raise ModelFileError(
                f"{self._path} is not a GGUF file{_seems(start)}", hint="meshctl runs models in the GGUF format (.gguf)"
            )
        self._file.seek(4)
        self._position = 4
        version = self._number("<I")
        if version & 0xFFFF == 0:
            raise ModelFileError(f"{self._path} is a big-endian GGUF file", hint="use a little-endian one")
        if version not in VERSIONS:
            raise ModelFileError(
                f"{self._path} has GGUF version {version}; the engine reads versions 2 and 3",
                hint="fetch a newer conversion of this model" if version < 2 else "a newer meshctl may read it",
            )

    def _value(self) -> Scalar | Array:
        kind = self._value_type()
        if kind is GGUFValueType.STRING:
            return self._text(_TEXT_LIMIT_BYTES)
        if kind is GGUFValueType.ARRAY:
            return self._array()
        return self._scalar(_SCALARS[kind])

    def _value_type(self) -> GGUFValueType:
        number = self._number("<I")
        try:
            return GGUFValueType(number)
        except ValueError:
            raise self._damaged(f"it has a value of the unknown type {number}") from None

    def _array(self) -> Array:
        kind, count = self._value_type(), self._number("<Q")
        if kind is GGUFValueType.ARRAY:
            raise self._damaged("it has an array of arrays")
        if kind is GGUFValueType.STRING:
            self._need(count * 8)
            for _ in range(count):
                self._skip(self._number("<Q"))
            return Array(count, ())
        form = _SCALARS[kind]
        if count <= _KEPT_ARRAY_ITEMS:
            return Array(count, tuple(self._scalar(form) for _ in range(count)))
        self._skip(count * struct.calcsize(form))
        return Array(count, ())

    def _tensor_entries(self, count: int) -> list[tuple[str, tuple[int, ...], int, int]]:
        """Name, shape, type number and offset of each tensor."""
        self._need(count * 32)
        entries = []
        for _ in range(count):
            name = self._text(_NAME_LIMIT_BYTES)
            dimensions = self._number("<I")
            if not 1 <= dimensions <= _LARGEST_DIMENSIONS:
                raise self._damaged(f"tensor {name} has {dimensions} dimensions")
            shape = tuple(self._number("<Q") for _ in range(dimensions))
            entries.append((name, shape, self._number("<I"), self._number("<Q")))
        return entries

    def _placed(
        self, entries: list[tuple[str, tuple[int, ...], int, int]], facts: Mapping[str, Scalar | Array]
    ) -> tuple[TensorInfo, ...]:
        alignment = facts.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise self._damaged(f"general.alignment is {alignment}, not a power of two")
        data_start = -(-self._position // alignment) * alignment
        tensors = tuple(self._tensor(*entry, data_start) for entry in entries)
        if len({tensor.name for tensor in tensors}) < len(tensors):
            raise self._damaged("two tensors have the same name")
        end = max((tensor.end for tensor in tensors), default=0)
        if end > self._size_bytes:
            raise ModelFileError(
                f"{self._path} is truncated: {end - self._size_bytes:,} of {end:,} bytes are missing", hint=FETCH_AGAIN
            )
        return tensors

    def _tensor(self, name: str, shape: tuple[int, ...], type_number: int, offset: int, data_start: int) -> TensorInfo:
        try:
            kind = GGMLQuantizationType(type_number)
        except ValueError:
            raise ModelFileError(
                f"{self._path}: tensor {name} has the type {type_number}, which meshctl does not know",
                hint="choose another quantisation of this model",
            ) from None
        block, block_bytes = GGML_QUANT_SIZES[kind]
        elements = prod(shape)
        if not 0 < elements <= _LARGEST_COUNT or offset > _LARGEST_COUNT or shape[0] % block:
            raise self._damaged(f"tensor {name} has the impossible shape {'x'.join(map(str, shape))} for {kind.name}")
        size_bytes = elements // block * block_bytes
        return TensorInfo(name, kind.name, shape, size_bytes, data_start + offset + size_bytes)

    def _count(self, what: str, limit: int) -> int:
        count = self._number("<Q")
        if count > limit:
            raise self._damaged(f"it announces {count:,} {what}")
        return count

    def _number(self, form: str) -> int:
        return int(self._scalar(form))

    def _scalar(self, form: str) -> int | float | bool:
        value: int | float | bool = struct.unpack(form, self._take(struct.calcsize(form)))[0]
        return value

    def _text(self, limit_bytes: int) -> str:
        length = self._number("<Q")
        self._need(length)
        if length > limit_bytes:
            raise self._damaged(f"it has a text of {length:,} bytes")
        return self._take(length).decode(errors="replace")

    def _take(self, count: int) -> bytes:
        self._need(count)
        data = self._file.read(count)
        if len(data) < count:
            raise self._broken_off()
        self._position += count
        return data

    def _skip(self, count: int) -> None:
        self._need(count)
        self._file.seek(count, 1)
        self._position += count

    def _need(self, count: int) -> None:
        if self._position + count > self._size_bytes:
            raise self._broken_off()
        if self._position + count > _HEADER_LIMIT_BYTES:
            raise self._damaged(f"its header takes more than {_HEADER_LIMIT_BYTES:,} bytes")

    def _broken_off(self) -> ModelFileError:
        return ModelFileError(
            f"{self._path} is truncated or damaged: its {self._size_bytes:,} bytes end within {self._part}",
            hint=FETCH_AGAIN,
        )

    def _damaged(self, what: str) -> ModelFileError:
        return ModelFileError(f"{self._path} is damaged: {what}", hint=FETCH_AGAIN)


def _seems(start: bytes) -> str:
    """What else the file seems to be, for the message; "" when nothing known fits."""
    if start[8:10] == b'{"':
        return "; it seems to be a safetensors file"
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n")
    for opening, name in _OTHER_FORMATS:
        if start.startswith(opening) or text.lower().startswith(opening):
            return f"; it seems to be {name}"
    return ""
