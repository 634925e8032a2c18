"""What the doctor found, host by host; fixes stand under what they mend."""

import json
from collections.abc import Iterable
from dataclasses import asdict

from rich.console import Group, RenderableType
from rich.text import Text

from orchestrator.doctor import Check, Examined


def doctor_view(examined: Iterable[Examined]) -> RenderableType:
    """One block per host: a line per check, a fix below each that failed."""
    blocks: list[RenderableType] = []
    for one in examined:
        blocks.append(Text(one.host, "bold"))
        blocks.extend(_lines(one.checks))
    return Group(*blocks)


def doctor_json(examined: Iterable[Examined]) -> str:
    """The same as JSON: a list of hosts with their checks."""
    return json.dumps([asdict(one) | {"well": one.well} for one in examined], indent=2)


def _lines(checks: Iterable[Check]) -> Iterable[Text]:
    for check in checks:
        mark = Text("  ✓ ", "green") if check.well else Text("  ✗ ", "red")
        first, *rest = check.text.splitlines() or [""]
        yield mark.append(f"{check.title:<10} ", "default").append(first, "default")
        yield from (Text(f"{'':<15}{line.strip()}") for line in rest)
        if not check.well and check.fix:
            for line in check.fix.splitlines():
                yield Text("    fix: ", "cyan").append(line, "default")
