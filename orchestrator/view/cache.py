"""What lies in the caches of hosts: tables of it, what is damaged, what was removed."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from orchestrator.cache import Checked, Cleaned, Listed
from orchestrator.errors import MeshctlError
from orchestrator.host_cache import Item
from orchestrator.view.sizes import bytes_text

HOUR_S, DAY_S = 3600.0, 24 * 3600.0


def caches_view(listed: Iterable[Listed], now_s: float) -> RenderableType:
    """A block per host: its folder, what it holds and may hold, and a row per item, the largest first."""
    blocks: list[RenderableType] = []
    for one in listed:
        held, quota = bytes_text(one.cache.size_bytes), bytes_text(one.quota_bytes)
        free = bytes_text(one.cache.disk_free_bytes)
        blocks.append(Text(f"{one.host}", "bold").append(f"  {one.folder}: {held} of {quota}, disk {free} free", ""))
        blocks.append(_items_table(one.cache.items, now_s))
    return Group(*blocks)


def _items_table(items: Iterable[Item], now_s: float) -> Table:
    table = Table("item", box=None, pad_edge=False)
    table.add_column("size", justify="right")
    table.add_column("last used")
    shown = sorted((item for item in items if item.size_bytes), key=lambda item: -item.size_bytes)
    for item in shown:
        used = "in use" if item.in_use else f"{age_text(now_s - item.used_s)} ago"
        table.add_row(Text(f"  {item.place}"), bytes_text(item.size_bytes), used)
    return table


def age_text(seconds: float) -> str:
    """Such as "3 min", "5 h" or "12 d"."""
    if seconds < HOUR_S:
        return f"{max(0.0, seconds) / 60:.0f} min"
    return f"{seconds / HOUR_S:.0f} h" if seconds < 2 * DAY_S else f"{seconds / DAY_S:.0f} d"


def cleaned_lines(cleaned: Cleaned, *, dry_run: bool) -> Iterable[str]:
    """A line per item and a sum; `dry_run`: as what would be done."""
    for item in cleaned.removed:
        yield f"{cleaned.host}: {'would remove' if dry_run else 'removed'} {item.place} ({bytes_text(item.size_bytes)})"
    freed = bytes_text(sum(item.size_bytes for item in cleaned.removed))
    kept = bytes_text(sum(item.size_bytes for item in cleaned.left))
    yield f"{cleaned.host}: {freed} {'would be' if dry_run else 'are'} free again, {kept} stay"


def checked_lines(checked: Checked) -> Iterable[str]:
    """A line per file that is not as it was put there, and how many items were compared."""
    for item in checked.damaged:
        for problem in item.problems:
            name = f"{item.place}/{problem.path}" if problem.path else item.place
            yield f"{checked.host}: {name} {problem.why}"
        if item in checked.removed:
            what = "what is damaged of " if item.kind == "packs" else ""
            yield f"{checked.host}: {what}{item.place} is removed; the next start puts it there again"
        elif checked.removed:
            yield f"{checked.host}: {item.place} is in use and stays: stop what uses it, then repair"
    whole = checked.items - len(checked.damaged)
    yield f"{checked.host}: {whole} of {checked.items} items are as they were put there"


def caches_json(answers: Mapping[str, Any]) -> str:
    """Any of the answers by host; a host that could not be asked has an `error`."""
    return json.dumps({host: _as_json(answer) for host, answer in answers.items()}, indent=2)


def _as_json(answer: Any) -> dict[str, Any]:
    return {"error": str(answer)} if isinstance(answer, MeshctlError) else asdict(answer)
