"""This machine as a host: commands are child processes in a group of their own, files are copied.

Nothing here outlives its deadline: a command that is late, or whose caller is cancelled, is killed with its group.
"""

import asyncio
import errno
import os
import secrets
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from orchestrator.errors import CommandError, DeadlineError, RefusedError, TransferError
from orchestrator.shell.protocol import Finished, Process, Progress, Span, Words
from orchestrator.shell.resume import Resumable, resume_at, resumed_name
from orchestrator.shell.streams import Tail, split_lines, tail_of
from orchestrator.shell.words import launched, shown, under_c_locale, with_environment

_COPY_BYTES = 4 * 1024 * 1024
_REAP_S = 5.0
_LAST_WORDS_S = 0.5


class LocalShell:
    """The controller itself. `home` is what relative paths and the working folder of commands are relative to.

    `run_with` stands before every command (the inventory's key of that name).
    """

    def __init__(self, host: str, root: Path, home: Path, run_with: Words = ()) -> None:
        self.host = host
        self.root = str(root.absolute())
        self.is_local = True
        self._home = home
        self._run_with = run_with

    async def run(
        self,
        words: Words,
        *,
        deadline_s: float,
        stdin: bytes = b"",
        environment: Mapping[str, str] | None = None,
        check: bool = True,
    ) -> Finished:
        """Run to the end under LC_ALL=C. CommandError for a status other than 0 if `check`; DeadlineError if late."""
        process = await self._spawn(under_c_locale(words, environment))
        try:
            async with asyncio.timeout(deadline_s):
                stdout, stderr = await process.communicate(stdin)
        except TimeoutError as error:
            await _end_group(process)
            message = f"`{shown(words)}` did not end within {deadline_s:g} s and was killed"
            raise DeadlineError(self.host, message) from error
        except asyncio.CancelledError:
            await _end_group(process)
            raise
        finished = Finished(_status(process), stdout, stderr)
        if check and finished.status != 0:
            raise failed(self.host, words, finished)
        return finished

    async def start(self, words: Words, *, environment: Mapping[str, str] | None = None) -> Process:
        """Start in a group of its own and return at once."""
        return LocalProcess(self.host, words, await self._spawn(with_environment(words, environment)))

    async def put(
        self,
        source: Path,
        target: str,
        *,
        mode: int = 0o644,
        progress: Progress | None = None,
        resume: Resumable | None = None,
    ) -> None:
        """Copy a file, folders made, written beside and renamed; TransferError leaves nothing behind, but with `resume`
        what has arrived."""
        if resume is None:
            await self._copy(source, self._home / target, mode, progress)
        else:
            await self._copy_on(source, self._home / target, mode, progress, resume)

    async def put_bytes(self, data: bytes, target: str, *, mode: int = 0o644) -> None:
        """The same for bytes in memory."""
        path = self._home / target
        partial = partial_beside(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _write_new(partial, data, mode)
            partial.chmod(mode)  # what the umask has taken off
            partial.replace(path)
        except OSError as error:
            raise copy_error(self.host, str(path), error, len(data)) from error
        finally:
            remove_partial(partial)

    async def append(
        self, source: Path, span: Span, target: str, *, done_bytes: int = 0, progress: Progress | None = None
    ) -> None:
        """Write a span of a file to `target` from `done_bytes` of it on; TransferError leaves what is written."""
        path = self._home / target
        try:
            await _write_span(source, span, path, done_bytes, progress)
        except OSError as error:
            raise copy_error(self.host, f"{source} -> {path}", error, span.size_bytes) from error

    async def get(self, source: str, target: Path, *, progress: Progress | None = None) -> None:
        """Copy a file to `target`, written beside and renamed."""
        await self._copy(self._home / source, target, 0o644, progress)

    async def close(self) -> None:
        """Nothing is held open."""

    async def _spawn(self, words: Words) -> asyncio.subprocess.Process:
        pipe = asyncio.subprocess.PIPE
        try:
            return await asyncio.create_subprocess_exec(
                *launched(self._run_with, words),
                stdin=pipe,
                stdout=pipe,
                stderr=pipe,
                cwd=self._home,
                start_new_session=True,
            )
        except OSError as error:
            message = f"`{shown(words)}` cannot be started: {error.strerror}"
            raise CommandError(self.host, message, status=127) from error

    async def _copy(self, source: Path, target: Path, mode: int, progress: Progress | None) -> None:
        partial = partial_beside(target)
        size = 0
        try:
            size = source.stat().st_size
            target.parent.mkdir(parents=True, exist_ok=True)
            with source.open("rb") as reader, partial.open("wb") as writer:
                await _pump(reader, writer, size, progress)
            partial.chmod(mode)
            partial.replace(target)
        except OSError as error:
            raise copy_error(self.host, f"{source} -> {target}", error, size) from error
        finally:
            remove_partial(partial)

    async def _copy_on(
        self, source: Path, target: Path, mode: int, progress: Progress | None, resume: Resumable
    ) -> None:
        """Go on where an earlier copy ended, then from the start if what is there is not right."""
        partial = target.with_name(resumed_name(resume))
        size = 0
        try:
            size = source.stat().st_size
            target.parent.mkdir(parents=True, exist_ok=True)
            there = partial.stat().st_size if partial.exists() else 0
            for start in dict.fromkeys((resume_at(there, size), 0)):
                await _write_span(source, Span(0, size), partial, start, progress)
                if await resume.is_whole(str(partial)):
                    partial.chmod(mode)
                    partial.replace(target)
                    return
        except OSError as error:
            if error.errno == errno.ENOSPC:
                remove_partial(partial)
            raise copy_error(self.host, f"{source} -> {target}", error, size) from error
        remove_partial(partial)
        raise not_whole(self.host, str(target))


class LocalProcess:
    """A child process that runs on, in its own group."""

    def __init__(self, host: str, words: Words, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        self._host = host
        self._words = words
        self._process = process
        self._stdin = process.stdin
        self._stdout = process.stdout
        self._tail = Tail()
        self._follower = asyncio.create_task(self._tail.follow(process.stderr.read))

    def lines(self) -> AsyncIterator[str]:
        """Lines of stdout without their ends, until the stream closes."""
        return split_lines(self._stdout.read)

    async def write(self, data: bytes) -> None:
        """Send to stdin; a closed stream is not an error."""
        with suppress(OSError, RuntimeError):  # RuntimeError: the transport was closed by us before
            self._stdin.write(data)
            await self._stdin.drain()

    async def close_stdin(self) -> None:
        self._stdin.close()
        with suppress(OSError):
            await self._stdin.wait_closed()

    async def wait(self, *, deadline_s: float) -> int | None:
        """Exit status, negative for a signal; DeadlineError if it still runs then."""
        try:
            async with asyncio.timeout(deadline_s):
                await self._process.wait()
        except TimeoutError as error:
            message = f"`{shown(self._words)}` still runs after {deadline_s:g} s"
            raise DeadlineError(self._host, message) from error
        await asyncio.wait({self._follower}, timeout=_LAST_WORDS_S)
        return _status(self._process)

    def stderr_tail(self) -> str:
        return self._tail.text()

    async def kill(self) -> None:
        """End the whole group now."""
        if self._process.returncode is None:
            await _end_group(self._process)
        self._follower.cancel()
        with suppress(asyncio.CancelledError):
            await self._follower
        await self.close_stdin()


def failed(host: str, words: Words, finished: Finished) -> CommandError:
    """What a command that ended badly is reported as, with the last lines it said."""
    how = f"exit status {finished.status}" if finished.status > 0 else f"ended by {_signal_name(-finished.status)}"
    said = tail_of(finished.stderr) or tail_of(finished.stdout)
    return CommandError(host, f"`{shown(words)}` failed ({how})", status=finished.status, details=said)


def not_whole(host: str, path: str) -> TransferError:
    """All bytes of a file were sent, and it is another file."""
    message = f"{path}: what arrived is not what was sent (by its sha256)"
    return TransferError(host, message, hint="try again; when it stays so, a disk or the memory of a machine is bad")


def copy_error(host: str, what: str, error: OSError, size_bytes: int) -> TransferError:
    """A file operation of this machine that failed."""
    if error.errno == errno.ENOSPC:
        message = f"{what} ({size_bytes} bytes) does not fit: the disk is full"
        return RefusedError(host, message, hint="free some space there and try again")
    return TransferError(host, f"{what} cannot be copied: {error.strerror or error}")


def _write_new(path: Path, data: bytes, mode: int) -> None:
    """Nobody who may not read the file in the end may read it while it is written."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(data)


async def _write_span(source: Path, span: Span, path: Path, done_bytes: int, progress: Progress | None) -> None:
    with source.open("rb") as reader, path.open("r+b" if done_bytes else "wb") as writer:
        writer.seek(done_bytes)
        while done_bytes < span.size_bytes:
            size = min(_COPY_BYTES, span.size_bytes - done_bytes)
            done_bytes += writer.write(await asyncio.to_thread(read_span, reader, span, done_bytes, size))
            if progress is not None:
                progress(done_bytes, span.size_bytes)


async def _pump(reader: BinaryIO, writer: BinaryIO, size: int, progress: Progress | None) -> None:
    done = 0
    while copied := await asyncio.to_thread(_copy_some, reader, writer):
        done += copied
        if progress is not None:
            progress(done, size)


def _copy_some(reader: BinaryIO, writer: BinaryIO) -> int:
    return writer.write(reader.read(_COPY_BYTES))


def read_span(reader: BinaryIO, span: Span, start: int, size: int) -> bytes:
    """Bytes of a span of a file from `start` of it on; OSError when the file has not so many."""
    run = span.run_bytes or span.size_bytes
    first, skipped = divmod(start, run)
    runs = -(-(skipped + size) // run)
    reader.seek(span.offset + first * span.stride_bytes + (skipped if runs == 1 else 0))
    wanted = size if runs == 1 else (runs - 1) * span.stride_bytes + run
    data = reader.read(wanted)
    if len(data) < wanted:
        raise OSError(errno.EIO, "the file has become shorter while it was read")
    if runs == 1:
        return data
    joined = b"".join(data[at : at + run] for at in range(0, wanted, span.stride_bytes))
    return joined[skipped : skipped + size]


async def _end_group(process: asyncio.subprocess.Process) -> None:
    """Kill what is left of the group, which may have outlived its leader."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(TimeoutError):
        async with asyncio.timeout(_REAP_S):
            await process.wait()


def _status(process: asyncio.subprocess.Process) -> int:
    assert process.returncode is not None
    return process.returncode


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def partial_beside(target: Path) -> Path:
    """A new name in the same folder for a file that is not whole yet."""
    return target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")


def remove_partial(partial: Path) -> None:
    """Remove what a failed copy left; the copy's own error is the one that matters."""
    with suppress(OSError):
        partial.unlink(missing_ok=True)
