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

from quant.errors import ModelFileError, UnfinishedHeaderError
from quant.other_formats import seems

MAGIC = b"GGUF"
VERSIONS = (2, 3)
FETCH_AGAIN = "fetch the file again, and compare its size or checksum with what its publisher states"

HEADER_LIMIT_BYTES = 64 * 1024 * 1024
"""Four times what the largest vocabularies (262,144 words with merges) take."""

_FACT_LIMIT = 10_000
_TENSOR_LIMIT = 100_000
_KEPT_ARRAY_ITEMS = 4096
_KEPT_ITEMS_IN_ALL = 2**18
"""Real headers have a few hundred; beyond this arrays are skipped like long ones."""

_DEFAULT_ALIGNMENT = 32
_LARGEST_ALIGNMENT = 2**20
_SHOWN_CHARACTERS = 64
_SKIP_PIECE_BYTES = 1024 * 1024
_TEXT_LIMIT_BYTES = 4 * 1024 * 1024
_TEXTS_LIMIT_BYTES = 16 * 1024 * 1024
"""Of all keys, texts and names of tensors; words of a vocabulary are not kept."""

_NAME_LIMIT_BYTES = 65535
_TENSOR_NAME_LIMIT_BYTES = 63
"""The engine refuses longer ones (GGML_MAX_NAME of ggml.h)."""

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
    """The metadata by key, and the tensors in the file's order, each at the first aligned byte after the one before.

    `places`: where each fact's entry (key, type and value) starts and ends, in bytes from the file's start.
    """

    version: int
    alignment: int
    facts: Mapping[str, Scalar | Array]
    places: Mapping[str, tuple[int, int]]
    tensors: tuple[TensorInfo, ...]


def printable(text: str) -> str:
    """What a file says of itself as one short line without control characters: it shall not drive a terminal."""
    line = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text[:512])
    return f"{line[:_SHOWN_CHARACTERS]}..." if len(text) > _SHOWN_CHARACTERS else line


def read_header(path: Path, come_bytes: int | None = None) -> Header:
    """Read one file's header and check that every tensor lies inside the file; ModelFileError otherwise.

    `come_bytes`: how many of its bytes are there, where a file of its full size is still being filled;
    UnfinishedHeaderError where the header needs more of them.
    """
    try:
        if path.is_dir():
            raise ModelFileError(f"{path} is a folder, not a GGUF file", hint="name the .gguf file itself")
        if path.exists() and not path.is_file():
            raise ModelFileError(f"{path} is not a regular file", hint="name the .gguf file itself")
        size_bytes = path.stat().st_size
        with path.open("rb") as file:
            return _HeaderReader(path, file, size_bytes, size_bytes if come_bytes is None else come_bytes).read()
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

    def __init__(self, path: Path, file: BinaryIO, size_bytes: int, come_bytes: int) -> None:
        self._path = path
        self._file = file
        self._size_bytes = size_bytes
        self._come_bytes = come_bytes
        self._position = 0
        self._part = "the first bytes"
        self._kept_items = 0
        self._text_bytes = 0

    def read(self) -> Header:
        version = self._version()
        tensor_count, fact_count = self._count("tensors", _TENSOR_LIMIT), self._count("metadata entries", _FACT_LIMIT)
        self._part = "the metadata"
        facts: dict[str, Scalar | Array] = {}
        places: dict[str, tuple[int, int]] = {}
        for _ in range(fact_count):
            start, key = self._position, self._text(_NAME_LIMIT_BYTES)
            if key in facts:
                raise self._damaged(f"{printable(key)} is there twice")
            facts[key] = self._value()
            places[key] = start, self._position
        self._part = "the list of tensors"
        entries = self._tensor_entries(tensor_count)
        alignment = self._alignment(facts)
        return Header(version, alignment, facts, places, self._placed(entries, alignment))

    def _version(self) -> int:
        start = self._file.read(64)
        if not start:
            raise ModelFileError(f"{self._path} is empty", hint=FETCH_AGAIN)
        if start[:4] != MAGIC:
            raise ModelFileError(
                f"{self._path} is not a GGUF file{seems(start)}", hint="meshctl runs models in the GGUF format (.gguf)"
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
        return version

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
            self._skip_texts(count)
            return Array(count, ())
        form = _SCALARS[kind]
        size_bytes = struct.calcsize(form)
        if count > _KEPT_ARRAY_ITEMS or self._kept_items + count > _KEPT_ITEMS_IN_ALL:
            self._skip(count * size_bytes)
            return Array(count, ())
        self._kept_items += count
        return Array(count, struct.unpack(f"<{count}{form[1]}", self._take(count * size_bytes)))

    def _skip_texts(self, count: int) -> None:
        """The words of a vocabulary: a piece of many of them at a time, or half a million take seconds."""
        self._need(count * 8)
        length_of = struct.Struct("<Q").unpack_from
        piece, at = b"", 0
        for _ in range(count):
            if at + 8 > len(piece):
                self._skip(at - len(piece))
                piece, at = self._piece(), 0
            at += 8 + length_of(piece, at)[0]
        self._skip(at - len(piece))

    def _piece(self) -> bytes:
        """What comes next, at least a length of 8 bytes."""
        self._need(8)
        last = min(self._come_bytes, HEADER_LIMIT_BYTES)
        return self._take(min(_SKIP_PIECE_BYTES, last - self._position))

    def _tensor_entries(self, count: int) -> list[tuple[str, tuple[int, ...], int, int]]:
        """Name, shape, type number and offset of each tensor."""
        self._need(count * 32)
        entries = []
        for _ in range(count):
            name = self._tensor_name()
            dimensions = self._number("<I")
            if not 1 <= dimensions <= _LARGEST_DIMENSIONS:
                raise self._damaged(f"tensor {printable(name)} has {dimensions} dimensions")
            shape = tuple(self._number("<Q") for _ in range(dimensions))
            entries.append((name, shape, self._number("<I"), self._number("<Q")))
        return entries

    def _tensor_name(self) -> str:
        data = self._text_data(_NAME_LIMIT_BYTES)
        if len(data) > _TENSOR_NAME_LIMIT_BYTES:
            raise self._damaged(f"a tensor has a name of {len(data):,} bytes; {_TENSOR_NAME_LIMIT_BYTES} are possible")
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise self._damaged("a tensor has a name that is no text") from None

    def _alignment(self, facts: Mapping[str, Scalar | Array]) -> int:
        alignment = facts.get("general.alignment", _DEFAULT_ALIGNMENT)
        number = alignment if isinstance(alignment, int) and not isinstance(alignment, bool) else 0
        if not 1 <= number <= _LARGEST_ALIGNMENT or number & (number - 1):
            said = printable(str(alignment))
            raise self._damaged(f"general.alignment is {said}, not a power of two up to {_LARGEST_ALIGNMENT:,}")
        return number

    def _placed(self, entries: list[tuple[str, tuple[int, ...], int, int]], alignment: int) -> tuple[TensorInfo, ...]:
        data_start = -(-self._position // alignment) * alignment
        tensors = tuple(self._tensor(*entry, data_start) for entry in entries)
        if len({tensor.name for tensor in tensors}) < len(tensors):
            raise self._damaged("two tensors have the same name")
        self._check_places(tensors, data_start, alignment)
        end = max((tensor.end for tensor in tensors), default=0)
        if end > self._size_bytes:
            raise ModelFileError(
                f"{self._path} is truncated: {end - self._size_bytes:,} of {end:,} bytes are missing", hint=FETCH_AGAIN
            )
        return tensors

    def _check_places(self, tensors: tuple[TensorInfo, ...], data_start: int, alignment: int) -> None:
        """As the engine does: so no two tensors share bytes, and no small file stands for endless ones."""
        expected = data_start
        for tensor in tensors:
            start = tensor.end - tensor.size_bytes
            if start != expected:
                at = f"begins at byte {start - data_start:,} of the weights, not at {expected - data_start:,}"
                raise self._damaged(f"tensor {printable(tensor.name)} {at}")
            expected = tensor.end + -tensor.end % alignment

    def _tensor(self, name: str, shape: tuple[int, ...], type_number: int, offset: int, data_start: int) -> TensorInfo:
        try:
            kind = GGMLQuantizationType(type_number)
        except ValueError:
            raise ModelFileError(
                f"{self._path}: tensor {printable(name)} has the type {type_number}, which meshctl does not know",
                hint="choose another quantisation of this model",
            ) from None
        block, block_bytes = GGML_QUANT_SIZES[kind]
        elements = prod(shape)
        if not 0 < elements <= _LARGEST_COUNT or offset > _LARGEST_COUNT or shape[0] % block:
            said = "x".join(map(str, shape))
            raise self._damaged(f"tensor {printable(name)} has the impossible shape {said} for {kind.name}")
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
        return self._text_data(limit_bytes).decode(errors="replace")

    def _text_data(self, limit_bytes: int) -> bytes:
        length = self._number("<Q")
        self._need(length)
        if length > limit_bytes:
            raise self._damaged(f"it has a text of {length:,} bytes")
        self._text_bytes += length
        if self._text_bytes > _TEXTS_LIMIT_BYTES:
            raise self._damaged(f"its texts take more than {_TEXTS_LIMIT_BYTES:,} bytes")
        return self._take(length)

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
        if self._position + count > HEADER_LIMIT_BYTES:
            raise self._damaged(f"its header takes more than {HEADER_LIMIT_BYTES:,} bytes")
        if self._position + count > self._come_bytes:
            raise UnfinishedHeaderError(
                f"{self._path}: only {self._come_bytes:,} of its bytes came; they end within {self._part}",
                hint=FETCH_AGAIN,
            )

    def _broken_off(self) -> ModelFileError:
        return ModelFileError(
            f"{self._path} is truncated or damaged: its {self._size_bytes:,} bytes end within {self._part}",
            hint=FETCH_AGAIN,
        )

    def _damaged(self, what: str) -> ModelFileError:
        return ModelFileError(f"{self._path} is damaged: {what}", hint=FETCH_AGAIN)
