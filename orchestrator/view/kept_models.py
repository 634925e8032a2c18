"""How it is shown which models lie where."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Column, Table
from rich.text import Text

from orchestrator.errors import MeshctlError
from orchestrator.inventory import CONTROLLER
from orchestrator.kept_models import Kept
from orchestrator.view.cache import age_text
from orchestrator.view.sizes import bytes_text

WHAT = {
    "model": "model",
    "hub": "model in the hub's cache",
    "copy": "copy for a head",
    "weights": "weights for a worker",
}


def models_table(kept: Sequence[Kept], now_s: float) -> Table:
    """A row per model and place: by model, this machine first. Nothing is folded: names are there to be copied."""
    titles = ("model", "where", "what", "mostly", "size", "last used")
    columns = [Column(title, no_wrap=True, justify="right" if title == "size" else "left") for title in titles]
    table = Table(*columns, box=None, pad_edge=False)
    for one in sorted(kept, key=lambda one: (one.model, one.host != CONTROLLER, one.host, one.what)):
        used = "in use" if one.in_use else f"{age_text(now_s - one.used_s)} ago"
        name = one.model.removesuffix(".gguf")
        words = (name, one.host, WHAT[one.what], one.quantisation or "-", bytes_text(one.size_bytes), used)
        table.add_row(*(Text(word) for word in words))
    return table


def quota_text(kept: Sequence[Kept], quota_bytes: int | None, folder: str) -> str:
    """What the models on this machine take together."""
    held = sum(one.size_bytes for one in kept if one.host == CONTROLLER and one.what == "model")
    limit = "no quota" if quota_bytes is None else f"the quota is {bytes_text(quota_bytes)}"
    return f"{folder}: {bytes_text(held)}, {limit}"


def models_json(listed: Mapping[str, tuple[Kept, ...] | MeshctlError], quota_bytes: int | None, folder: str) -> str:
    """The quota, and by host what lies there; a host that could not be asked has an `error`."""
    hosts = {
        host: {"error": str(kept)} if isinstance(kept, MeshctlError) else [_as_json(one) for one in kept]
        for host, kept in listed.items()
    }
    return json.dumps({"folder": folder, "quota_bytes": quota_bytes, "hosts": hosts}, indent=2)


def _as_json(one: Kept) -> dict[str, Any]:
    return {
        "model": one.model,
        "what": one.what,
        "quantisation": one.quantisation,
        "size_bytes": one.size_bytes,
        "used_s": one.used_s,
        "in_use": one.in_use,
        "places": [item.place for item in one.items],
    }
