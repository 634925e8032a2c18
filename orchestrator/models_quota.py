"""How much the models on this machine may take together: none unless the user has set it (`meshctl model quota`).

Hosts have their quota in the inventory (`cache`), which fetched models are no part of: fetching them again takes long.
Here the user has said that those used longest ago may go when another one comes.
"""

import time
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

from orchestrator.cache import Tell
from orchestrator.fanout import all_or_raise
from orchestrator.folders import Folders
from orchestrator.host_cache import FRESH_S, forget
from orchestrator.inventory import CONTROLLER
from orchestrator.kept_models import Kept, list_models
from orchestrator.own_machine import own_shell
from orchestrator.state import write_private
from orchestrator.view.sizes import bytes_text
from quant.download import MakeRoom

NOTHING: Mapping[str, int] = MappingProxyType({})


def read_quota(folders: Folders) -> int | None:
    """In bytes; None where none is set."""
    try:
        return int(_path(folders).read_text())
    except (OSError, ValueError):
        return None


def write_quota(folders: Folders, quota_bytes: int | None) -> None:
    """None: no quota any more."""
    if quota_bytes is None:
        _path(folders).unlink(missing_ok=True)
        return
    folders.state.mkdir(parents=True, exist_ok=True)
    write_private(_path(folders), f"{quota_bytes}\n")


def _path(folders: Folders) -> Path:
    return folders.state / "models_quota"


def room_in_quota(folders: Folders, tell: Tell) -> MakeRoom:
    """Makes room for what is about to be fetched (`quant.fetch.fetch_model`)."""

    async def make_room(coming: Mapping[str, int]) -> None:
        await keep_to_quota(folders, tell, coming=coming)

    return make_room


async def keep_to_quota(
    folders: Folders, tell: Tell, kept: Collection[str] = (), coming: Mapping[str, int] = NOTHING
) -> None:
    """Remove the models on this machine that were used longest ago until the others keep to the quota, with the files
    that are `coming` (their bytes by name, in the place of what has that name). `kept` are names of files that stay.

    What goes is told, and so is when that was not enough.
    """
    quota = read_quota(folders)
    if quota is None:
        return
    models = all_or_raise(await list_models(None, folders, tell))[CONTROLLER]
    models = tuple(model for model in models if model.what == "model" and model.model not in coming)
    coming_bytes = sum(coming.values())
    going = over_quota(models, quota, time.time(), kept, coming_bytes)
    async with own_shell(folders) as (shell, agent):
        gone = {item.place for item in await forget(shell, agent, (item for model in going for item in model.items))}
    for model in going:
        if all(item.place in gone for item in model.items):
            tell(f"{model.model} ({bytes_text(model.size_bytes)}), used longest ago, is removed: the quota is full")
    held = coming_bytes + sum(item.size_bytes for model in models for item in model.items if item.place not in gone)
    if held > quota:
        tell(f"the models take {bytes_text(held)}, over the quota of {bytes_text(quota)}, but {_NO_OTHERS}")


_NO_OTHERS = "no others go: they are in use, were used within the hour, or would not be enough"


def over_quota(
    models: Iterable[Kept], quota_bytes: int, now_s: float, kept: Collection[str] = (), coming_bytes: int = 0
) -> tuple[Kept, ...]:
    """What has to go for `coming_bytes` more, the longest unused first: nothing in use, used within the last hour, or
    `kept`; and nothing at all where what is kept and what comes would exceed the quota alone."""
    by_age = sorted(models, key=lambda model: model.used_s)
    if sum(model.size_bytes for model in by_age if model.model in kept) + coming_bytes > quota_bytes:
        return ()
    excess = sum(model.size_bytes for model in by_age) + coming_bytes - quota_bytes
    going = []
    for model in by_age:
        fresh = now_s - model.used_s < FRESH_S
        if excess > 0 and not (fresh or model.in_use or model.model in kept):
            going.append(model)
            excess -= model.size_bytes
    return tuple(going)
