"""Move files over SFTP: whole or not at all, with the reason when they do not fit."""

import asyncio
import posixpath
import secrets
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import asyncssh

from orchestrator.shell.local import not_whole, partial_beside, read_span, remove_partial
from orchestrator.shell.protocol import Progress, Span
from orchestrator.shell.resume import CHUNK_BYTES, Resumable, resume_at, resumed_name
from orchestrator.shell.ssh_errors import FOREIGN, disk_full, is_full, transfer_error

_REMOVE_S = 5.0

FreeBytes = Callable[[str], Awaitable[int | None]]
"""Free space in bytes where that folder lies; None when the host does not say."""


@dataclass(frozen=True)
class SftpFiles:
    """The files of one host. `home` is absolute; `free_bytes` is asked when SFTP itself cannot tell the free space."""

    host: str
    sftp: asyncssh.SFTPClient
    home: str
    free_bytes: FreeBytes

    async def put(
        self, source: Path, target: str, mode: int, progress: Progress | None, resume: Resumable | None = None
    ) -> None:
        """Copy a local file there. TransferError; what was written is removed, unless it can go on (`resume`)."""
        try:
            size = source.stat().st_size
        except OSError as error:
            raise transfer_error(self.host, str(source), error, None, 0) from error

        if resume is not None:
            await self._put_on(source, posixpath.join(self.home, target), size, mode, progress, resume)
            return

        async def send(partial: str) -> None:
            await self.sftp.put(
                str(source), partial, follow_symlinks=True, sparse=False, progress_handler=_handler(progress)
            )

        await self._write(posixpath.join(self.home, target), size, mode, send)

    async def _put_on(
        self, source: Path, path: str, size: int, mode: int, progress: Progress | None, resume: Resumable
    ) -> None:
        """Go on where an earlier transfer ended, then from the start if what is there is not right."""
        folder = posixpath.dirname(path)
        partial = posixpath.join(folder, resumed_name(resume))
        try:
            await self.sftp.makedirs(folder, exist_ok=True)
            there = await self._size(partial)
            await self._check_space(path, folder, size - min(there, size))
            for start in dict.fromkeys((resume_at(there, size), 0)):
                await self._write_span(source, Span(0, size), partial, start, progress)
                if await resume.is_whole(partial):
                    await self.sftp.chmod(partial, mode)
                    await self._rename(partial, path)
                    return
        except FOREIGN as error:
            free = await self._free(folder)
            if is_full(error, free, size):
                await self._remove(partial)
            raise transfer_error(self.host, path, error, free, size) from error
        await self._remove(partial)
        raise not_whole(self.host, path)

    async def _size(self, path: str) -> int:
        """0 for a file that is not there."""
        try:
            return (await self.sftp.stat(path)).size or 0
        except asyncssh.SFTPNoSuchFile:
            return 0

    async def put_bytes(self, data: bytes, target: str, mode: int) -> None:
        """The same for bytes in memory."""

        async def send(partial: str) -> None:
            # From the start: nobody who may not read the file in the end may read it while it is written.
            async with self.sftp.open(partial, "wb", asyncssh.SFTPAttrs(permissions=mode)) as file:
                await file.write(data)

        await self._write(posixpath.join(self.home, target), len(data), mode, send)

    async def append(self, source: Path, span: Span, target: str, done_bytes: int, progress: Progress | None) -> None:
        """Write a span of a local file there from `done_bytes` of it on; what is written stays when it is cut off."""
        path = posixpath.join(self.home, target)
        try:
            await self._write_span(source, span, path, done_bytes, progress)
        except FOREIGN as error:
            free = await self._free(posixpath.dirname(path))
            raise transfer_error(self.host, path, error, free, span.size_bytes) from error

    async def _write_span(
        self, source: Path, span: Span, path: str, done_bytes: int, progress: Progress | None
    ) -> None:
        """A chunk is sent as many requests at once; the next one waits until all are answered."""
        with source.open("rb") as reader:
            async with self.sftp.open(path, "r+b" if done_bytes else "wb") as writer:
                for start in range(done_bytes, span.size_bytes, CHUNK_BYTES):
                    size = min(CHUNK_BYTES, span.size_bytes - start)
                    await writer.write(await asyncio.to_thread(read_span, reader, span, start, size), start)
                    if progress is not None:
                        progress(start + size, span.size_bytes)

    async def get(self, source: str, target: Path, progress: Progress | None) -> None:
        """Fetch a file, folders made, written beside and renamed. TransferError leaves nothing behind."""
        path = posixpath.join(self.home, source)
        partial = partial_beside(target)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            await self.sftp.get(path, str(partial), sparse=False, progress_handler=_handler(progress))
            partial.replace(target)
        except FOREIGN as error:
            raise transfer_error(self.host, f"{path} -> {target}", error, None, 0) from error
        finally:
            remove_partial(partial)

    async def _write(self, path: str, size: int, mode: int, send: Callable[[str], Awaitable[None]]) -> None:
        folder, name = posixpath.split(path)
        partial = posixpath.join(folder, f".{name}.{secrets.token_hex(4)}.part")
        try:
            await self.sftp.makedirs(folder, exist_ok=True)
            await self._check_space(path, folder, size)
            await send(partial)
            await self.sftp.chmod(partial, mode)
            await self._rename(partial, path)
        except FOREIGN as error:
            free = await self._free(folder)
            await self._remove(partial)
            raise transfer_error(self.host, path, error, free, size) from error
        except asyncio.CancelledError:
            await self._remove(partial)
            raise

    async def _check_space(self, path: str, folder: str, size: int) -> None:
        free = await self._free(folder)
        if free is not None and free < size:
            raise disk_full(self.host, path, free, size)

    async def _free(self, folder: str) -> int | None:
        try:
            answer = await self.sftp.statvfs(folder)
        except asyncssh.SFTPOpUnsupported:
            return await self.free_bytes(folder)
        except FOREIGN:
            return None  # the error that matters is the one of the transfer
        return int(answer.bavail * answer.frsize)

    async def _rename(self, partial: str, path: str) -> None:
        try:
            await self.sftp.posix_rename(partial, path)
        except asyncssh.SFTPOpUnsupported:  # plain SFTP refuses to rename onto an existing file
            with suppress(asyncssh.SFTPNoSuchFile):
                await self.sftp.remove(path)
            await self.sftp.rename(partial, path)

    async def _remove(self, partial: str) -> None:
        with suppress(*FOREIGN):
            async with asyncio.timeout(_REMOVE_S):
                await self.sftp.remove(partial)


def read_free_bytes(answer: bytes) -> int:
    """Read the free space from `df -Pk FOLDER`; ValueError when it is not such an answer."""
    lines = answer.decode(errors="replace").splitlines()
    words = lines[1].split() if len(lines) > 1 else []
    if len(words) < 6:
        raise ValueError("no line with six columns in the answer of `df -Pk`")
    return int(words[3]) * 1024


def _handler(progress: Progress | None) -> Callable[[bytes, bytes, int, int], None] | None:
    if progress is None:
        return None
    return lambda _source, _target, done, total: progress(done, total)
