"""Read an importance matrix: how much each input of a tensor matters, measured on text by the engine's `llama-imatrix`.

Both formats that are published: GGUF, and the older one without a magic number (".dat"). Files come from others, so
every length is checked against what the file has left. The arithmetic is that of `load_imatrix` in `quantize.cpp`.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quant.errors import QuantiseError
from quant.gguf_header import MAGIC, Header, TensorInfo, printable, read_header

_SUMS, _COUNTS = ".in_sum2", ".counts"
_WORDS = "token_embd.weight"
"""The engine leaves out what a matrix has for it where that does not fit."""

_LONGEST_NAME = 1024
_MAKE_AGAIN = "make or fetch it again: llama.cpp's llama-imatrix writes it, publishers put it beside their models"

Values = NDArray[np.float32]


@dataclass(frozen=True)
class Importance:
    """The values by tensor, as many as a row of it has elements (times its experts); `chunks` of text it was measured
    on, 0 where that is not known, and what that text was called."""

    values: Mapping[str, Values]
    chunks: int = 0
    text: str = ""


def read_importance(path: Path) -> Importance:
    """Read the matrix; QuantiseError when it is none, is damaged, or holds what is no number."""
    try:
        with path.open("rb") as file, np.errstate(all="ignore"):  # what is no number is refused below
            found = _read_gguf(path) if file.read(len(MAGIC)) == MAGIC else _read_legacy(path)
    except OSError as error:
        raise QuantiseError(f"{path} cannot be read: {error.strerror}", hint="check the path of --imatrix") from error
    if not found.values:
        raise _damaged(path, "it has no values")
    wrong = [name for name, values in found.values.items() if not np.isfinite(values).all()]
    if wrong:
        raise _damaged(path, f"the values of {wrong[0]} are no numbers")
    return found


def check_importance(path: Path, importance: Importance, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """QuantiseError where the matrix at `path` is none of a model whose tensors have these names and shapes."""
    known = [name for name in importance.values if name in shapes]
    if not known:
        other = printable(next(iter(importance.values)))
        raise _of_another(path, f"it is of tensors such as {other}, which this one does not have")
    for name in known:
        there, needed = importance.values[name].size, _values_of(shapes[name])
        if there != needed and name != _WORDS:
            raise _of_another(path, f"{name} has {there} values there and takes {needed}")


def _values_of(shape: tuple[int, ...]) -> int:
    """One for each element of a row, for each expert."""
    return shape[0] * (shape[2] if len(shape) > 2 else 1)


def _of_another(path: Path, why: str) -> QuantiseError:
    hint = "choose the matrix of this very model; publishers put it beside it"
    return QuantiseError(f"{path} is the importance matrix of another model: {why}", hint=hint)


def _damaged(path: Path, why: str) -> QuantiseError:
    return QuantiseError(f"{path} is no importance matrix that can be used: {why}", hint=_MAKE_AGAIN)


def _read_gguf(path: Path) -> Importance:
    header = read_header(path)
    tensors = {tensor.name: tensor for tensor in header.tensors}
    names = [name.removesuffix(_SUMS) for name in tensors if name.endswith(_SUMS)]
    values = {}
    for name in names:
        counts = tensors.get(name + _COUNTS)
        if counts is None or counts.type != "F32" or tensors[name + _SUMS].type != "F32":
            raise _damaged(path, f"{name} has no sums and counts as F32")
        values[name] = _averages(path, name, _floats(path, tensors[name + _SUMS]), _floats(path, counts))
    return Importance(values, _number(header, "imatrix.chunk_count"))


def _floats(path: Path, tensor: TensorInfo) -> Values:
    """Of a tensor that the header's reader has found to lie inside the file."""
    count = tensor.size_bytes // 4
    return np.fromfile(path, dtype="<f4", count=count, offset=tensor.end - tensor.size_bytes)


def _averages(path: Path, name: str, sums: Values, counts: Values) -> Values:
    """Per expert; one that no text has reached counts as 1 everywhere."""
    if not counts.size or sums.size % counts.size:
        raise _damaged(path, f"{name} has {sums.size} sums for {counts.size} counts")
    rows, each = sums.reshape(counts.size, -1), np.rint(counts)[:, np.newaxis]
    averages = np.divide(rows, each, out=np.ones_like(rows), where=each > 0)
    return averages.reshape(-1).astype(np.float32)


def _number(header: Header, key: str) -> int:
    value = header.facts.get(key, 0)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _read_legacy(path: Path) -> Importance:
    data = _Bytes(path, path.read_bytes())
    count = data.number("the number of its entries")
    if not 0 < count < len(data.data):
        raise _damaged(path, "it does not begin like one")
    values = dict(_legacy_entry(path, data) for _ in range(count))
    if data.left < 4:
        return Importance(values)
    chunks = data.number("how many chunks")
    return Importance(values, max(0, chunks), data.text("the name of its text") if data.left >= 4 else "")


def _legacy_entry(path: Path, data: "_Bytes") -> tuple[str, Values]:
    """Each value was multiplied by the number of calls when it was written."""
    name = data.text("the name of an entry")
    calls, count = data.number(name), data.number(name)
    if count < 1:
        raise _damaged(path, f"{name} has {count} values")
    values = np.frombuffer(data.take(4 * count, name), dtype="<f4")
    return name, (values / calls if calls > 0 else values).astype(np.float32)


class _Bytes:
    """A position in the file's bytes that never goes beyond their end."""

    def __init__(self, path: Path, data: bytes) -> None:
        self.data = data
        self._path = path
        self._position = 0

    @property
    def left(self) -> int:
        return len(self.data) - self._position

    def take(self, count: int, what: str) -> bytes:
        if not 0 <= count <= self.left:
            raise _damaged(self._path, f"it ends within {what}")
        self._position += count
        return self.data[self._position - count : self._position]

    def number(self, what: str) -> int:
        return int(struct.unpack("<i", self.take(4, what))[0])

    def text(self, what: str) -> str:
        length = self.number(what)
        if length > _LONGEST_NAME:
            raise _damaged(self._path, f"{what} has {length} bytes")
        return self.take(length, what).rstrip(b"\0").decode(errors="replace")
