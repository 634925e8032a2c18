"""Examine every host: what works, what does not, and the fix for each failure. It changes nothing but our own agent."""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from time import time

from orchestrator.direct import direct_warning, worker_address
from orchestrator.engine.build import local_platform
from orchestrator.engine.install import foresee
from orchestrator.engine.stock import Stock
from orchestrator.errors import (
    REPORTED,
    BringUpError,
    ConnectError,
    DeadlineError,
    EngineError,
    HostKeyError,
    TransferError,
)
from orchestrator.fanout import all_or_raise, each_host
from orchestrator.folders import Folders
from orchestrator.host_agent import LOOPBACK, Others, ask_facts, ask_others, start_link_server
from orchestrator.host_door import ensure_agent
from orchestrator.hosts import OpenHost, network_refused
from orchestrator.inventory import CONTROLLER, Host, Inventory
from orchestrator.report import silent
from orchestrator.shell.connect import connect
from orchestrator.shell.local import LocalShell
from orchestrator.shell.ssh_config import SshFiles, account_home, write_ssh_files
from orchestrator.survey.links import ECHO_OF_ONE_BYTE
from orchestrator.tunnel import tunnel_command, wait_open
from orchestrator.view.sizes import bytes_text
from workers.budget import MIB, budget
from workers.devices import AUTO, CPU, wanted_backends
from workers.engine import RECIPES, recipe_for
from workers.facts import HostFacts

DISK_NEEDED_BYTES = 200 * MIB
"""An engine folder is about 40 MiB, twice while it is replaced, and logs are bounded."""

CLOCK_TOLERANCE_S = 60.0
PROBE_S = 20.0


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
    stock = Stock(folders.cache, silent())
    ssh = write_ssh_files(folders.state, inventory.path)
    examined = await each_host({host.name: _examine(host, inventory, ssh, folders, stock) for host in inventory.hosts})
    here = await _examine_controller(inventory, ssh, folders)
    return (*all_or_raise(examined).values(), *here)


async def _examine_controller(inventory: Inventory, ssh: SshFiles, folders: Folders) -> tuple[Examined, ...]:
    """This machine, where it is no host of its own but the ends of tunnels are within reach of its other users."""
    if any(host.connection == "local" for host in inventory.hosts):
        return ()
    host = Host(CONTROLLER, "local")
    shell = await connect(host, ssh, local_root=folders.cache)
    try:
        agent = await ensure_agent(shell)
        refused = network_refused(inventory, await ask_facts(shell, agent))
        if not refused:
            return ()
        return (Examined(host.name, (examine_others(await ask_others(shell, agent), host, refused),)),)
    finally:
        await shell.close()


async def _examine(host: Host, inventory: Inventory, ssh: SshFiles, folders: Folders, stock: Stock) -> Examined:
    checks: list[Check] = []
    shell = None
    try:
        shell = await connect(host, ssh, local_root=folders.cache)
        checks += _let_in(host)
        agent = await ensure_agent(shell)
        facts = await ask_facts(shell, agent)
        checks.append(Check("python", True, facts.python))
        checks.append(await _engine(OpenHost(host, shell, agent, facts), stock))
        checks += examine_facts(host, facts, time(), ssh.inventory)
        refused = facts.private_network_refused if host.connection == "ssh" else network_refused(inventory, facts)
        checks.append(examine_others(await ask_others(shell, agent), host, refused))
        if host.link == "direct":
            worker_address(host, facts)
            checks.append(Check("link", True, direct_warning(host, facts).removeprefix(f"{host.name}: ")))
        if host.connection == "ssh":
            checks.append(await _forwarding(OpenHost(host, shell, agent, facts), ssh))
    except REPORTED as error:
        checks.append(_failed(host, error, bool(checks)))
    finally:
        if shell is not None:
            await shell.close()
    return Examined(host.name, tuple(checks))


async def _forwarding(host: OpenHost, ssh: SshFiles) -> Check:
    """Whether OpenSSH carries a byte to where workers of the host will be and back, as the tunnels will."""
    door = host.new_socket() if host.is_private else ""
    server = await start_link_server(host.shell, host.agent, socket=door)
    try:
        answer, said = await _through_tunnel(host.host, ssh, door or f"{LOOPBACK}:{server.port}")
    finally:
        await server.close()
    option = "AllowStreamLocalForwarding" if door else "AllowTcpForwarding"
    return Check(
        "forwarding",
        answer == ECHO_OF_ONE_BYTE[-1:],
        "works" if answer else f"`ssh` carries nothing to it: {said or 'no answer'}",
        f"allow it there: `{option} yes` in its sshd_config, then restart sshd",
    )


async def _through_tunnel(host: Host, ssh: SshFiles, far: str) -> tuple[bytes, str]:
    """What the measuring server there answers through a tunnel of the real kind, and the last that ssh says."""
    with TemporaryDirectory(prefix="meshctl-") as folder:
        near = Path(folder, "near.sock")
        here = LocalShell("this machine", ssh.config.parent, account_home())
        tunnel = await here.start(tunnel_command(host, ssh, str(near), far))
        ended = asyncio.create_task(tunnel.wait(deadline_s=2 * PROBE_S))
        try:
            await wait_open(near, PROBE_S, lambda: not ended.done())
            async with asyncio.timeout(PROBE_S):
                reader, writer = await asyncio.open_unix_connection(str(near))
                writer.write(ECHO_OF_ONE_BYTE)
                answer = await reader.read(1)
                writer.close()
        except (BringUpError, OSError):
            answer = b""
        finally:
            await tunnel.kill()
            await asyncio.gather(ended, return_exceptions=True)
        return answer, (tunnel.stderr_tail().strip().splitlines() or [""])[-1]


def _let_in(host: Host) -> Iterator[Check]:
    where = "this machine" if host.connection == "local" else host.address
    yield Check("reachable", True, where)
    if host.connection == "ssh":
        yield Check("host key", True, "trusted")


def _failed(host: Host, error: Exception, let_in: bool) -> Check:
    """Which check an error belongs to: before we were let in it is about reaching the host, then about Python."""
    text, hint = str(error).removeprefix(f"{host.name}: "), getattr(error, "hint", "")
    if isinstance(error, HostKeyError):
        return Check("host key", False, text, hint)
    if isinstance(error, ConnectError | DeadlineError) or not let_in:
        return Check("reachable", False, text, hint)
    if isinstance(error, TransferError):
        return Check("disk", False, text, hint)
    return Check("python", False, text, hint)


def examine_facts(
    host: Host, facts: HostFacts, now_s: float, inventory: Path = Path("inventory.yaml")
) -> Iterator[Check]:
    """What the facts alone tell: GPUs, memory, disk and clock."""
    for gpu in facts.gpus:
        free = "" if gpu.shares_memory else f", {bytes_text(gpu.memory_free_bytes)} free"
        yield Check("gpu", True, f"{gpu.name} by {gpu.kind}, {bytes_text(gpu.memory_total_bytes)}{free}")
    if not facts.gpus and host.backend != CPU:
        asked = "system_profiler shows" if facts.os == "Darwin" else "nvidia-smi or a Vulkan driver shows"
        yield Check("gpu", True, f"none that {asked}")
    usable = budget(host.memory, facts.memory_available_bytes)
    yield Check(
        "memory",
        usable.usable_bytes > 0,
        f"{bytes_text(facts.memory_available_bytes)} available, budget {bytes_text(usable.usable_bytes)}",
        f"free memory there, or raise `memory` of {host.name} in {inventory}",
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


MOST_NAMES = 8


def examine_others(others: Others, host: Host, no_network: str) -> Check:
    """Who else could reach a worker's port on this host: a note, since only its owner can judge them.

    `no_network`: why its programs have no private network ("": they have one).
    """
    parts = (("may log in", others.login), ("has processes", others.running))
    told = "; ".join(f"{_names(names)} ({what})" for what, names in parts if names)
    if not told:
        return Check("others", True, "no other user than root")
    if host.link == "direct":
        return Check("others", True, f"can reach its worker's port, and run code as this user: {told}")
    if not no_network:
        return Check("others", True, f"cannot reach workers, which have a network of their own: {told}")
    reach = f"can reach a worker's port on its loopback, and run code as this user: {told}"
    return Check("others", True, f"{reach}; a private network would prevent that, but: {no_network}")


def _names(names: Sequence[str]) -> str:
    more = len(names) - MOST_NAMES
    return ", ".join(names[:MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


async def _engine(host: OpenHost, stock: Stock) -> Check:
    """How the host will come by its engine, or why it will not; without an engine of this machine's CPU that comes
    first, and that of a GPU is the same with one library more."""
    cpu, not_had = await stock.offer(RECIPES[CPU]), ""
    first = unbuilt(host.facts) if cpu.engine is None else None
    for backend in wanted_backends(host.host.backend, host.facts):
        if first is not None and backend == CPU:
            break
        offer = cpu if backend == CPU else await stock.offer(recipe_for(backend, host.facts))
        try:
            seen = await foresee(host.shell, host.facts, host.agent, offer, host.host.engine)
        except EngineError as error:
            why = str(error).removeprefix(f"{host.name}: ")
            if host.host.backend != AUTO or backend == CPU:
                return Check("engine", False, why, error.hint)
            not_had += f"; its GPU will not be used by {backend}: {why} ({error.hint})"
        else:
            return Check("engine", True, seen + not_had) if first is None else _then(first, f"; then {seen}{not_had}")
    return _then(unbuilt(host.facts), not_had)


def _then(check: Check, more: str) -> Check:
    return replace(check, text=check.text + more)


def unbuilt(facts: HostFacts) -> Check:
    """Without an engine of this machine: on one like it, whether there is a compiler to build it with."""
    compiler = facts.compiler if facts.platform == local_platform() else ""
    return Check(
        "engine",
        bool(compiler),
        f"not built yet; compiler {compiler}" if compiler else "not built yet, and no C++ compiler",
        "on this machine: `sudo apt install g++` (or dnf install gcc-c++, xcode-select --install), "
        "then `meshctl engine build`",
    )
