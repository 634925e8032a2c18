"""`meshctl model list` and `remove`: which models lie where, whole on this machine, as copies and weights on hosts.

Looks through `orchestrator.cache`, which asks every host. What a cluster that runs uses is not removed.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from orchestrator.cache import Cleaned, InUse, Tell, in_use, on_each_cache
from orchestrator.errors import REPORTED, MeshctlError, UsageError
from orchestrator.folders import Folders
from orchestrator.host_cache import HostCache, Item, ask_cache, forget
from orchestrator.inventory import CONTROLLER, Host, Inventory
from orchestrator.shell.protocol import Shell
from quant.catalogue import CATALOGUE
from quant.errors import QuantError
from quant.fetch import find_model
from quant.gguf_file import read_model
from quant.hub_cache import remove_file
from quant.model import Model
from quant.pack import pack_name
from quant.pulled import all_pulled, names_of, read_pulled
from quant.source import PathSource, read_source
from workers.agent import is_in_use, mark_of

What = Literal["model", "hub", "copy", "weights"]
"""A "model" is what users name, on this machine, and one of the "hub" too, but in the cache that all programs of the
hub share; a "copy" is for a head on a host; "weights" are for a worker there."""

_SHARD = re.compile(r"(?P<stem>.+)-\d{5}-of-\d{5}\.gguf")
_PACK = re.compile(r"(?P<stem>.+)-[0-9a-f]{12}")


@dataclass(frozen=True)
class Kept:
    """A model, or something of it, in the cache of a host; all shards together. `quantisation` is "" where the file
    cannot be read, or is not here; `in_use`: by a process there, or by a cluster that runs."""

    model: str
    host: str
    what: What
    items: tuple[Item, ...]
    quantisation: str = ""
    in_use: bool = False

    @property
    def size_bytes(self) -> int:
        return sum(item.size_bytes for item in self.items)

    @property
    def used_s(self) -> float:
        """When it was last used, by the clock of its host."""
        return max(item.used_s for item in self.items)

    def is_called(self, name: str) -> bool:
        """By its file's name, with its ending or without, a shard's, the catalogue's, or what its place is called."""
        names = {self.model, self.model.removesuffix(".gguf"), *(item.name for item in self.items)}
        entry = CATALOGUE.get(name)
        return bool(names & {name, *((entry.file_name,) if entry else ())})

    def paths(self, cache: Path) -> set[Path]:
        """Where the files lie that users name, which are on this machine, with its `cache`."""
        if self.what == "hub":
            return {Path(item.name) for item in self.items}
        is_here = self.what == "model" and self.host == CONTROLLER
        return {cache / item.place for item in self.items} if is_here else set()


async def list_models(
    inventory: Inventory | None, folders: Folders, tell: Tell
) -> dict[str, tuple[Kept, ...] | MeshctlError]:
    """By host, or why it cannot be asked; without an inventory of this machine alone."""

    async def look(host: Host, shell: Shell, agent: str) -> HostCache:
        return await ask_cache(shell, agent)

    caches = await on_each_cache(inventory, folders, tell, look)
    known = tuple(_models_here(inventory, folders, caches))
    listed: dict[str, tuple[Kept, ...] | MeshctlError] = {
        host: cache if isinstance(cache, MeshctlError) else tuple(kept_in(host, cache, known))
        for host, cache in caches.items()
    }
    here = listed[CONTROLLER]
    if not isinstance(here, MeshctlError):
        listed[CONTROLLER] = (*here, *_of_the_hub(folders))
    used = in_use(folders)
    return {host: kept if isinstance(kept, MeshctlError) else _told_of(kept, used) for host, kept in listed.items()}


def _told_of(kept: Iterable[Kept], used: InUse) -> tuple[Kept, ...]:
    """With what is in use told."""
    return tuple(replace(one, in_use=any(item.in_use or used.has(item) for item in one.items)) for one in kept)


def _of_the_hub(folders: Folders) -> Iterable[Kept]:
    """What names led to outside of our own folder: in the cache of the hub's programs."""
    own = folders.cache.resolve()
    for files in {files[0].path: files for files in all_pulled(folders.cache).values() if files}.values():
        paths = [Path(file.path) for file in files]
        if not all(file.is_there for file in files) or own in paths[0].absolute().parents:
            continue
        items = tuple(_hub_item(path, folders.cache) for path in paths)
        with suppress(*REPORTED, OSError):
            yield Kept(paths[0].name, CONTROLLER, "hub", items, read_model(paths[0]).quantisation)


def _hub_item(path: Path, cache: Path) -> Item:
    """Whoever uses it holds what remembers its names (`OpenHost.items`)."""
    facts, held = path.stat(), names_of(cache, str(path))
    marks = (Path(mark_of(str(one))) for one in held)
    used_s = max(facts.st_atime, facts.st_mtime, *(mark.stat().st_mtime for mark in marks if mark.exists()))
    return Item("hub", str(path), facts.st_size, used_s, any(is_in_use(str(one)) for one in held), True, False)


def kept_in(host: str, cache: HostCache, known: Sequence[Model]) -> Iterable[Kept]:
    """What of models lies in a cache; `known` are those whose files are on this machine."""
    by_place = {place: model for model in known for place in _places(model)}
    groups: dict[str, list[Item]] = {}
    for item in cache.items:
        if item.kind == "models" and not item.is_folder:
            groups.setdefault(_first_of(item.name), []).append(item)
        elif item.kind in ("models", "packs"):
            what: What = "copy" if item.kind == "models" else "weights"
            model = by_place.get(item.place)
            name, quantisation = (model.path.name, model.quantisation) if model else (_name_there(item), "")
            yield Kept(name, host, what, (item,), quantisation)
    for items in groups.values():
        found = by_place.get(f"models/{items[0].name}")
        yield Kept(items[0].name, host, "model", tuple(items), found.quantisation if found else "")


def _first_of(name: str) -> str:
    """The same for all shards of a model."""
    shard = _SHARD.fullmatch(name)
    return shard["stem"] if shard else name


def _name_there(item: Item) -> str:
    """What can be said of something of a model that is not on this machine."""
    pack = _PACK.fullmatch(item.name)
    if item.kind == "packs":
        return pack["stem"] if pack else item.name
    return next((name for name in item.files if name.endswith(".gguf")), item.name)


def _places(model: Model) -> tuple[str, ...]:
    """Where something of this model lies in a cache."""
    return (f"models/{model.path.name}", f"models/{model.files_digest}", f"packs/{pack_name(model)}")


def _models_here(
    inventory: Inventory | None, folders: Folders, caches: Mapping[str, HostCache | MeshctlError]
) -> Iterable[Model]:
    """Those in the controller's folder, and the inventory's wherever it lies; what cannot be read is left out."""
    here = caches[CONTROLLER]
    items = () if isinstance(here, MeshctlError) else here.items
    paths = [folders.cache / item.place for item in items if item.kind == "models" and not item.is_folder]
    if inventory is not None:
        with suppress(QuantError):
            paths.append(find_model(inventory.model, folders.cache, inventory.path.parent))
    for path in dict.fromkeys(paths):
        with suppress(*REPORTED, OSError):
            yield read_model(path)


async def remove_model(
    name: str, hosts: Sequence[str] | None, inventory: Inventory | None, folders: Folders, tell: Tell
) -> dict[str, Cleaned | MeshctlError]:
    """Remove all that these hosts have of a model (None: every one); by host what went and what stays, being in use.

    UsageError when there is nothing of that name on any of them that could be asked, or several models here have it.
    """
    _check_hosts(hosts, inventory)
    listed = await list_models(inventory, folders, tell)
    wanted = {host: kept for host, kept in listed.items() if hosts is None or host in hosts}
    there = {host: _called(name, kept, folders) for host, kept in wanted.items() if not isinstance(kept, MeshctlError)}
    failed = {host: kept for host, kept in wanted.items() if isinstance(kept, MeshctlError)}
    if not failed and not any(there.values()):
        raise UsageError(f"{', '.join(wanted)}: there is no model {name}", hint="see what is where: meshctl model list")
    _check_one(name, there.get(CONTROLLER, ()), folders)

    async def remove(host: Host, shell: Shell, agent: str) -> Cleaned:
        asked = there.get(host.name, ())
        items = tuple(item for kept in asked for item in kept.items)
        free = tuple(item for kept in asked if not kept.in_use for item in kept.items)
        gone = (*await forget(shell, agent, (one for one in free if one.kind != "hub")), *_forget_hub(free))
        return Cleaned(host.name, gone, tuple(item for item in items if item not in gone))

    removed = await on_each_cache(inventory, folders, tell, remove)
    return {host: failed.get(host, answer) for host, answer in removed.items() if host in failed or there.get(host)}


def _called(name: str, kept: Iterable[Kept], folders: Folders) -> tuple[Kept, ...]:
    """What a name means: a path one file, a name that was pulled the file that it led to, others what is called so."""
    kept = tuple(kept)
    if isinstance(read_source(name), PathSource) and "/" in name:
        return _of_file(Path(name), kept, folders)
    pulled = [Path(file.path) for file in read_pulled(folders.cache, name)]
    led_to = _of_file(pulled[0], kept, folders) if pulled else ()
    return led_to or tuple(one for one in kept if one.is_called(name))


def _of_file(path: Path, kept: Iterable[Kept], folders: Folders) -> tuple[Kept, ...]:
    """The model whose file this is, and what hosts have of it."""
    copies: list[str] = []
    with suppress(*REPORTED, OSError):
        _, *copies = _places(read_model(path))
    return tuple(
        one
        for one in kept
        if _place(path) in map(_place, one.paths(folders.cache)) or any(item.place in copies for item in one.items)
    )


def _place(path: Path) -> Path:
    """The same for one file however its folder is written; a link is not what it leads to."""
    return path.parent.resolve() / path.name


def _check_one(name: str, kept: Iterable[Kept], folders: Folders) -> None:
    paths = [str(min(one.paths(folders.cache))) for one in kept if one.what in ("model", "hub")]
    if len(paths) > 1:
        raise UsageError(
            f"{len(paths)} models on this machine are called {name}: {', '.join(paths)}",
            hint="name one by its path",
        )


def _forget_hub(items: Iterable[Item]) -> Iterable[Item]:
    """Those of the hub's cache, which only this machine has any of."""
    for item in items:
        if item.kind == "hub":
            remove_file(Path(item.name))
            yield item


def _check_hosts(hosts: Sequence[str] | None, inventory: Inventory | None) -> None:
    names = [CONTROLLER, *(host.name for host in inventory.hosts if host.connection == "ssh")] if inventory else None
    for host in hosts or ():
        if names is not None and host not in names:
            raise UsageError(f"--host {host}: no such host", hint=f"choose one of {', '.join(names)}")
