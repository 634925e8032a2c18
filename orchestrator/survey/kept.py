"""What was measured is kept in files, one value each, for later surveys; it can always be measured again."""

from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from orchestrator.state import write_private

T = TypeVar("T")


def read_kept(file: Path, values: TypeAdapter[T]) -> T | None:
    """A value measured before; anything unreadable counts as not there."""
    with suppress(OSError, ValidationError):
        return values.validate_json(file.read_bytes())
    return None


def write_kept(file: Path, values: TypeAdapter[T], value: T) -> None:
    """Keep a value, its folder made."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_private(file, values.dump_json(value, indent=2).decode())
