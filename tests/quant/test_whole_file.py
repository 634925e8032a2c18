"""A file that is written appears whole or not at all."""

from pathlib import Path

import pytest

from quant.whole_file import written_whole


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
