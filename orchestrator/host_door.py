"""Put the agent on a host, and let it wait for questions: nothing that lies there is run before it has been looked at.

`workers/door.py` looks; the process that has looked is the one that then waits, so a host starts one Python for both.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from importlib import resources

from pydantic import TypeAdapter

from orchestrator.errors import CommandError, DeadlineError, HostError
from orchestrator.host_agent import (
    FACTS_S,
    NOT_FOUND,
    QUESTION_S,
    REAP_S,
    doctor_hint,
    no_python,
    read_facts_answer,
    read_object,
    read_part,
    run_unjudged,
)
from orchestrator.shell.protocol import Finished, Process, Shell
from workers import commands
from workers.facts import HostFacts

OLDEST_PYTHON = (3, 8)
_WHOLE_PYTHON = "install all of its standard library (on Debian and Ubuntu python3, beside python3-minimal)"


@dataclass(frozen=True)
class Attending:
    """A process of the agent that waits for questions on its stdin; `answers` are the lines that it will say."""

    process: Process
    answers: AsyncIterator[str]


def tell_nobody(text: str) -> None:
    """For those who have nobody to tell."""


async def ensure_agent(shell: Shell, tell: Callable[[str], None] = tell_nobody) -> str:
    """The agent's absolute path on the host; it is put there only when it is missing or another one.

    Before it is run its digest is compared, and our folder is closed to the host's other users; what had to be mended
    is told. HostError when the host has no Python 3, or one that is too old, or when our folder is somebody else's.
    """
    agent, ended = await _let_in(shell, tell, ())
    await ended.process.kill()
    return agent


async def let_attend(shell: Shell, tell: Callable[[str], None]) -> tuple[str, Attending]:
    """The same, and the agent waits for questions there."""
    return await _let_in(shell, tell, commands.ATTEND)


async def let_attend_with_facts(shell: Shell, tell: Callable[[str], None]) -> tuple[str, Attending, HostFacts]:
    """The same, and what the host says of itself, while nothing else of ours takes memory there."""
    agent, attending = await _let_in(shell, tell, commands.facts_and_attend(shell.root))
    try:
        return agent, attending, await _facts_said(shell, attending)
    except BaseException:
        await attending.process.kill()
        raise


def agent_source() -> bytes:
    """Our own copy of the agent."""
    return resources.files("workers").joinpath("agent.py").read_bytes()


async def _facts_said(shell: Shell, attending: Attending) -> HostFacts:
    try:
        async with asyncio.timeout(FACTS_S):
            line = await anext(attending.answers, "")
    except TimeoutError as error:
        raise DeadlineError(shell.host, f"the agent did not say what the host has within {FACTS_S:g} s") from error
    status = None if line else await attending.process.wait(deadline_s=REAP_S)
    return read_facts_answer(shell.host, Finished(status or 0, line.encode(), attending.process.stderr_tail().encode()))


async def _let_in(shell: Shell, tell: Callable[[str], None], verb: commands.Words) -> tuple[str, Attending]:
    source = agent_source()
    digest = hashlib.sha256(source).hexdigest()
    path = f"{shell.root}/agent/agent-{digest[:12]}.py"
    become = (digest, *verb) if verb else ()
    there, attending = await _at_the_door(shell, path, become, tell)
    if there == digest:
        return path, attending
    await attending.process.kill()
    if there:
        tell(f"{shell.host}: the agent there was not as it was put (by its sha256): it is put there anew")
    await _check_python(shell)
    await shell.put_bytes(source, path, mode=0o700)
    there, attending = await _at_the_door(shell, path, become, tell)
    if there == digest:
        return path, attending
    await attending.process.kill()
    raise HostError(shell.host, f"the agent at {path} is not what was put there", hint=doctor_hint())


@dataclass(frozen=True)
class _Door:
    """What `workers/door.py` says of our folder and of the agent in it ("": it is not there)."""

    agent: str
    mended: tuple[str, ...]
    refused: str


_DOOR = TypeAdapter(_Door)


async def _at_the_door(
    shell: Shell, agent: str, become: commands.Words, tell: Callable[[str], None]
) -> tuple[str, Attending]:
    """The digest of the agent there, "" for none, and the process, which goes on as the agent if that is the one of
    `become`.

    Nothing that lies on the host is run for this. HostError when our folder is not ours alone.
    """
    program = resources.files("workers").joinpath("door.py").read_bytes()
    words = commands.door_words(len(program), shell.root, agent, become)
    process = await _started(shell, words)
    attending = Attending(process, process.lines())
    try:
        door = await _said(shell, attending, program)
    except BaseException:
        await process.kill()
        raise
    for text in door.mended:
        tell(f"{shell.host}: {text}")
    if door.refused:
        await process.kill()
        hint = f"{shell.root} must be this user's own folder, with nothing of others in it: mend that, and try again"
        raise HostError(shell.host, door.refused, hint=hint)
    return door.agent, attending


async def _started(shell: Shell, words: commands.Words) -> Process:
    try:
        return await shell.start(words, environment={"LC_ALL": "C"})
    except CommandError as error:
        if error.status == NOT_FOUND:
            raise no_python(shell.host) from error
        raise


async def _said(shell: Shell, attending: Attending, program: bytes) -> _Door:
    process = attending.process
    try:
        async with asyncio.timeout(QUESTION_S):
            await process.write(program)
            line = await anext(attending.answers, None)
    except TimeoutError as error:
        message = f"its Python did not look at {shell.root} within {QUESTION_S:g} s"
        raise DeadlineError(shell.host, message) from error
    if line is not None:
        return read_part(shell.host, _DOOR, read_object(shell.host, line))
    status = await process.wait(deadline_s=REAP_S)
    if status == NOT_FOUND:
        raise no_python(shell.host)
    if status is None:
        raise CommandError(shell.host, f"the connection was lost while {shell.root} was looked at", status=None)
    await _check_python(shell)
    said = process.stderr_tail()
    raise CommandError(
        shell.host,
        f"its Python cannot look at {shell.root} (exit status {status})",
        status=status,
        hint=_WHOLE_PYTHON if "ModuleNotFoundError" in said else "",
        details=said.strip(),
    )


async def _check_python(shell: Shell) -> None:
    finished = await run_unjudged(shell, commands.PYTHON_VERSION, QUESTION_S)
    said = finished.stdout.decode(errors="replace").strip()
    numbers = said.split(".")
    if finished.status == NOT_FOUND or len(numbers) != 3 or not all(part.isdigit() for part in numbers):
        raise no_python(shell.host, finished.stderr.decode(errors="replace").strip())
    if (int(numbers[0]), int(numbers[1])) < OLDEST_PYTHON:
        oldest = ".".join(str(part) for part in OLDEST_PYTHON)
        raise HostError(
            shell.host,
            f"python3 there is {said}, the agent needs {oldest} or newer",
            hint="install a newer one and make it the first python3 on the PATH",
        )
