"""Our side of the agent: put it on a host, ask it, and hold programs there on its leash.

Works over any `Shell`. Every question has a deadline; an answer that cannot be read is an error that names the host.
"""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import resources
from types import MappingProxyType
from typing import Any

from pydantic import TypeAdapter, ValidationError

from orchestrator.errors import BringUpError, CommandError, DeadlineError, HostError, MeshctlError
from orchestrator.shell.protocol import Finished, Process, Shell, Words
from workers import commands
from workers.facts import HostFacts, read_facts

QUESTION_S = 30.0
FACTS_S = 90.0  # nvidia-smi without its daemon and system_profiler may take half a minute each
UNPACK_S = 600.0
HEARTBEAT_S = 10.0
LOG_BYTES = 8 * 1024 * 1024
SETTLE_S = 0.25
REAP_S = 5.0
OLDEST_PYTHON = (3, 8)
NOT_FOUND = 127
NO_ENVIRONMENT: Mapping[str, str] = MappingProxyType({})


async def ensure_agent(shell: Shell) -> str:
    """The agent's absolute path on the host; it is put there only when it is missing or another one.

    HostError when the host has no Python 3, or one that is too old.
    """
    source = agent_source()
    digest = hashlib.sha256(source).hexdigest()
    path = f"{shell.root}/agent/agent-{digest[:12]}.py"
    if await _agent_digest(shell, path) == digest:
        return path
    await _check_python(shell)
    await shell.put_bytes(source, path, mode=0o700)
    if await _agent_digest(shell, path) != digest:
        raise HostError(shell.host, f"the agent at {path} does not run as it should", hint=_doctor_hint())
    return path


def agent_source() -> bytes:
    """Our own copy of the agent."""
    return resources.files("workers").joinpath("agent.py").read_bytes()


async def ask_facts(shell: Shell, agent: str) -> HostFacts:
    """What the host says of itself."""
    finished = await _run(shell, commands.facts_words(agent, shell.root), FACTS_S)
    _read_answer(shell.host, finished)
    return read_facts(finished.stdout)


async def free_ports(shell: Shell, agent: str, count: int) -> tuple[int, ...]:
    """Ports free on the host's loopback, below those of outgoing connections; they are not held."""
    answer = await _ask(shell, commands.ports_words(agent, count))
    return tuple(int(port) for port in answer["ports"])


@dataclass(frozen=True)
class Listening:
    """A TCP socket in LISTEN of our user there; `pid` is 0 and `program` "" where the owner cannot be seen."""

    address: str
    port: int
    pid: int
    program: str


async def listening(shell: Shell, agent: str) -> tuple[Listening, ...]:
    """Every TCP socket of our user that listens on the host."""
    answer = await _ask(shell, commands.listen_words(agent))
    return TypeAdapter(tuple[Listening, ...]).validate_python(answer["listening"])


async def unpack(shell: Shell, agent: str, archive: str, folder: str, sha256: str) -> None:
    """Check and extract a tar.gz that lies on the host, replace `folder` by it whole, remove the archive."""
    await _ask(shell, commands.unpack_words(agent, archive, folder, sha256), UNPACK_S)


@dataclass(frozen=True)
class FolderCheck:
    """What of a folder's manifest is not so: paths of files that are other than they should be, or not there."""

    wrong: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.wrong and not self.missing


async def check_folder(shell: Shell, agent: str, folder: str) -> FolderCheck:
    """Compare every file of `folder`/manifest.json with its size and sha256, on the host."""
    answer = await _ask(shell, commands.check_words(agent, folder), UNPACK_S)
    return FolderCheck(tuple(answer.get("wrong", ())), tuple(answer.get("missing", ())))


async def log_tail(shell: Shell, agent: str, log: str, lines: int = 20) -> str:
    """The last lines of a log that a leash wrote."""
    answer = await _ask(shell, commands.tail_words(agent, log, lines))
    return str(answer["text"])


async def tidy(shell: Shell, agent: str) -> tuple[str, ...]:
    """Remove what unfinished transfers of more than a day ago left under the root; gives what was removed."""
    answer = await _ask(shell, commands.tidy_words(agent, shell.root))
    return tuple(answer["removed"])


class LinkServer:
    """The measuring server on a host's loopback; it ends with `close` or with our connection.

    A request is 17 bytes: one of b"E" b"S" b"R", the size and the count, both 8 bytes big-endian. E: `count` times
    `size` bytes there and back (at most 16 MiB each); S: takes `size` bytes, then answers one byte; R: sends `size`.
    A request above 1 GiB closes the connection.
    """

    def __init__(self, process: Process, port: int) -> None:
        self._process = process
        self.port = port

    async def close(self) -> None:
        await self._process.close_stdin()
        with suppress(DeadlineError):
            await self._process.wait(deadline_s=REAP_S)
        await self._process.kill()


async def start_link_server(shell: Shell, agent: str, *, deadline_s: float = QUESTION_S) -> LinkServer:
    """Start it; DeadlineError or HostError when it does not say its port."""
    process = await shell.start(commands.link_words(agent))
    try:
        async with asyncio.timeout(deadline_s):
            async for line in process.lines():
                return LinkServer(process, int(_read_object(shell.host, line)["port"]))
        raise HostError(shell.host, "the measuring server did not start", details=process.stderr_tail())
    except TimeoutError as error:
        await process.kill()
        raise DeadlineError(shell.host, f"the measuring server did not start within {deadline_s:g} s") from error
    except BaseException:
        await process.kill()
        raise


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
    the `Exit`; the numbers are those of the last life sign, None before the first (one comes every 2 s).
    """

    def __init__(self, shell: Shell, agent: str, process: Process, *, name: str, log: str, heartbeat_s: float) -> None:
        self.name = name
        self.host = shell.host
        self.log = log
        self.pid = 0
        self.rss_bytes: int | None = None
        self.anonymous_bytes: int | None = None
        self.cpu_s: float | None = None
        self.available_bytes: int | None = None
        self.on_exit: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self._shell = shell
        self._agent = agent
        self._process = process
        self._started = asyncio.Event()
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

    async def stop(self, deadline_s: float = 15.0) -> Exit:
        """End it and everything it started in order (SIGTERM, 2 s, SIGTERM, 1 s, SIGKILL).

        When the host does not answer in time our side is closed, upon which the leash there does the same by itself.
        """
        try:
            async with asyncio.timeout(deadline_s):
                await self._process.write(b"stop\n")
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
        while True:
            await self._process.write(b"\n")
            await asyncio.sleep(every_s)

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
            event = _read_object(self.host, line)
            if event.get("event") == "exit" or "error" in event:
                return _read_exit(event)
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

    def _take(self, event: Mapping[str, Any]) -> None:
        if event.get("event") == "started":
            self.pid = int(event["pid"])
            self._started.set()
        elif event.get("event") == "alive":
            self.rss_bytes, self.anonymous_bytes = int(event["rss_bytes"]), int(event["anonymous_bytes"])
            self.cpu_s, self.available_bytes = float(event["cpu_s"]), int(event["available_bytes"])


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
) -> Leashed:
    """Start a program on the host; `log` is an absolute path there, started anew.

    BringUpError, with the end of its log, when it cannot start or ends within the first quarter of a second.
    """
    leash = commands.leash_words(
        agent, words, name=name, log=log, log_bytes=log_bytes, heartbeat_s=heartbeat_s, environment=environment
    )
    process = await shell.start(leash)
    leashed = Leashed(shell, agent, process, name=name, log=log, heartbeat_s=heartbeat_s)
    try:
        await leashed.wait_started(deadline_s)
        await asyncio.wait((leashed.on_exit,), timeout=SETTLE_S)
    except TimeoutError as error:
        await leashed.abandon()
        raise DeadlineError(shell.host, f"{name} did not start within {deadline_s:g} s") from error
    except BaseException:
        await leashed.abandon()
        raise
    if not leashed.running:
        raise _ended_at_once(shell.host, name, await leashed.wait(), log)
    return leashed


def _ended_at_once(host: str, name: str, ended: Exit, log: str) -> BringUpError:
    hint = f"its whole log is {log} on {host}"
    return BringUpError(f"{host}: {name} ended at once: {ended}", hint=hint, details=ended.tail)


def _read_exit(event: Mapping[str, Any]) -> Exit:
    if "error" in event:
        return Exit(1, reason="the leash failed", tail=str(event["error"]))
    return Exit(
        status=event["status"],
        reason=str(event["reason"]),
        rss_peak_bytes=int(event["rss_peak_bytes"]),
        tail=str(event["tail"]),
    )


async def _ask(shell: Shell, words: Words, deadline_s: float = QUESTION_S) -> dict[str, Any]:
    return _read_answer(shell.host, await _run(shell, words, deadline_s))


async def _run(shell: Shell, words: Words, deadline_s: float) -> Finished:
    """Run without judging the status; a shell that cannot even start the program says status 127."""
    try:
        return await shell.run(words, deadline_s=deadline_s, check=False)
    except CommandError as error:
        if error.status != NOT_FOUND:
            raise
        return Finished(NOT_FOUND, b"", str(error).encode())


def _read_answer(host: str, finished: Finished) -> dict[str, Any]:
    if finished.status == NOT_FOUND:
        raise _no_python(host)
    if finished.status not in (0, 1) or not finished.stdout.strip():
        said = finished.stderr.decode(errors="replace").strip()
        raise CommandError(
            host, f"the agent failed (exit status {finished.status})", status=finished.status, details=said
        )
    answer = _read_object(host, finished.stdout.decode(errors="replace"))
    if "error" in answer:
        raise HostError(host, str(answer["error"]))
    return answer


def _read_object(host: str, text: str) -> dict[str, Any]:
    try:
        return _OBJECT.validate_json(text)
    except ValidationError as error:
        raise HostError(
            host,
            f"what should be the agent's answer cannot be read: {text.strip()[:80]!r}",
            hint="a login script there that prints something (~/.bashrc) must not do so without a terminal",
        ) from error


_OBJECT = TypeAdapter(dict[str, Any])


async def _agent_digest(shell: Shell, path: str) -> str:
    """What the agent at that path says of itself, "" when it is not there or does not run."""
    finished = await _run(shell, commands.version_words(path), QUESTION_S)
    if finished.status == NOT_FOUND:
        raise _no_python(shell.host)
    try:
        return str(json.loads(finished.stdout)["agent"]) if finished.status == 0 else ""
    except (ValueError, KeyError, TypeError):
        return ""


async def _check_python(shell: Shell) -> None:
    finished = await _run(shell, commands.PYTHON_VERSION, QUESTION_S)
    said = finished.stdout.decode(errors="replace").strip()
    numbers = said.split(".")
    if finished.status == NOT_FOUND or len(numbers) != 3 or not all(part.isdigit() for part in numbers):
        raise _no_python(shell.host, finished.stderr.decode(errors="replace").strip())
    if (int(numbers[0]), int(numbers[1])) < OLDEST_PYTHON:
        oldest = ".".join(str(part) for part in OLDEST_PYTHON)
        raise HostError(
            shell.host,
            f"python3 there is {said}, the agent needs {oldest} or newer",
            hint="install a newer one and make it the first python3 on the PATH",
        )


def _no_python(host: str, said: str = "") -> MeshctlError:
    hint = "install it there: `apt install python3`, `dnf install python3`, or on a Mac `brew install python3`"
    return HostError(host, "has no python3", hint=hint, details=said)


def _doctor_hint() -> str:
    return "see what is wrong with `meshctl doctor`"
