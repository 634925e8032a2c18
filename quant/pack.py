"""A model's tensors as files of a worker's cache: the names by which the engine asks for them, and their digests.

A head asks a worker for each large weight by the FNV-1a-64 of its bytes, as 16 hexadecimal digits (`fnv_hash` and
`set_tensor_hash` in the pinned engine's `ggml-rpc.cpp`). That hash is weak, so that files are checked by a BLAKE2b.
Both take a second per gigabyte, and are kept for as long as the model's files stay as they are.
"""

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from fnv_c import fnv1a_64
from pydantic import TypeAdapter, ValidationError

from quant.errors import ModelFileError
from quant.gguf_writing import read_range
from quant.model import Model
from quant.piece import Piece
from quant.whole_file import files_digest, written_whole

_NAME_CHARACTERS = 48


@dataclass(frozen=True)
class Digests:
    """Of the bytes of a tensor, or of a piece of one: `name` is what the engine asks a worker for, `blake2b` what a
    file is checked by."""

    name: str
    blake2b: str


_KNOWN = TypeAdapter(dict[str, Digests])


def pack_name(model: Model) -> str:
    """Of the folder of its tensors on a host: readable, and another one for other files of the same name."""
    readable = re.sub(r"[^A-Za-z0-9-]+", "_", model.path.stem)[:_NAME_CHARACTERS].strip("_") or "model"
    return f"{readable}-{model.files_digest}"


def read_piece(model: Model, piece: Piece) -> bytes:
    """All its bytes; ModelFileError when the file has become shorter."""
    size = piece.stride_bytes * (piece.count - 1) + piece.run_bytes
    with model.shards[piece.tensor.shard].open("rb") as file:
        data = read_range(file, piece.offset, piece.offset + size)
    starts = range(0, size, piece.stride_bytes or size)
    return data if piece.count == 1 else b"".join(data[start : start + piece.run_bytes] for start in starts)


def check_unchanged(model: Model) -> None:
    """ModelFileError when its files are others by now than were read: tensors would be cut at the wrong places."""
    if files_digest(model.shards) != model.files_digest:
        raise ModelFileError(f"{model.path} has changed since it was read", hint="start again")


def engine_name(data: bytes) -> str:
    """By which the engine asks for a tensor of these bytes."""
    return f"{fnv1a_64(data):016x}"


def blake2b_digest(data: bytes) -> str:
    """In 128 hexadecimal digits."""
    return hashlib.blake2b(data).hexdigest()


class DigestBook:
    """The digests of one model's tensors and pieces of them as far as they are known, kept in a file of `folder`.

    A file that cannot be read is as good as none: all in it can be worked out again.
    """

    def __init__(self, model: Model, folder: Path) -> None:
        self._path = folder / f"{model.files_digest}.json"
        self._known = _read(self._path)

    def of(self, piece: Piece) -> Digests | None:
        return self._known.get(piece.name)

    def add(self, piece: Piece, digests: Digests) -> None:
        self._known[piece.name] = digests

    def save(self) -> None:
        """Whole, with what another process has written meanwhile."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._known = {**_read(self._path), **self._known}
        with written_whole(self._path) as partial:
            partial.write_text(json.dumps({name: asdict(one) for name, one in self._known.items()}))


def _read(path: Path) -> dict[str, Digests]:
    try:
        return _KNOWN.validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return {}
