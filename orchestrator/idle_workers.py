"""Loopback workers that compute nothing: `llama-fit-params` asks them about devices when it counts memory.

They live as long as a `with` block, and not longer than this process: a shell holds each one and ends it when the
pipe from here closes, however this process ends.
"""

import asyncio
import os
import signal
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import IO

from orchestrator.errors import EngineError
from orchestrator.tunnel import free_local_port
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


@asynccontextmanager
async def idle_workers(engine: Path, count: int) -> AsyncIterator[tuple[str, ...]]:
    """Start `count` workers of the engine in this folder; their endpoints ("127.0.0.1:PORT"). EngineError."""
    async with AsyncExitStack() as stack:
        yield tuple([await stack.enter_async_context(_idle_worker(engine)) for _ in range(count)])


@asynccontextmanager
async def _idle_worker(engine: Path) -> AsyncIterator[str]:
    """One worker; another port is tried when something else takes the first in between."""
    with tempfile.TemporaryFile() as log:
        for _ in range(_ATTEMPTS):
            port = free_local_port()
            async with _leashed(worker_command(str(engine / "ggml-rpc-server"), port=port, threads=1), log) as process:
                if await _is_ready(process, port):
                    yield f"127.0.0.1:{port}"
                    return
        raise EngineError(
            f"{engine / 'ggml-rpc-server'} did not come up on any of {_ATTEMPTS} ports",
            hint="check the engine: meshctl engine check",
            details=_tail(log),
        )


@asynccontextmanager
async def _leashed(words: tuple[str, ...], log: IO[bytes]) -> AsyncIterator[asyncio.subprocess.Process]:
    leash, hand = os.pipe()
    try:
        process = await asyncio.create_subprocess_exec(
            *("sh", "-c", _LEASH, "sh", *words),
            stdin=leash,
            stdout=log,
            stderr=log,
            env={**os.environ, **ENVIRONMENT},
            start_new_session=True,
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
    """Whether the worker accepts connections; one that comes and goes does it no harm while it is idle."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_READY_DEADLINE_S):
            while process.returncode is None:
                if await _accepts(port):
                    return process.returncode is None
                await asyncio.sleep(_POLL_S)
    return False


async def _accepts(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except ConnectionRefusedError:
        return False
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()
    return True


def _tail(log: IO[bytes]) -> str:
    log.seek(max(0, log.seek(0, os.SEEK_END) - _LOG_TAIL_BYTES))
    return log.read().decode(errors="replace").strip()
