"""What one attempt brought up: groups that answer, with the connections, processes and links that they live on.

A cluster is one crew as long as nothing happens to it. Each head with its workers stands or falls alone: what is lost
is ended, the others serve on, and a further crew takes the place of what is gone on the devices that are free.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace

from orchestrator.cluster import RunningGroup, bring_up, measure_group
from orchestrator.folders import Folders
from orchestrator.hosts import OpenHosts, open_hosts
from orchestrator.inventory import CONTROLLER, Inventory
from orchestrator.leash import Leashed
from orchestrator.plan.values import Plan, PlanMode
from orchestrator.prepare import Prepared, prepare_ranking
from orchestrator.processes import Started
from orchestrator.report import Report
from orchestrator.watchdog import until_stuck
from orchestrator.wishes import Wishes


@dataclass(frozen=True)
class Crew:
    """Groups by the names of their heads; `watches` end when a head hangs, with the seconds it has.

    `end` stops every process and closes every connection; so does losing the last group.
    """

    hosts: OpenHosts
    prepared: Prepared
    plan: Plan
    groups: dict[str, RunningGroup]
    watches: dict[str, asyncio.Task[float]]
    _started: Started
    _stack: AsyncExitStack

    @property
    def processes(self) -> tuple[Leashed, ...]:
        return tuple(self._started.processes)

    async def measure(self, name: str, folders: Folders, report: Report) -> RunningGroup:
        """One of its groups that serves already, with the speed that it has (`cluster.measure_group`)."""
        group, started = self.groups[name], self._started
        measured = await measure_group(group, self.prepared, self.plan, started, folders, report)
        if name in self.groups:  # it may have been lost meanwhile
            self.groups[name] = measured
        return measured

    async def lose(self, names: Collection[str], *, away: str) -> None:
        """End these groups at once, those of this crew; the others serve on. Host `away` is not waited for long."""
        lost = [self._forget(name) for name in names if name in self.groups]
        await self._started.kill([process for group in lost for process in group.processes], away=away)
        if not self.groups:
            await self.end()

    async def end(self) -> None:
        for name in tuple(self.groups):
            self._forget(name)
        await self._stack.aclose()

    def _forget(self, name: str) -> RunningGroup:
        self.watches.pop(name).cancel()
        return self.groups.pop(name)


@dataclass(frozen=True)
class Muster:
    """How a crew is brought up. `without` are hosts that are set aside; `tolerant`: hosts that do not answer are done
    without; `measure`: time is taken to measure; `taken` are names of heads that serve already."""

    inventory: Inventory
    folders: Folders
    report: Report
    wishes: Wishes
    without: Collection[str] = ()
    tolerant: bool = False
    measure: bool = True
    taken: Collection[str] = ()
    on_hosts: Callable[[OpenHosts], None] = field(default=lambda hosts: None)
    on_plan: Callable[[Prepared, Plan], None] = field(default=lambda prepared, plan: None)

    async def crew(self) -> Crew:
        """A crew whose groups answer; whatever goes wrong, nothing of it is left then."""
        stack, started = AsyncExitStack(), Started()
        try:
            hosts = await stack.enter_async_context(
                open_hosts(self.inventory, self.folders, self.report, without=self.without, tolerant=self.tolerant)
            )
            self.on_hosts(hosts)
            stack.push_async_callback(started.stop)
            return await self._bring_up(hosts, started, stack)
        except BaseException:
            await until_done(stack.aclose())
            raise

    async def _bring_up(self, hosts: OpenHosts, started: Started, stack: AsyncExitStack) -> Crew:
        there = replace(
            self.inventory, hosts=tuple(host for host in self.inventory.hosts if host.name in hosts.by_name)
        )
        prepared, ranking = await prepare_ranking(there, hosts, self.folders, self.report, self.wishes)
        plan = ranking.chosen
        self.on_plan(prepared, plan)
        running = await bring_up(
            prepared, plan, hosts, self.folders, started, self.report, measure=self.measure, taken=self.taken
        )
        groups = {one.name: one for one in running.heads}
        watches = {name: asyncio.create_task(until_stuck(one.head, one.group)) for name, one in groups.items()}
        return Crew(hosts, prepared, plan, groups, watches, started, stack)


async def until_done(ending: Awaitable[None]) -> None:
    """Wait for it to the end, also when this task is cancelled meanwhile: what it ends must not be left."""
    task = asyncio.ensure_future(ending)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait((task,))
        raise


def groups_of(crews: Iterable[Crew]) -> Mapping[str, RunningGroup]:
    """All groups that serve, by the names of their heads."""
    return {name: group for crew in crews for name, group in crew.groups.items()}


def busy_devices(crews: Iterable[Crew]) -> frozenset[str]:
    """The names of the devices that groups use."""
    return frozenset(share.device for group in groups_of(crews).values() for share in group.group.shares)


def busy_hosts(crews: Iterable[Crew]) -> frozenset[str]:
    """The names of the hosts that groups use devices of."""
    return frozenset(device.partition("/")[0] for device in busy_devices(crews))


def taken_hosts(crews: Collection[Crew]) -> frozenset[str]:
    """Hosts all of whose devices are known and in use: there is nothing to be had from them."""
    busy = busy_devices(crews)
    hosts = {host.name: host for crew in crews for host in crew.prepared.survey.hosts}
    return frozenset(name for name, host in hosts.items() if {device.name for device in host.devices} <= busy)


def plan_of(crews: Sequence[Crew]) -> Plan:
    """What runs: the groups of all crews, of which the last one's plan was made last."""
    groups = tuple(one.group for one in groups_of(crews).values())
    mode: PlanMode = groups[0].mode if len(groups) == 1 else "replicas"
    return replace(crews[-1].plan, mode=mode, groups=groups, parallel=sum(group.parallel for group in groups))


def memory_of_hosts(crews: Iterable[Crew]) -> dict[str, int]:
    """The memory of each host in bytes, also of the controller."""
    totals = {}
    for survey in (crew.prepared.survey for crew in crews):
        totals[CONTROLLER] = survey.controller.memory_total_bytes
        totals |= {host.name: host.facts.memory_total_bytes for host in survey.hosts}
    return totals
