"""What is kept of perplexities."""

from dataclasses import replace
from pathlib import Path

from orchestrator.perplexities import (
    Circumstances,
    MeasuredPerplexity,
    keep_perplexity,
    measured_perplexities,
    text_digest,
)
from workers.perplexity_output import Perplexity

OF = Circumstances("0f12", 512, None, "cpu-linux-x86_64-1")
MEASURED = MeasuredPerplexity(OF, "wiki.txt", Perplexity(9.5, 0.1, 40, 512))


def test_what_is_kept_is_found_again_by_the_models_digest(tmp_path: Path) -> None:
    shorter = replace(MEASURED, circumstances=replace(OF, chunks=4), perplexity=Perplexity(9.0, 0.5, 4, 512))
    keep_perplexity(tmp_path, "model", MEASURED)
    keep_perplexity(tmp_path, "model", shorter)
    keep_perplexity(tmp_path, "other", MEASURED)
    assert measured_perplexities(tmp_path, "model") == (MEASURED, shorter)
    assert measured_perplexities(tmp_path, "none") == ()


def test_the_same_measured_again_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    again = replace(MEASURED, perplexity=Perplexity(9.6, 0.1, 40, 512))
    keep_perplexity(tmp_path, "model", MEASURED)
    keep_perplexity(tmp_path, "model", again)
    assert measured_perplexities(tmp_path, "model") == (again,)


def test_a_file_that_cannot_be_read_counts_as_empty(tmp_path: Path) -> None:
    keep_perplexity(tmp_path, "model", MEASURED)
    (tmp_path / "perplexity" / "model.json").write_text("{")
    assert measured_perplexities(tmp_path, "model") == ()
    keep_perplexity(tmp_path, "model", MEASURED)
    assert measured_perplexities(tmp_path, "model") == (MEASURED,)


def test_a_text_is_known_by_its_bytes(tmp_path: Path) -> None:
    for name, text in (("a", "one"), ("b", "one"), ("c", "two")):
        (tmp_path / name).write_text(text)
    a, b, c = (text_digest(tmp_path / name) for name in "abc")
    assert a == b != c
