"""A host that is not the controller, for every test that brings engines to one."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.engine.build import find_program
from orchestrator.engine.offer import Offer
from orchestrator.engine.store import Engine
from orchestrator.host_agent import ask_facts
from orchestrator.host_door import ensure_agent
from orchestrator.report import Event, Progress, Remark, Report
from orchestrator.shell.local import LocalShell
from tests.orchestrator.engine.fake_engine import make_engine
from workers.engine import Recipe
from workers.facts import HostFacts

MakeThere = Callable[[str], LocalShell]
OfferOf = Callable[[Engine], Offer]


class Heard(Report):
    """A report that keeps what it was told."""

    def __init__(self) -> None:
        super().__init__(self._hear)
        self.warnings: list[str] = []
        self.said: list[str] = []
        self.figures: list[Progress] = []

    def _hear(self, event: Event) -> None:
        match event:
            case Remark(text, "warning"):
                self.warnings.append(text)
            case Remark(text):
                self.said.append(text)
            case Progress():
                self.figures.append(event)


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def make_there(tmp_path: Path) -> MakeThere:
    """Makes a host of the same machine with a root of its own, and this search path."""

    def make(path: str) -> LocalShell:
        home = tmp_path / "there"
        home.mkdir(exist_ok=True)
        shell = LocalShell("there", home / "root", home, ("env", f"PATH={path}"))
        shell.is_local = False
        return shell

    return make


@pytest.fixture
def there(tmp_path: Path, make_there: MakeThere) -> LocalShell:
    """One that has cmake and ninja, whether or not this machine has them outside of Python's packages."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, variable in (("cmake", "CMAKE_BIN_DIR"), ("ninja", "BIN_DIR")):
        (tools / name).symlink_to(find_program(name, variable))
    return make_there(f"{tools}{os.pathsep}{os.environ['PATH']}")


@pytest.fixture
async def agent(there: LocalShell) -> str:
    return await ensure_agent(there)


@pytest.fixture
async def facts(there: LocalShell, agent: str) -> HostFacts:
    return await ask_facts(there, agent)


@pytest.fixture
def fake_engine(tmp_path: Path, facts: HostFacts) -> Engine:
    return make_engine(tmp_path / "engines" / "cpu-test-0123", platform=facts.platform)


@pytest.fixture
def offer_of() -> OfferOf:
    """Makes an offer of that engine, for hosts on which nothing shall be built."""

    async def pack() -> Path:
        pytest.fail("nothing should be built here")

    return lambda engine: Offer(Recipe("cpu", ()), pack, engine)
