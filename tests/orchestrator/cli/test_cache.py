"""`meshctl cache` as a user runs it, on this machine's own folder."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from orchestrator.cli.cache import app
from orchestrator.errors import HostError
from orchestrator.folders import user_folders
from workers.agent import Recorded, write_record

INVENTORY = str(Path(__file__).parents[3] / "inventory.yaml")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache folder with a slice in it; the state folder is the test's own, too."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    item = user_folders().cache / "slices" / "a.gguf"
    item.parent.mkdir(parents=True)
    item.write_text("12345")
    write_record(str(item), Recorded("", 5, "0f"))
    return user_folders().cache


def test_the_list_names_what_is_there_for_people_and_for_programs(cache: Path) -> None:
    shown = CliRunner().invoke(app, ["list", INVENTORY])
    assert shown.exit_code == 0
    assert "slices/a.gguf" in shown.stdout
    listed = json.loads(CliRunner().invoke(app, ["list", INVENTORY, "--json"]).stdout)
    assert list(listed) == ["controller"]
    assert listed["controller"]["folder"] == str(cache)


def test_a_check_exits_with_1_until_what_is_damaged_was_removed(cache: Path) -> None:
    assert CliRunner().invoke(app, ["check", INVENTORY]).exit_code == 0
    found = CliRunner().invoke(app, ["check", INVENTORY, "--hashes"])
    assert (found.exit_code, found.stdout.splitlines()) == (
        1,
        [
            "controller: slices/a.gguf has changed: its sha256 is not the one it was put with",
            "controller: 0 of 1 items are as they were put there",
        ],
    )
    assert CliRunner().invoke(app, ["check", INVENTORY, "--hashes", "--repair"]).exit_code == 0
    assert not (cache / "slices" / "a.gguf").exists()


def test_cleaning_prints_what_it_removes_and_a_dry_run_removes_nothing(cache: Path) -> None:
    item = cache / "slices" / "a.gguf"
    shown = CliRunner().invoke(app, ["clean", INVENTORY, "--dry-run"])
    assert shown.stdout.startswith("controller: would remove slices/a.gguf (")
    assert item.exists()
    done = CliRunner().invoke(app, ["clean", INVENTORY])
    assert done.stdout.startswith("controller: removed slices/a.gguf (")
    assert not item.exists()


def test_a_host_that_cannot_be_asked_is_an_error_after_the_answers_of_the_others(
    cache: Path, tmp_path: Path, closed_port: int
) -> None:
    path = tmp_path / "inventory.yaml"
    path.write_text(
        "cluster: demo\nmodel: smollm2-135m\nhosts:\n"
        f"  - {{name: off, connection: ssh, address: 127.0.0.1, port: {closed_port}}}\n"
    )
    shown = CliRunner().invoke(app, ["list", str(path)])
    assert "slices/a.gguf" in shown.stdout
    assert isinstance(shown.exception, HostError)
