"""`meshctl model quantise` and `perplexity`: what is wrong with a command is said before anything is done."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from orchestrator.cli.app import app
from orchestrator.errors import UsageError


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def test_an_unknown_type_is_wrong_usage_and_answered_with_all_that_there_are(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["model", "quantise", "smollm2-135m", "--type", "Q9"])
    assert isinstance(done.exception, UsageError)
    assert str(done.exception) == "there is no quantisation Q9"
    assert "Q4_K_M 4.89" in done.exception.hint
    assert not (tmp_path / "cache").exists()


def test_a_folder_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    out = tmp_path / "none" / "a.gguf"
    done = CliRunner().invoke(app, ["model", "quantise", "smollm2-135m", "--type", "Q4_K_M", "--out", str(out)])
    assert isinstance(done.exception, UsageError)
    assert str(done.exception) == f"--out {out}: there is no folder {out.parent}"
    assert not out.parent.exists()


def test_a_text_that_is_not_there_or_is_none_is_wrong_usage(tmp_path: Path) -> None:
    (tmp_path / "model.txt").write_bytes(b"GGUF\3\0\0\0")
    for name, answer in (("none.txt", "is no file"), ("model.txt", "is no text: there are bytes of value 0 in it")):
        done = CliRunner().invoke(app, ["model", "perplexity", "smollm2-135m", "--text", str(tmp_path / name)])
        assert isinstance(done.exception, UsageError)
        assert str(done.exception) == f"{tmp_path / name} {answer}"
    assert not (tmp_path / "cache").exists()
