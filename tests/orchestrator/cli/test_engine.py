import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from orchestrator.cli.engine import app, installed_json, installed_table
from orchestrator.engine.build import local_platform
from orchestrator.engine.install import Installed
from orchestrator.engine.store import EXCLUDED, Engine, engines_folder, read_engine
from orchestrator.errors import EngineError, MeshctlError, UsageError
from orchestrator.folders import user_folders
from tests.orchestrator.engine.fake_engine import BEST, make_engine
from tests.orchestrator.view.rendering import rendered
from workers.devices import EngineGpu
from workers.engine import RECIPES, engine_id


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
    return make_engine(engines_folder(cache) / engine_id(RECIPES["cpu"], platform), crashing=(BEST,), platform=platform)


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
    assert (str(caught), caught.hint) == ("the vulkan engine is not built yet", "meshctl engine build --backend vulkan")


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


LOCAL = """\
cluster: demo
model: smollm2-135m
hosts:
  - {name: left, connection: local, memory: 1GiB}
  - {name: right, connection: local, memory: 1GiB}
  - {name: far, connection: ssh, address: nowhere.invalid}
"""


@pytest.fixture
def inventory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "inventory.yaml").write_text(LOCAL)
    return str(tmp_path / "inventory.yaml")


def test_an_install_says_what_was_done_on_each_host(engine: Engine, inventory: str) -> None:
    shown = CliRunner().invoke(app, ["install", "left", "right", "-i", inventory, "--json"])
    assert shown.exit_code == 0, shown.stderr
    answers = json.loads(shown.stdout)
    assert all(answer.pop("seconds") > 0 for answer in answers)
    one = {
        "folder": str(engine.folder),
        "how": "there",
        "sent_bytes": 0,
        "excluded": [BEST],
        "backend": "cpu",
        "gpus": [],
    }
    assert answers == [{"host": "left", **one}, {"host": "right", **one}]
    table = CliRunner().invoke(app, ["install", "left", "-i", inventory]).stdout
    assert table.splitlines()[1].split()[:4] == ["left", "was", "there", "already"]


def test_an_install_on_a_host_that_is_not_in_the_inventory_is_wrong_usage(engine: Engine, inventory: str) -> None:
    caught = CliRunner().invoke(app, ["install", "middle", "-i", inventory]).exception
    assert isinstance(caught, UsageError)
    assert str(caught) == f"middle: no such host in {inventory}"
    assert caught.hint == "name some of left, right, far"


def test_what_failed_is_an_error_beside_what_was_done() -> None:
    installed: dict[str, Installed | MeshctlError] = {
        "a": Installed("/e", "sent", 2**20, 1.5, backend="cuda", gpus=(EngineGpu("CUDA0", "RTX 4090", 24, 23),)),
        "b": EngineError("b: no cmake", hint="install it"),
    }
    assert installed_json(installed) == [
        {
            "host": "a",
            "folder": "/e",
            "how": "sent",
            "sent_bytes": 2**20,
            "seconds": 1.5,
            "excluded": [],
            "backend": "cuda",
            "gpus": [{"name": "CUDA0", "description": "RTX 4090", "memory_total_bytes": 24, "memory_free_bytes": 23}],
        },
        {"host": "b", "error": "b: no cmake", "hint": "install it"},
    ]
    assert rendered(installed_table(installed)).splitlines()[1].split() == [
        "a",
        "sent",
        "CPU,",
        "CUDA0",
        "1.0",
        "MiB",
        "1.5",
        "s",
        "/e",
    ]
