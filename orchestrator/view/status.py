"""The state of a cluster as `status` prints it."""

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from orchestrator.state import ClusterState
from orchestrator.view.sizes import bytes_text

PHASE_STYLES = {"ready": "bold green", "starting": "bold cyan", "stopping": "bold cyan", "failed": "bold red"}


def status_view(state: ClusterState) -> RenderableType:
    """A head line, the figures, and a table of processes while there are any."""
    parts: list[RenderableType] = [
        Text(state.cluster, "bold").append("  ").append(state.phase, PHASE_STYLES.get(state.phase, "bold")),
        Text(f"since {state.since}: {state.message}"),
        Text(f"inventory {state.inventory}"),
    ]
    if state.phase == "ready":
        parts.append(Text(f"gateway {state.gateway}, API key in {state.key_file}"))
        parts.append(Text(f"requests running {state.requests_running}, finished {state.requests_finished}"))
    if state.plan is not None:
        parts.append(Text(_plan_text(state)))
    if state.processes:
        parts.extend([Text(), _processes(state)])
    return Group(*parts)


def _plan_text(state: ClusterState) -> str:
    plan = state.plan
    if plan is None:
        return ""
    measured = "" if state.decode_tokens_per_s is None else f", measured {state.decode_tokens_per_s:.1f}"
    devices = ", ".join(f"{share.device} ({share.layers})" for share in plan.shares)
    rates = f"decode predicted {plan.decode_tokens_per_s:.1f} tokens/s{measured}"
    return f"plan {plan.mode}: layers on {devices}; {rates}"


def _processes(state: ClusterState) -> Table:
    table = Table(box=None, pad_edge=False)
    for column, justify in (("host", "left"), ("process", "left"), ("pid", "right"), ("memory", "right")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type] # the literal is lost in the tuple
    for process in state.processes:
        memory = "-" if process.memory_bytes is None else bytes_text(process.memory_bytes)
        table.add_row(Text(process.host), Text(process.name), str(process.pid), memory)
    return table
