"""Archives that hosts get: packed once, the same bytes each time, sent so that a break costs little, unpacked whole."""

import asyncio
import gzip
import io
import os
import secrets
import tarfile
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from orchestrator.engine.lock import exclusive
from orchestrator.engine.store import beside, describe_file
from orchestrator.errors import HostError
from orchestrator.host_agent import resumable, unpack
from orchestrator.shell.protocol import Progress, Shell
from workers.agent import Recorded, read_record, write_record

_LEVEL = 6
_QUICK_S = 30.0


@dataclass(frozen=True)
class Member:
    """One file of an archive: its name there, and its bytes or where they are."""

    name: str
    content: Path | bytes
    executable: bool = False

    @staticmethod
    def of(folder: Path, path: Path, name: str = "") -> "Member":
        """A file as it lies in `folder`, under its relative path unless another `name` is said."""
        return Member(name or path.relative_to(folder).as_posix(), path, bool(path.stat().st_mode & 0o100))


async def packed(archive: Path, members: "Iterable[Member]") -> Path:
    """The archive, made unless it is there as it was made; `members` are only asked for then."""
    async with exclusive(beside(archive, ".pack.lock"), lambda: None):
        if not await asyncio.to_thread(_is_as_packed, archive):
            await asyncio.to_thread(_pack, archive, members)
    return archive


def _is_as_packed(archive: Path) -> bool:
    """Whether it is there and what it was when it was packed: its digest is kept beside."""
    known = [one.digest for one in read_record(str(archive))]
    return archive.is_file() and known == [describe_file(archive.parent, archive).sha256]


def _pack(archive: Path, members: Iterable[Member]) -> None:
    partial = archive.with_name(f".{archive.name}.{os.getpid()}.partial")
    try:
        with (
            partial.open("wb") as raw,
            gzip.GzipFile("", "wb", _LEVEL, raw, mtime=0) as zipped,
            tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as tar,
        ):
            for member in sorted(members, key=lambda member: member.name):
                _add(tar, member)
        whole = describe_file(archive.parent, partial)
        partial.replace(archive)
        write_record(str(archive), Recorded("", whole.size_bytes, whole.sha256))
    finally:
        partial.unlink(missing_ok=True)


def _add(tar: tarfile.TarFile, member: Member) -> None:
    """Without times and owners, which differ from one packing to the next."""
    content = member.content.read_bytes() if isinstance(member.content, Path) else member.content
    entry = tarfile.TarInfo(member.name)
    entry.size = len(content)
    entry.mode = 0o755 if member.executable else 0o644
    tar.addfile(entry, io.BytesIO(content))


async def send_archive(shell: Shell, agent: str, archive: Path, beside: str, folder: str, progress: Progress) -> int:
    """Send it to a place `beside` something there, and make `folder` what is in it; the bytes of the archive.

    A transfer that breaks off goes on at the next try. TransferError; HostError when it cannot be unpacked.
    """
    whole = await asyncio.to_thread(describe_file, archive.parent, archive)
    # A new name each time: an agent whose controller was killed may still be about to remove what it has unpacked.
    sent = f"{beside}.{secrets.token_hex(4)}.part"
    try:
        await shell.put(archive, sent, progress=progress, resume=resumable(shell, agent, whole.sha256))
        await unpack(shell, agent, sent, folder, whole.sha256)
    finally:
        with suppress(HostError):  # a lost connection is reported by what failed first
            await shell.run(("rm", "-f", sent), deadline_s=_QUICK_S)
    return whole.size_bytes
