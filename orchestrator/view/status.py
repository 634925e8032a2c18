"""The state of a cluster as `status` prints it."""

from collections.abc import Iterable

from rich.console import Group as Lines
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from orchestrator.plan.values import Group, Plan
from orchestrator.state import SERVING, ClusterState, GroupSpeed
from orchestrator.view.sizes import bytes_text

PHASE_STYLES = {
    "ready": "bold green",
    "degraded": "bold yellow",
    "starting": "bold cyan",
    "recovering": "bold cyan",
    "stopping": "bold cyan",
    "failed": "bold red",
}


def status_view(state: ClusterState) -> RenderableType:
    """A head line, the figures, and tables of speeds and processes while there are any."""
    parts: list[RenderableType] = [
        Text(state.cluster, "bold").append("  ").append(state.phase, PHASE_STYLES.get(state.phase, "bold")),
        Text(f"since {state.since}: {state.message}"),
        Text(f"inventory {state.inventory}"),
    ]
    if state.phase == "failed" and state.supervised:
        parts.append(Text("it tries again by itself; end it with `meshctl down`"))
    if state.phase in (*SERVING, "recovering"):
        parts.append(Text(f"gateway {state.gateway}, API key in {state.key_file}"))
        if state.certificate:
            parts.append(Text(f"certificate {state.certificate}, SHA-256 {state.certificate_sha256}"))
        counts = (state.requests_running, state.requests_waiting, state.requests_finished)
        parts.append(Text("requests running {}, waiting {}, finished {}".format(*counts)))
    if state.plan is not None:
        parts.extend(Text(text) for text in _plan_texts(state.plan))
    if state.speeds:
        parts.extend([Text(), _speeds(state.speeds)])
    if state.processes:
        parts.extend([Text(), _processes(state)])
    return Lines(*parts)


def _plan_texts(plan: Plan) -> tuple[str, ...]:
    """What runs where: one line, and for a plan of several groups one for each."""
    if len(plan.groups) == 1:
        return (f"plan {_group_text(plan.groups[0])}",)
    return (f"plan {plan.mode}:", *(f"  {_group_text(group)}" for group in plan.groups))


def _group_text(group: Group) -> str:
    match group.mode:
        case "single":
            return f"single: all layers on {group.shares[0].device}"
        case "tensor":
            parts = ", ".join(f"{share.device} ({share.part})" for share in group.shares)
            return f"tensor: each layer in parts on {parts}"
    return "layers: " + ", ".join(f"{share.device} ({share.layers})" for share in group.shares)


def _speeds(speeds: Iterable[GroupSpeed]) -> Table:
    """Tokens per second, measured right after load beside the prediction."""
    table = Table(box=None, pad_edge=False)
    table.add_column("head on")
    table.add_column("tokens/s")
    for column in ("predicted", "measured", "error"):
        table.add_column(column, justify="right")
    for speed in speeds:
        rows = {
            "decode": (speed.predicted_decode_tokens_per_s, speed.measured_decode_tokens_per_s),
            "all conversations": (speed.predicted_aggregate_tokens_per_s, speed.measured_aggregate_tokens_per_s),
            "prefill": (speed.predicted_prefill_tokens_per_s, speed.measured_prefill_tokens_per_s),
        }
        if rows["all conversations"] == rows["decode"]:
            del rows["all conversations"]
        for number, (what, (predicted, measured)) in enumerate(rows.items()):
            name = Text(f"{speed.host} ({speed.mode})" if number == 0 else "")
            table.add_row(name, what, f"{predicted:.1f}", f"{measured:.1f}", f"{measured / predicted - 1:+.0%}")
    return table


def _processes(state: ClusterState) -> Table:
    table = Table(box=None, pad_edge=False)
    for column, justify in (("host", "left"), ("process", "left"), ("pid", "right"), ("memory", "right")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type] # the literal is lost in the tuple
    for process in state.processes:
        memory = "-" if process.memory_bytes is None else bytes_text(process.memory_bytes)
        table.add_row(Text(process.host), Text(process.name), str(process.pid), memory)
    return table
