"""Examine every host: what works, what does not, and the fix for each failure. It changes nothing but our own agent."""

from collections.abc import Iterator
from dataclasses import dataclass
from time import time

from orchestrator.engine.build import local_platform
from orchestrator.engine.install import check_fits
from orchestrator.engine.store import Engine, find_engine
from orchestrator.errors import REPORTED, ConnectError, DeadlineError, HostKeyError
from orchestrator.fanout import all_or_raise, each_host
from orchestrator.folders import Folders
from orchestrator.host_agent import ask_facts, ensure_agent
from orchestrator.inventory import Host, Inventory
from orchestrator.shell.connect import connect
from orchestrator.shell.protocol import Shell
from orchestrator.shell.ssh_config import write_ssh_files
from orchestrator.view.sizes import bytes_text
from workers.budget import MIB, budget
from workers.facts import HostFacts

DISK_NEEDED_BYTES = 200 * MIB
"""An engine folder is about 40 MiB, twice while it is replaced, and logs are bounded."""

CLOCK_TOLERANCE_S = 60.0


@dataclass(frozen=True)
class Check:
    """One question about one host; `fix` is the next move when it is not well."""

    title: str
    well: bool
    text: str
    fix: str = ""


@dataclass(frozen=True)
class Examined:
    """All checks of one host, in the order in which they depend on each other."""

    host: str
    checks: tuple[Check, ...]

    @property
    def well(self) -> bool:
        return all(check.well for check in self.checks)


async def examine_all(inventory: Inventory, folders: Folders) -> tuple[Examined, ...]:
    """Examine every host side by side; a host that fails a check that others need stops there."""
    engine = find_engine(folders.cache, "cpu", local_platform())
    examined = await each_host({host.name: _examine(host, folders, engine) for host in inventory.hosts})
    return tuple(all_or_raise(examined).values())


async def _examine(host: Host, folders: Folders, engine: Engine | None) -> Examined:
    checks: list[Check] = []
    shell = None
    try:
        shell = await connect(host, write_ssh_files(folders.state), local_root=folders.cache)
        checks += _let_in(host)
        facts = await _ask(shell)
        checks.append(Check("python", True, facts.python))
        checks += examine_facts(host, facts, engine, time())
    except REPORTED as error:
        checks.append(_failed(error, bool(checks)))
    finally:
        if shell is not None:
            await shell.close()
    return Examined(host.name, tuple(checks))


async def _ask(shell: Shell) -> HostFacts:
    return await ask_facts(shell, await ensure_agent(shell))


def _let_in(host: Host) -> Iterator[Check]:
    where = "this machine" if host.connection == "local" else host.address
    yield Check("reachable", True, where)
    if host.connection == "ssh":
        yield Check("host key", True, "trusted")


def _failed(error: Exception, let_in: bool) -> Check:
    """Which check an error belongs to: before we were let in it is about reaching the host, then about Python."""
    hint = getattr(error, "hint", "")
    if isinstance(error, HostKeyError):
        return Check("host key", False, str(error), hint)
    if isinstance(error, ConnectError | DeadlineError) or not let_in:
        return Check("reachable", False, str(error), hint)
    return Check("python", False, str(error), hint)


def examine_facts(host: Host, facts: HostFacts, engine: Engine | None, now_s: float) -> Iterator[Check]:
    """What the facts alone tell: engine, memory, disk and clock."""
    yield _engine(facts, engine, host.name)
    usable = budget(host.memory, facts.memory_available_bytes)
    yield Check(
        "memory",
        usable.usable_bytes > 0,
        f"{bytes_text(facts.memory_available_bytes)} available, budget {bytes_text(usable.usable_bytes)}",
        f"free memory there, or raise `memory` of {host.name} in inventory.yaml",
    )
    yield Check(
        "disk",
        facts.disk_free_bytes >= DISK_NEEDED_BYTES,
        f"{bytes_text(facts.disk_free_bytes)} free in {facts.root}",
        f"free at least {bytes_text(DISK_NEEDED_BYTES)} in {facts.root}",
    )
    apart_s = abs(facts.clock_s - now_s)
    yield Check(
        "clock",
        apart_s <= CLOCK_TOLERANCE_S,
        "agrees" if apart_s <= CLOCK_TOLERANCE_S else f"{apart_s:.0f} s apart from this machine's",
        "set the clock: `sudo timedatectl set-ntp true`",
    )


def _engine(facts: HostFacts, engine: Engine | None, host: str) -> Check:
    """An engine that fits the host, or on this very platform a compiler to build one with."""
    if engine is not None:
        try:
            check_fits(host, facts, engine.manifest)
        except REPORTED as error:
            return Check("engine", False, str(error), getattr(error, "hint", ""))
        return Check("engine", True, f"{engine.manifest.engine} runs on {facts.platform}")
    compiler = facts.compiler if facts.platform == local_platform() else ""
    return Check(
        "engine",
        bool(compiler),
        f"not built yet; compiler {compiler}" if compiler else "not built yet, and no C++ compiler",
        "on this machine: `sudo apt install g++` (or dnf install gcc-c++, xcode-select --install), "
        "then `meshctl engine build`",
    )
