import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from orchestrator.cli.engine import app
from orchestrator.engine.build import local_platform
from orchestrator.engine.store import EXCLUDED, Engine, engine_folder, read_engine
from orchestrator.errors import EngineError
from orchestrator.folders import user_folders
from tests.orchestrator.engine.fake_engine import BEST, make_engine


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache folder, an empty one for this test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache = user_folders().cache
    assert cache.is_relative_to(tmp_path)
    return cache


@pytest.fixture
def engine(cache: Path) -> Engine:
    platform = local_platform()
    return make_engine(engine_folder(cache, "cpu", platform), crashing=(BEST,), platform=platform)


def test_the_list_says_what_to_do_when_there_is_no_engine(cache: Path) -> None:
    shown = CliRunner().invoke(app, ["list"])
    assert (shown.exit_code, shown.stdout, shown.stderr) == (0, "", "No engine is built yet: meshctl engine build\n")
    assert CliRunner().invoke(app, ["list", "--json"]).stdout == "[]\n"


def test_the_list_as_json_has_every_engine(engine: Engine) -> None:
    assert json.loads(CliRunner().invoke(app, ["list", "--json"]).stdout) == [
        {
            "engine": engine.folder.name,
            "folder": str(engine.folder),
            "backend": "cpu",
            "platform": local_platform(),
            "commit": "abc",
            "protocol": "7.0.0",
            "libc": "",
            "size_bytes": engine.manifest.size_bytes,
            "excluded": [],
        }
    ]


def test_the_path_is_the_engines_folder_and_nothing_else(engine: Engine) -> None:
    assert CliRunner().invoke(app, ["path"]).stdout == f"{engine.folder}\n"


def test_the_path_of_an_engine_that_is_not_built_is_an_error_with_the_command(cache: Path) -> None:
    caught = CliRunner().invoke(app, ["path", "--backend", "vulkan"]).exception
    assert isinstance(caught, EngineError)
    assert (str(caught), caught.hint) == ("the vulkan engine is not built yet", "meshctl engine build")


def test_a_check_lets_the_engine_compute_and_says_what_is_not_used(engine: Engine) -> None:
    shown = CliRunner().invoke(app, ["check"])
    assert (shown.exit_code, shown.stderr.splitlines()) == (
        0,
        ["3 files are whole, and the engine computes here.", f"{BEST} is not used: its code crashes on this machine."],
    )
    assert read_engine(engine.folder).manifest.excluded == (BEST,)
    assert (engine.folder / EXCLUDED / BEST).is_file()


def test_a_check_names_damaged_files(engine: Engine) -> None:
    (engine.folder / BEST).unlink()
    caught = CliRunner().invoke(app, ["check"]).exception
    assert isinstance(caught, EngineError)
    assert str(caught) == f"the engine in {engine.folder} is damaged: {BEST} is missing"


def test_a_build_prints_the_folder_of_the_engine_that_is_there(engine: Engine) -> None:
    shown = CliRunner().invoke(app, ["build"])
    assert (shown.exit_code, shown.stdout) == (0, f"{engine.folder}\n")
    assert f"{BEST} crashes on this machine and is not used" in shown.stderr
