"""What a file was made of is known of exactly that file, and of no other one of its name."""

import os
from pathlib import Path

from quant.gguf_file import read_model
from quant.made import Made, lost_before, made_of, origin_of, read_made, write_made
from quant.model import Model
from quant.synthetic import Shape, write_random_model

SHAPE = Shape(layers=2, embedding=256, feed_forward=256, heads=4, kv_heads=2, vocabulary=256)


def written(path: Path, kind: str) -> Model:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_random_model(path, SHAPE, kind)
    return read_model(path)


def make(cache: Path, source: Model, path: Path, kind: str, lost: tuple[str, ...] = ()) -> Model:
    made = written(path, kind)
    write_made(cache, Made(str(path), made.files_digest, kind, str(source.path), source.files_digest, lost))
    return made


def test_what_was_made_of_a_model_is_found_from_either_side(tmp_path: Path) -> None:
    cache, source = tmp_path / "cache", written(tmp_path / "a" / "own-F16.gguf", "F16")
    made = make(cache, source, tmp_path / "out" / "small.gguf", "Q8_0")
    told = Made(str(made.path), made.files_digest, "Q8_0", str(source.path), source.files_digest)
    assert made_of(cache, source.files_digest) == (told,)
    assert read_made(cache, made.files_digest) == told
    assert (origin_of(cache, made), origin_of(cache, source)) == (source, source)
    assert read_made(cache, source.files_digest) is None


def test_a_file_that_was_written_anew_or_is_gone_is_not_what_was_made(tmp_path: Path) -> None:
    cache, source = tmp_path / "cache", written(tmp_path / "own-F16.gguf", "F16")
    changed = make(cache, source, tmp_path / "own-Q8_0.gguf", "Q8_0")
    gone = make(cache, source, tmp_path / "own-Q4_0.gguf", "Q4_0")
    os.utime(changed.path, ns=(1, 1))
    gone.path.unlink()
    assert made_of(cache, source.files_digest) == ()
    assert read_made(cache, read_model(changed.path).files_digest) is None


def test_another_model_of_the_same_name_is_none_of_its_sources(tmp_path: Path) -> None:
    """A base model and what somebody has trained of it are files of one name and size."""
    cache = tmp_path / "cache"
    base = written(tmp_path / "base" / "model-F16.gguf", "F16")
    tuned = written(tmp_path / "tuned" / "model-F16.gguf", "F16")
    os.utime(tuned.path, ns=(2, 2))
    tuned = read_model(tuned.path)
    made = make(cache, base, tmp_path / "model-Q8_0.gguf", "Q8_0")
    assert made_of(cache, tuned.files_digest) == ()
    os.utime(base.path, ns=(1, 1))
    assert origin_of(cache, made) == made


def test_the_origin_is_the_first_in_the_line_and_what_was_lost_on_the_way_is_known(tmp_path: Path) -> None:
    cache, first = tmp_path / "cache", written(tmp_path / "own-BF16.gguf", "BF16")
    second = make(cache, first, tmp_path / "own-Q4_1.gguf", "Q4_1")
    third = make(cache, second, tmp_path / "own-F16.gguf", "F16", lost=("Q4_1",))
    assert origin_of(cache, third) == first
    assert [lost_before(cache, one) for one in (first, second, third)] == [(), (), ("Q4_1",)]
    second.path.unlink()
    assert origin_of(cache, third) == third


def test_a_record_that_cannot_be_read_counts_as_none(tmp_path: Path) -> None:
    cache, source = tmp_path / "cache", written(tmp_path / "own-F16.gguf", "F16")
    made = make(cache, source, tmp_path / "own-Q8_0.gguf", "Q8_0")
    (cache / "made" / f"{made.files_digest}.json").write_text("{")
    assert (read_made(cache, made.files_digest), made_of(cache, source.files_digest)) == (None, ())
