"""Open every host of an inventory at once: connection, agent, facts. Only our own folder on a host changes.

What a crash or an unfinished transfer left there is removed: it may be as large as a model. So is what was used longest
ago, where there is more than the host's quota.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.attended import AttendedShell, attend_with_facts
from orchestrator.direct import direct_warning, worker_address
from orchestrator.errors import HostError, MeshctlError, TransferError
from orchestrator.fanout import all_or_raise, each_host
from orchestrator.folders import Folders
from orchestrator.host_agent import tidy
from orchestrator.host_cache import Seen, item_of, look_at, make_room, record
from orchestrator.inventory import CONTROLLER, Host, Inventory
from orchestrator.network import PrivateNetwork
from orchestrator.report import Report, silent
from orchestrator.shell.connect import connect
from orchestrator.shell.protocol import Shell
from orchestrator.shell.ssh_config import SshFiles, write_ssh_files
from quant.pulled import names_of
from workers.agent import SOCKETS, sha256_of, socket_name
from workers.facts import HostFacts

LONGEST_SOCKET = 103
"""Bytes of a socket's path: systems differ, none takes less (unix(7): 108; macOS: 104, each with its end)."""

CONNECTIONS_AT_ONCE = 32
WITH_DIRECT = "a worker with `link: direct` is reached from this machine's own network"


@dataclass(frozen=True)
class OpenHost:
    """One host that answered: how to talk with it, its agent's path there, and what it says of itself."""

    host: Host
    shell: Shell
    agent: str
    facts: HostFacts
    report: Report = field(default_factory=silent)

    @property
    def name(self) -> str:
        return self.host.name

    @property
    def is_local(self) -> bool:
        return self.shell.is_local

    @property
    def worker_address(self) -> str:
        """Where its workers listen."""
        return worker_address(self.host, self.facts)

    @property
    def is_linked(self) -> bool:
        """Whether its workers are reached through a tunnel of ours."""
        return not self.is_local and self.host.link == "tunnel"

    @property
    def is_private(self) -> bool:
        """Whether its workers are kept from the host's other users: by a network of their own, behind a tunnel."""
        return self.is_linked and not self.facts.private_network_refused

    def new_socket(self) -> str:
        """Where something of ours may listen there: the path of a socket that nobody has used before. HostError."""
        path = f"{self.shell.root}/{SOCKETS}/{socket_name(self.facts.hostname, secrets.token_hex(5))}"
        if len(path.encode()) > LONGEST_SOCKET or any(mark in path for mark in ":=\n"):
            raise HostError(
                self.name,
                f"sockets cannot be made in {self.shell.root}: a path must have no `:` and `=`, and {LONGEST_SOCKET} "
                f"bytes at most, not {len(path.encode())}",
                hint=(
                    "set XDG_CACHE_HOME to a shorter path"
                    if self.is_local
                    else f"log in there as a user whose home has a shorter path (`user` of {self.name})"
                ),
            )
        return path

    async def rest(self) -> None:
        """Leave all of its memory to what runs there now."""
        if isinstance(self.shell, AttendedShell):
            await self.shell.rest()

    def items(self, *paths: str) -> tuple[str, ...]:
        """The cached items that these paths lie in, for whoever uses them; of a model in the hub's cache what remembers
        its names."""
        return tuple(dict.fromkeys(item for path in paths for item in self._items_of(path)))

    def _items_of(self, path: str) -> tuple[str, ...]:
        if (item := item_of(self.shell.root, path)) is not None:
            return (item,)
        return tuple(map(str, names_of(Path(self.shell.root), path))) if self.is_local else ()

    async def put_once(self, item: str, files: Mapping[str, Path]) -> None:
        """Put an item there unless it is there with these very sizes and as it was put; what is not is put again.

        `item` is its absolute path there, `files` what it consists of by their names in it ("": the item is one file).
        The digests are kept beside. TransferError before anything is written when there is no room for all.
        """
        wanting = [name for name, source in files.items() if not await self._is_there(item, name, source)]
        if not wanting:
            return
        needed = sum(files[name].stat().st_size for name in wanting)
        place = item.removeprefix(f"{self.shell.root}/")
        await make_room(self.shell, self.agent, self.host.cache, self.report.warn, needed, kept=(place,))
        for name in wanting:
            source = files[name]
            progress = self.report.bytes_of(f"{self.name}: {source.name}")
            await self.shell.put(source, f"{item}/{name}" if name else item, progress=progress)
            if not await self._record(item, name, source):
                raise not_as_sent(self.name, source.name, "sha256")

    async def _is_there(self, item: str, name: str, source: Path) -> bool:
        wanted = source.stat().st_size
        seen = await look_at(self.shell, self.agent, item, name)
        damage = damage_of(seen, wanted)
        if not damage and seen.size_bytes == wanted and not seen.recorded:
            damage = "" if await self._record(item, name, source) else CHANGED
        if damage:
            self.report.warn(f"{self.name}: {source.name} there {damage}: it is put there again")
        return seen.size_bytes == wanted and not damage

    async def _record(self, item: str, name: str, source: Path) -> bool:
        digest = await asyncio.to_thread(sha256_of, str(source))
        return await record(self.shell, self.agent, item, name, source.stat().st_size, digest)


def not_as_sent(host: str, what: str, digest: str) -> TransferError:
    """Every byte was sent, and something else is there, by that digest."""
    hint = "try again; if it happens again, look at that host's memory and disk"
    return TransferError(host, f"{what} did not arrive as it was sent (by its {digest})", hint=hint)


def damage_of(seen: Seen, wanted_bytes: int) -> str:
    """What is wrong with a file on a host; "" for nothing, also where it is not there."""
    if seen.size_bytes is not None and seen.size_bytes != wanted_bytes:
        return f"has {seen.size_bytes} bytes, not {wanted_bytes}"
    return CHANGED if seen.damaged else ""


CHANGED = "has changed (by its sha256)"


@dataclass(frozen=True)
class OpenHosts:
    """The controller itself and every host of the inventory, by name in the inventory's order, but for the missing.

    Those have the reason in `missing`. `network` is that of heads with workers on this machine.
    """

    controller: OpenHost
    by_name: Mapping[str, OpenHost]
    ssh: SshFiles
    network: PrivateNetwork
    missing: Mapping[str, str] = field(default_factory=dict)

    def of_head(self, head: str) -> OpenHost:
        """Where a head runs: "" is the controller."""
        return self.by_name[head] if head else self.controller


def network_refused(inventory: Inventory, here: HostFacts) -> str:
    """Why heads and workers of this machine do not meet in a private network; "" where they do."""
    return WITH_DIRECT if any(host.link == "direct" for host in inventory.hosts) else here.private_network_refused


@asynccontextmanager
async def open_hosts(
    inventory: Inventory, folders: Folders, report: Report, *, without: Collection[str] = (), tolerant: bool = False
) -> AsyncIterator[OpenHosts]:
    """Connect to all hosts but those `without`; all connections are closed at the end.

    HostsError has every one that fails; `tolerant`: only where all do, else they are missing.
    """
    ssh = write_ssh_files(folders.state, inventory.path)
    shells: list[Shell] = []
    controller = Host(CONTROLLER, "local", cache=inventory.cache)
    try:
        hosts = (controller, *(host for host in inventory.hosts if host.name not in without))
        answers = await each_host(
            {host.name: _open(host, ssh, folders, shells, report) for host in hosts}, limit=CONNECTIONS_AT_ONCE
        )
        failed = {name: answer for name, answer in answers.items() if isinstance(answer, MeshctlError)}
        if not tolerant or CONTROLLER in failed or len(failed) == len(hosts) - 1:
            failed = {}
        opened = all_or_raise({name: answer for name, answer in answers.items() if name not in failed})
        by_name = {name: one for name, one in opened.items() if name != CONTROLLER}
        missing = {name: str(error).removeprefix(f"{name}: ") for name, error in failed.items()}
        here = opened[CONTROLLER]
        network = PrivateNetwork(here.shell, here.agent, network_refused(inventory, here.facts))
        try:
            yield OpenHosts(here, by_name, ssh, network, missing)
        finally:
            await network.close()
    finally:
        await _close_all(shells)


async def _open(host: Host, ssh: SshFiles, folders: Folders, shells: list[Shell], report: Report) -> OpenHost:
    plain = await connect(host, ssh, local_root=folders.cache)
    shells.append(plain)
    shell, facts = await attend_with_facts(plain, report.warn)
    shells[shells.index(plain)] = shell
    agent = shell.agent
    if not shell.is_local or host.name == CONTROLLER:  # local hosts share one folder
        await tidy(shell, agent)
        await make_room(shell, agent, host.cache, report.warn)
    if host.name == CONTROLLER:
        await tidy(shell, agent, str(folders.state))
    worker_address(host, facts)
    if host.link == "direct":
        report.warn(direct_warning(host, facts))
    if host.name != CONTROLLER:
        report.say(f"{host.name}: {facts.os_name}, {facts.cpu_name}, {facts.cores_physical} cores")
    return OpenHost(host, shell, agent, facts, report)


async def _close_all(shells: Iterable[Shell]) -> None:
    await asyncio.gather(*(shell.close() for shell in shells))
