"""What it means to talk with one host; `local.py` and `ssh.py` are the two ways to do it."""

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from orchestrator.shell.resume import Resumable

Words = tuple[str, ...]
"""A command as words; a shell joins them in one place, where they leave."""

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all) while a file moves."""


@dataclass(frozen=True)
class Span:
    """A part of a file; where it does not lie there in one, in runs of `run_bytes`, each `stride_bytes` after the one
    before."""

    offset: int
    size_bytes: int
    run_bytes: int = 0
    stride_bytes: int = 0


@dataclass(frozen=True)
class Finished:
    """A command that has ended."""

    status: int
    stdout: bytes
    stderr: bytes


class Process(Protocol):
    """A command that runs on, with its stdin open and its stdout read line by line."""

    def lines(self) -> AsyncIterator[str]:
        """Lines of stdout without their ends, until the stream closes."""
        ...

    async def write(self, data: bytes) -> None:
        """Send to stdin; a closed stream is not an error."""
        ...

    async def close_stdin(self) -> None: ...

    async def wait(self, *, deadline_s: float) -> int | None:
        """Exit status (negative: ended by that signal); None when the connection was lost. DeadlineError if late."""
        ...

    def stderr_tail(self) -> str:
        """The last lines of stderr so far (bounded)."""
        ...

    async def kill(self) -> None:
        """End it now, as far as we can reach it; returns when our side is closed."""
        ...


class Shell(Protocol):
    """One host. Relative paths are relative to the user's home; `root` is the absolute folder for our files there."""

    @property
    def host(self) -> str:
        """The host's name in the inventory."""
        ...

    @property
    def root(self) -> str: ...

    @property
    def is_local(self) -> bool: ...

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
        ...

    async def start(self, words: Words, *, environment: Mapping[str, str] | None = None) -> Process:
        """Start and return at once."""
        ...

    async def put(
        self,
        source: Path,
        target: str,
        *,
        mode: int = 0o644,
        progress: Progress | None = None,
        resume: Resumable | None = None,
    ) -> None:
        """Copy a file there, folders made, written beside and renamed; TransferError leaves nothing behind.

        With `resume` a transfer that breaks off does leave what has arrived, the next one goes on there, and the file
        is renamed only when `resume` says that it is whole.
        """
        ...

    async def put_bytes(self, data: bytes, target: str, *, mode: int = 0o644) -> None:
        """The same for bytes in memory."""
        ...

    async def append(
        self, source: Path, span: Span, target: str, *, done_bytes: int = 0, progress: Progress | None = None
    ) -> None:
        """Write a span of a file to `target` there, folders being there, from `done_bytes` of it on (0: a new file).

        What has been written stays when it is cut off by a TransferError, to be gone on with.
        """
        ...

    async def get(self, source: str, target: Path, *, progress: Progress | None = None) -> None:
        """Fetch a file, written beside and renamed."""
        ...

    async def close(self) -> None: ...
