"""What our folder on a host holds: what lies there, how much may, and what goes when it is too much.

An item is what can go by itself: an engine, a model, a slice, the logs of a cluster. Beside it lies its mark: what was
put there (sizes and digests), and by its time when it was last used. Who uses an item holds a lock on its mark, on the
host itself, so that nobody removes it, whichever controller it serves.
"""

import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from pydantic import TypeAdapter

from orchestrator.errors import TransferError
from orchestrator.host_agent import ask_agent, read_part
from orchestrator.shell.protocol import Shell
from orchestrator.view.sizes import bytes_text
from workers import commands
from workers.budget import MemoryCap
from workers.engine import recipe_of_engine

DEFAULT_QUOTA = MemoryCap(share=0.5)
"""Of what would be free without us: never a reason that a disk is full."""

FRESH_S = 3600.0
"""What was used within this time may be what somebody is about to start with: it stays."""

SLICE_KEPT_S = 24 * 3600.0
"""Slices are cut again within seconds: those unused for a day go when another comes."""

HASHES_S = 3600.0
LEARNT = ("calibration", "descriptions", "digests", "experience", "made", "memory", "names", "perplexity", "quantised")
"""Small, and measured or worked out for minutes: never removed to make room."""


@dataclass(frozen=True)
class Damage:
    """A file of an item (`path` in it, "" for the item itself) that is not as it was put there."""

    path: str
    why: str


@dataclass(frozen=True)
class Item:
    """Something in our folder; `name` is "" for a whole folder that goes only as such. `used_s` is a time of the host's
    clock; `recorded`: it is known what was put there; `files`: the names in the folder of a model; `capabilities`: what
    cards an engine's CUDA code is for."""

    kind: str
    name: str
    size_bytes: int
    used_s: float
    in_use: bool
    recorded: bool
    is_folder: bool
    problems: tuple[Damage, ...] = ()
    files: tuple[str, ...] = ()
    capabilities: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        """Its path in our folder; the whole one of what lies in the cache of the hub's programs."""
        if self.kind == "hub":
            return self.name
        return f"{self.kind}/{self.name}" if self.name else self.kind

    @property
    def is_learnt(self) -> bool:
        return self.kind in LEARNT

    @property
    def is_fetched(self) -> bool:
        """A model of the catalogue; copies for heads lie in folders."""
        return self.kind == "models" and not self.is_folder

    @property
    def is_current_engine(self) -> bool:
        """An engine of this version of meshctl, for whatever system and GPUs."""
        return self.kind == "engines" and recipe_of_engine(self.name, self.capabilities) is not None


@dataclass(frozen=True)
class HostCache:
    """All of it, and what is free on the disk it lies on."""

    items: tuple[Item, ...]
    disk_free_bytes: int

    @property
    def size_bytes(self) -> int:
        return sum(item.size_bytes for item in self.items)


@dataclass(frozen=True)
class Seen:
    """What the agent says of one file that was put on its host (`size_bytes` None: it is not there): whether its digest
    is kept there, and whether it has another one by now."""

    size_bytes: int | None
    recorded: bool
    damaged: bool


_CACHE = TypeAdapter(HostCache)
_PLACES = TypeAdapter(tuple[str, ...])
_SEEN = TypeAdapter(Seen)
_RIGHT = TypeAdapter(bool)


async def ask_cache(shell: Shell, agent: str, check: str = "none") -> HostCache:
    """What lies there; `check` is "none", "sizes" or "hashes" and decides what `problems` can tell."""
    answer = await ask_agent(shell, commands.stored_words(agent, shell.root, check), HASHES_S)
    return read_part(shell.host, _CACHE, answer)


async def forget(shell: Shell, agent: str, items: Iterable[Item]) -> tuple[Item, ...]:
    """Remove them, but for those that are in use by now; gives those that went."""
    by_place = {item.place: item for item in items}
    if not by_place:
        return ()
    answer = await ask_agent(shell, commands.forget_words(agent, shell.root, tuple(by_place)), HASHES_S)
    removed = read_part(shell.host, _PLACES, answer.get("removed"))
    return tuple(by_place[place] for place in removed if place in by_place)


async def mend(shell: Shell, agent: str, items: Iterable[Item]) -> tuple[Item, ...]:
    """Remove what is damaged: of a pack those files only, everything else whole, but for what is in use by now; gives
    what was mended so."""
    damaged = tuple(items)
    packs = [item for item in damaged if item.kind == "packs"]
    others = [item for item in damaged if item.kind != "packs"]
    for pack in packs:
        await ask_agent(shell, commands.mend_words(agent, f"{shell.root}/{pack.place}"), HASHES_S)
    return (*packs, *await forget(shell, agent, others))


async def make_room(
    shell: Shell,
    agent: str,
    cap: MemoryCap | None,
    tell: Callable[[str], None],
    needed_bytes: int = 0,
    kept: Collection[str] = (),
    *,
    strict: bool = False,
) -> None:
    """Remove what was used longest ago until the host keeps to its quota with `needed_bytes` more; never the places
    `kept`.

    TransferError, with the sizes, when the disk has no room even so; what exceeds only the quota is told, or is such an
    error, too, when `strict`.
    """
    cache = await ask_cache(shell, agent)
    quota = quota_bytes(cap, cache)
    gone = await forget(shell, agent, going(cache, quota, needed_bytes, time.time(), kept))
    freed = sum(item.size_bytes for item in gone)
    if gone:
        names = ", ".join(item.place for item in gone)
        tell(f"{shell.host}: {bytes_text(freed)} that were used longest ago removed from its cache: {names}")
    free = cache.disk_free_bytes + freed
    if free < needed_bytes:
        raise TransferError(
            shell.host,
            f"{bytes_text(needed_bytes)} are needed in {shell.root}, {bytes_text(free)} are free",
            hint="free some space on that host's disk and try again",
        )
    held = cache.size_bytes - freed + needed_bytes
    if held > quota:
        more = f"{bytes_text(held)}, over its quota of {bytes_text(quota)}"
        if strict:
            hint = "raise `cache` of the host in inventory.yaml"
            raise TransferError(shell.host, f"its cache would hold {more}", hint=hint)
        tell(f"{shell.host}: its cache holds {more}, but no more can go")


def quota_bytes(cap: MemoryCap | None, cache: HostCache) -> int:
    """What may be kept there; a share is of what would be free without us."""
    cap = cap or DEFAULT_QUOTA
    if cap.share is None:
        return cap.limit_bytes or 0
    return int((cache.disk_free_bytes + cache.size_bytes) * cap.share)


def going(
    cache: HostCache, quota: int, needed_bytes: int, now_s: float, kept: Collection[str] = ()
) -> tuple[Item, ...]:
    """What has to go for `needed_bytes` more, the longest unused first."""
    excess = max(cache.size_bytes + needed_bytes - quota, needed_bytes - cache.disk_free_bytes)
    chosen = []
    for item in sorted(cache.items, key=lambda item: item.used_s):
        if not may_go(item, kept) or now_s - item.used_s < FRESH_S:
            continue
        old_slice = needed_bytes > 0 and item.kind == "slices" and now_s - item.used_s > SLICE_KEPT_S
        if excess > 0 or old_slice:
            chosen.append(item)
            excess -= item.size_bytes
    return tuple(chosen)


def may_go(item: Item, kept: Collection[str] = ()) -> bool:
    """Whether it can be had again without waiting for long, and nobody uses it; `kept` are places."""
    dear = item.is_learnt or item.is_fetched or item.is_current_engine
    return not (item.in_use or dear or item.place in kept)


async def look_at(shell: Shell, agent: str, item: str, name: str = "") -> Seen:
    """Look at a file that was put on a host; what somebody has changed since is read whole there.

    `item` is an absolute path there, `name` the file's path in it. Marks the item as used.
    """
    return read_part(shell.host, _SEEN, await ask_agent(shell, commands.look_words(agent, item, name), HASHES_S))


async def record(shell: Shell, agent: str, item: str, name: str, size_bytes: int, sha256: str) -> bool:
    """Keep beside the item what was put there, once every byte of it has been read there; False when it is not that."""
    answer = await ask_agent(shell, commands.record_words(agent, item, name, size_bytes, sha256), HASHES_S)
    return read_part(shell.host, _RIGHT, answer.get("right"))


def item_of(root: str, path: str) -> str | None:
    """The item in our folder `root` that a path lies in; None where it lies elsewhere."""
    if not path.startswith(f"{root}/"):
        return None
    kind, _, rest = path.removeprefix(f"{root}/").partition("/")
    name = rest.partition("/")[0]
    return f"{root}/{kind}/{name}" if name and kind in ("engines", "models", "packs", "slices") else None
