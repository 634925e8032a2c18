"""The metadata of one model, asked by kind: every answer is checked, for files may state anything."""

from dataclasses import dataclass
from pathlib import Path

from quant.errors import ModelFileError
from quant.gguf_header import FETCH_AGAIN, Array, Header, printable

_LARGEST_LENGTH = 2**31


@dataclass(frozen=True)
class Facts:
    """What the header of a model's first file states; `path` is named in errors.

    Questions about lengths raise ModelFileError for what is missing without a default, or no possible number.
    """

    path: Path
    header: Header

    def has(self, key: str) -> bool:
        return key in self.header.facts

    def text(self, key: str, default: str) -> str:
        value = self.header.facts.get(key, default)
        return value if isinstance(value, str) else default

    def number(self, key: str, default: int | None = None) -> int:
        value = self.header.facts.get(key, default)
        if value is None:
            raise ModelFileError(f"{self.path} does not state {key}", hint=FETCH_AGAIN)
        return self._checked(key, value)

    def numbers(self, key: str, count: int, default: int | None = None) -> tuple[int, ...]:
        """One number per layer: the file states one for all or an array."""
        value = self.header.facts.get(key, default)
        if not isinstance(value, Array):
            return (self.number(key, default),) * count
        if len(value.items) < count:
            raise ModelFileError(f"{self.path}: {key} has {value.count} items for {count} layers", hint=FETCH_AGAIN)
        return tuple(self._checked(key, item) for item in value.items[:count])

    def integer(self, key: str) -> int | None:
        """Such as the number of a word; None where the file has none."""
        value = self.header.facts.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    def flags(self, key: str, count: int) -> tuple[bool, ...] | None:
        """One flag per layer, False for those that an array does not reach; None where the file has no array."""
        value = self.header.facts.get(key)
        if not isinstance(value, Array):
            return None
        told = tuple(bool(item) for item in value.items[:count])
        return told + (False,) * (count - len(told))

    def _checked(self, key: str, value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < _LARGEST_LENGTH:
            said = printable(repr(value))
            raise ModelFileError(f"{self.path}: {key} is {said}, not a possible number", hint=FETCH_AGAIN)
        return value
