"""`meshctl model list`, `remove` and `quota` as a user runs them, on this machine's own folder."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from orchestrator.cli.app import app
from orchestrator.errors import MeshctlError, UsageError
from orchestrator.folders import user_folders
from quant.synthetic import Shape, write_random_model
from workers.agent import hold_item

SHAPE = Shape(layers=2, embedding=64, feed_forward=128, heads=2, kv_heads=1, vocabulary=32)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only model in the user's models folder; the state folder is the test's own, too."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    found = user_folders().cache / "models" / "small.gguf"
    found.parent.mkdir(parents=True)
    write_random_model(found, SHAPE, "Q4_0")
    return found


def test_the_list_names_what_is_here_for_people_and_for_programs(path: Path) -> None:
    shown = CliRunner().invoke(app, ["model", "list"])
    assert shown.exit_code == 0
    assert "small  controller  model" in shown.stdout
    assert "no quota" in shown.stderr
    listed = json.loads(CliRunner().invoke(app, ["model", "list", "--json"]).stdout)
    assert [one["places"] for one in listed["hosts"]["controller"]] == [["models/small.gguf"]]


def test_a_model_is_removed_and_what_went_is_printed(path: Path) -> None:
    done = CliRunner().invoke(app, ["model", "remove", "small"])
    assert (done.exit_code, path.exists()) == (0, False)
    assert done.stdout.startswith("controller: removed models/small.gguf (")
    again = CliRunner().invoke(app, ["model", "remove", "small"])
    assert isinstance(again.exception, UsageError)


def test_a_model_in_use_stays_and_the_command_fails(path: Path) -> None:
    held = hold_item(str(path))
    done = CliRunner().invoke(app, ["model", "remove", "small.gguf"])
    assert isinstance(done.exception, MeshctlError)
    assert str(done.exception) == "controller: models/small.gguf: in use, and stays"
    assert path.exists()
    assert held > 0


def test_the_quota_is_off_until_it_is_set(path: Path) -> None:
    def quota(*words: str) -> str:
        return CliRunner().invoke(app, ["model", "quota", *words]).stdout.strip()

    assert [quota(), quota("2GiB"), quota(), quota("off"), quota()] == ["off", "2.0 GiB", "2.0 GiB", "off", "off"]
    wrong = CliRunner().invoke(app, ["model", "quota", "much"])
    assert isinstance(wrong.exception, UsageError)


def test_where_excludes_everywhere(path: Path) -> None:
    done = CliRunner().invoke(app, ["model", "remove", "small", "--host", "a", "--everywhere"])
    assert isinstance(done.exception, UsageError)
