"""Our side of the agent: put it on a host and ask it; `leash` holds programs there.

Works over any `Shell`. Every question has a deadline; an answer that cannot be read is an error that names the host.
"""

import asyncio
import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass
from importlib import resources
from typing import Annotated, Any, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from orchestrator.errors import CommandError, DeadlineError, HostError, MeshctlError
from orchestrator.shell.protocol import Finished, Process, Shell, Words
from workers import commands
from workers.facts import HostFacts, read_facts

QUESTION_S = 30.0
FACTS_S = 90.0  # nvidia-smi without its daemon and system_profiler may take half a minute each
UNPACK_S = 600.0
REAP_S = 5.0
OLDEST_PYTHON = (3, 8)
NOT_FOUND = 127

T = TypeVar("T")
Port = Annotated[int, Field(ge=1, le=65535)]


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
    return read_ports(shell.host, answer, count)


def read_ports(host: str, answer: dict[str, Any], count: int) -> tuple[int, ...]:
    ports = read_part(host, _PORTS, answer.get("ports"))
    if len(ports) < count:
        raise HostError(host, f"the agent found {len(ports)} free ports instead of {count}", hint=_doctor_hint())
    return ports


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
    return read_part(shell.host, _LISTENING, answer.get("listening"))


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
    return read_folder_check(shell.host, answer)


def read_folder_check(host: str, answer: dict[str, Any]) -> FolderCheck:
    wrong, missing = (read_part(host, _PATHS, answer.get(name, ())) for name in ("wrong", "missing"))
    return FolderCheck(wrong, missing)


async def log_tail(shell: Shell, agent: str, log: str, lines: int = 20, since_s: float | None = None) -> str:
    """The last lines of a log that a leash wrote, of those of the last `since_s` seconds if that is said."""
    answer = await _ask(shell, commands.tail_words(agent, log, lines, since_s))
    return read_part(shell.host, _TEXT, answer.get("text"))


async def tidy(shell: Shell, agent: str) -> tuple[str, ...]:
    """Remove what unfinished transfers of more than a day ago left under the root; gives what was removed."""
    answer = await _ask(shell, commands.tidy_words(agent, shell.root))
    return read_part(shell.host, _PATHS, answer.get("removed"))


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
                return LinkServer(process, read_part(shell.host, _PORT, read_object(shell.host, line).get("port")))
        raise HostError(shell.host, "the measuring server did not start", details=process.stderr_tail())
    except TimeoutError as error:
        await process.kill()
        raise DeadlineError(shell.host, f"the measuring server did not start within {deadline_s:g} s") from error
    except BaseException:
        await process.kill()
        raise


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
        raise HostError(host, f"the agent's answer is not as it should be: {said}", hint=_doctor_hint()) from error


_OBJECT = TypeAdapter(dict[str, Any])
_PORT = TypeAdapter(Port)
_PORTS = TypeAdapter(tuple[Port, ...])
_PATHS = TypeAdapter(tuple[str, ...])
_TEXT = TypeAdapter(str)
_LISTENING = TypeAdapter(tuple[Listening, ...])


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
