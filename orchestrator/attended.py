"""A shell whose commands are run by one process of the agent on the host, which stays as long as it is asked.

Each question by itself takes a session, a login shell and a start of Python there, a tenth of a second; so it takes a
few milliseconds. Programs that go on and files go the shell's own way, and so does what this process has not answered.
"""

import asyncio
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from pydantic import TypeAdapter
from pydantic.dataclasses import dataclass

from orchestrator.errors import DeadlineError, HostError
from orchestrator.host_door import Attending, let_attend, let_attend_with_facts, tell_nobody
from orchestrator.shell.local import failed
from orchestrator.shell.protocol import Finished, Process, Progress, Shell, Span, Words
from orchestrator.shell.resume import Resumable
from orchestrator.shell.words import shown, under_c_locale
from workers.commands import ATTEND, agent_words, enter_words
from workers.facts import HostFacts

AT_ONCE = 8
BYTES = "latin-1"
"""Every byte is a character of it: what goes in and out need not be text."""

LEAVE_S = 5.0


class _GoneError(Exception):
    """The process has ended without an answer."""


@dataclass(frozen=True)
class _Answer:
    id: int
    status: int
    stdout: str
    stderr: str


_ANSWER = TypeAdapter(_Answer)


async def attend(shell: Shell, tell: Callable[[str], None] = tell_nobody) -> "AttendedShell":
    """The agent is put there when it is not there yet, and waits for questions: see `host_door.let_attend`."""
    agent, attending = await let_attend(shell, tell)
    return AttendedShell(shell, agent, attending)


async def attend_with_facts(
    shell: Shell, tell: Callable[[str], None] = tell_nobody
) -> "tuple[AttendedShell, HostFacts]":
    """The same, with what the host says of itself."""
    agent, attending, facts = await let_attend_with_facts(shell, tell)
    return AttendedShell(shell, agent, attending), facts


class AttendedShell:
    """`agent` is the agent's path on the host; `attending` waits there already."""

    def __init__(self, shell: Shell, agent: str, attending: Attending) -> None:
        self._shell = shell
        self.agent = agent
        self._prefix = agent_words(agent, "")[:-1]
        self._attendant: _Attendant | None = _Attendant(attending)
        self._starting = asyncio.Lock()
        self._turns = asyncio.Semaphore(AT_ONCE)

    @property
    def host(self) -> str:
        return self._shell.host

    @property
    def root(self) -> str:
        return self._shell.root

    @property
    def is_local(self) -> bool:
        return self._shell.is_local

    async def run(
        self,
        words: Words,
        *,
        deadline_s: float,
        stdin: bytes = b"",
        environment: Mapping[str, str] | None = None,
        check: bool = True,
    ) -> Finished:
        """As the shell's own, by the process that waits there."""
        asked = self._asked(words, environment)
        async with self._turns:
            try:
                async with asyncio.timeout(deadline_s):
                    finished = await (await self._attending()).ask(asked, stdin)
            except TimeoutError as error:
                message = f"`{shown(words)}` did not end within {deadline_s:g} s and was killed"
                raise DeadlineError(self.host, message) from error
            except (_GoneError, HostError):
                finished = None
        if finished is None:
            return await self._shell.run(
                words, deadline_s=deadline_s, stdin=stdin, environment=environment, check=check
            )
        if check and finished.status != 0:
            raise failed(self.host, words, finished)
        return finished

    def _asked(self, words: Words, environment: Mapping[str, str] | None) -> Words:
        """A verb of the agent with its options."""
        if words[: len(self._prefix)] == self._prefix and not environment:
            return words[len(self._prefix) :]
        return enter_words(self.agent, (), under_c_locale(words, environment))[len(self._prefix) :]

    async def start(self, words: Words, *, environment: Mapping[str, str] | None = None) -> Process:
        """Start and return at once."""
        return await self._shell.start(words, environment=environment)

    async def put(
        self,
        source: Path,
        target: str,
        *,
        mode: int = 0o644,
        progress: Progress | None = None,
        resume: Resumable | None = None,
    ) -> None:
        """Copy a file there, whole or not at all."""
        await self._shell.put(source, target, mode=mode, progress=progress, resume=resume)

    async def put_bytes(self, data: bytes, target: str, *, mode: int = 0o644) -> None:
        """The same for bytes in memory."""
        await self._shell.put_bytes(data, target, mode=mode)

    async def append(
        self, source: Path, span: Span, target: str, *, done_bytes: int = 0, progress: Progress | None = None
    ) -> None:
        """Write a span of a file there."""
        await self._shell.append(source, span, target, done_bytes=done_bytes, progress=progress)

    async def get(self, source: str, target: Path, *, progress: Progress | None = None) -> None:
        """Fetch a file."""
        await self._shell.get(source, target, progress=progress)

    async def rest(self) -> None:
        """End the process there until the next question: it takes 10 MB, which a small host may need. One that is being
        asked stays."""
        async with self._starting:
            if self._attendant is not None and not self._attendant.is_asked:
                await self._attendant.close()
                self._attendant = None

    async def close(self) -> None:
        """The process there ends, too."""
        if self._attendant is not None:
            await self._attendant.close()
        await self._shell.close()

    async def _attending(self) -> "_Attendant":
        async with self._starting:
            if self._attendant is None or self._attendant.gone:
                words = agent_words(self.agent, *ATTEND)
                process = await self._shell.start(words, environment={"LC_ALL": "C"})
                self._attendant = _Attendant(Attending(process, process.lines()))
            return self._attendant


class _Attendant:
    """Our side of the process: sends questions, and gives each answer to whoever waits for it."""

    def __init__(self, attending: Attending) -> None:
        self._process = attending.process
        self._answers = attending.answers
        self._waiting: dict[int, asyncio.Future[_Answer]] = {}
        self._count = 0
        self.gone = False
        self._cancelling: set[asyncio.Task[None]] = set()
        self._reader = asyncio.create_task(self._read())

    @property
    def is_asked(self) -> bool:
        return bool(self._waiting)

    async def ask(self, words: Words, stdin: bytes) -> Finished:
        """It is ended there when nobody waits for it any more."""
        if self.gone:
            raise _GoneError
        self._count += 1
        number, answer = self._count, asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        try:
            await self._send({"id": number, "words": words, "stdin": stdin.decode(BYTES)})
            answered = await answer
        except asyncio.CancelledError:
            self._cancelling.add(cancel := asyncio.create_task(self._send({"cancel": number})))
            cancel.add_done_callback(self._cancelling.discard)
            raise
        finally:
            self._waiting.pop(number, None)
        return Finished(answered.status, answered.stdout.encode(BYTES), answered.stderr.encode(BYTES))

    async def close(self) -> None:
        for cancel in self._cancelling:
            cancel.cancel()
        with suppress(TimeoutError):  # one that hears nothing any more is killed
            async with asyncio.timeout(LEAVE_S):
                await self._process.close_stdin()
                await asyncio.wait((self._reader,))
        with suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_S):
                await self._process.kill()
        self._reader.cancel()

    async def _send(self, message: Mapping[str, object]) -> None:
        await self._process.write(json.dumps(message).encode() + b"\n")

    async def _read(self) -> None:
        try:
            async for line in self._answers:
                answer = _ANSWER.validate_json(line)
                waiting = self._waiting.get(answer.id)
                if waiting is not None and not waiting.done():
                    waiting.set_result(answer)
        finally:
            self.gone = True
            for waiting in self._waiting.values():
                if not waiting.done():
                    waiting.set_exception(_GoneError())
