"""Our side of the agent: ask it; `host_door` puts it on a host, `leash` holds programs there.

Works over any `Shell`. Every question has a deadline; an answer that cannot be read is an error that names the host.
"""

import asyncio
import hashlib
import socket
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from orchestrator.errors import CommandError, DeadlineError, HostError, MeshctlError
from orchestrator.shell.protocol import Finished, Process, Progress, Shell, Words
from orchestrator.shell.resume import Resumable
from workers import commands
from workers.build_tools import BuildTools
from workers.facts import HostFacts, read_facts

LOOPBACK = "127.0.0.1"
QUESTION_S = 30.0
LINK_BEAT_S = 5.0
FACTS_S = 90.0  # nvidia-smi without its daemon and system_profiler may take half a minute each
UNPACK_S = 600.0
LOCK_S = 4 * 3600.0
REAP_S = 5.0
NOT_FOUND = 127

T = TypeVar("T")
Port = Annotated[int, Field(ge=1, le=65535)]


async def ask_facts(shell: Shell, agent: str) -> HostFacts:
    """What the host says of itself."""
    return read_facts_answer(shell.host, await run_unjudged(shell, commands.facts_words(agent, shell.root), FACTS_S))


def read_facts_answer(host: str, finished: Finished) -> HostFacts:
    _read_answer(host, finished)
    return read_facts(finished.stdout)


async def free_ports(shell: Shell, agent: str, count: int, address: str = LOOPBACK) -> tuple[int, ...]:
    """Ports free at that address of the host, below those of outgoing connections; they are not held."""
    answer = await ask_agent(shell, commands.ports_words(agent, count, address))
    return read_ports(shell.host, answer, count)


def read_ports(host: str, answer: dict[str, Any], count: int) -> tuple[int, ...]:
    ports = read_part(host, _PORTS, answer.get("ports"))
    if len(ports) < count:
        raise HostError(host, f"the agent found {len(ports)} free ports instead of {count}", hint=doctor_hint())
    return ports


@dataclass(frozen=True)
class Listening:
    """A TCP socket in LISTEN of our user there; `pid` is 0 and `program` "" where the owner cannot be seen."""

    address: str
    port: int
    pid: int
    program: str


async def listening(shell: Shell, agent: str, network: int = 0) -> tuple[Listening, ...]:
    """Every TCP socket of our user that listens on the host, or in the network of one of its processes."""
    answer = await ask_agent(shell, commands.listen_words(agent, network))
    return read_part(shell.host, _LISTENING, answer.get("listening"))


async def unpack(shell: Shell, agent: str, archive: str, folder: str, sha256: str) -> None:
    """Check and extract a tar.gz that lies on the host, replace `folder` by it whole, remove the archive."""
    await ask_agent(shell, commands.unpack_words(agent, archive, folder, sha256), UNPACK_S)


@dataclass(frozen=True)
class FolderCheck:
    """What of a folder's manifest is not so: paths of files that are other than they should be, not there, or there
    although no manifest speaks of them."""

    wrong: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.wrong and not self.missing and not self.extra

    def __str__(self) -> str:
        kinds = (("has changed", self.wrong), ("is missing", self.missing), ("does not belong there", self.extra))
        return "; ".join(f"{path} {what}" for what, paths in kinds for path in paths)


async def check_folder(shell: Shell, agent: str, folder: str) -> FolderCheck:
    """Compare every file of `folder`/manifest.json with its size and sha256, on the host."""
    answer = await ask_agent(shell, commands.check_words(agent, folder), UNPACK_S)
    return read_folder_check(shell.host, answer)


def read_folder_check(host: str, answer: dict[str, Any]) -> FolderCheck:
    kinds = ("wrong", "missing", "extra")
    return FolderCheck(*(read_part(host, _PATHS, answer.get(name, ())) for name in kinds))


def resumable(shell: Shell, agent: str, sha256: str) -> Resumable:
    """For sending what has this digest, so that a transfer that broke off goes on and what arrived is compared."""

    async def is_whole(path: str) -> bool:
        answer = await ask_agent(shell, commands.digest_words(agent, path), UNPACK_S)
        return read_part(shell.host, _TEXT, answer.get("sha256")) == sha256

    ours = hashlib.sha256(f"{socket.gethostname()}\0{sha256}".encode()).hexdigest()
    return Resumable(ours[:12], is_whole)


async def ask_tools(shell: Shell, agent: str) -> BuildTools:
    """What the host has of what a build of the engine needs."""
    return read_part(shell.host, _TOOLS, await ask_agent(shell, commands.tools_words(agent)))


async def collect(shell: Shell, agent: str, binaries: str, folder: str, manifest: str, programs: Sequence[str]) -> None:
    """Make the engine `folder` there of a finished build, whole or not at all."""
    await ask_agent(shell, commands.collect_words(agent, binaries, folder, manifest, programs), UNPACK_S)


@dataclass(frozen=True)
class Orphan:
    """A program of an engine that ran on a host although nobody held it any more."""

    pid: int
    program: str
    engine: str


async def end_orphans(shell: Shell, agent: str, keep: Collection[str]) -> tuple[Orphan, ...]:
    """End what serves there from other engines than `keep` and no leash holds; gives what that was."""
    answer = await ask_agent(shell, commands.orphans_words(agent, shell.root, keep))
    return read_part(shell.host, _ORPHANS, answer.get("ended"))


async def log_tail(shell: Shell, agent: str, log: str, lines: int = 20, since_s: float | None = None) -> str:
    """The last lines of a log that a leash wrote, of those of the last `since_s` seconds if that is said."""
    answer = await ask_agent(shell, commands.tail_words(agent, log, lines, since_s))
    return read_part(shell.host, _TEXT, answer.get("text"))


async def tidy(shell: Shell, agent: str, folder: str = "") -> tuple[str, ...]:
    """Remove what crashes and unfinished transfers left under our folder some time ago; gives what was removed."""
    answer = await ask_agent(shell, commands.tidy_words(agent, folder or shell.root))
    return read_part(shell.host, _PATHS, answer.get("removed"))


@dataclass(frozen=True)
class Others:
    """Other users of a host than we and root, by name: who may log in, and who else has processes there."""

    login: tuple[str, ...]
    running: tuple[str, ...]


async def ask_others(shell: Shell, agent: str) -> Others:
    """Who else can reach the host's loopback, as far as it lets us see."""
    return read_part(shell.host, _OTHERS, await ask_agent(shell, commands.others_words(agent)))


class Wanted:
    """A verb of the agent that goes on as long as our life signs come; it ends with `close`, too."""

    def __init__(self, process: Process, beat_s: float) -> None:
        self._process = process
        self._heart = asyncio.create_task(self._beat(beat_s))

    async def _beat(self, every_s: float) -> None:
        while True:
            await self._process.write(b"\n")
            await asyncio.sleep(every_s)

    async def close(self) -> None:
        self._heart.cancel()
        await self._process.close_stdin()
        with suppress(DeadlineError):
            await self._process.wait(deadline_s=REAP_S)
        await self._process.kill()


@asynccontextmanager
async def host_lock(shell: Shell, agent: str, path: str, on_wait: Callable[[], None]) -> AsyncIterator[None]:
    """Hold the lock file `path` on the host, whichever controller or program there wants it, too.

    `on_wait` is called when somebody else has it. DeadlineError when that is so for LOCK_S; HostError when the agent
    cannot hold it. It is free again when the connection ends.
    """
    process = await shell.start(commands.hold_words(agent, path))
    lock = Wanted(process, LINK_BEAT_S)
    try:
        await _wait_held(shell.host, process, path, on_wait)
        yield
    finally:
        await lock.close()


async def _wait_held(host: str, process: Process, path: str, on_wait: Callable[[], None]) -> None:
    try:
        async with asyncio.timeout(LOCK_S):
            async for line in process.lines():
                said = read_object(host, line)
                if "error" in said:
                    raise HostError(host, f"the lock {path}: {said['error']}")
                if said.get("held"):
                    return
                on_wait()
    except TimeoutError as error:
        raise DeadlineError(host, f"another meshctl has been holding {path} for {LOCK_S / 3600:g} h") from error
    raise HostError(host, f"the agent did not hold the lock {path}", details=process.stderr_tail())


class LinkServer(Wanted):
    """The measuring server on a host; it ends with `close`, with our connection, or when our life signs stop.

    A request is 17 bytes: one of b"E" b"S" b"R", the size and the count, both 8 bytes big-endian. E: `count` times
    `size` bytes there and back (at most 16 MiB each); S: takes `size` bytes, then answers one byte; R: sends `size`.
    A request above 1 GiB closes the connection.
    """

    def __init__(self, process: Process, port: int) -> None:
        super().__init__(process, LINK_BEAT_S)
        self.port = port


async def start_link_server(
    shell: Shell, agent: str, *, address: str = LOOPBACK, socket: str = "", deadline_s: float = QUESTION_S
) -> LinkServer:
    """Start it at that address of the host, or at a socket in our folder there, with port 0 then.

    DeadlineError or HostError when it does not say its port.
    """
    words, what = commands.link_words(agent, address, socket), "the measuring server"
    process, said = await _start_wanted(shell, words, what, deadline_s)
    return LinkServer(process, read_part(shell.host, _PORT_OR_NONE, said.get("port")))


class Giving(Wanted):
    """A host that lets another one fetch weights at `port`, until it is closed."""

    def __init__(self, process: Process, port: int) -> None:
        super().__init__(process, LINK_BEAT_S)
        self.port = port


async def start_giving(shell: Shell, words: Words, introduced: bytes) -> Giving:
    """`introduced` is one line. DeadlineError or HostError when the host cannot."""
    process, said = await _start_wanted(shell, words, "giving weights to another host", QUESTION_S, introduced)
    return Giving(process, read_part(shell.host, _PORT_OR_NONE, said.get("port")))


class HeldNetwork(Wanted):
    """A network of ours alone on a host, that of the process `pid`; programs join it until it is closed."""

    def __init__(self, process: Process, pid: int) -> None:
        super().__init__(process, LINK_BEAT_S)
        self.pid = pid


async def start_network(shell: Shell, agent: str) -> HeldNetwork:
    """DeadlineError or HostError when the host has none for us."""
    process, said = await _start_wanted(shell, commands.network_words(agent), "a private network", QUESTION_S)
    return HeldNetwork(process, read_part(shell.host, _PID, said.get("pid")))


async def _start_wanted(
    shell: Shell, words: Words, what: str, deadline_s: float, stdin: bytes = b""
) -> tuple[Process, dict[str, Any]]:
    """A verb of the agent that goes on, and the first thing it says."""
    process = await shell.start(words)
    try:
        async with asyncio.timeout(deadline_s):
            await process.write(stdin)
            async for line in process.lines():
                said = read_object(shell.host, line)
                if "error" in said:
                    raise HostError(shell.host, f"{what}: {said['error']}")
                return process, said
        raise HostError(shell.host, f"{what} did not start", details=process.stderr_tail())
    except TimeoutError as error:
        await process.kill()
        raise DeadlineError(shell.host, f"{what} did not start within {deadline_s:g} s") from error
    except BaseException:
        await process.kill()
        raise


async def ask_agent(
    shell: Shell, words: Words, deadline_s: float = QUESTION_S, *, stdin: bytes = b""
) -> dict[str, Any]:
    """What a verb of the agent answers; HostError with what it says when it cannot do it."""
    return _read_answer(shell.host, await run_unjudged(shell, words, deadline_s, stdin=stdin))


async def ask_at_length(
    shell: Shell, words: Words, deadline_s: float, *, stdin: bytes, progress: Progress
) -> dict[str, Any]:
    """The same for a verb with `commands.TELL`: `progress` hears how far it has come."""
    process = await shell.start(words, environment={"LC_ALL": "C"})
    try:
        async with asyncio.timeout(deadline_s):
            await process.write(stdin)
            await process.close_stdin()
            async for line in process.lines():
                said = read_object(shell.host, line)
                if "done_bytes" not in said:
                    return _read_answer(shell.host, Finished(0, line.encode(), b""))
                progress(
                    read_part(shell.host, _BYTES, said["done_bytes"]),
                    read_part(shell.host, _BYTES, said["total_bytes"]),
                )
            status = await process.wait(deadline_s=REAP_S)
    except TimeoutError as error:
        raise DeadlineError(shell.host, f"the agent did not answer within {deadline_s:g} s") from error
    finally:
        await process.kill()
    if status is None:
        raise CommandError(shell.host, "the connection was lost while its agent was at work", status=None)
    return _read_answer(shell.host, Finished(status, b"", process.stderr_tail().encode()))


async def run_unjudged(shell: Shell, words: Words, deadline_s: float, *, stdin: bytes = b"") -> Finished:
    """Run without judging the status; a shell that cannot even start the program says status 127."""
    try:
        return await shell.run(words, deadline_s=deadline_s, stdin=stdin, check=False)
    except CommandError as error:
        if error.status != NOT_FOUND:
            raise
        return Finished(NOT_FOUND, b"", str(error).encode())


def _read_answer(host: str, finished: Finished) -> dict[str, Any]:
    if finished.status == NOT_FOUND:
        raise no_python(host)
    if finished.status not in (0, 1) or not finished.stdout.strip():
        said = finished.stderr.decode(errors="replace").strip()
        raise CommandError(
            host, f"the agent failed (exit status {finished.status})", status=finished.status, details=said
        )
    answer = read_object(host, finished.stdout.decode(errors="replace"))
    if "error" in answer:
        raise HostError(host, str(answer["error"]))
    return answer


def read_object(host: str, text: str) -> dict[str, Any]:
    """One JSON object that the agent printed; HostError when it is none."""
    try:
        return _OBJECT.validate_json(text)
    except ValidationError as error:
        raise HostError(
            host,
            f"what should be the agent's answer cannot be read: {text.strip()[:80]!r}",
            hint="a login script there that prints something (~/.bashrc) must not do so without a terminal",
        ) from error


def read_part(host: str, kind: TypeAdapter[T], part: object) -> T:
    """One part of an answer; HostError when it is not of this kind."""
    try:
        return kind.validate_python(part)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(step) for step in first["loc"])
        said = f"{place}: {first['msg']}" if place else first["msg"]
        raise HostError(host, f"the agent's answer is not as it should be: {said}", hint=doctor_hint()) from error


_OBJECT = TypeAdapter(dict[str, Any])
_BYTES = TypeAdapter(Annotated[int, Field(ge=0)])
_PORT_OR_NONE = TypeAdapter(Annotated[int, Field(ge=0, le=65535)])
_PID = TypeAdapter(Annotated[int, Field(ge=1)])
_PORTS = TypeAdapter(tuple[Port, ...])
_PATHS = TypeAdapter(tuple[str, ...])
_TEXT = TypeAdapter(str)
_LISTENING = TypeAdapter(tuple[Listening, ...])
_OTHERS = TypeAdapter(Others)
_TOOLS = TypeAdapter(BuildTools)
_ORPHANS = TypeAdapter(tuple[Orphan, ...])


def no_python(host: str, said: str = "") -> MeshctlError:
    """`said`: by what is there in its place."""
    hint = "install it there: `apt install python3`, `dnf install python3`, or on a Mac `brew install python3`"
    return HostError(host, "has no python3", hint=hint, details=said)


def doctor_hint() -> str:
    """For what should not be."""
    return "see what is wrong with `meshctl doctor`"
