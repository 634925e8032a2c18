"""Files that appear whole or not at all, also where several write one at once; and whether files are the same."""

import hashlib
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from quant.errors import NoRoomError, QuantError
from quant.sizes import size_text

DISK_RESERVE_BYTES = 64 << 20
"""Left free on every disk that is written to."""


def check_room(
    folder: Path,
    size_bytes: int,
    what: str,
    *,
    error: type[QuantError] = NoRoomError,
    hint: str = "make room there, or name a folder on another disk",
) -> None:
    """That error when the disk of `folder` has no place for `size_bytes`; `what` needs them."""
    needed, free = size_bytes + DISK_RESERVE_BYTES, shutil.disk_usage(folder).free
    if free < needed:
        raise error(f"{what} needs {size_text(needed)} of disk; {folder} has {size_text(free)} free", hint=hint)


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; renamed to it at the end of the block, taken away when the block fails."""
    with written_together((path,)) as (partial,):
        yield partial


@contextmanager
def written_together(paths: tuple[Path, ...]) -> Iterator[tuple[Path, ...]]:
    """The same for several that make no sense alone: the first one appears last, and all or none of them."""
    mark = secrets.token_hex(4)
    partials = tuple(path.with_name(f"{path.name}.{mark}.partial") for path in paths)
    placed: list[Path] = []
    try:
        yield partials
        for partial, path in reversed(tuple(zip(partials, paths, strict=True))):
            partial.replace(path)
            placed.append(path)
    finally:
        for path in placed if len(placed) < len(paths) else ():
            path.unlink(missing_ok=True)
        for partial in partials:
            partial.unlink(missing_ok=True)


def files_digest(files: Iterable[Path]) -> str:
    """Twelve digits for exactly these files, by their names, sizes and times of change: nothing of them is read."""
    facts = [f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files]
    return hashlib.sha256("\n".join(facts).encode(errors="surrogateescape")).hexdigest()[:12]
