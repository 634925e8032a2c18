"""The state of a cluster as `status` prints it: readable in 60 columns, and without anything beyond ASCII."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime

from rich.console import Group as Lines
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from orchestrator.host_state import HeadState, HostState, StepState, StepTime
from orchestrator.plan.values import Group, Plan
from orchestrator.state import SERVING, ClusterState, GroupSpeed
from orchestrator.view.events import time_text
from orchestrator.view.plan import attention_text, cache_type_text
from orchestrator.view.sizes import age_text, bytes_text, of_text

FELT_S = 0.1

PHASE_STYLES = {
    "ready": "bold green",
    "degraded": "bold yellow",
    "starting": "bold cyan",
    "recovering": "bold cyan",
    "stopping": "bold cyan",
    "failed": "bold red",
}


def status_view(state: ClusterState, now: datetime) -> RenderableType:
    """A head line, the figures, and tables of hosts, speeds and processes while there are any."""
    parts: list[RenderableType] = [_head_line(state, now), Text(state.message), _facts(state)]
    if state.phase == "failed" and state.supervised:
        parts.append(Text("it tries again by itself; end it with `meshctl down`"))
    if state.hosts:
        parts.extend([Text(), _hosts(state.hosts), *_remarks(state.hosts, now)])
    if state.speeds:
        parts.extend([Text(), _speeds(state.speeds, {head.name: head for head in state.heads})])
        parts.extend(_speed_remarks(state))
    if state.processes:
        parts.extend([Text(), _processes(state)])
    return Lines(*parts)


def _head_line(state: ClusterState, now: datetime) -> Text:
    age = age_text((now - datetime.fromisoformat(state.since)).total_seconds())
    phase = Text(state.phase, PHASE_STYLES.get(state.phase, "bold"))
    return Text(state.cluster, "bold").append("  ").append(phase).append(f" for {age}, since {time_text(state.since)}")


def _facts(state: ClusterState) -> Table:
    """What is said in a line each, the names of things on the left."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for name, text in _fact_texts(state):
        grid.add_row(name, Text(text))
    return grid


def _fact_texts(state: ClusterState) -> Iterator[tuple[str, str]]:
    if state.step is not None:
        yield "step", _step_text(state.step)
    if state.phase in (*SERVING, "recovering"):
        yield "gateway", state.gateway
        yield "API key", state.key_file
        if state.certificate:
            yield "TLS", state.certificate
            yield "SHA-256", state.certificate_sha256
        counts = (state.requests_running, state.requests_waiting, state.requests_finished)
        speed = f"; {state.tokens_per_s:.1f} tok/s now" if state.phase in SERVING else ""
        yield "requests", "{} running, {} waiting, {} finished".format(*counts) + speed
    if state.plan is not None:
        yield "plan", "\n".join(_plan_texts(state.plan))
    yield "inventory", state.inventory
    if state.took and state.phase in SERVING:
        yield "start", "\n".join(_took_texts(state.took))


def _took_texts(took: Sequence[StepTime]) -> Iterator[str]:
    """In all, and each step that could be felt."""
    yield f"took {sum(step.seconds for step in took):.1f} s, of that"
    for step in took:
        if step.seconds >= FELT_S:
            yield f"{step.seconds:>6.1f} s  {step.title}"


def _step_text(step: StepState) -> str:
    stage = f"{step.stage}, {step.fraction:.0%}" if step.fraction is not None else step.stage
    return f"{stage}: {step.title}" if stage else step.title


def _plan_texts(plan: Plan) -> tuple[str, ...]:
    """What runs where: one line, and for a plan of several groups one for each."""
    kept = f"; contexts{text}" if (text := cache_type_text(plan)) else ""
    kept += attention_text(plan)
    if len(plan.groups) == 1:
        return (f"{_group_text(plan.groups[0])}{kept}",)
    return (f"{plan.mode}{kept}:", *(f"  {_group_text(group)}" for group in plan.groups))


def _group_text(group: Group) -> str:
    match group.mode:
        case "single":
            return f"single: all layers on {group.shares[0].device}"
        case "tensor":
            parts = ", ".join(f"{share.device} ({share.part})" for share in group.shares)
            return f"tensor: each layer in parts on {parts}"
    return "layers: " + ", ".join(f"{share.device} ({share.layers})" for share in group.shares)


def _table(*columns: tuple[str, bool]) -> Table:
    """Of columns with their titles; whether their figures stand on the right."""
    table = Table(box=None, pad_edge=False)
    for title, right in columns:
        table.add_column(title, justify="right" if right else "left", overflow="fold")
    return table


def _hosts(hosts: Iterable[HostState]) -> Table:
    """Figures of what runs there; a dash where nothing does."""
    table = _table(("host", False), ("used/budget", True), ("left", True), ("cores", True), ("tokens/s", True))
    for host in hosts:
        works = host.budget_bytes > 0 or host.used_bytes > 0  # on a card alone, of whose memory nothing is seen
        table.add_row(
            Text(host.name, "yellow" if host.aside or host.missing else ""),
            _used_text(host) if works else "-",
            "-" if host.available_bytes is None else bytes_text(host.available_bytes),
            _cores_text(host),
            f"{host.tokens_per_s:.1f}" if works else "-",
        )
    return table


def _used_text(host: HostState) -> str:
    return of_text(host.used_bytes, host.budget_bytes) if host.budget_bytes else bytes_text(host.used_bytes)


def _cores_text(host: HostState) -> str:
    """Processors that are kept busy, of those that there are."""
    used = "-" if host.cores_used is None else f"{host.cores_used:.1f}"
    return used if host.cores is None else f"{used}/{host.cores:g}"


def _remarks(hosts: Iterable[HostState], now: datetime) -> Iterator[Text]:
    """Why a host is not used, and what went wrong there last."""
    for host in hosts:
        if host.aside is not None:
            left = (datetime.fromisoformat(host.aside.until) - now).total_seconds()
            until = f"set aside until {time_text(host.aside.until)} (in {age_text(left)})"
            yield Text(f"{host.name}: {until}: {host.aside.reason}", "yellow")
        elif host.missing:
            yield Text(f"{host.name}: missing: {host.missing}", "yellow")
        if host.last_fault is not None:
            ago = age_text((now - datetime.fromisoformat(host.last_fault.at)).total_seconds())
            what = host.last_fault.what.removeprefix(f"{host.name}: ")
            yield Text(f"{host.name}: last fault {ago} ago: {what}")


def _speeds(speeds: Iterable[GroupSpeed], heads: Mapping[str, HeadState]) -> Table:
    """Tokens per second: measured right after load beside the prediction, and what is generated now."""
    table = _table(("head on", False), ("tokens/s", False), ("predicted", True), ("measured", True), ("error", True))
    for speed in speeds:
        names = [speed.host, f"({speed.mode})"]
        rows = [*_measured_rows(speed), *_now_rows(heads.get(speed.name))]
        for number, row in enumerate(rows):
            table.add_row(Text(names[number] if number < len(names) else ""), *row)
    return table


def _speed_remarks(state: ClusterState) -> Iterator[Text]:
    """Which figures are not of this start, and which are still to come."""
    for speed in state.speeds:
        if speed.earlier:
            yield Text(f"{speed.host} ({speed.mode}): measured at an earlier start")
        elif speed.awaited and state.phase in SERVING:
            yield Text(f"{speed.host} ({speed.mode}): not measured yet, but will be when the cluster is quiet")


def _measured_rows(speed: GroupSpeed) -> Iterator[Sequence[str]]:
    rows = {
        "decode": (speed.predicted_decode_tokens_per_s, speed.measured_decode_tokens_per_s),
        "all conversations": (speed.predicted_aggregate_tokens_per_s, speed.measured_aggregate_tokens_per_s),
        "prefill": (speed.predicted_prefill_tokens_per_s, speed.measured_prefill_tokens_per_s),
    }
    if rows["all conversations"] == rows["decode"]:
        del rows["all conversations"]
    for what, (predicted, measured) in rows.items():
        known = ("-", "-") if measured is None else (f"{measured:.1f}", f"{measured / predicted - 1:+.0%}")
        yield what, f"{predicted:.1f}", *known


def _now_rows(head: HeadState | None) -> Iterator[Sequence[str]]:
    if head is not None:
        yield f"now, {head.requests_running} running", "", f"{head.tokens_per_s:.1f}", ""


def _processes(state: ClusterState) -> Table:
    table = _table(("host", False), ("process", False), ("pid", True), ("memory", True), ("cores", True))
    for process in state.processes:
        memory = "-" if process.memory_bytes is None else bytes_text(process.memory_bytes)
        cores = "-" if process.cores_used is None else f"{process.cores_used:.1f}"
        table.add_row(Text(process.host), Text(process.name), str(process.pid), memory, cores)
    return table
