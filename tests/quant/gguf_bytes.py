"""Build GGUF headers byte by byte, right or wrong, for tests."""

import struct
from collections.abc import Sequence

UINT32, STRING, ARRAY, UINT64 = 4, 8, 9, 10


def text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def fact(key: str, kind: int, data: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + data


def number(key: str, value: int) -> bytes:
    return fact(key, UINT32, struct.pack("<I", value))


def words(key: str, value: str) -> bytes:
    return fact(key, STRING, text(value))


def tensor(name: str, shape: Sequence[int], kind: int = 0, offset: int = 0) -> bytes:
    dimensions = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name) + dimensions + struct.pack("<IQ", kind, offset)


def gguf(facts: Sequence[bytes] = (), tensors: Sequence[bytes] = (), *, version: int = 3, data_bytes: int = 0) -> bytes:
    """A whole file: header, padding to 32 bytes, `data_bytes` zeros."""
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(facts)) + b"".join((*facts, *tensors))
    return head + bytes(-len(head) % 32) + bytes(data_bytes)


LLAMA = (
    words("general.architecture", "llama"),
    number("llama.block_count", 1),
    number("llama.context_length", 128),
    number("llama.embedding_length", 8),
    number("llama.attention.head_count", 2),
)
