"""Loopback workers that compute nothing: `llama-fit-params` asks them about devices when it counts memory.

They live as long as a `with` block, and not longer than this process: a shell holds each one and ends it when the
pipe from here closes, however this process ends. They have a network that nobody else can reach, where the system
allows one; who asks them has to join it.
"""

import asyncio
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, NamedTuple

from orchestrator.errors import EngineError
from orchestrator.shell.protocol import Words
from orchestrator.tunnel import free_local_port, listening_ports
from workers import agent
from workers.commands import PRIVATE, enter_words, in_network
from workers.engine_commands import ENVIRONMENT, worker_command

_LEASH = """
exec 3<&0
"$@" </dev/null 3<&- &
worker=$!
{ read -r _ <&3; kill "$worker"; } 2>/dev/null &
watcher=$!
wait "$worker"
kill "$watcher" 2>/dev/null
wait
"""
"""Ends the worker when the pipe closes, and itself when the worker ends; waits for both, so that no zombie stays."""

_ATTEMPTS = 5
_READY_DEADLINE_S = 20.0
_END_DEADLINE_S = 5.0
_POLL_S = 0.02
_LOG_TAIL_BYTES = 2000


@dataclass(frozen=True)
class IdleWorkers:
    """Their endpoints ("127.0.0.1:PORT"), in the network of the process `network` (0: this machine's)."""

    endpoints: tuple[str, ...]
    network: int

    def first(self, count: int) -> "IdleWorkers":
        """So many of them."""
        return replace(self, endpoints=self.endpoints[:count])

    def joined(self, words: Words) -> Words:
        """The command, run in their network."""
        return enter_words(agent.__file__, in_network(self.network), words) if self.network else words


@asynccontextmanager
async def idle_workers(engine: Path, count: int) -> AsyncIterator[IdleWorkers]:
    """Start `count` workers of the engine in this folder. EngineError."""
    private = await _may_be_private()
    network, endpoints = 0, list[str]()
    async with AsyncExitStack() as stack:
        for _ in range(count):
            choice = in_network(network) if network else PRIVATE if private else ()
            worker = await stack.enter_async_context(_idle_worker(engine, choice, endpoints))
            endpoints.append(worker.endpoint)
            network = network or (worker.pid if private else 0)
        yield IdleWorkers(tuple(endpoints), network)


class _Worker(NamedTuple):
    endpoint: str
    pid: int


async def _may_be_private() -> bool:
    words = enter_words(agent.__file__, PRIVATE, ("true",))
    quiet = asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(*words, stdin=quiet, stdout=quiet, stderr=quiet)
    return await process.wait() == 0


@asynccontextmanager
async def _idle_worker(engine: Path, network: Words, taken: Sequence[str]) -> AsyncIterator[_Worker]:
    """One worker in this network; another port is tried when something else takes the first in between. What is free
    here may be another one's there: the endpoints `taken`."""
    with tempfile.TemporaryFile() as log:
        for _ in range(_ATTEMPTS):
            port = free_local_port({int(endpoint.rpartition(":")[2]) for endpoint in taken})
            words = ("sh", "-c", _LEASH, "sh", *worker_command(str(engine / "ggml-rpc-server"), port=port, threads=1))
            async with _held(enter_words(agent.__file__, network, words) if network else words, log) as process:
                if await _is_ready(process, port):
                    yield _Worker(f"127.0.0.1:{port}", process.pid)
                    return
        raise EngineError(
            f"{engine / 'ggml-rpc-server'} did not come up on any of {_ATTEMPTS} ports",
            hint="check the engine: meshctl engine check",
            details=_tail(log),
        )


@asynccontextmanager
async def _held(words: Words, log: IO[bytes]) -> AsyncIterator[asyncio.subprocess.Process]:
    """A program that reads from a pipe which closes with us."""
    leash, hand = os.pipe()
    try:
        process = await asyncio.create_subprocess_exec(
            *words, stdin=leash, stdout=log, stderr=log, env={**os.environ, **ENVIRONMENT}, start_new_session=True
        )
    except BaseException:
        os.close(hand)
        raise
    finally:
        os.close(leash)
    try:
        yield process
    finally:
        os.close(hand)
        await _end(process)


async def _end(process: asyncio.subprocess.Process) -> None:
    """The leash is cut: the shell ends by itself, or is ended with its worker when it does not."""
    try:
        with suppress(TimeoutError):
            async with asyncio.timeout(_END_DEADLINE_S):
                await process.wait()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


async def _is_ready(process: asyncio.subprocess.Process, port: int) -> bool:
    """Whether the worker comes to listen; nothing connects to it for that."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_READY_DEADLINE_S):
            while process.returncode is None:
                if port in await listening_ports(process.pid):
                    return process.returncode is None
                await asyncio.sleep(_POLL_S)
    return False


def _tail(log: IO[bytes]) -> str:
    log.seek(max(0, log.seek(0, os.SEEK_END) - _LOG_TAIL_BYTES))
    return log.read().decode(errors="replace").strip()
