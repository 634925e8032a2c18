"""Weights travel once: before a load, each host gets the very tensors that the plan gives its workers, as files.

A head asks a worker for each larger weight by its hash and sends only what that has not in its cache. The cache is
filled beforehand with tensors of the model's own files, carved out of a copy on that host or sent over SFTP: each is
written beside and renamed once its BLAKE2b is right, and gone on with where a transfer was cut off. Before every start
what is there is compared with its digests again. The engine's own way, to fill it while it loads, in place and unread,
is off.
"""

import asyncio
import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any

from pydantic import TypeAdapter

from orchestrator.engine.lock import exclusive
from orchestrator.errors import CommandError, HostError, RefusedError, TransferError
from orchestrator.fanout import all_or_raise, each_host
from orchestrator.host_agent import ask_agent, ask_at_length, read_part
from orchestrator.host_cache import ask_cache, make_room, quota_bytes
from orchestrator.hosts import OpenHost, OpenHosts
from orchestrator.model_copies import remote_model_folder
from orchestrator.pack_peers import Peers, peers_of
from orchestrator.pack_sender import Brought, Sender, sender_token
from orchestrator.pack_source import PackFile, PackSource, asked_for, batches, size_of
from orchestrator.view.sizes import bytes_text
from quant.model import Model
from quant.pack import DigestBook, pack_name
from quant.piece import Piece
from workers import commands

LOOK_S = 3600.0
NOWHERE_ELSE: Mapping[str, float] = MappingProxyType({})
TOLD_ABOVE_BYTES = 64 * 1024 * 1024
"""What a host reads in a moment is not worth a process of its own, which tells how far it is."""


@dataclass(frozen=True)
class _Looked:
    """What the agent says of the files it was asked for: which are missing, how far our own transfers of some have
    come, which were damaged (they are gone now), and what other plans have left."""

    missing: tuple[str, ...]
    coming: Mapping[str, int]
    damaged: tuple[str, ...]
    spare_bytes: int


_LOOKED = TypeAdapter(_Looked)
_NAMES = TypeAdapter(tuple[str, ...])
_SIZE = TypeAdapter(int)
_TEXT = TypeAdapter(str)


async def bring_packs(
    model: Model,
    wanted: Mapping[str, Sequence[Piece]],
    hosts: OpenHosts,
    *,
    every_byte: bool = True,
    rates: Mapping[str, float] = NOWHERE_ELSE,
) -> dict[str, str]:
    """The folder of the weights on each host that now has all of its `wanted` pieces, whole; by the host's name.

    What is there is compared by its digests, byte by byte unless not `every_byte` (then only what was changed). A host
    without room for them is left out, which is told: its weights cross the network at every load. `rates`: bytes per
    second from here to those that may get weights from other hosts, too.
    """
    folder = Path(hosts.controller.shell.root, "digests")
    source = PackSource(model, DigestBook(model, folder))
    turns: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
    answers = await each_host(
        {
            name: _HostPack(
                source,
                hosts.by_name[name],
                folder,
                every_byte,
                turns,
                peers_of(model, hosts, name, rates.get(name, 0.0)),
            ).bring(pieces)
            for name, pieces in wanted.items()
        }
    )
    return {name: folder for name, folder in all_or_raise(answers).items() if folder}


class _HostPack:
    """The pack of one model on one host."""

    def __init__(
        self,
        source: PackSource,
        host: OpenHost,
        folder: Path,
        every_byte: bool,
        turns: Mapping[str, asyncio.Lock],
        peers: Peers | None,
    ) -> None:
        """`turns`: the lock of each place, for hosts that are one machine under several names."""
        self._source = source
        self._peers = peers
        self._host = host
        self._turns = turns
        self._token = sender_token(folder, host.name)
        self._every_byte = every_byte
        self._name = pack_name(source.model)
        self._folder = str(PurePosixPath(host.shell.root, "packs", self._name))
        self._lock = folder / f".{self._name}-{host.name}.lock"
        self._waits = False
        self._needed = 0
        self._brought = Brought()

    async def bring(self, pieces: Sequence[Piece]) -> str:
        """Its folder once it has all of them; "" where there is no room, or the host cannot keep them."""
        larger = list(asked_for(pieces))
        self._needed = size_of(larger)
        try:
            async with self._turns[await self._place()]:
                return await self._bring(larger)
        except HostError as error:
            if not _is_refusal(error):
                raise
            await self._give_up(error)
            return ""

    async def _place(self) -> str:
        """Which folder this is: what one name of a machine has brought there is there for the others."""
        host = self._host
        answer = await ask_agent(host.shell, commands.place_words(host.agent, host.shell.root))
        return read_part(host.name, _TEXT, answer.get("place")) or host.name

    async def _give_up(self, error: HostError) -> None:
        """Leave nothing half-done there, and tell why the start goes on without."""
        host, free = self._host, ""
        try:
            answer = await ask_agent(host.shell, commands.drop_words(host.agent, self._folder, self._token))
            free = f", {bytes_text(read_part(host.name, _SIZE, answer.get('disk_free_bytes')))} are free"
        except HostError as second:
            if not _is_refusal(second):
                raise
        needed = bytes_text(self._needed - self._brought.whole)
        why = _with_hint(host.name, error)
        host.report.warn(
            f"{host.name}: weights cannot be kept there, they cross the network at this start: {needed} more are "
            f"needed{free}: {why}"
        )

    async def _bring(self, larger: Sequence[Piece]) -> str:
        async with exclusive(self._lock, self._say_wait):
            known = self._known(larger)
            looked = await self._look(known.values())
            if looked.spare_bytes and len(known) < len(larger):  # some of these may be wanted
                for piece in larger:
                    await self._source.file(piece)
                self._source.book.save()
                known = self._known(larger)
                looked = await self._look(known.values())
            missing = [known[name] for name in looked.missing]
            unknown = [piece for piece in larger if self._source.known(piece) is None]
            needed = size_of(missing) + size_of(unknown)
            self._brought.there = size_of(known.values()) - size_of(missing)
            self._brought.whole = self._brought.there
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

    def _known(self, pieces: Iterable[Piece]) -> dict[str, PackFile]:
        """Those whose digests are known, by name."""
        return {file.name: file for piece in pieces if (file := self._source.known(piece)) is not None}

    async def _look(self, files: Iterable[PackFile]) -> _Looked:
        words = commands.pack_words(self._host.agent, self._folder, self._token, self._every_byte)
        asked = list(files)
        reads = "weights there, read again" if self._every_byte else ""
        looked = read_part(self._host.name, _LOOKED, await self._ask(words, asked, reads))
        named = {file.name: file.piece.name for file in asked}
        wrong = sorted(named[name] for name in looked.damaged if name in named)
        others = len(looked.damaged) - len(wrong)
        if wrong:
            which = ", ".join(wrong)
            self._host.report.warn(f"{self._host.name}: weights there were damaged and are put there again: {which}")
        if others:
            what = f"{others} weight{'s' if others > 1 else ''} of other plans"
            self._host.report.warn(f"{self._host.name}: {what} there were damaged and are removed")
        return looked

    async def _has_room(self, needed: int, spare: int, wanted: Collection[PackFile]) -> bool:
        """Make room: what other plans of this model have left goes first, then what was used longest ago."""
        host = self._host
        if spare:
            cache = await ask_cache(host.shell, host.agent)
            if cache.size_bytes + needed > quota_bytes(host.host.cache, cache) or needed > cache.disk_free_bytes:
                await self._ask(commands.thin_words(host.agent, self._folder), wanted)
        try:
            await self._make_room(needed)
        except TransferError as error:
            why = _with_hint(host.name, error)
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
        self, missing: Sequence[PackFile], coming: Mapping[str, int], unknown: Sequence[Piece], needed: int
    ) -> None:
        progress = self._host.report.bytes_of(f"{self._host.name}: weights")
        sender = Sender(self._host, self._folder, self._token, self._source.model, self._brought, progress, needed)
        await sender.send(await self._fetch(await self._carve(missing)), coming)
        for batch in batches(unknown):
            files = {file.name: file for file in [await self._source.file(piece) for piece in batch]}
            self._source.book.save()
            looked = await self._look(files.values())
            still = [files[name] for name in looked.missing]
            there = size_of(files.values()) - size_of(still)
            self._brought.there += there
            self._brought.whole += there
            await sender.send(await self._fetch(await self._carve(still)), looked.coming)

    async def _carve(self, files: Sequence[PackFile]) -> list[PackFile]:
        """Those that could not be had from a copy of the model on the host."""
        if not files:
            return []
        model = remote_model_folder(self._host.shell.root, self._source.model.shards)
        answer = await self._ask(
            commands.carve_words(self._host.agent, self._folder, model), files, "weights of the copy there"
        )
        carved = read_part(self._host.name, _NAMES, answer.get("carved"))
        size = size_of(file for file in files if file.name in carved)
        self._brought.carved += size
        self._brought.whole += size
        if full := read_part(self._host.name, _TEXT, answer.get("full")):
            raise RefusedError(self._host.name, full)
        return [file for file in files if file.name not in carved]

    async def _fetch(self, files: list[PackFile]) -> list[PackFile]:
        """Those that could not be had from another host that is nearer."""
        came = [] if self._peers is None else await self._peers.fetch(files)
        self._brought.fetched += size_of(came)
        self._brought.whole += size_of(came)
        return [file for file in files if file not in came]

    async def _ask(self, words: commands.Words, files: Collection[PackFile], reads: str = "") -> dict[str, Any]:
        """`reads`: what of all these files is read there, which is shown as it goes on where it may take long."""
        host, asked = self._host, json.dumps([file.as_asked() for file in files]).encode()
        if reads and size_of(files) > TOLD_ABOVE_BYTES:
            progress = host.report.bytes_of(f"{host.name}: {reads}")
            return await ask_at_length(host.shell, (*words, *commands.TELL), LOOK_S, stdin=asked, progress=progress)
        return await ask_agent(host.shell, words, LOOK_S, stdin=asked)


def _with_hint(host: str, error: HostError) -> str:
    """What it says and what to do about it, for a line that names the host already."""
    why = str(error).removeprefix(f"{host}: ")
    return f"{why}; {error.hint}" if error.hint else why


def _is_refusal(error: HostError) -> bool:
    """Whether the host answers and says no, or its programs fail at it: it may do the rest nevertheless."""
    if isinstance(error, CommandError):
        return error.status is not None
    return isinstance(error, RefusedError) or type(error) is HostError
