"""Weights from another host of the inventory that has them, where the way from there is faster than the one from here.

Hosts know nothing of each other and cannot log in to each other. The controller makes a key and a certificate for each
of the two, tells both through SSH, and the one that has the weights listens at its own address for that long: only the
other one gets in, over TLS, and gets only those weights. What comes is compared with its digests like all else.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from pydantic import TypeAdapter

from orchestrator.certificates import one_time_identity
from orchestrator.errors import HostError
from orchestrator.host_agent import Giving, ask_agent, ask_at_length, read_part, start_giving
from orchestrator.hosts import OpenHost, OpenHosts
from orchestrator.model_copies import remote_model_folder
from orchestrator.pack_source import PackFile, size_of
from orchestrator.view.sizes import bytes_text
from quant.model import Model
from quant.pack import pack_name
from workers import commands

WORTH_S = 10.0
"""What comes from here within this time is not worth the trouble."""

TRIAL_BYTES = 16 * 1024 * 1024
TRIAL_LEAST_S = 2.0
NEARER = 1.2
"""A way that is not so much faster is not another way."""

FETCH_S = 4 * 3600.0


@dataclass(frozen=True)
class _Fetched:
    """What the agent says: the names of what came, how long that took, and why no more did ("": there was no more)."""

    fetched: tuple[str, ...]
    seconds: float
    why: str


_FETCHED = TypeAdapter(_Fetched)
_NAMES = TypeAdapter(tuple[str, ...])


def peers_of(model: Model, hosts: OpenHosts, name: str, bytes_per_s: float) -> "Peers | None":
    """None where all comes from here (`bytes_per_s` is 0), or it is not known at what address the host is reached."""
    host = hosts.by_name[name]
    others = [one for one in hosts.by_name.values() if one.name != name and not one.is_local and one.facts.address]
    return Peers(host, others, model, bytes_per_s) if bytes_per_s and host.facts.address else None


@dataclass
class Peers:
    """Where one host may get weights of a model from instead of from here: `others`, none of them this machine.

    `bytes_per_s` is how fast the way from here is. `useless` are those that turned out not to be nearer.
    """

    host: OpenHost
    others: Sequence[OpenHost]
    model: Model
    bytes_per_s: float
    useless: set[str] = field(default_factory=set)

    async def fetch(self, files: Sequence[PackFile]) -> list[PackFile]:
        """Those of the files that came from others, whole; those that have most of them are tried first."""
        came: dict[str, PackFile] = {}
        for source, held in await self._sources(files):
            wanted = [file for file in held if file.name not in came]
            if size_of(wanted) > WORTH_S * self.bytes_per_s:
                came |= {file.name: file for file in await self._fetch_from(source, wanted)}
        return list(came.values())

    async def _sources(self, files: Sequence[PackFile]) -> list[tuple[OpenHost, list[PackFile]]]:
        others = [other for other in self.others if other.name not in self.useless]
        if not others or size_of(files) <= WORTH_S * self.bytes_per_s:
            return []
        answers = await asyncio.gather(*(self._held(other, files) for other in others))
        found = [(other, held) for other, held in zip(others, answers, strict=True) if held]
        return sorted(found, key=lambda one: -size_of(one[1]))

    async def _held(self, source: OpenHost, files: Sequence[PackFile]) -> list[PackFile]:
        words = commands.held_words(source.agent, *self._places(source))
        asked = json.dumps([file.as_asked() for file in files]).encode()
        try:
            answer = await ask_agent(source.shell, words, stdin=asked)
            names = read_part(source.name, _NAMES, answer.get("held"))
        except HostError:
            return []
        return [file for file in files if file.name in names]

    def _places(self, host: OpenHost) -> tuple[str, str]:
        """The pack and the copy of the model there, whether they exist or not."""
        root = host.shell.root
        return f"{root}/packs/{pack_name(self.model)}", remote_model_folder(root, self.model.shards)

    async def _fetch_from(self, source: OpenHost, files: Sequence[PackFile]) -> list[PackFile]:
        """The first few show how fast it is; what does not come so comes from here."""
        trial, came, took_s, why = _first(files, TRIAL_BYTES), set[str](), 0.0, ""
        limit_s = max(TRIAL_LEAST_S, size_of(trial) / self.bytes_per_s / NEARER)
        try:
            async with self._introduced(source, files) as (giving, introduced):
                for part, seconds in ((trial, limit_s), (files[len(trial) :], None)):
                    if part and not why:
                        fetched = await self._ask(source, giving, introduced, part, seconds)
                        came |= set(fetched.fetched)
                        took_s += fetched.seconds
                        why = fetched.why or self._slower(size_of(trial), fetched.seconds if part is trial else 0.0)
        except HostError as error:
            why = str(error)
        here = [file for file in files if file.name in came]
        self._tell(source, here, took_s, why)
        return here

    def _slower(self, size_bytes: int, took_s: float) -> str:
        rate = size_bytes / took_s if took_s else self.bytes_per_s * NEARER
        if rate >= self.bytes_per_s * NEARER:
            return ""
        return f"{bytes_text(int(rate))}/s from there, {bytes_text(int(self.bytes_per_s))}/s from here"

    def _tell(self, source: OpenHost, came: Sequence[PackFile], took_s: float, why: str) -> None:
        report, name = self.host.report, self.host.name
        if came:
            rate = bytes_text(int(size_of(came) / took_s)) if took_s else "-"
            report.say(f"{name}: {bytes_text(size_of(came))} of weights from {source.name} ({rate}/s)")
        if why:
            self.useless.add(source.name)
            report.say(f"{name}: weights that {source.name} has come from this machine nevertheless: {why}")

    @asynccontextmanager
    async def _introduced(
        self, source: OpenHost, files: Sequence[PackFile]
    ) -> AsyncIterator[tuple[Giving, dict[str, str]]]:
        """The other host while it listens, and what ours is told for the beginning of each question."""
        (theirs, their_certificate), (ours, our_certificate) = one_time_identity(), one_time_identity()
        told = {"identity": theirs, "other": our_certificate, "weights": [file.as_asked() for file in files]}
        address, peer = source.facts.address, self.host.facts.address
        words = commands.give_words(source.agent, *self._places(source), address, peer)
        giving = await start_giving(source.shell, words, json.dumps(told).encode() + b"\n")
        try:
            yield giving, {"identity": ours, "other": their_certificate}
        finally:
            await giving.close()

    async def _ask(
        self,
        source: OpenHost,
        giving: Giving,
        introduced: dict[str, str],
        files: Sequence[PackFile],
        seconds: float | None,
    ) -> _Fetched:
        host, (pack, _) = self.host, self._places(self.host)
        words = commands.fetch_words(host.agent, pack, source.facts.address, giving.port, seconds)
        asked = json.dumps({**introduced, "weights": [file.as_asked() for file in files]}).encode()
        progress = host.report.bytes_of(f"{host.name}: weights from {source.name}")
        answer = await ask_at_length(host.shell, (*words, *commands.TELL), FETCH_S, stdin=asked, progress=progress)
        return read_part(host.name, _FETCHED, answer)


def _first(files: Sequence[PackFile], size_bytes: int) -> Sequence[PackFile]:
    """As many as have so many bytes together, one at least."""
    total = 0
    for count, file in enumerate(files, 1):
        total += file.size_bytes
        if total >= size_bytes:
            return files[:count]
    return files
