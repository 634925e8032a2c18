"""Perplexities as they were measured, kept by the model's files: measuring one takes minutes to hours.

A model is known by its files' digest (`Model.files_digest`: names, sizes, times of change), a text by its bytes. A file
that cannot be read counts as empty: all in it can be measured again.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from pydantic import TypeAdapter, ValidationError

from orchestrator.state import write_private
from workers.perplexity_output import Perplexity

_MOST_OF_A_MODEL = 100


@dataclass(frozen=True)
class Circumstances:
    """What a perplexity is of, beside the model; `chunks` is what was asked for, None all of the text. The same model
    on another engine differs in the last digits only, yet is measured anew."""

    text_digest: str
    context: int
    chunks: int | None
    engine: str


@dataclass(frozen=True)
class MeasuredPerplexity:
    """A measurement; `text` is what the file was called."""

    circumstances: Circumstances
    text: str
    perplexity: Perplexity


_FILE = TypeAdapter(tuple[MeasuredPerplexity, ...])


def measured_perplexities(cache: Path, model_digest: str) -> tuple[MeasuredPerplexity, ...]:
    """Everything that was measured of the model with this `files_digest`, oldest first; values of the same text,
    context and chunks can be compared between models with the same tokenizer, others cannot."""
    try:
        return _FILE.validate_json(_path(cache, model_digest).read_bytes())
    except (OSError, ValidationError):
        return ()


def keep_perplexity(cache: Path, model_digest: str, measured: MeasuredPerplexity) -> None:
    """In the place of an earlier measurement in the same circumstances."""
    path = _path(cache, model_digest)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        others = [
            one for one in measured_perplexities(cache, model_digest) if one.circumstances != measured.circumstances
        ]
        kept = (*others, measured)[-_MOST_OF_A_MODEL:]
        write_private(path, _FILE.dump_json(kept, indent=2).decode())


def text_digest(text: Path) -> str:
    """Of the text's bytes."""
    with text.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:24]


def _path(cache: Path, model_digest: str) -> Path:
    return cache / "perplexity" / f"{model_digest}.json"
