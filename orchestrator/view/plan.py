"""How a plan looks: a table for people and a stable JSON form for programs. Pure; prints nothing.

Names come from users and model files, so they are `Text`: rich would read `[node-a]` in a plain string as markup.
"""

import json
from collections.abc import Iterable, Iterator

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from orchestrator.plan.costs import margin_bytes, needed_bytes
from orchestrator.plan.values import Plan, Share
from orchestrator.survey.values import Survey
from orchestrator.view.sizes import in_unit, milliseconds_text, tokens_text, unit_for


def plan_view(plan: Plan, survey: Survey) -> RenderableType:
    """What runs where, its bytes and predicted times, and why; `needs` is the prediction and its margin."""
    return Group(
        Text(f"{plan.model}: {_what_runs(plan)}", style="bold"),
        Text(_prediction(plan)),
        _table(plan, survey),
        _points([*plan.reasons, *(f"{one.device} left out: {one.reason}" for one in plan.left_out)]),
    )


def plan_json(plan: Plan, survey: Survey) -> str:
    """The plan as indented JSON; docs/plan.md describes every key. Keys are only ever added."""
    return json.dumps(
        {
            "survey": {"cluster": survey.cluster, "taken_at": survey.taken_at, "engine": survey.engine},
            "mode": plan.mode,
            "model": plan.model,
            "context": plan.context,
            "parallel": plan.parallel,
            "micro_batch": plan.micro_batch,
            "tensor_split": list(plan.tensor_split) if plan.mode == "layers" else None,
            "shares": [_share_json(plan, share) for share in plan.shares],
            "head": {
                "host": plan.head,
                "output": plan.output_on_head,
                "weights_bytes": plan.head_bytes - plan.head_compute_bytes,
                "compute_bytes": plan.head_compute_bytes,
                "total_bytes": plan.head_bytes,
                "time_s": plan.head_time_s,
                "time_share": plan.head_time_s / plan.token_s,
            },
            "prediction": {
                "token_s": plan.token_s,
                "decode_tokens_per_s": plan.decode_tokens_per_s,
                "prefill_token_s": plan.prefill_token_s,
                "prefill_tokens_per_s": plan.prefill_tokens_per_s,
            },
            "reasons": list(plan.reasons),
            "left_out": [{"device": one.device, "reason": one.reason} for one in plan.left_out],
        },
        indent=2,
        ensure_ascii=False,
    )


def _share_json(plan: Plan, share: Share) -> dict[str, object]:
    return {
        "device": share.device,
        "first_layer": share.first_layer,
        "layers": share.layers,
        "output": share.output,
        "weights_bytes": share.weights_bytes,
        "kv_bytes": share.kv_bytes,
        "compute_bytes": share.compute_bytes,
        "total_bytes": share.total_bytes,
        "margin_bytes": margin_bytes(share.total_bytes),
        "budget_bytes": share.budget_bytes,
        "time_s": share.time_s,
        "time_share": share.time_s / plan.token_s,
    }


def _what_runs(plan: Plan) -> str:
    conversations = f"{plan.parallel} conversation{'' if plan.parallel == 1 else 's'} of {plan.context} tokens"
    if plan.mode == "single":
        return f"single on {plan.shares[0].device}, {conversations}"
    devices = f"{len(plan.shares)} device{'' if len(plan.shares) == 1 else 's'}"
    return f"layers over {devices}, {conversations}"


def _prediction(plan: Plan) -> str:
    decode, prefill = tokens_text(plan.decode_tokens_per_s), tokens_text(plan.prefill_tokens_per_s)
    return f"predicted: decode {decode} ({milliseconds_text(plan.token_s)} ms per token), prefill {prefill}"


def _points(sentences: Iterable[str]) -> Table:
    """Sentences with a mark before each, indented where they wrap."""
    grid = Table.grid(padding=(0, 1, 0, 0))
    for sentence in sentences:
        grid.add_row(Text("·"), Text(sentence))
    return grid


def _table(plan: Plan, survey: Survey) -> Table:
    """All bytes in the one unit that suits the largest share, so that the table fits a terminal of 80 columns."""
    unit, factor = unit_for(max(needed_bytes(share.total_bytes) for share in plan.shares) / 10)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(f"device ({unit})", overflow="fold")
    table.add_column("layers")
    for title in ("weights", "KV", "compute", "needs", "budget", "ms/tok", "time"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in _rows(plan, survey, factor):
        table.add_row(*(Text(cell) for cell in row))
    return table


def _rows(plan: Plan, survey: Survey, factor: int) -> Iterator[tuple[str, ...]]:
    for share in plan.shares:
        yield (
            share.device,
            _layers_text(share),
            in_unit(share.weights_bytes, factor),
            in_unit(share.kv_bytes, factor),
            in_unit(share.compute_bytes, factor),
            in_unit(needed_bytes(share.total_bytes), factor),
            in_unit(share.budget_bytes, factor),
            milliseconds_text(share.time_s),
            f"{share.time_s / plan.token_s:.0%}",
        )
    if plan.head_bytes:
        yield _head_row(plan, survey, factor)


def _head_row(plan: Plan, survey: Survey, factor: int) -> tuple[str, ...]:
    return (
        f"head ({plan.head or 'controller'})",
        "in, out" if plan.output_on_head else "in",
        in_unit(plan.head_bytes - plan.head_compute_bytes, factor),
        "-",
        in_unit(plan.head_compute_bytes, factor),
        in_unit(needed_bytes(plan.head_bytes), factor),
        in_unit(_head_memory_bytes(plan, survey), factor),
        milliseconds_text(plan.head_time_s),
        f"{plan.head_time_s / plan.token_s:.0%}",
    )


def _head_memory_bytes(plan: Plan, survey: Survey) -> int:
    """What the head's machine has available."""
    hosts = {host.name: host.facts for host in survey.hosts}
    return hosts.get(plan.head, survey.controller).memory_available_bytes


def _layers_text(share: Share) -> str:
    last = share.first_layer + share.layers - 1
    layers = f"{share.first_layer}-{last}" if last > share.first_layer else f"{last}"
    return f"{layers}, out" if share.output else layers
