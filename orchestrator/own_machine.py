"""This machine alone, without an inventory: its shell, its agent and its engine, for what is done to models here."""

import secrets
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from orchestrator.attended import attend
from orchestrator.engine.install import prove_here
from orchestrator.engine.stock import Stock
from orchestrator.engine.store import Engine
from orchestrator.folders import Folders
from orchestrator.host_agent import ask_facts
from orchestrator.hosts import OpenHost
from orchestrator.inventory import CONTROLLER, Host
from orchestrator.report import Report
from orchestrator.shell.local import LocalShell
from orchestrator.shell.protocol import Shell
from orchestrator.shell.ssh_config import account_home

LOG_KEPT_S = 7 * 24 * 3600.0


@dataclass(frozen=True)
class OwnMachine:
    """The controller as a host that is open, and the engine that computes on it."""

    host: OpenHost
    engine: Engine

    @contextmanager
    def log(self, kind: str) -> Iterator[str]:
        """A path for the log of one run of a program, which no other run has; removed when the block ends well. Those
        of earlier runs that failed go after a week."""
        folder = Path(self.host.shell.root, "logs", kind, self.host.name)
        for old in folder.glob("*"):
            with suppress(FileNotFoundError):  # others tidy, too
                if time.time() - old.stat().st_mtime > LOG_KEPT_S:
                    old.unlink()
        log = folder / f"{secrets.token_hex(4)}.log"
        yield str(log)
        for part in folder.glob(f"{log.name}*"):
            part.unlink(missing_ok=True)


@asynccontextmanager
async def own_shell(folders: Folders) -> AsyncIterator[tuple[Shell, str]]:
    """A shell on this machine, and its agent's path."""
    shell = await attend(LocalShell(CONTROLLER, folders.cache, account_home()))
    try:
        yield shell, shell.agent
    finally:
        await shell.close()


@asynccontextmanager
async def own_machine(folders: Folders, report: Report) -> AsyncIterator[OwnMachine]:
    """Its engine is built when it is not there yet, and has computed here."""
    async with own_shell(folders) as (shell, agent):
        facts = await ask_facts(shell, agent)
        report.step("Checking the engine", "preparing")
        engine = await prove_here(shell, facts, await Stock(folders.cache, report).cpu())
        yield OwnMachine(OpenHost(Host(CONTROLLER, "local"), shell, agent, facts, report), engine)
