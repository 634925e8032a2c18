"""How a plan looks: a picture of what runs where, for people. Pure; prints nothing.

Names come from users and model files, so they are `Text`: rich would read `[node-a]` in a plain string as markup.
Everything fits a terminal of 80 columns.
"""

from collections.abc import Iterable, Iterator

from rich import box
from rich.console import Group as Lines
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from orchestrator.plan.costs import needed_bytes
from orchestrator.plan.values import Group, Plan, Share, Traffic
from orchestrator.survey.values import Survey
from orchestrator.view.sizes import bytes_text, duration_text, in_unit, milliseconds_text, tokens_text, unit_for

BAR_CELLS = 16
DEVICE_COLUMNS = 20
"""The widest that a device's name gets before it is folded."""

HOW_KNOWN = {
    "predicted": "predicted",
    "corrected": "predicted, corrected by earlier runs",
    "measured": "measured when it ran",
}


def plan_view(plan: Plan, survey: Survey) -> RenderableType:
    """What runs where as a picture, its bytes and times, each unused device's reason, and why this plan."""
    return Lines(picture(plan, survey), Text(), why(plan))


def picture(plan: Plan, survey: Survey) -> RenderableType:
    """A bar for each device with its bytes and time, and below it what is predicted of the whole."""
    parts: list[RenderableType] = [Text(f"{plan.model}: {_what_runs(plan)}", style="bold")]
    names = ["device", *(name for group in plan.groups for name in _first_column(group))]
    width = min(DEVICE_COLUMNS, max(map(len, names)))
    for number, group in enumerate(plan.groups, start=1):
        if len(plan.groups) > 1:
            parts.append(Text(_group_title(number, group)))
        parts.append(_bars(group, survey, width))
    return Lines(*parts, _facts(plan, survey))


def why(plan: Plan) -> Table:
    """The reason of each device that is not used, then why this plan, then what its groups note."""
    left_out = (f"{one.device} left out: {one.reason}" for one in plan.left_out)
    notes = (note for group in plan.groups for note in group.notes)
    return _points(dict.fromkeys([*left_out, *plan.reasons, *notes]))


def count_text(number: int, noun: str) -> str:
    """Such as "1 device" or "2 devices"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def cache_type_text(plan: Plan) -> str:
    """What keys and values are kept as, where that is not the usual one."""
    return "" if plan.cache_type == "f16" else f" in {plan.cache_type}"


def attention_text(plan: Plan) -> str:
    """What was asked for of flash attention, where that was not left to the engine."""
    return "" if plan.flash_attention == "auto" else f", flash attention {plan.flash_attention}"


def _what_runs(plan: Plan) -> str:
    kept = f"{cache_type_text(plan)}{attention_text(plan)}"
    conversations = f"{count_text(plan.parallel, 'conversation')} of {plan.context} tokens{kept}"
    if plan.mode == "replicas":
        return f"replicas, {count_text(len(plan.groups), 'head')} for {conversations}"
    return f"{_mode_text(plan.groups[0])}, {conversations}"


def _mode_text(group: Group) -> str:
    if group.mode == "single":
        return f"single on {group.shares[0].device}"
    if len(group.shares) == 1:
        return f"{group.mode} through one worker, {group.shares[0].device}"
    return f"{group.mode} over {len(group.shares)} devices"


def _group_title(number: int, group: Group) -> str:
    rates = f"one {tokens_text(group.decode_tokens_per_s)}"
    if group.parallel > 1:
        rates += f", together {tokens_text(group.aggregate_tokens_per_s)}"
    return f"head {number}: {_mode_text(group)}, {count_text(group.parallel, 'conversation')}: {rates}"


def _bars(group: Group, survey: Survey, width: int) -> Table:
    """A row for each device and one for the head; all bytes in the one unit that suits the largest share."""
    unit, factor = unit_for(max(needed_bytes(share.total_bytes) for share in group.shares) / 10)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("device", overflow="fold", min_width=width, max_width=width)
    table.add_column("model", no_wrap=True)
    table.add_column("part" if group.mode == "tensor" else "layers", no_wrap=True)
    table.add_column(f"{unit} of budget", justify="right", no_wrap=True)
    table.add_column("ms/tok", justify="right", no_wrap=True)
    for row in _rows(group, survey, factor):
        table.add_row(*(Text(cell) for cell in row))
    return table


def _rows(group: Group, survey: Survey, factor: int) -> Iterator[tuple[str, ...]]:
    for share, (start, end) in zip(group.shares, _ranges(group), strict=True):
        yield (
            share.device,
            _bar(start, end),
            _part_text(group, share),
            f"{in_unit(needed_bytes(share.total_bytes), factor)} of {in_unit(share.budget_bytes, factor)}",
            milliseconds_text(share.time_s),
        )
    if group.head_bytes:
        available = in_unit(_head_memory_bytes(group, survey), factor)
        yield (
            _head_name(group),
            "",
            "in, out" if group.output_on_head else "in",
            f"{in_unit(needed_bytes(group.head_bytes), factor)} of {available}",
            milliseconds_text(group.head_time_s) if group.head_time_s else "",
        )


def _first_column(group: Group) -> list[str]:
    head = [_head_name(group)] if group.head_bytes else []
    return [*(share.device for share in group.shares), *head]


def _head_name(group: Group) -> str:
    return f"head on {group.head or 'controller'}"


def _head_memory_bytes(group: Group, survey: Survey) -> int:
    """What the head's machine has available."""
    hosts = {host.name: host.facts for host in survey.hosts}
    return hosts.get(group.head, survey.controller).memory_available_bytes


def _ranges(group: Group) -> Iterator[tuple[float, float]]:
    """Where each share begins and ends in the model, as parts of 1: its layers, or in mode `tensor` its part of all."""
    sizes = [share.part if group.mode == "tensor" else share.layers for share in group.shares]
    before = 0
    for size in sizes:
        yield before / sum(sizes), (before + size) / sum(sizes)
        before += size


def _bar(start: float, end: float) -> str:
    """The range, at least one cell of it, within the whole model."""
    first = min(round(start * BAR_CELLS), BAR_CELLS - 1)
    after = max(round(end * BAR_CELLS), first + 1)
    return "░" * first + "█" * (after - first) + "░" * (BAR_CELLS - after)


def _part_text(group: Group, share: Share) -> str:
    if group.mode == "tensor":
        whole = sum(one.part for one in group.shares)
        return f"{share.part} of {whole} ({share.part / whole:.0%})"
    last = share.first_layer + share.layers - 1
    layers = f"{share.first_layer}-{last}" if last > share.first_layer else f"{last}"
    native = ", native" if share.native and group.mode == "layers" else ""
    return f"{layers}{native}{', out' if share.output else ''}"


def _facts(plan: Plan, survey: Survey) -> Table:
    grid = Table.grid(padding=(0, 2, 0, 0))
    for title, value in _fact_rows(plan, survey):
        grid.add_row(Text(title), Text(value))
    return grid


def _fact_rows(plan: Plan, survey: Survey) -> Iterator[tuple[str, str]]:
    first = plan.fastest
    known = HOW_KNOWN[first.known]
    yield "goal", plan.goal
    yield "decode", f"{tokens_text(plan.decode_tokens_per_s)}, {milliseconds_text(plan.token_s)} ms per token ({known})"
    yield "prefill", f"{tokens_text(plan.prefill_tokens_per_s)} in micro-batches of {first.micro_batch}"
    yield "first token", f"after {duration_text(plan.first_token_s)} for a prompt of {first.prompt_tokens} tokens"
    if plan.parallel > 1:
        yield "aggregate", f"{tokens_text(plan.aggregate_tokens_per_s)} in {plan.parallel} conversations at once"
    yield "memory", _memory_text(plan)
    for group in plan.groups:
        if group.traffic != Traffic():
            yield "network", _traffic_text(group.traffic, "" if len(plan.groups) == 1 else _mode_text(group))
    yield from (("link", text) for text in _link_texts(plan, survey))
    for fallback in plan.fallbacks:
        yield (
            f"without {fallback.host}",
            f"{_what_runs(fallback.plan)}: {tokens_text(fallback.plan.decode_tokens_per_s)}",
        )


def _memory_text(plan: Plan) -> str:
    weights = sum(share.weights_bytes for share in plan.shares)
    heads = sum(group.head_bytes for group in plan.groups)
    kinds = {
        "weights": weights,
        f"KV{cache_type_text(plan)}": sum(share.kv_bytes for share in plan.shares),
        "buffers": sum(share.compute_bytes for share in plan.shares),
        "in heads": heads,
    }
    return ", ".join(f"{kind} {bytes_text(size)}" for kind, size in kinds.items() if size)


def _traffic_text(traffic: Traffic, what: str) -> str:
    hops = f"{count_text(traffic.hops, 'hop')} and {count_text(traffic.synchronisations, 'synchronisation')} per token"
    wire = f"{bytes_text(traffic.up_bytes)} up, {bytes_text(traffic.down_bytes)} down"
    return f"{what + ': ' if what else ''}{hops}; {wire}"


def _link_texts(plan: Plan, survey: Survey) -> Iterator[str]:
    """Each link that the plan's workers or heads are reached through; none for what the controller does itself."""
    used = {share.device for share in plan.shares}
    for host in survey.hosts:
        for device in host.devices:
            if device.name in used and not host.local:
                rates = f"up {_rate(device.link.up_bytes_per_s)}, down {_rate(device.link.down_bytes_per_s)}"
                medium = f"{device.link.medium} " if device.link.medium else ""
                yield f"{device.name}: {medium}{device.link.kind}, {duration_text(device.link.round_trip_s)}, {rates}"


def _rate(bytes_per_s: float) -> str:
    return f"{bytes_text(bytes_per_s)}/s"


def _points(sentences: Iterable[str]) -> Table:
    """Sentences with a mark before each, indented where they wrap."""
    grid = Table.grid(padding=(0, 1, 0, 0))
    for sentence in sentences:
        grid.add_row(Text("·"), Text(sentence))
    return grid
