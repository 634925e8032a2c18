"""Hold a program on a host: the agent there ends it when our heartbeats stop, and tells how it is meanwhile.

Works over any `Shell`. What is started here never outlives this process by more than the heartbeat's patience.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from orchestrator.errors import BringUpError, DeadlineError, HostError
from orchestrator.host_agent import QUESTION_S, REAP_S, log_tail, read_object, read_part
from orchestrator.shell.protocol import Finished, Process, Shell, Words
from workers import commands

HEARTBEAT_S = 10.0
SILENCE_S = 14.0
"""Without a life sign for so long, of which one should come every 2 s, it is lost. Counted in heartbeats of ours and
not by the clock, so that a controller that was busy or asleep itself blames nobody."""

REACH_S = 3.0
LOG_BYTES = 8 * 1024 * 1024
SETTLE_S = 0.25
NO_ENVIRONMENT: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class Exit:
    """How a leashed program ended.

    `status` is negative for a signal. It is None when the leash or the connection to it was lost (`lost`; a leash
    that is gone has ended its program), or when the program could not be ended. `reason` is why the leash ended it,
    "" when it ended by itself.
    """

    status: int | None
    lost: bool = False
    reason: str = ""
    rss_peak_bytes: int = 0
    tail: str = ""
    output: str = ""  # what it wrote to stdout, where that was asked for

    def __str__(self) -> str:
        if self.lost:
            return self.reason or "the connection to it was lost"
        if self.status is None:
            return "it could not be ended"
        how = f"exit status {self.status}" if self.status >= 0 else f"ended by signal {-self.status}"
        return f"{how} ({self.reason})" if self.reason else how


class Leashed:
    """A program that runs on a host under the agent's leash; made by `start_leashed`.

    Two tasks belong to it until it ends: one sends heartbeats, one reads the leash's lines. `on_exit` is a future of
    the `Exit`; the numbers are those of the last life sign, None before the first (one comes every 2 s), which came
    at `told_s` by the loop's clock. `cores_used`: processors that it kept busy between the last two.
    """

    def __init__(
        self,
        shell: Shell,
        agent: str,
        process: Process,
        *,
        name: str,
        log: str,
        heartbeat_s: float,
        on_line: Callable[[str], None] | None = None,
    ) -> None:
        self.name = name
        self.host = shell.host
        self.log = log
        self.pid = 0
        self.rss_bytes: int | None = None
        self.anonymous_bytes: int | None = None
        self.cpu_s: float | None = None
        self.cores_used: float | None = None
        self.available_bytes: int | None = None
        self.stopped = False
        self.on_exit: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self._leash_pid = 0
        self._silent_s = 0.0
        self._shell = shell
        self._agent = agent
        self._process = process
        self._on_line = on_line
        self._started = asyncio.Event()
        self.told_s = 0.0
        self._heart = asyncio.create_task(self._beat(heartbeat_s / 4))
        self._reader = asyncio.create_task(self._read(process.lines()))

    @property
    def running(self) -> bool:
        return not self.on_exit.done()

    async def wait(self) -> Exit:
        """Wait until it has ended; being cancelled here does not end it."""
        ended = await asyncio.shield(self.on_exit)
        await asyncio.wait((self._reader,))
        return ended

    async def stop(self, deadline_s: float = 15.0, *, at_once: bool = False) -> Exit:
        """End it and everything it started in order (SIGTERM, 2 s, SIGTERM, 1 s, SIGKILL), or `at_once` by SIGKILL.

        When the host does not answer in time our side is closed, upon which the leash there does the same by itself.
        """
        try:
            async with asyncio.timeout(deadline_s):
                await self._process.write(b"kill\n" if at_once else b"stop\n")
                return await self.wait()
        except TimeoutError:
            return await self.abandon()

    async def abandon(self) -> Exit:
        """Close our side at once; the leash then ends the program."""
        await self._process.kill()
        self._heart.cancel()
        self._reader.cancel()
        await asyncio.gather(self._heart, self._reader, return_exceptions=True)
        self._settle(Exit(None, lost=True))
        return self.on_exit.result()

    async def log_tail(self, lines: int = 20) -> str:
        """The last lines of its log on the host."""
        return await log_tail(self._shell, self._agent, self.log, lines)

    async def wait_started(self, deadline_s: float) -> None:
        """Until the leash has started it or it has ended; TimeoutError if late."""
        async with asyncio.timeout(deadline_s):
            started = asyncio.ensure_future(self._started.wait())
            try:
                await asyncio.wait((started, self.on_exit), return_when=asyncio.FIRST_COMPLETED)
            finally:
                started.cancel()

    async def _beat(self, every_s: float) -> None:
        while self._silent_s < SILENCE_S:
            self._silent_s += every_s
            await self._process.write(b"\n")
            await asyncio.sleep(every_s)
        self._settle(Exit(None, lost=True, reason=f"no life sign of it for {self._silent_s:.0f} s"))
        await self._kill_from_outside()
        self._reader.cancel()

    async def _kill_from_outside(self) -> None:
        """End a leash that is stopped, and its program, by a command beside it, where the host still takes one."""
        if self._leash_pid:
            words = ("kill", "-s", "KILL", "--", str(self._leash_pid), f"-{self.pid}")
            with suppress(HostError):
                await self._shell.run(words, deadline_s=REACH_S, check=False)

    async def _read(self, lines: AsyncIterator[str]) -> None:
        try:
            ended = await self._read_events(lines)
            self._settle(ended or await self._unannounced_end())
            with suppress(DeadlineError):
                await self._process.wait(deadline_s=REAP_S)
        except (HostError, OSError) as error:
            self._settle(Exit(None, lost=True, reason=str(error)))
        finally:
            self._heart.cancel()
            self._settle(Exit(None, lost=True))
            await self._process.kill()

    async def _read_events(self, lines: AsyncIterator[str]) -> Exit | None:
        """Take what the leash says; None when its stream closes without the program's end."""
        async for line in lines:
            event = read_event(self.host, line)
            self._silent_s = 0.0
            if isinstance(event, Exit):
                return event
            self._take(event)
        return None

    async def _unannounced_end(self) -> Exit:
        """The leash itself is gone: killed, not able to run, or out of reach."""
        try:
            status = await self._process.wait(deadline_s=REAP_S)
        except DeadlineError:
            status = None
        reason = "" if status is None else f"its leash ended with status {status}"
        return Exit(None, lost=True, reason=reason, tail=self._process.stderr_tail())

    def _settle(self, ended: Exit) -> None:
        if not self.on_exit.done():
            self.on_exit.set_result(ended)

    def _take(self, event: "Begun | Alive | Said | None") -> None:
        match event:
            case Begun():
                self.pid, self._leash_pid = event.pid, event.leash
                self._started.set()
            case Said() if self._on_line is not None:
                for line in event.lines:
                    self._on_line(line)
            case Alive():
                self.rss_bytes, self.anonymous_bytes = event.rss_bytes, event.anonymous_bytes
                self.available_bytes, self.stopped = event.available_bytes, event.stopped
                self._take_cpu(event.cpu_s, asyncio.get_running_loop().time())

    def _take_cpu(self, cpu_s: float, now_s: float) -> None:
        """What a child that has ended took is not in the sum any more: that is no use below zero."""
        if self.cpu_s is not None:
            self.cores_used = max(0.0, (cpu_s - self.cpu_s) / max(now_s - self.told_s, 0.001))
        self.cpu_s, self.told_s = cpu_s, now_s


async def start_leashed(
    shell: Shell,
    agent: str,
    words: Words,
    *,
    log: str,
    environment: Mapping[str, str] = NO_ENVIRONMENT,
    name: str,
    log_bytes: int = LOG_BYTES,
    heartbeat_s: float = HEARTBEAT_S,
    deadline_s: float = QUESTION_S,
    uses: Sequence[str] = (),
    temporary: Sequence[str] = (),
    capture: bool = False,
    network: Words = (),
    may_end: bool = False,
    settle_s: float = SETTLE_S,
    on_line: Callable[[str], None] | None = None,
) -> Leashed:
    """Start a program on the host; `log` is an absolute path there, started anew.

    It does not start unless the cached items that it `uses` are whole, and keeps them from being removed; `temporary`
    files go with it. With `capture` its stdout comes with its `Exit`; `on_line` gets the lines of its log as they come,
    some left out where the connection is slow. `network`: options of `workers.commands`.
    BringUpError, with the end of its log, when it cannot start or, unless it `may_end`, ends within the first
    `settle_s`: none for one that is waited for anyway until it listens.
    """
    leash = commands.leash_words(
        agent,
        words,
        name=name,
        log=log,
        log_bytes=log_bytes,
        heartbeat_s=heartbeat_s,
        environment=environment,
        uses=uses,
        temporary=temporary,
        capture=capture,
        tell=on_line is not None,
        network=network,
    )
    process = await shell.start(leash)
    leashed = Leashed(shell, agent, process, name=name, log=log, heartbeat_s=heartbeat_s, on_line=on_line)
    try:
        await leashed.wait_started(deadline_s)
        if not may_end:
            await asyncio.wait((leashed.on_exit,), timeout=settle_s)
    except TimeoutError as error:
        await leashed.abandon()
        raise DeadlineError(shell.host, f"{name} did not start within {deadline_s:g} s") from error
    except BaseException:
        await leashed.abandon()
        raise
    if not leashed.running and not may_end:
        raise ended_at_once(shell.host, name, await leashed.wait(), log)
    return leashed


async def run_leashed(
    shell: Shell,
    agent: str,
    words: Words,
    *,
    log: str,
    environment: Mapping[str, str] = NO_ENVIRONMENT,
    name: str,
    uses: Sequence[str] = (),
    network: Words = (),
    deadline_s: float,
) -> Finished:
    """Run a program to its end as `Shell.run` does, for one that takes long: it ends with us, however we end.

    Its stderr goes to `log`. DeadlineError when it is late; HostError when it is lost.
    """
    held = await start_leashed(
        shell,
        agent,
        words,
        log=log,
        environment=environment,
        name=name,
        uses=uses,
        capture=True,
        network=network,
        may_end=True,
    )
    try:
        async with asyncio.timeout(deadline_s):
            ended = await held.wait()
    except TimeoutError as error:
        raise DeadlineError(shell.host, f"{name} did not end within {deadline_s:g} s") from error
    finally:
        await held.stop()
    if ended.status is None:
        raise HostError(shell.host, f"{name}: {ended}", details=ended.tail)
    return Finished(ended.status, ended.output.encode(), (ended.tail or ended.reason).encode())


def ended_at_once(host: str, name: str, ended: Exit, log: str) -> BringUpError:
    """The error of a program that did not come to do anything."""
    hint = f"its whole log is {log} on {host}"
    return BringUpError(f"{host}: {name} ended at once: {ended}", hint=hint, details=ended.tail)


@dataclass(frozen=True)
class Begun:
    """The program runs, held by the process `leash`."""

    pid: Annotated[int, Field(ge=1)]
    leash: Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class Alive:
    """A life sign: memory of the program and all it started, their time, what the host has left, and whether any of
    them is stopped (by a signal or a debugger: it will do nothing until somebody lets it go on)."""

    rss_bytes: int
    anonymous_bytes: int
    cpu_s: float
    available_bytes: int | None
    stopped: bool


@dataclass(frozen=True)
class Said:
    """Lines that the program wrote."""

    lines: tuple[str, ...]


_KINDS: Mapping[object, TypeAdapter[Any]] = {
    "started": TypeAdapter(Begun),
    "alive": TypeAdapter(Alive),
    "said": TypeAdapter(Said),
    "exit": TypeAdapter(Exit),
}


def read_event(host: str, line: str) -> Begun | Alive | Said | Exit | None:
    """One line of the leash's; None for an event that says nothing to us. HostError when it cannot be read."""
    told = read_object(host, line)
    if "error" in told:
        return Exit(1, reason=str(told["error"]))
    name = told.get("event")
    kind = _KINDS.get(name) if isinstance(name, str) else None
    return None if kind is None else read_part(host, kind, told)
