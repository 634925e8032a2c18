"""What a name led to when it was pulled: files with sizes and hashes, so that it leads there again without a network.

A file that has been compared with its hash is not read again as long as nobody has changed it since.
"""

import hashlib
import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from quant.whole_file import written_whole

FOLDER = "names"


@dataclass(frozen=True)
class PulledFile:
    """A file as it was when it was right; `changed_ns` is its ctime then. `digest` is "" where it is unknown.

    `validator` is the ETag or date that a web server stated of it, "" where none did.
    """

    path: str
    size_bytes: int
    digest: str
    changed_ns: int
    validator: str = ""

    @property
    def is_there(self) -> bool:
        """By its size: files have their names only when they are whole."""
        path = Path(self.path)
        return path.is_file() and path.stat().st_size == self.size_bytes

    @property
    def is_untouched(self) -> bool:
        return self.is_there and Path(self.path).stat().st_ctime_ns == self.changed_ns


def pulled_file(path: Path, digest: str, validator: str = "") -> PulledFile:
    """Of a file that is right at this moment."""
    facts = path.stat()
    return PulledFile(str(path), facts.st_size, digest, facts.st_ctime_ns, validator)


def read_pulled(cache: Path, name: str) -> tuple[PulledFile, ...]:
    """The files that this name led to; nothing where that is not known."""
    return _read(_place(cache, name))


def names_of(cache: Path, path: str) -> tuple[Path, ...]:
    """What remembers the names that lead to this file. Whoever uses the file holds these as in use: it may lie in a
    folder of other programs, where nothing of ours is put beside it."""
    return tuple(place for place in _places(cache) if any(file.path == path for file in _read(place)))


def _read(place: Path) -> tuple[PulledFile, ...]:
    try:
        return tuple(PulledFile(**one) for one in json.loads(place.read_bytes())["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return ()


def all_pulled(cache: Path) -> dict[str, tuple[PulledFile, ...]]:
    """Every name, and the files that it led to, which may be gone."""
    found = {}
    for place in _places(cache):
        with suppress(OSError, ValueError, KeyError, TypeError):
            name = str(json.loads(place.read_bytes())["name"])
            found[name] = _read(place)
    return found


def write_pulled(cache: Path, name: str, files: Iterable[PulledFile]) -> None:
    """Remember where this name leads."""
    place = _place(cache, name)
    place.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(place) as partial:
        partial.write_text(json.dumps({"name": name, "files": [asdict(file) for file in files]}, indent=2))


def forget_pulled(cache: Path, name: str) -> None:
    """It is asked for anew the next time."""
    _place(cache, name).unlink(missing_ok=True)


def _places(cache: Path) -> list[Path]:
    return sorted((cache / FOLDER).glob("*.json"))


def _place(cache: Path, name: str) -> Path:
    return cache / FOLDER / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.json"
