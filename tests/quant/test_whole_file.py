"""A file that is written appears whole or not at all."""

import os
from pathlib import Path

import pytest

from quant.whole_file import files_digest, written_together, written_whole


def test_two_who_write_the_same_file_at_once_do_not_meet(tmp_path: Path) -> None:
    """Each has a place of its own; the one that ends last is what is there, and nothing is left beside it."""
    path = tmp_path / "model.gguf"
    with written_whole(path) as first, written_whole(path) as second:
        first.write_text("first")
        second.write_text("second")
        assert not path.exists()
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_text("old")

    def fail() -> None:
        with written_whole(path) as partial:
            partial.write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_files_that_belong_together_appear_together(tmp_path: Path) -> None:
    paths = tuple(tmp_path / name for name in "abc")
    with written_together(paths) as partials:
        for partial in partials:
            partial.write_text("new")
        assert sorted(tmp_path.iterdir()) == sorted(partials)
    assert [path.read_text() for path in paths] == ["new"] * 3
    assert sorted(tmp_path.iterdir()) == sorted(paths)


def test_when_one_cannot_be_put_in_its_place_none_is(tmp_path: Path) -> None:
    """The first one, by which the others are found, would have been the last."""
    paths = tuple(tmp_path / name for name in "abc")
    paths[0].mkdir()

    def fail() -> None:
        with written_together(paths) as partials:
            for partial in partials:
                partial.write_text("new")

    with pytest.raises(OSError, match="directory"):
        fail()
    assert list(tmp_path.iterdir()) == [paths[0]]


def test_a_digest_is_of_names_that_are_no_text_too(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    path.write_text("x")
    assert len(files_digest([path])) == 12
