"""A supervisor in the background: start it, follow its report until it is ready, and end it from outside."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from orchestrator.errors import BringUpError, ClusterStateError
from orchestrator.folders import ClusterFolder
from orchestrator.rebalance import Outcome, Request, outcome_of, withdraw
from orchestrator.report import Event, Failed, Ready, read_event
from orchestrator.state import SERVING, ClusterState, is_held, read_state

POLL_S = 0.1
STOP_DEADLINE_S = 60.0
REBALANCE_DEADLINE_S = 900.0
EXIT_POLLS = 30
WORD_POLLS = 20
LOG_TAIL_BYTES = 4000


@contextmanager
def starting(folder: ClusterFolder) -> Iterator[bool]:
    """Be the only one that starts this cluster in the background; False when another `up --detach` is at it.

    Two at once would share the events file, and the first would wait for ever for what the second has replaced.
    """
    folder.prepare()
    lock = FileLock(folder.start_lock, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


async def until_up(folder: ClusterFolder) -> ClusterState:
    """Wait for a start that another program has begun; BringUpError when it comes to nothing."""
    while True:
        state = read_state(folder)
        if state is not None and state.phase in SERVING and is_held(folder):
            return state
        with starting(folder) as alone:
            if alone and not is_held(folder):
                why = f": {state.message}" if state is not None and state.phase == "failed" else ""
                raise BringUpError(f"{folder.path.name} did not start{why}", hint="try again with `meshctl up`")
        await asyncio.sleep(POLL_S)


def start_supervisor(inventory: Path, folder: ClusterFolder, options: tuple[str, ...]) -> subprocess.Popen[bytes]:
    """Start `meshctl supervise` in a session of its own; its report goes to the cluster's events file.

    `-P`: Python files that lie beside an inventory are not ours to import.
    """
    folder.prepare()
    folder.events.unlink(missing_ok=True)
    folder.events.touch(mode=0o600)
    words = (sys.executable, "-P", "-m", "orchestrator", "supervise", str(inventory.absolute()), *options)
    log = os.open(folder.supervisor_log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        return subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd=inventory.parent
        )
    finally:
        os.close(log)


async def follow(folder: ClusterFolder, supervisor: subprocess.Popen[bytes]) -> AsyncIterator[Event]:
    """The supervisor's events up to Ready or Failed; BringUpError with its log when it ends without either."""
    with folder.events.open("rb") as events:
        while True:
            ended = supervisor.poll() is not None
            for line in _whole_lines(events):
                event = read_event(line)
                yield event
                if isinstance(event, Ready | Failed):
                    return
            if ended:
                tail = folder.supervisor_log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace")
                raise BringUpError(
                    f"the supervisor ended with status {supervisor.returncode} before the cluster was ready",
                    hint=f"its whole log: {folder.supervisor_log}",
                    details=tail,
                )
            await asyncio.sleep(POLL_S)


def _whole_lines(events: BinaryIO) -> Iterator[bytes]:
    """The lines that are there; one that is still being written is left for the next time."""
    while (line := events.readline()).endswith(b"\n"):
        yield line
    events.seek(-len(line), os.SEEK_CUR)


async def until_rebalanced(folder: ClusterFolder, request: Request) -> Outcome:
    """Wait for what the supervisor says to the request; ClusterStateError when it ends instead, or takes too long."""
    try:
        async with asyncio.timeout(REBALANCE_DEADLINE_S):
            while (outcome := outcome_of(folder, request)) is None:
                if not is_held(folder):
                    raise ClusterStateError(f"cluster {folder.path.name} has ended meanwhile", hint="`meshctl events`")
                await asyncio.sleep(POLL_S)
    except TimeoutError as error:
        raise ClusterStateError(
            f"the supervisor of {folder.path.name} has not answered within {REBALANCE_DEADLINE_S / 60:.0f} minutes",
            hint="it may still be at it: `meshctl status`",
        ) from error
    finally:
        withdraw(folder, request)
    return outcome


async def stop_cluster(folder: ClusterFolder) -> bool:
    """Ask the supervisor to stop and wait until it has; False when none ran. ClusterStateError when it does not end."""
    if not is_held(folder):
        return False
    pid = await _ask_to_stop(folder)
    if pid is None:
        return True
    try:
        async with asyncio.timeout(STOP_DEADLINE_S):
            while is_held(folder):
                await asyncio.sleep(POLL_S)
    except TimeoutError as error:
        raise ClusterStateError(
            f"the supervisor (process {pid}) does not end within {STOP_DEADLINE_S:.0f} s",
            hint=f"end it with `kill -9 {pid}`: the leashes then end every process of the cluster within 15 s",
        ) from error
    await _gone(pid)
    return True


async def _ask_to_stop(folder: ClusterFolder) -> int | None:
    """Send SIGTERM to the supervisor and give its process number; None when it has ended meanwhile.

    A supervisor that has just begun, or is about to leave, has the state of an ended one beside it: that one's number
    may be another program's by now, so it is waited for a word of the present one.
    """
    for _ in range(WORD_POLLS):
        if not is_held(folder):
            return None
        state = read_state(folder)
        if state is not None and (state.supervised or state.phase not in ("stopped", "failed")):
            with suppress(ProcessLookupError):  # left by one that was killed
                os.kill(state.pid, signal.SIGTERM)
                return state.pid
        await asyncio.sleep(POLL_S)
    raise ClusterStateError(f"cluster {folder.path.name} has just begun to start", hint="try again in a moment")


async def _gone(pid: int) -> None:
    """Wait a moment for the process itself, which lets go of its lock before it leaves; a zombie is not waited for."""
    for _ in range(EXIT_POLLS):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        await asyncio.sleep(POLL_S)
