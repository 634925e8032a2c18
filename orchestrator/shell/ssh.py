"""A host over SSH: one verified connection carries commands, processes and files.

Closing a connection does not end what runs there: a late command is killed by a second one, and what must not
outlive us runs under the agent's leash, never directly under this.
"""

import asyncio
import posixpath
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import asyncssh

from orchestrator.errors import CommandError, DeadlineError
from orchestrator.inventory import Host
from orchestrator.shell.local import failed
from orchestrator.shell.protocol import Finished, Process, Progress, Span, Words
from orchestrator.shell.resume import Resumable
from orchestrator.shell.ssh_config import SshFiles, destination_words
from orchestrator.shell.ssh_errors import FOREIGN, lost, no_session, no_sftp
from orchestrator.shell.ssh_files import SftpFiles, read_free_bytes
from orchestrator.shell.ssh_login import CONNECT_S, Login, open_login
from orchestrator.shell.streams import Tail, split_lines
from orchestrator.shell.words import announced, as_line, end_group, launched, shown, under_c_locale, with_environment

if TYPE_CHECKING:
    ClientProcess = asyncssh.SSHClientProcess[bytes]

_RUNS_AT_ONCE = 4  # sshd allows 10 sessions per connection: one is SFTP, the rest is for processes
_OPEN_S = 15.0
_END_S = 5.0
_DF_S = 10.0


async def open_ssh_shell(host: Host, ssh: SshFiles) -> "SshShell":
    """Log in and find the home folder. HostKeyError or ConnectError, with nothing left open."""
    login = await open_login(host, ssh)
    try:
        async with asyncio.timeout(CONNECT_S):
            sftp = await login.connection.start_sftp_client()
            home = await sftp.realpath(".")
    except FOREIGN as error:
        await login.close()
        raise no_sftp(host.name, error) from error
    except asyncio.CancelledError:
        await login.close()
        raise
    assert isinstance(home, str)
    return SshShell(host, login, sftp, home)


class SshShell:
    """One host over one connection. `root` is ~/.cache/meshctl there; `destination` is how `ssh` reaches the same."""

    def __init__(self, host: Host, login: Login, sftp: asyncssh.SFTPClient, home: str) -> None:
        self.host = host.name
        self.root = posixpath.join(home, ".cache", "meshctl")
        self.is_local = False
        self.destination = destination_words(host)
        self._login = login
        self._sftp = sftp
        self._run_with = host.run_with
        self._files = SftpFiles(host.name, sftp, home, self._free_bytes)
        self._runs = asyncio.Semaphore(_RUNS_AT_ONCE)

    async def run(
        self,
        words: Words,
        *,
        deadline_s: float,
        stdin: bytes = b"",
        environment: Mapping[str, str] | None = None,
        check: bool = True,
    ) -> Finished:
        """Run to the end under LC_ALL=C; at most four at once, the others wait.

        CommandError for a status other than 0 if `check`, and with status None when the connection was lost;
        DeadlineError if late, after the command and its group were killed.
        """
        async with self._runs:
            process = await self._open(announced(self._launched(under_c_locale(words, environment))), words)
            try:
                async with asyncio.timeout(deadline_s):
                    _feed(process, stdin)
                    stdout, stderr = await process.communicate()
            except TimeoutError as error:
                await self._end(process)
                message = f"`{shown(words)}` did not end within {deadline_s:g} s and was killed"
                raise DeadlineError(self.host, message) from error
            except asyncio.CancelledError:
                await self._end(process)
                raise
            except FOREIGN as error:
                raise lost(self.host, words) from error
        if process.returncode is None:
            raise lost(self.host, words)
        _, _, said = (stderr or b"").partition(b"\n")
        finished = Finished(process.returncode, stdout or b"", said)
        if check and finished.status != 0:
            raise failed(self.host, words, finished)
        return finished

    async def start(self, words: Words, *, environment: Mapping[str, str] | None = None) -> Process:
        """Start and return at once. CommandError when the host allows no further session."""
        return SshProcess(
            self.host, words, await self._open(self._launched(with_environment(words, environment)), words)
        )

    async def put(
        self,
        source: Path,
        target: str,
        *,
        mode: int = 0o644,
        progress: Progress | None = None,
        resume: Resumable | None = None,
    ) -> None:
        """Copy a file there, folders made, written beside and renamed; TransferError leaves nothing behind, but with
        `resume` what has arrived."""
        await self._files.put(source, target, mode, progress, resume)

    async def put_bytes(self, data: bytes, target: str, *, mode: int = 0o644) -> None:
        """The same for bytes in memory."""
        await self._files.put_bytes(data, target, mode)

    async def append(
        self, source: Path, span: Span, target: str, *, done_bytes: int = 0, progress: Progress | None = None
    ) -> None:
        """Write a span of a file to `target` from `done_bytes` of it on; TransferError leaves what is written."""
        await self._files.append(source, span, target, done_bytes, progress)

    async def get(self, source: str, target: Path, *, progress: Progress | None = None) -> None:
        """Fetch a file, written beside and renamed."""
        await self._files.get(source, target, progress)

    async def close(self) -> None:
        """End the connection and the jumps below it; safe to call twice."""
        self._sftp.exit()
        await self._login.close()

    def _launched(self, words: Words) -> Words:
        return launched(self._run_with, words)

    async def _open(self, words: Words, asked: Words) -> "ClientProcess":
        connection = self._login.connection
        try:
            async with asyncio.timeout(_OPEN_S):
                return await connection.create_process(as_line(words), encoding=None, request_pty=False)
        except TimeoutError as error:
            raise DeadlineError(self.host, f"`{shown(asked)}` could not be started within {_OPEN_S:g} s") from error
        except FOREIGN as error:
            if isinstance(error, asyncssh.ChannelOpenError) and not connection.is_closed():
                raise no_session(self.host, asked, error) from error
            raise lost(self.host, asked) from error

    async def _end(self, process: "ClientProcess") -> None:
        """Kill a command with its group, by a second one: sshd passes no signals on for root."""
        with suppress(*FOREIGN, CommandError, DeadlineError):
            async with asyncio.timeout(_END_S):
                words = end_group(await process.stderr.readline())
                process.close()
                if words is not None:
                    await (await self._open(words, words)).wait_closed()
        process.close()

    async def _free_bytes(self, folder: str) -> int | None:
        try:
            answer = await self.run(("df", "-Pk", "--", folder), deadline_s=_DF_S)
            return read_free_bytes(answer.stdout)
        except (CommandError, DeadlineError, ValueError):
            return None


class SshProcess:
    """A command that runs on, on the host."""

    def __init__(self, host: str, words: Words, process: "ClientProcess") -> None:
        self._host = host
        self._words = words
        self._process = process
        self._tail = Tail()
        self._follower = asyncio.create_task(self._follow())

    async def lines(self) -> AsyncIterator[str]:
        """Lines of stdout without their ends, until the stream closes or the connection is lost."""
        with suppress(*FOREIGN):
            async for line in split_lines(self._process.stdout.read):
                yield line

    async def write(self, data: bytes) -> None:
        """Send to stdin; a closed stream is not an error."""
        with suppress(*FOREIGN):
            self._process.stdin.write(data)
            await self._process.stdin.drain()

    async def close_stdin(self) -> None:
        with suppress(*FOREIGN):
            self._process.stdin.write_eof()

    async def wait(self, *, deadline_s: float) -> int | None:
        """Exit status (negative: ended by that signal); None when the connection was lost. DeadlineError if late."""
        try:
            async with asyncio.timeout(deadline_s):
                await self._process.wait_closed()
        except TimeoutError as error:
            raise DeadlineError(self._host, f"`{shown(self._words)}` still runs after {deadline_s:g} s") from error
        await asyncio.wait({self._follower}, timeout=_END_S)
        return self._process.returncode

    def stderr_tail(self) -> str:
        return self._tail.text()

    async def kill(self) -> None:
        """Send KILL to it, which sshd passes to its group unless we are root there, and close our side."""
        _kill(self._process)
        with suppress(TimeoutError):
            async with asyncio.timeout(_END_S):
                await self._process.wait_closed()
        self._follower.cancel()

    async def _follow(self) -> None:
        with suppress(*FOREIGN):
            await self._tail.follow(self._process.stderr.read)


def _feed(process: "ClientProcess", stdin: bytes) -> None:
    """Give it its stdin and close that; one that has ended without reading is no error, its status tells."""
    with suppress(BrokenPipeError):
        process.stdin.write(stdin)
        process.stdin.write_eof()


def _kill(process: "ClientProcess") -> None:
    """End a command that has not ended and close its channel; nothing is waited for."""
    if process.returncode is None:
        with suppress(*FOREIGN):
            process.kill()
    with suppress(*FOREIGN):
        process.close()
