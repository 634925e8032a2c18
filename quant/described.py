"""Descriptions that are kept: a header with a large vocabulary is read once for each state of the files."""

import hashlib
from contextlib import suppress
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from quant.description import Description, describe
from quant.whole_file import files_digest, written_whole

_FORM = 1
"""Counted up when a description says more, or something else, than before."""

_STORED = TypeAdapter(Description)


def described(path: Path, folder: Path) -> Description:
    """The description of the model at `path`, as it was kept in `folder` if its files have not changed since.

    Kept by path, sizes and times of change. Errors are those of `describe`. What is kept may be lost at any time.
    """
    stored = folder / f"{_key(path)}.json"
    known = _read(stored)
    if known is not None and known.path == path and _digest_now(known.shards) == known.files_digest:
        return known
    description = describe(path)
    _keep(stored, description)
    return description


def _key(path: Path) -> str:
    facts = f"{_FORM} {path.absolute()}".encode(errors="surrogateescape")
    return hashlib.sha256(facts).hexdigest()[:24]


def _digest_now(files: tuple[Path, ...]) -> str:
    try:
        return files_digest(files)
    except OSError:
        return ""


def _read(stored: Path) -> Description | None:
    try:
        return _STORED.validate_json(stored.read_bytes())
    except (OSError, ValidationError):
        return None


def _keep(stored: Path, description: Description) -> None:
    """Where that is possible: a folder that nobody may write to, or a name that is no text, is no reason to fail."""
    with suppress(OSError, ValueError):
        stored.parent.mkdir(parents=True, exist_ok=True)
        data = _STORED.dump_json(description)
        with written_whole(stored) as partial:
            partial.write_bytes(data)
