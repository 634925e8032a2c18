"""Open every host of an inventory at once: connection, agent, facts. Only our own folder on a host changes.

What an unfinished transfer of more than a day ago left there is removed: it may be as large as a model.
"""

import asyncio
from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.errors import MeshctlError
from orchestrator.fanout import all_or_raise, each_host
from orchestrator.folders import Folders
from orchestrator.host_agent import ask_facts, ensure_agent, tidy
from orchestrator.inventory import CONTROLLER, Host, Inventory
from orchestrator.report import Report
from orchestrator.shell.connect import connect
from orchestrator.shell.protocol import Progress, Shell
from orchestrator.shell.ssh_config import SshFiles, write_ssh_files
from workers.facts import HostFacts


@dataclass(frozen=True)
class OpenHost:
    """One host that answered: how to talk with it, its agent's path there, and what it says of itself."""

    host: Host
    shell: Shell
    agent: str
    facts: HostFacts

    @property
    def name(self) -> str:
        return self.host.name

    @property
    def is_local(self) -> bool:
        return self.shell.is_local

    async def put_once(self, source: Path, target: str, progress: Progress | None = None) -> bool:
        """Put a file there unless it is there: files appear whole or not at all, so the name has to say all of it.

        Whether it had to be put.
        """
        seen = await self.shell.run(("test", "-f", target), deadline_s=30, check=False)
        if seen.status == 0:
            return False
        await self.shell.put(source, target, progress=progress)
        return True


@dataclass(frozen=True)
class OpenHosts:
    """The controller itself and every host of the inventory, by name in the inventory's order, but for the missing.

    Those have the reason in `missing`.
    """

    controller: OpenHost
    by_name: Mapping[str, OpenHost]
    ssh: SshFiles
    missing: Mapping[str, str] = field(default_factory=dict)

    def of_head(self, head: str) -> OpenHost:
        """Where a head runs: "" is the controller."""
        return self.by_name[head] if head else self.controller


@asynccontextmanager
async def open_hosts(
    inventory: Inventory, folders: Folders, report: Report, *, without: Collection[str] = (), tolerant: bool = False
) -> AsyncIterator[OpenHosts]:
    """Connect to all hosts but those `without`; all connections are closed at the end.

    HostsError has every one that fails; `tolerant`: only where all do, else they are missing.
    """
    ssh = write_ssh_files(folders.state, inventory.path)
    shells: list[Shell] = []
    controller = Host(CONTROLLER, "local")
    try:
        hosts = (controller, *(host for host in inventory.hosts if host.name not in without))
        answers = await each_host({host.name: _open(host, ssh, folders, shells, report) for host in hosts})
        failed = {name: answer for name, answer in answers.items() if isinstance(answer, MeshctlError)}
        if not tolerant or CONTROLLER in failed or len(failed) == len(hosts) - 1:
            failed = {}
        opened = all_or_raise({name: answer for name, answer in answers.items() if name not in failed})
        by_name = {name: one for name, one in opened.items() if name != CONTROLLER}
        missing = {name: str(error).removeprefix(f"{name}: ") for name, error in failed.items()}
        yield OpenHosts(opened[CONTROLLER], by_name, ssh, missing)
    finally:
        await _close_all(shells)


async def _open(host: Host, ssh: SshFiles, folders: Folders, shells: list[Shell], report: Report) -> OpenHost:
    shell = await connect(host, ssh, local_root=folders.cache)
    shells.append(shell)
    agent = await ensure_agent(shell)
    if not shell.is_local or host.name == CONTROLLER:  # local hosts share one folder
        await tidy(shell, agent)
    facts = await ask_facts(shell, agent)
    if host.name != CONTROLLER:
        report.say(f"{host.name}: {facts.os_name}, {facts.cpu_name}, {facts.cores_physical} cores")
    return OpenHost(host, shell, agent, facts)


async def _close_all(shells: Iterable[Shell]) -> None:
    await asyncio.gather(*(shell.close() for shell in shells))
