"""Send files of a pack to a host over SFTP, so that each has its name there only once it is whole."""

import asyncio
import hashlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from time import monotonic

from pydantic import TypeAdapter

from orchestrator.host_agent import ask_agent, read_part
from orchestrator.hosts import OpenHost, not_as_sent
from orchestrator.pack_source import PackFile
from orchestrator.shell.protocol import Progress
from orchestrator.view.sizes import bytes_text
from quant.model import Model
from quant.pack import check_unchanged
from quant.whole_file import written_whole
from workers import commands
from workers.agent import COMING

TAKE_S = 3600.0

_RIGHT = TypeAdapter(bool)


@dataclass
class Brought:
    """What became of the bytes that a host shall have; `whole` are those that have their names."""

    there: int = 0
    carved: int = 0
    fetched: int = 0
    sent: int = 0
    whole: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        parts = []
        if self.sent:
            rate = bytes_text(int(self.sent / self.seconds)) if self.seconds else "-"
            parts.append(f"{bytes_text(self.sent)} of weights sent ({rate}/s)")
        if self.carved:
            parts.append(f"{bytes_text(self.carved)} taken from the copy of the model there")
        if self.there:
            parts.append(f"{bytes_text(self.there)} {'' if parts else 'of weights '}there already")
        return ", ".join(parts)


@dataclass(frozen=True)
class Sender:
    """Sends files of a pack one after the other; while one travels, the one before is read and named there."""

    host: OpenHost
    folder: str
    token: str
    model: Model
    brought: Brought
    progress: Progress
    needed: int

    async def send(self, files: Sequence[PackFile], coming: Mapping[str, int]) -> None:
        """`coming`: bytes of some that are there from a transfer that was cut off."""
        taking: asyncio.Task[None] | None = None
        begun = monotonic()
        try:
            for file in files:
                await self._write(file, min(coming.get(file.name, 0), file.size_bytes))
                if taking is not None:
                    await taking
                taking = asyncio.create_task(self._take(file))
            if taking is not None:
                await taking
        finally:
            if taking is not None:
                taking.cancel()
                await asyncio.gather(taking, return_exceptions=True)
            self.brought.seconds += monotonic() - begun

    async def _write(self, file: PackFile, done: int) -> None:
        before = self.brought.sent + self.brought.carved + self.brought.fetched

        def on_progress(written: int, size: int) -> None:
            self.progress(min(before + written, self.needed), self.needed)

        source = self.model.shards[file.piece.tensor.shard]
        place = str(PurePosixPath(self.folder, COMING, f"{file.name}.{self.token}"))
        await self.host.shell.append(source, file.span, place, done_bytes=done, progress=on_progress)
        self.brought.sent += file.size_bytes - done
        self.brought.there += done

    async def _take(self, file: PackFile) -> None:
        """Once more from the start when it is not what was sent: what an earlier transfer left may be damaged."""
        if not await self._is_taken(file):
            await self._write(file, 0)
            if not await self._is_taken(file):
                check_unchanged(self.model)
                raise not_as_sent(self.host.name, file.piece.name, "blake2b")
        self.brought.whole += file.size_bytes

    async def _is_taken(self, file: PackFile) -> bool:
        words = commands.take_words(
            self.host.agent, self.folder, file.name, self.token, file.size_bytes, file.digests.blake2b
        )
        answer = await ask_agent(self.host.shell, words, TAKE_S)
        return read_part(self.host.name, _RIGHT, answer.get("right"))


def sender_token(folder: Path, host: str) -> str:
    """Of our transfers to this host alone: it may have several controllers, and several hosts may share one folder."""
    return f"{_sender(folder)}-{hashlib.sha256(host.encode()).hexdigest()[:8]}"


def _sender(folder: Path) -> str:
    """Of this controller: what is in a file of its own, made once. Names of machines are not theirs alone."""
    place = folder / ".sender"
    if not place.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with written_whole(place) as partial:
            partial.write_text(secrets.token_hex(4))
    return place.read_text().strip()
