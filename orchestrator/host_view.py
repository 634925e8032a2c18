"""What hosts and heads of a running cluster are doing, put together for `status` and the metrics. Starts nothing.

From the plan (budgets), the leashes (memory, processor use), the life cycle (faults, hosts set aside) and the gateway's
counters (requests, tokens per second).
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from orchestrator.gateway.state import Counters
from orchestrator.group_commands import head_names
from orchestrator.host_state import HeadState, HostAside, HostFault, HostState
from orchestrator.hosts import OpenHost, OpenHosts
from orchestrator.inventory import CONTROLLER, Inventory
from orchestrator.leash import Leashed
from orchestrator.lifecycle import Lifecycle
from orchestrator.plan.values import Group, Plan
from orchestrator.state import ProcessState


@dataclass(frozen=True)
class Load:
    """What the processes of the cluster take on one host, and what that has left."""

    used_bytes: int = 0
    cores_used: float | None = None
    available_bytes: int | None = None


class HostView:
    """Looks at the hosts again and again; `hosts` and `heads` are what it saw last.

    `now_s` is of the monotonic clock that the life cycle is told of, `now` the time of day at that moment.
    """

    def __init__(self, inventory: Inventory, counters: Counters, now_s: float, now: datetime) -> None:
        self.hosts: tuple[HostState, ...] = ()
        self.heads: tuple[HeadState, ...] = ()
        self._names = tuple(host.name for host in inventory.hosts)
        self._counters = counters
        self._cores: dict[str, float] = {}
        self._missing: Mapping[str, str] = {}
        self._zero = now - timedelta(seconds=now_s)

    def know(self, inventory: Inventory) -> None:
        """These are the hosts from now on."""
        self._names = tuple(host.name for host in inventory.hosts)

    def meet(self, hosts: OpenHosts) -> None:
        """These are the hosts of this life."""
        opened = {CONTROLLER: hosts.controller, **hosts.by_name}
        self._cores |= {name: cores_of(host) for name, host in opened.items()}
        self._missing = hosts.missing

    def look(
        self,
        cycle: Lifecycle,
        now_s: float,
        plan: Plan | None = None,
        processes: Iterable[Leashed] = (),
        names: Sequence[str] = (),
    ) -> None:
        """See how all are now; without a plan nothing runs. `names` are those of its heads, if not the usual ones."""
        self.heads = () if plan is None else head_states(plan, self._counters, names)
        budgets = {} if plan is None else budgets_of(plan)
        loads = loads_of(processes)
        head_here = plan is not None and any(not group.head for group in plan.groups)
        here = head_here or CONTROLLER in {*loads, *cycle.last_faults}
        every = (*([CONTROLLER] if here else []), *self._names)
        self.hosts = tuple(
            self._host(name, cycle, now_s, budgets.get(name, 0), loads.get(name, Load())) for name in every
        )

    def _host(self, name: str, cycle: Lifecycle, now_s: float, budget_bytes: int, load: Load) -> HostState:
        fault, aside = cycle.last_faults.get(name), cycle.aside.get(name)
        working = [head for head in self.heads if name in head.hosts]
        return HostState(
            name=name,
            budget_bytes=budget_bytes,
            used_bytes=load.used_bytes,
            available_bytes=load.available_bytes,
            cores_used=load.cores_used,
            cores=self._cores.get(name),
            requests_running=sum(head.requests_running for head in working),
            tokens_per_s=round(sum(head.tokens_per_s for head in working), 1),
            last_fault=None if fault is None else HostFault(self._time_of(fault.at_s), fault.what),
            aside=None
            if aside is None or aside.until_s <= now_s
            else HostAside(self._time_of(aside.until_s), aside.reason),
            missing=self._missing.get(name, ""),
        )

    def _time_of(self, moment_s: float) -> str:
        """ISO 8601, UTC, of a moment of the monotonic clock."""
        return (self._zero + timedelta(seconds=moment_s)).astimezone(UTC).isoformat(timespec="seconds")


def cores_of(host: OpenHost) -> float:
    """The processors that a program there may keep busy."""
    quota = host.facts.cpu_quota
    return host.facts.cores_logical if quota is None else round(min(quota, host.facts.cores_logical), 2)


def budgets_of(plan: Plan) -> dict[str, int]:
    """The plan's budget of main memory on each host, with what a head there takes: what processes are seen to take is
    of that memory, too, nothing of a card's. A head that computes the first layers is within its device's budget; one
    on the controller has none, what is available there stands in its place."""
    budgets = Counter[str]()
    for group in plan.groups:
        if group.head and not group.head_layers:
            budgets[group.head] += group.head_bytes
        for share in group.shares:
            budgets[share.device.partition("/")[0]] += 0 if share.own_memory else share.budget_bytes
    return {host: size for host, size in budgets.items() if size}


@dataclass
class _Sum:
    used_bytes: int = 0
    cores: list[float] = field(default_factory=list)
    available: list[int] = field(default_factory=list)


def loads_of(processes: Iterable[Leashed]) -> dict[str, Load]:
    """By host, of the last life signs; what a host has left is the least that any of them saw."""
    sums: dict[str, _Sum] = {}
    for process in processes:
        one = sums.setdefault(process.host, _Sum())
        one.used_bytes += process.rss_bytes or 0
        if process.cores_used is not None:
            one.cores.append(process.cores_used)
        if process.available_bytes is not None:
            one.available.append(process.available_bytes)
    return {
        host: Load(one.used_bytes, round(sum(one.cores), 2) if one.cores else None, min(one.available, default=None))
        for host, one in sums.items()
    }


def head_states(plan: Plan, counters: Counters, names: Sequence[str] = ()) -> tuple[HeadState, ...]:
    """In the order of the plan's groups."""
    named = zip(names or head_names(plan), plan.groups, strict=True)
    return tuple(_head_state(name, group, counters) for name, group in named)


def _head_state(name: str, group: Group, counters: Counters) -> HeadState:
    now = counters.of_head(name)
    native = [share.device.partition("/")[0] for share in group.shares if share.native]
    host = native[0] if native else group.head or CONTROLLER
    hosts = dict.fromkeys((host, *(share.device.partition("/")[0] for share in group.shares)))
    return HeadState(name, host, tuple(hosts), now.running, round(now.tokens_per_s, 1))


def process_states(processes: Iterable[Leashed]) -> tuple[ProcessState, ...]:
    """The processes as the state file shows them."""
    return tuple(
        ProcessState(
            process.host,
            process.name,
            process.pid,
            process.rss_bytes,
            None if process.cores_used is None else round(process.cores_used, 2),
        )
        for process in processes
    )
