"""`meshctl cache`: what lies in our folder on every host and here, whether it is whole, and cleaning it up.

Reads, and removes only what can be had again. What serves a cluster that runs is never removed.
"""

from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from orchestrator.attended import attend
from orchestrator.errors import REPORTED, MeshctlError
from orchestrator.fanout import each_host
from orchestrator.folders import Folders
from orchestrator.host_agent import tidy
from orchestrator.host_cache import HostCache, Item, ask_cache, forget, mend, quota_bytes
from orchestrator.inventory import CONTROLLER, Host, Inventory
from orchestrator.inventory_file import load_inventory
from orchestrator.model_copies import remote_model_folder
from orchestrator.shell.connect import connect
from orchestrator.shell.local import LocalShell
from orchestrator.shell.protocol import Shell
from orchestrator.shell.ssh_config import account_home, write_ssh_files
from orchestrator.state import ClusterState, read_state, running_clusters
from quant.fetch import find_model
from quant.gguf_file import read_model
from quant.pack import pack_name
from quant.slice import shape_digest

T = TypeVar("T")
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Listed:
    """The cache of one host, and how much it may hold."""

    host: str
    folder: str
    cache: HostCache
    quota_bytes: int


@dataclass(frozen=True)
class Cleaned:
    """What was removed on a host (or would be); `left` is in use, or was asked to stay."""

    host: str
    removed: tuple[Item, ...]
    left: tuple[Item, ...]


@dataclass(frozen=True)
class Checked:
    """What of a host's cache is not as it was put there, and what of that was removed, to be put there again."""

    host: str
    items: int
    damaged: tuple[Item, ...]
    removed: tuple[Item, ...] = ()

    @property
    def well(self) -> bool:
        return set(self.damaged) == set(self.removed)


@dataclass(frozen=True)
class InUse:
    """What clusters of this controller that run, or are being started, use: models' and logs' places, models' paths
    here, and the names that slices of their models begin with or have in them; `engines`: those of this version."""

    places: frozenset[str]
    shapes: frozenset[str]
    engines: bool = False

    def has(self, item: Item) -> bool:
        if self.engines and item.is_current_engine:
            return True
        return item.place in self.places or (item.kind == "slices" and any(shape in item.name for shape in self.shapes))


async def list_caches(inventory: Inventory, folders: Folders, tell: Tell) -> Mapping[str, Listed | MeshctlError]:
    """Of every host, itself or the reason why it cannot be seen."""

    async def look(host: Host, shell: Shell, agent: str) -> Listed:
        cache = await ask_cache(shell, agent)
        return Listed(host.name, shell.root, cache, quota_bytes(host.cache, cache))

    return await on_each_cache(inventory, folders, tell, look)


async def check_caches(
    inventory: Inventory, folders: Folders, tell: Tell, *, hashes: bool, repair: bool
) -> Mapping[str, Checked | MeshctlError]:
    """Compare what was put with what is there; with `repair`, remove what is damaged: the next start puts it again."""

    async def check(host: Host, shell: Shell, agent: str) -> Checked:
        cache = await ask_cache(shell, agent, "hashes" if hashes else "sizes")
        damaged = tuple(item for item in cache.items if item.problems)
        removed = await mend(shell, agent, damaged) if repair else ()
        return Checked(host.name, sum(item.recorded for item in cache.items), damaged, removed)

    return await on_each_cache(inventory, folders, tell, check)


async def clean_caches(
    inventory: Inventory, folders: Folders, tell: Tell, *, dry_run: bool, everything: bool
) -> Mapping[str, Cleaned | MeshctlError]:
    """Remove what no cluster that runs uses. Engines of this version, fetched models and measured speeds go only with
    `everything`."""
    used = in_use(folders)

    async def clean(host: Host, shell: Shell, agent: str) -> Cleaned:
        if not dry_run:
            await tidy(shell, agent)
        cache = await ask_cache(shell, agent)
        going = tuple(item for item in cache.items if may_be_cleaned(item, used, everything=everything))
        removed = going if dry_run else await forget(shell, agent, going)
        return Cleaned(host.name, removed, tuple(item for item in cache.items if item not in removed))

    return await on_each_cache(inventory, folders, tell, clean)


def may_be_cleaned(item: Item, used: InUse, *, everything: bool) -> bool:
    """Never our agent, which answers just now, and never what is in use."""
    if item.in_use or item.kind == "agent" or used.has(item):
        return False
    dear = item.is_learnt or item.is_fetched or item.is_current_engine
    return everything or not dear


def in_use(folders: Folders) -> InUse:
    """By the models of the clusters that run here: also between two lives of a cluster, when no process does."""
    places: set[str] = set()
    shapes: set[str] = set()
    running = tuple(running_clusters(folders))
    for name in running:
        state = read_state(folders.cluster(name))
        places |= {f"logs/{name}", f"logs/{name}.survey", f"logs/{name}.bench"}
        if state is not None:
            with suppress(*REPORTED, OSError):  # then its locks tell
                model = read_model(_model_of(state, folders))
                places.add(remote_model_folder("", model.shards).strip("/"))
                places |= {place for shard in model.shards for place in (f"models/{shard.name}", str(shard))}
                places.add(f"packs/{pack_name(model)}")
                shapes.add(shape_digest(model))
    return InUse(frozenset(places), frozenset(shapes), bool(running))


def _model_of(state: ClusterState, folders: Folders) -> Path:
    """What it runs, or is about to by its inventory, which may have been changed since."""
    if state.model_path:
        return Path(state.model_path)
    inventory = load_inventory(Path(state.inventory))
    return find_model(inventory.model, folders.cache, inventory.path.parent)


async def on_each_cache(
    inventory: Inventory | None, folders: Folders, tell: Tell, work: Callable[[Host, Shell, str], Awaitable[T]]
) -> dict[str, T | MeshctlError]:
    """Once per folder: the controller's own, which local hosts share, and that of every host over SSH; without an
    inventory the controller's alone."""
    ssh = None if inventory is None else write_ssh_files(folders.state, inventory.path)
    controller = Host(CONTROLLER, "local", cache=inventory.cache if inventory else None)
    others = () if inventory is None else (host for host in inventory.hosts if host.connection == "ssh")
    hosts = (controller, *others)

    async def one(host: Host) -> T:
        if ssh is None:
            shell: Shell = LocalShell(host.name, folders.cache, account_home())
        else:
            shell = await connect(host, ssh, local_root=folders.cache)
        try:
            shell = attended = await attend(shell, tell)
            return await work(host, shell, attended.agent)
        finally:
            await shell.close()

    return await each_host({host.name: one(host) for host in hosts})
