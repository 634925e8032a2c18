"""Fixtures of every test: the built engine, the demo model, and folders of meshctl that belong to one test only."""

import asyncio
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.engine.build import local_platform
from orchestrator.engine.store import Engine, find_engine
from orchestrator.folders import user_folders
from quant.fetch import fetch_model
from tests.end_to_end.fault_table import Row, table_of
from tests.fuzzing import TRIED
from tests.lab_fixture import make_lab  # noqa: F401 # a fixture
from tests.program import Meshctl

USER_CACHE = user_folders().cache
"""Where `scripts/test` built the engine and put the model, before any test changes the environment."""


FAULT_ROWS = pytest.StashKey[list[Row]]()
FAULT_CELLS = pytest.StashKey[list[tuple[str, ...]]]()


def pytest_configure() -> None:
    """A suite that a script put in the background ignores SIGINT, and so would the commands that tests end with it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Where files run side by side, each process tells the one that reports."""
    output: dict[str, object] | None = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["tried"] = dict(TRIED)
        output["faults"] = [row.cells() for row in session.config.stash.get(FAULT_ROWS, [])]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """One of these processes has ended."""
    output = getattr(node, "workeroutput", {})
    TRIED.update(output.get("tried", {}))
    node.config.stash.setdefault(FAULT_CELLS, []).extend(output.get("faults", ()))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say how many inputs were made up, and what became of faults."""
    if TRIED:
        tried = ", ".join(f"{count} {kind}" for kind, count in sorted(TRIED.items()))
        terminalreporter.write_line(f"made-up inputs tried: {tried}")
    rows = [*config.stash.get(FAULT_CELLS, []), *(row.cells() for row in config.stash.get(FAULT_ROWS, []))]
    if rows:
        terminalreporter.section("faults")
        terminalreporter.write(table_of(rows))


@pytest.fixture(scope="session")
def engine() -> Engine:
    """The engine that `meshctl engine build` made; a test that needs it fails without it, it is never skipped."""
    found = find_engine(USER_CACHE, "cpu", local_platform())
    if found is None:
        pytest.fail("no engine is built: run `meshctl engine build` (scripts/test does), or deselect: -m 'not engine'")
    return found


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """SmolLM2-135M-Instruct, fetched once."""
    return asyncio.run(fetch_model("smollm2-135m", USER_CACHE, lambda done, total: None))


KNOWN = ("calibration", "memory")
"""What of a cache takes long to find out, and is the same for every test."""


@pytest.fixture(scope="session")
def shared_cache(engine: Engine, demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache home for the tests of this process, which run one after the other: the real engine and model, and what
    this run, here or in another process, has found out."""
    own = tmp_path_factory.getbasetemp()
    run = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    cache = own / "cache" / "meshctl"
    (cache / "models").mkdir(parents=True)
    (cache / "engines").symlink_to(engine.folder.parent)
    for path in demo_model.parent.iterdir():
        (cache / "models" / path.name).symlink_to(path)
    for name in KNOWN:
        (run / "known" / name).mkdir(parents=True, exist_ok=True)
        (cache / name).symlink_to(run / "known" / name)
    return own / "cache"


@pytest.fixture
def meshctl(shared_cache: Path, tmp_path: Path) -> Iterator[Meshctl]:
    """The program, with a state folder of its own, and without what ran in other tests; what it left running is ended
    afterwards, and is a failure."""
    shutil.rmtree(shared_cache / "meshctl" / "experience", ignore_errors=True)
    program = Meshctl(
        folder=tmp_path,
        environment={**os.environ, "XDG_CACHE_HOME": str(shared_cache), "XDG_STATE_HOME": str(tmp_path / "state")},
    )
    yield program
    left = program.end_all()
    shutil.rmtree(tmp_path / "state", ignore_errors=True)
    assert not left, f"the test left a cluster running: {left}"


@pytest.fixture(scope="session")
def fault_rows(request: pytest.FixtureRequest) -> list[Row]:
    """What the tests of faults measured; printed as a table at the end of the run."""
    return request.config.stash.setdefault(FAULT_ROWS, [])
