"""Write a GGUF file of parts of others, byte by byte: what slices, shards and joined shards have in common.

A piece is in memory at a time. (The `gguf` package's writer takes apart and rebuilds every word of the vocabulary: 8 s
for 152,000, here 0.2 s.)
"""

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import BinaryIO

from gguf import GGMLQuantizationType, GGUFValueType

from quant.errors import ModelFileError
from quant.gguf_header import FETCH_AGAIN, MAGIC, Header, TensorInfo

OnBytes = Callable[[int], None]
"""Called with the bytes that were written since the last call."""

_START = struct.Struct("<IQQ")
_PIECE_BYTES = 8 * 1024 * 1024
_NUMBERS = {GGUFValueType.UINT16: "<H", GGUFValueType.INT32: "<i"}


@dataclass(frozen=True)
class Part:
    """A tensor, and the file that it is copied from."""

    info: TensorInfo
    source: Path


@dataclass(frozen=True)
class NewFile:
    """A file to write: `facts` are the entries of its metadata as they will stand in it."""

    version: int
    alignment: int
    facts: tuple[bytes, ...]
    parts: tuple[Part, ...] = ()

    @property
    def size_bytes(self) -> int:
        data = sum(padded(part.info.size_bytes, self.alignment) for part in self.parts)
        return padded(self.header_bytes, self.alignment) + data

    @property
    def header_bytes(self) -> int:
        """Without what fills it up to the first tensor."""
        entries = sum(entry_bytes(part.info) for part in self.parts)
        return len(MAGIC) + _START.size + sum(map(len, self.facts)) + entries


def parts_of(path: Path, header: Header) -> tuple[Part, ...]:
    """All tensors of one file."""
    return tuple(Part(info, path) for info in header.tensors)


def fact_entries(path: Path, header: Header) -> Mapping[str, bytes]:
    """The metadata of one file by key, each entry (key, type and value) as its bytes."""
    with path.open("rb") as source:
        return {key: read_range(source, *place) for key, place in header.places.items()}


def number_entry(key: str, kind: GGUFValueType, number: int) -> bytes:
    """An entry of the metadata: a number of 2 or 4 bytes."""
    name = key.encode()
    return struct.pack("<Q", len(name)) + name + struct.pack("<I", kind) + struct.pack(_NUMBERS[kind], number)


def padded(size_bytes: int, alignment: int) -> int:
    return size_bytes + -size_bytes % alignment


def entry_bytes(info: TensorInfo) -> int:
    """What its entry in the list of tensors takes."""
    return 8 + len(info.name.encode()) + 4 + 8 * len(info.shape) + 4 + 8


def write_gguf(new: NewFile, path: Path, on_bytes: OnBytes = lambda count: None) -> None:
    """Write all of it to `path`. ModelFileError when a source becomes shorter meanwhile."""
    with path.open("wb") as target:
        on_bytes(_write_header(new, target))
        for source, parts in groupby(new.parts, key=lambda part: part.source):
            with source.open("rb") as file:
                for part in parts:
                    _copy(file, part.info, target, on_bytes)
                    _pad(target, new.alignment)


def write_gguf_with(weights: Callable[[TensorInfo], memoryview], new: NewFile, path: Path) -> None:
    """The same with these bytes in each tensor, whatever the sources have."""
    with path.open("wb") as target:
        _write_header(new, target)
        for part in new.parts:
            target.write(weights(part.info))
            _pad(target, new.alignment)


def _write_header(new: NewFile, target: BinaryIO) -> int:
    """Where the first tensor begins."""
    target.write(MAGIC + _START.pack(new.version, len(new.parts), len(new.facts)))
    target.writelines(new.facts)
    offset = 0
    for part in new.parts:
        target.write(_entry(part.info, offset))
        offset += padded(part.info.size_bytes, new.alignment)
    return _pad(target, new.alignment)


def read_range(source: BinaryIO, start: int, end: int) -> bytes:
    """These bytes of a file; ModelFileError when it has become shorter."""
    source.seek(start)
    data = source.read(end - start)
    if len(data) < end - start:
        raise ModelFileError(f"{source.name} has become shorter while it was read", hint=FETCH_AGAIN)
    return data


def _pad(target: BinaryIO, alignment: int) -> int:
    """Fill up with zeros; where the file ends then."""
    target.write(bytes(-target.tell() % alignment))
    return target.tell()


def _entry(info: TensorInfo, offset: int) -> bytes:
    name, kind = info.name.encode(), GGMLQuantizationType[info.type]
    shape = struct.pack(f"<I{len(info.shape)}Q", len(info.shape), *info.shape)
    return struct.pack("<Q", len(name)) + name + shape + struct.pack("<IQ", kind, offset)


def _copy(source: BinaryIO, info: TensorInfo, target: BinaryIO, on_bytes: OnBytes) -> None:
    for start in range(info.end - info.size_bytes, info.end, _PIECE_BYTES):
        on_bytes(target.write(read_range(source, start, min(start + _PIECE_BYTES, info.end))))
