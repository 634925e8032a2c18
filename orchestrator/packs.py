"""Weights travel once: before a load, each host gets the very tensors that the plan gives its workers, as files.

A head asks a worker for each larger weight by its hash and sends only what that has not in its cache. The cache is
filled beforehand with tensors of the model's own files, carved out of a copy on that host or sent over SFTP: each is
written beside and renamed once its BLAKE2b is right, and gone on with where a transfer was cut off. Before every start
what is there is compared with its digests again. The engine's own way, to fill it while it loads, in place and unread,
is off.
"""

import asyncio
import hashlib
import json
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from time import monotonic
from typing import Any

from pydantic import TypeAdapter

from orchestrator.engine.lock import exclusive
from orchestrator.errors import TransferError
from orchestrator.fanout import all_or_raise, each_host
from orchestrator.host_agent import ask_agent, read_part
from orchestrator.host_cache import ask_cache, make_room, quota_bytes
from orchestrator.hosts import OpenHost, OpenHosts, not_as_sent
from orchestrator.model_copies import remote_model_folder
from orchestrator.shell.protocol import Progress, Span
from orchestrator.view.sizes import bytes_text
from quant.model import Model, Tensor
from quant.pack import DigestBook, Digests, blake2b_digest, check_unchanged, engine_name, pack_name, read_tensor
from quant.whole_file import written_whole
from workers import commands
from workers.agent import COMING
from workers.engine import HASHED_ABOVE_BYTES

LOOK_S = 3600.0
BATCH_BYTES = 256 * 1024 * 1024
"""So much is read and hashed before it is sent, so that it need not be read from the disk a second time."""


@dataclass(frozen=True)
class _File:
    """A tensor with its digests: a file of a pack."""

    tensor: Tensor
    digests: Digests
    shard: str

    @property
    def name(self) -> str:
        return self.digests.name

    @property
    def size_bytes(self) -> int:
        return self.tensor.size_bytes

    def as_asked(self) -> dict[str, Any]:
        """As the agent reads it."""
        return {**asdict(self.digests), **asdict(Span(self.tensor.offset, self.size_bytes)), "shard": self.shard}


@dataclass(frozen=True)
class _Looked:
    """What the agent says of the files it was asked for: which are missing, how far our own transfers of some have
    come, which were damaged (they are gone now), and what other plans have left."""

    missing: tuple[str, ...]
    coming: Mapping[str, int]
    damaged: tuple[str, ...]
    spare_bytes: int


@dataclass
class Brought:
    """What became of the bytes that a host shall have."""

    there: int = 0
    carved: int = 0
    sent: int = 0
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


_LOOKED = TypeAdapter(_Looked)
_NAMES = TypeAdapter(tuple[str, ...])
_RIGHT = TypeAdapter(bool)


@dataclass(frozen=True)
class _Source:
    """The model on the controller; its tensors are read and hashed one at a time, whoever asks."""

    model: Model
    book: DigestBook
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    def known(self, tensor: Tensor) -> _File | None:
        digests = self.book.of(tensor)
        return None if digests is None else _File(tensor, digests, self.model.shards[tensor.shard].name)

    async def file(self, tensor: Tensor) -> _File:
        """With digests that are worked out unless they are known."""
        async with self.turn:
            known = self.known(tensor)
            if known is not None:
                return known
            data = await asyncio.to_thread(read_tensor, self.model, tensor)
            name, blake2b = await asyncio.gather(
                asyncio.to_thread(engine_name, data), asyncio.to_thread(blake2b_digest, data)
            )
            check_unchanged(self.model)
            self.book.add(tensor, Digests(name, blake2b))
        return await self.file(tensor)


async def bring_packs(
    model: Model, wanted: Mapping[str, Sequence[Tensor]], hosts: OpenHosts, *, every_byte: bool = True
) -> dict[str, str]:
    """The folder of the weights on each host that now has all of its `wanted` tensors, whole; by the host's name.

    What is there is compared by its digests, byte by byte unless not `every_byte` (then only what was changed). A host
    without room for them is left out, which is told: its weights cross the network at every load.
    """
    folder = Path(hosts.controller.shell.root, "digests")
    source = _Source(model, DigestBook(model, folder))
    answers = await each_host(
        {
            name: _HostPack(source, hosts.by_name[name], folder, every_byte).bring(tensors)
            for name, tensors in wanted.items()
        }
    )
    return {name: folder for name, folder in all_or_raise(answers).items() if folder}


class _HostPack:
    """The pack of one model on one host."""

    def __init__(self, source: _Source, host: OpenHost, folder: Path, every_byte: bool) -> None:
        self._source = source
        self._host = host
        # Of this transfer alone: a host may have several controllers, and several hosts may be or share one folder.
        self._token = f"{_sender(folder)}-{hashlib.sha256(host.name.encode()).hexdigest()[:8]}"
        self._every_byte = every_byte
        self._name = pack_name(source.model)
        self._folder = str(PurePosixPath(host.shell.root, "packs", self._name))
        self._lock = folder / f".{self._name}-{host.name}.lock"
        self._waits = False
        self._brought = Brought()

    async def bring(self, tensors: Sequence[Tensor]) -> str:
        """Its folder once it has all of them; "" where there is no room."""
        larger = [tensor for tensor in tensors if tensor.size_bytes > HASHED_ABOVE_BYTES]
        async with exclusive(self._lock, self._say_wait):
            known = self._known(larger)
            looked = await self._look(known.values())
            if looked.spare_bytes and len(known) < len(larger):  # some of these may be wanted
                for tensor in larger:
                    await self._source.file(tensor)
                self._source.book.save()
                known = self._known(larger)
                looked = await self._look(known.values())
            missing = [known[name] for name in looked.missing]
            unknown = [tensor for tensor in larger if self._source.known(tensor) is None]
            needed = sum(file.size_bytes for file in missing) + sum(tensor.size_bytes for tensor in unknown)
            self._brought.there = sum(file.size_bytes for file in known.values()) - sum(f.size_bytes for f in missing)
            if needed and not await self._has_room(needed, looked.spare_bytes, known.values()):
                return ""
            await self._fill(missing, looked.coming, unknown, needed)
        if str(self._brought):
            self._host.report.say(f"{self._host.name}: {self._brought}")
        return self._folder

    def _say_wait(self) -> None:
        if not self._waits:
            self._waits = True
            self._host.report.say(f"{self._host.name}: another start brings weights there; waiting for it")

    def _known(self, tensors: Iterable[Tensor]) -> dict[str, _File]:
        """Those whose digests are known, by name."""
        return {file.name: file for tensor in tensors if (file := self._source.known(tensor)) is not None}

    async def _look(self, files: Iterable[_File]) -> _Looked:
        words = commands.pack_words(self._host.agent, self._folder, self._token, self._every_byte)
        asked = list(files)
        looked = read_part(self._host.name, _LOOKED, await self._ask(words, asked))
        named = {file.name: file.tensor.name for file in asked}
        wrong = sorted(named[name] for name in looked.damaged if name in named)
        others = len(looked.damaged) - len(wrong)
        if wrong:
            which = ", ".join(wrong)
            self._host.report.warn(f"{self._host.name}: weights there were damaged and are put there again: {which}")
        if others:
            what = f"{others} weight{'s' if others > 1 else ''} of other plans"
            self._host.report.warn(f"{self._host.name}: {what} there were damaged and are removed")
        return looked

    async def _has_room(self, needed: int, spare: int, wanted: Iterable[_File]) -> bool:
        """Make room: what other plans of this model have left goes first, then what was used longest ago."""
        host = self._host
        if spare:
            cache = await ask_cache(host.shell, host.agent)
            if cache.size_bytes + needed > quota_bytes(host.host.cache, cache) or needed > cache.disk_free_bytes:
                await self._ask(commands.thin_words(host.agent, self._folder), wanted)
        try:
            await self._make_room(needed)
        except TransferError as error:
            why = str(error).removeprefix(f"{host.name}: ")
            host.report.warn(f"{host.name}: no room to keep weights, they cross the network at every start: {why}")
            return False
        return True

    async def _make_room(self, needed: int) -> None:
        """The copy of the model there, of which weights are carved, goes last."""
        host, place = self._host, f"packs/{self._name}"
        copy = remote_model_folder("", self._source.model.shards).strip("/")
        for last, kept in ((False, (place, copy)), (True, (place,))):
            try:
                await make_room(
                    host.shell, host.agent, host.host.cache, host.report.warn, needed, kept=kept, strict=True
                )
            except TransferError:
                if last:
                    raise
            else:
                return

    async def _fill(
        self, missing: Sequence[_File], coming: Mapping[str, int], unknown: Sequence[Tensor], needed: int
    ) -> None:
        begun, progress = monotonic(), self._host.report.bytes_of(f"{self._host.name}: weights")
        sender = _Sender(self._host, self._folder, self._token, self._source.model, self._brought, progress, needed)
        await sender.send(await self._carve(missing), coming)
        for batch in _batches(unknown):
            files = {file.name: file for file in [await self._source.file(tensor) for tensor in batch]}
            self._source.book.save()
            looked = await self._look(files.values())
            still = [files[name] for name in looked.missing]
            self._brought.there += sum(f.size_bytes for f in files.values()) - sum(f.size_bytes for f in still)
            await sender.send(await self._carve(still), looked.coming)
        self._brought.seconds = monotonic() - begun

    async def _carve(self, files: Sequence[_File]) -> list[_File]:
        """Those that could not be had from a copy of the model on the host."""
        if not files:
            return []
        model = remote_model_folder(self._host.shell.root, self._source.model.shards)
        answer = await self._ask(commands.carve_words(self._host.agent, self._folder, model), files)
        carved = read_part(self._host.name, _NAMES, answer.get("carved"))
        self._brought.carved += sum(file.size_bytes for file in files if file.name in carved)
        return [file for file in files if file.name not in carved]

    async def _ask(self, words: commands.Words, files: Iterable[_File]) -> dict[str, Any]:
        asked = json.dumps([file.as_asked() for file in files]).encode()
        return await ask_agent(self._host.shell, words, LOOK_S, stdin=asked)


@dataclass(frozen=True)
class _Sender:
    """Sends files of a pack one after the other; while one travels, the one before is read and named there."""

    host: OpenHost
    folder: str
    token: str
    model: Model
    brought: Brought
    progress: Progress
    needed: int

    async def send(self, files: Sequence[_File], coming: Mapping[str, int]) -> None:
        """`coming`: bytes of some that are there from a transfer that was cut off."""
        taking: asyncio.Task[None] | None = None
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

    async def _write(self, file: _File, done: int) -> None:
        before = self.brought.sent + self.brought.carved

        def on_progress(written: int, size: int) -> None:
            self.progress(min(before + written, self.needed), self.needed)

        source = self.model.shards[file.tensor.shard]
        span = Span(file.tensor.offset, file.size_bytes)
        place = str(PurePosixPath(self.folder, COMING, f"{file.name}.{self.token}"))
        await self.host.shell.append(source, span, place, done_bytes=done, progress=on_progress)
        self.brought.sent += file.size_bytes - done
        self.brought.there += done

    async def _take(self, file: _File) -> None:
        """Once more from the start when it is not what was sent: what an earlier transfer left may be damaged."""
        if await self._is_taken(file):
            return
        await self._write(file, 0)
        if not await self._is_taken(file):
            check_unchanged(self.model)
            raise not_as_sent(self.host.name, file.tensor.name, "blake2b")

    async def _is_taken(self, file: _File) -> bool:
        words = commands.take_words(
            self.host.agent, self.folder, file.name, self.token, file.size_bytes, file.digests.blake2b
        )
        answer = await ask_agent(self.host.shell, words, LOOK_S)
        return read_part(self.host.name, _RIGHT, answer.get("right"))


def _sender(folder: Path) -> str:
    """Of this controller: what is in a file of its own, made once. Names of machines are not theirs alone."""
    place = folder / ".sender"
    if not place.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with written_whole(place) as partial:
            partial.write_text(secrets.token_hex(4))
    return place.read_text().strip()


def _batches(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Of so many bytes each, or one tensor."""
    batch: list[Tensor] = []
    for tensor in tensors:
        if batch and sum(one.size_bytes for one in batch) + tensor.size_bytes > BATCH_BYTES:
            yield batch
            batch = []
        batch.append(tensor)
    if batch:
        yield batch
