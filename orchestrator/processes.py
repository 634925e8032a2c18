"""The life of workers, links and heads: each is started under the leash, waited for, and ended in the right order."""

import asyncio
import secrets
import signal
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

from orchestrator.errors import BringUpError, DeadlineError, MeshctlError
from orchestrator.fanout import both
from orchestrator.head_client import SOCKET
from orchestrator.host_agent import LOOPBACK, Listening, free_ports, listening, log_tail
from orchestrator.hosts import OpenHost, OpenHosts
from orchestrator.leash import SETTLE_S, Exit, Leashed, ended_at_once, start_leashed
from orchestrator.shell.protocol import Words
from orchestrator.survey.values import DeviceSpec
from orchestrator.tunnel import free_local_port, tunnel_command, wait_open
from workers.commands import PRIVATE, bridged
from workers.engine_commands import (
    ENVIRONMENT,
    PACK_VARIABLE,
    HeadSettings,
    Placement,
    Where,
    head_command,
    worker_command,
)
from workers.head_log import plain_log

WORKER_READY_S = 20.0
GPU_WORKER_READY_S = 120.0
"""Drivers wake up, and compile what they run, before a worker listens."""

LINK_READY_S = 20.0
PORT_TRIES = 3
POLL_S = 0.05
ADDRESS_TAKEN = "Address already in use"
LINK = "link-"
STOP_S, AWAY_S = 15.0, 4.0
LAST_WORDS_S = 3.0
CAUSE_SETTLES_S = 0.3
"""What follows from an end is noticed within this time, so that the first cause can be told from it."""

KILLED_HINT = (
    "nobody here sent that signal: the system ends what takes too much memory this way; "
    "lower `memory` of {host} in the inventory"
)


@dataclass
class Started:
    """Everything that runs, in the order it was started; `stop` ends it in the opposite order, head first."""

    processes: list[Leashed] = field(default_factory=list)

    def add(self, process: Leashed) -> Leashed:
        self.processes.append(process)
        return process

    async def stop(self) -> None:
        """End all in order; heads before the links and workers they talk to, these side by side."""
        await self._stop(self.processes, lambda process: process.stop(STOP_S))

    async def kill(self, those: Iterable[Leashed], *, away: str) -> None:
        """End these at once, in the same order: their head is lost, there is nothing to wait for.

        What runs on a host that may be `away` is let go of soon: its leash ends it for want of heartbeats.
        """

        def kill(process: Leashed) -> Awaitable[Exit]:
            return process.stop(AWAY_S if host_of(process) == away else STOP_S, at_once=True)

        await self._stop(those, kill)

    async def _stop(self, those: Iterable[Leashed], stop: Callable[[Leashed], Awaitable[Exit]]) -> None:
        ending = list(those)
        heads = [process for process in ending if process.name.startswith("head")]
        rest = [process for process in ending if process not in heads]
        for group in (heads, rest):
            await asyncio.gather(*(stop(process) for process in group))
        self.processes = [process for process in self.processes if process not in ending]


@dataclass(frozen=True)
class OpenLink:
    """A tunnel that runs here: what is sent to the socket `near` comes out at its far end.

    So does what is sent to `port` on loopback, where one was asked for: that of the private network, if there is one.
    """

    near: str
    process: Leashed
    port: int = 0


@dataclass(frozen=True)
class Worker:
    """A running worker: `port` on its host, `endpoint` what the head connects to; `link` is the tunnel between, None
    where there is none."""

    device: str
    host: str
    port: int
    endpoint: str
    process: Leashed
    link: Leashed | None = None

    @property
    def processes(self) -> tuple[Leashed, ...]:
        return _with_link(self.process, self.link)


@dataclass(frozen=True)
class Head:
    """A running head: `url` is reachable from the controller, through `link` if it is elsewhere; `key` opens it."""

    host: str
    url: str
    key: str
    process: Leashed
    link: Leashed | None = None

    @property
    def processes(self) -> tuple[Leashed, ...]:
        return _with_link(self.process, self.link)


def _with_link(process: Leashed, link: Leashed | None) -> tuple[Leashed, ...]:
    return (process,) if link is None else (process, link)


async def start_worker(
    started: Started,
    hosts: OpenHosts,
    cluster: str,
    device: DeviceSpec,
    host: OpenHost,
    engine: str,
    *,
    pack: str = "",
) -> Worker:
    """Start a worker and, unless it is reached without one, the link to it; the next port is tried when one was taken
    meanwhile. `pack`: a folder with its weights there."""
    address = host.worker_address
    door = host.new_socket() if host.is_private else ""
    joined = await hosts.network.words() if host.is_local else ()

    def network(port: int) -> Words:
        return (*PRIVATE, *bridged(f"unix:{door}", f"tcp:{LOOPBACK}:{port}")) if door else joined

    starting = _start_on_free_port(
        started,
        host,
        cluster,
        f"worker-{device.name.rpartition('/')[2]}",
        lambda port: worker_command(
            f"{engine}/ggml-rpc-server",
            port=port,
            threads=device.threads,
            device=device.engine_name,
            address=address,
            cached=bool(pack),
        ),
        hosts.network.ports(PORT_TRIES) if joined else await free_ports(host.shell, host.agent, PORT_TRIES, address),
        uses=host.items(engine, pack),
        temporary=(door,) if door else (),
        network=network,
        address=address,
        patience_s=WORKER_READY_S if device.engine_name == "CPU" else GPU_WORKER_READY_S,
        environment={**ENVIRONMENT, **dict(device.environment), **({PACK_VARIABLE: pack} if pack else {})},
    )
    if door:  # its name is known before anybody listens there
        (process, port), link = await both(starting, open_worker_link(started, hosts, cluster, host, door))
        await host.rest()
        return Worker(device.name, host.name, port, f"{LOOPBACK}:{link.port}", process, link.process)
    process, port = await starting
    await host.rest()
    if not host.is_linked:
        return Worker(device.name, host.name, port, f"{address}:{port}", process)
    link = await open_worker_link(started, hosts, cluster, host, f"{LOOPBACK}:{port}")
    return Worker(device.name, host.name, port, f"{LOOPBACK}:{link.port}", process, link.process)


async def open_worker_link(started: Started, hosts: OpenHosts, cluster: str, host: OpenHost, far: str) -> OpenLink:
    """Open a tunnel to a worker with a port here for the head, which knows nothing but ports."""
    network = await hosts.network.pid()
    failed = BringUpError(f"{host.name}: no local port is free for its tunnel")
    for _ in range(PORT_TRIES):
        (port,) = hosts.network.ports(1) if network else (free_local_port(),)
        try:
            return await open_link(started, hosts, cluster, host, far, port=port, network=network)
        except BringUpError as error:
            failed = error
            if ADDRESS_TAKEN not in str(error):
                break
    raise failed


async def open_link(
    started: Started, hosts: OpenHosts, cluster: str, host: OpenHost, far: str, *, port: int = 0, network: int = 0
) -> OpenLink:
    """Open an OpenSSH tunnel from a socket here to `far` on the host: a socket's path, or an address and port.

    With a `port` that is carried to the socket, on the loopback of the process `network` if one is given.
    """
    name = f"{LINK}{host.name}-{port}"
    near = hosts.controller.new_socket()
    words = tunnel_command(host.host, hosts.ssh, near, far)
    bridge = bridged(f"tcp:{LOOPBACK}:{port}", f"unix:{near}", network) if port else ()
    async with hosts.ssh.turns.again(host.name):
        try:
            leash = _leash(hosts.controller, words, cluster, name, temporary=(near,), network=bridge, settle_s=0.0)
            process = started.add(await leash)
        except BringUpError as error:
            raise await _link_failed(host.name, error, hosts.controller, cluster, name) from error
        try:
            await wait_open(Path(near), LINK_READY_S, lambda: process.running)
        except BringUpError as error:
            was_running, ended = process.running, await process.stop()
            started.processes.remove(process)
            failed = error if was_running else ended_at_once(process.host, name, ended, process.log)
            raise await _link_failed(host.name, failed, hosts.controller, cluster, name) from error
    return OpenLink(near, process, port)


async def _link_failed(host: str, error: BringUpError, controller: OpenHost, cluster: str, name: str) -> BringUpError:
    """The error of a tunnel with what its ssh wrote."""
    tail = error.details or await log_tail(controller.shell, controller.agent, log_path(controller, cluster, name))
    return BringUpError(
        f"{host}: the SSH tunnel to it does not come up: {error}",
        hint="its sshd must allow forwarding, and `ssh` must reach it: try `meshctl doctor`",
        details=tail,
    )


async def start_head(
    started: Started,
    hosts: OpenHosts,
    cluster: str,
    host: OpenHost,
    engine: str,
    settings: Callable[[str], HeadSettings],
    placement: Where,
    key: str,
    put_key: Callable[[], Awaitable[None]],
    name: str = "head",
    environment: Mapping[str, str] = ENVIRONMENT,
) -> Head:
    """Start a head, without waiting for its model to load; a remote one is reached through a link.

    It listens at a socket in our folder there, and is in the private network of its workers. `put_key` writes the key
    file, which is removed again when the head ends. `name` begins with "head": it is stopped before what it talks to.
    """
    await put_key()
    door = host.new_socket()
    asked = settings(door)
    process = started.add(
        await _leash(
            host,
            head_command(f"{engine}/llama-server", asked, placement),
            cluster,
            f"{name}-{secrets.token_hex(2)}",
            uses=host.items(engine, asked.model),
            temporary=(asked.key_file, door),
            network=await hosts.network.words() if isinstance(placement, Placement) and host.is_local else (),
            environment=environment,
        )
    )
    await host.rest()
    if host.is_local:
        return Head(host.name, f"{SOCKET}{door}", key, process)
    link = await open_link(started, hosts, cluster, host, door)
    return Head(host.name, f"{SOCKET}{link.near}", key, process, link.process)


async def ended_by_itself(processes: Iterable[Leashed], when: str) -> BringUpError:
    """The error when any of these has ended: it names the one that others only followed, with the end of its log."""
    await asyncio.sleep(CAUSE_SETTLES_S)
    process = first_cause(processes)
    how = await process.on_exit
    killed = how.status == -signal.SIGKILL and not how.reason
    return BringUpError(
        f"{process.host}: {process.name} ended by itself ({how}) {when}",
        hint=KILLED_HINT.format(host=process.host) if killed else f"whole log: `meshctl logs {process.host}`",
        details=how.tail if how.lost else await _last_words(process),
        host=host_of(process),
    )


async def _last_words(process: Leashed) -> str:
    """The end of its log; nothing where its host is gone, too."""
    try:
        async with asyncio.timeout(LAST_WORDS_S):
            return plain_log(await process.log_tail(lines=30))
    except MeshctlError as error:
        return f"its log cannot be read: {error}"
    except TimeoutError:
        return f"its log cannot be read: {process.host} does not answer"


def host_of(process: Leashed) -> str:
    """The host that a process is of; of a tunnel that at its far end, since it runs here."""
    if process.name.startswith(LINK):
        return process.name.removeprefix(LINK).rpartition("-")[0]
    return process.host


def first_cause(processes: Iterable[Leashed]) -> Leashed:
    """Of those that have ended, the one to name: the head aborts whenever a worker or link ends, so it comes last."""
    ended = [process for process in processes if not process.running]
    return next((process for process in ended if not process.name.startswith("head")), ended[0])


async def _start_on_free_port(
    started: Started,
    host: OpenHost,
    cluster: str,
    name: str,
    command: Callable[[int], Words],
    ports: Iterable[int],
    *,
    uses: Sequence[str],
    temporary: Sequence[str],
    network: Callable[[int], Words],
    address: str,
    patience_s: float,
    environment: Mapping[str, str],
) -> tuple[Leashed, int]:
    """The engine's worker exits with status 0 when its port is taken: only LISTEN under its pid counts as success."""
    tail = ""
    for port in ports:
        try:
            process = started.add(
                await _leash(
                    *(host, command(port), cluster, f"{name}-{port}", uses, temporary, network(port), environment),
                    settle_s=0.0,
                )
            )
        except BringUpError as error:
            tail = error.details or str(error)
            continue
        if await _comes_up(host, process, port, address, patience_s):
            return process, port
        ended = await process.wait()
        tail = ended.tail or str(ended)
        started.processes.remove(process)
    raise BringUpError(
        f"{host.name}: {name} does not start", hint=f"whole log: `meshctl logs {host.name}`", details=tail
    )


async def _comes_up(host: OpenHost, process: Leashed, port: int, address: str, patience_s: float) -> bool:
    """Whether the process itself comes to listen there, as far as the host lets us see whose a socket is."""
    deadline = monotonic() + patience_s
    while process.running:
        if any(_is_of(process, port, address, one) for one in await listening(host.shell, host.agent, process.pid)):
            return True
        if monotonic() > deadline:
            raise DeadlineError(
                host.name,
                f"{process.name} does not listen after {patience_s:.0f} s",
                details=await process.log_tail(),
            )
        await asyncio.sleep(POLL_S)
    return False


def _is_of(process: Leashed, port: int, address: str, socket: Listening) -> bool:
    return (socket.address, socket.port) == (address, port) and socket.pid in (0, process.pid)


async def _leash(
    host: OpenHost,
    words: Words,
    cluster: str,
    name: str,
    uses: Sequence[str] = (),
    temporary: Sequence[str] = (),
    network: Words = (),
    environment: Mapping[str, str] = ENVIRONMENT,
    *,
    settle_s: float = SETTLE_S,
) -> Leashed:
    return await start_leashed(
        host.shell,
        host.agent,
        words,
        log=log_path(host, cluster, name),
        environment=environment,
        name=name,
        uses=uses,
        temporary=temporary,
        network=network,
        settle_s=settle_s,
    )


SURVEY_LOGS, BENCH_LOGS = ".survey", ".bench"
"""Beside the logs of the cluster itself, which may be up meanwhile: added to its name."""


def log_path(host: OpenHost, cluster: str, name: str) -> str:
    """Where a process writes: a folder per host, a file per role, the port left out so that old logs are replaced."""
    return f"{host.shell.root}/logs/{cluster}/{host.name}/{name.rpartition('-')[0]}.log"
