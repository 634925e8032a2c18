"""What a quantised file was made of: it does not say so itself, and its name may be that of another model's.

Kept in the cache by the file's own digest (names, sizes, times of change): of one that somebody else has written since,
nothing is known.
"""

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from quant.errors import QuantError
from quant.gguf_file import read_model
from quant.model import Model
from quant.whole_file import files_digest, written_whole

FOLDER = "made"


@dataclass(frozen=True)
class Made:
    """A file that was made: `path` and `digest` are its own, `source` and `source_digest` those of the model that it
    was made of. `lost`: the types in which that had lost precision before, the most bytes first; none: it had all."""

    path: str
    digest: str
    quantisation: str
    source: str
    source_digest: str
    lost: tuple[str, ...] = ()

    @property
    def is_there(self) -> bool:
        """Where it was put, and as it was."""
        path = Path(self.path)
        return path.is_file() and files_digest((path,)) == self.digest


def write_made(cache: Path, made: Made) -> None:
    """Remember it."""
    place = _place(cache, made.digest)
    place.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(place) as partial:
        partial.write_text(json.dumps(asdict(made), indent=2))


def read_made(cache: Path, digest: str) -> Made | None:
    """What the file with this digest was made of; None where that is not known, as of all that was not made here."""
    try:
        content = json.loads(_place(cache, digest).read_bytes())
        return Made(**{**content, "lost": tuple(content["lost"])})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def lost_before(cache: Path, model: Model) -> tuple[str, ...]:
    """The types in which what this model was made of had lost precision, whatever type it has itself."""
    made = read_made(cache, model.files_digest)
    return made.lost if made else ()


def made_of(cache: Path, source_digest: str) -> tuple[Made, ...]:
    """What was made of the model with this `files_digest`, and is there, by path."""
    records = (read_made(cache, place.stem) for place in (cache / FOLDER).glob("*.json"))
    found = (made for made in records if made and made.source_digest == source_digest and made.is_there)
    return tuple(sorted(found, key=lambda made: made.path))


def origin_of(cache: Path, model: Model) -> Model:
    """What it was made of, and that of, and so on, as far as these are where they were; else the model itself."""
    made = read_made(cache, model.files_digest)
    if made is None:
        return model
    with suppress(QuantError, OSError):
        source = read_model(Path(made.source))
        if source.files_digest == made.source_digest:
            return origin_of(cache, source)
    return model


def _place(cache: Path, digest: str) -> Path:
    return cache / FOLDER / f"{digest}.json"
