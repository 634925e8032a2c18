"""Runs one cluster from bring-up to its end: holds its lock, writes its state, serves its gateway, ends everything.

Foreground and `--detach` are this same function; only who listens to the report differs.
"""

import asyncio
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from random import random
from time import monotonic
from typing import Any, NoReturn

from rich.console import Console

from orchestrator.cluster import RunningGroup
from orchestrator.crew import Crew, Muster, busy_devices, groups_of, taken_hosts, until_done
from orchestrator.errors import BringUpError, ConnectError, HostError, HostsError, MeshctlError, PlanError
from orchestrator.folders import ClusterFolder, Folders
from orchestrator.gateway.api_error import unavailable
from orchestrator.gateway.app import create_app
from orchestrator.gateway.backends import Backends
from orchestrator.gateway.door import connection_limits_of, deadlines_of, line_limits_of, warnings_of
from orchestrator.gateway.keys import KeyFile, ensure_own_key
from orchestrator.gateway.metrics import HostMemory
from orchestrator.gateway.routing import HeadAddress
from orchestrator.gateway.server import check_address, serve
from orchestrator.gateway.state import READY, Counters, GatewayState, Situation
from orchestrator.gateway.tls import Tls, prepare_tls
from orchestrator.history import HistoryEvent, add_event
from orchestrator.hosts import open_hosts
from orchestrator.inventory import CONTROLLER, Inventory
from orchestrator.leash import Leashed
from orchestrator.lifecycle import CannotStart, Lifecycle, Lost, Moving, NothingFits, Up
from orchestrator.memory_watch import MemoryWatch
from orchestrator.plan.robust import rank_within
from orchestrator.plan.values import Group, Plan, PlanMode
from orchestrator.prepare import Prepared, asked_of, display_name, prepare
from orchestrator.processes import ended_by_itself
from orchestrator.rebalance import (
    WORTH,
    Outcome,
    Request,
    Worth,
    devices_text,
    gain,
    inventory_now,
    joined,
    take_request,
    tell,
)
from orchestrator.report import Report
from orchestrator.state import ClusterState, GroupSpeed, Phase, ProcessState, hold, inventory_digest, write_state
from orchestrator.survey.values import Survey
from orchestrator.view.plan import plan_view
from orchestrator.view.sizes import bytes_text
from orchestrator.wishes import Wishes

STATE_EVERY_S = 2.0
PLAN_WIDTH = 78
QUIET_WAIT_S, QUIET_LOOK_S = 60.0, 0.1
"""Two columns less than a terminal's 80: remarks are indented."""


class StateKeeper:
    """The one writer of the cluster's state file."""

    def __init__(self, folder: ClusterFolder, inventory: Inventory) -> None:
        self._folder = folder
        self.state = ClusterState(
            cluster=inventory.cluster,
            inventory=str(inventory.path.absolute()),
            pid=os.getpid(),
            phase="starting",
            message="starting",
            since=_now(),
            inventory_sha256=inventory_digest(inventory.path),
            supervised=True,
        )

    def phase(self, phase: Phase, message: str, **changes: object) -> None:
        """Enter a phase and write it down."""
        self.state = replace(self.state, phase=phase, message=message, since=_now(), **changes)  # type: ignore[arg-type]
        write_state(self._folder, self.state)
        add_event(self._folder, HistoryEvent(self.state.since, phase, message))

    def update(self, **changes: object) -> None:
        """Write changed figures within the same phase, only when something did change."""
        changed = replace(self.state, **changes)  # type: ignore[arg-type] # the dataclass checks the names
        if changed != self.state:
            self.state = changed
            write_state(self._folder, changed)


async def supervise(
    inventory: Inventory, folders: Folders, report: Report, stop: asyncio.Event, wishes: Wishes
) -> None:
    """Bring the cluster up and keep it until `stop` is set; whatever happens, nothing it started is left.

    Raises what went wrong before the cluster has answered for the first time. Later on it is brought up again.
    """
    folder = folders.cluster(inventory.cluster)
    with hold(folder):
        keeper = StateKeeper(folder, inventory)
        keeper.phase("starting", "starting")
        try:
            await _until_stopped(inventory, folders, report, stop, wishes, keeper)
        except Exception as error:
            keeper.phase("failed", str(error) or repr(error), processes=(), supervised=False)
            raise
        except BaseException:
            keeper.phase("stopped", "interrupted", processes=(), supervised=False)
            raise
        keeper.phase("stopped", "stopped on request", processes=(), supervised=False)


async def _until_stopped(
    inventory: Inventory, folders: Folders, report: Report, stop: asyncio.Event, wishes: Wishes, keeper: StateKeeper
) -> None:
    """The work itself, given up as soon as `stop` is set."""
    work = asyncio.ensure_future(_work(inventory, folders, report, wishes, keeper))
    asked = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({work, asked}, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            work.result()
    finally:
        asked.cancel()
        if not work.done():
            keeper.phase("stopping", "asked to stop")
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)


async def _work(inventory: Inventory, folders: Folders, report: Report, wishes: Wishes, keeper: StateKeeper) -> None:
    settings = inventory.gateway
    check_address(settings.host, settings.port)
    tls = prepare_tls(settings, folders.cluster(inventory.cluster), datetime.now(UTC))
    for warning in warnings_of(settings, tls):
        report.warn(warning)
    async with AsyncExitStack() as gateway:
        await _Keeping(inventory, folders, report, wishes, keeper, gateway, tls).go_on()


class _Keeping:
    """Keeps a cluster true to its plan: brings it up, watches it, and replaces what is lost while the rest serves on.

    The gateway is opened when the cluster answers for the first time, and stays open.
    """

    def __init__(
        self,
        inventory: Inventory,
        folders: Folders,
        report: Report,
        wishes: Wishes,
        keeper: StateKeeper,
        gateway: AsyncExitStack,
        tls: Tls | None,
    ) -> None:
        self._inventory = inventory
        self._folders = folders
        self._report = report
        self._wishes = wishes
        self._keeper = keeper
        self._folder = folders.cluster(inventory.cluster)
        self._gateway = gateway
        self._tls = tls
        self._cycle = Lifecycle()
        self._crews: list[Crew] = []
        self._deadlines = deadlines_of(inventory.gateway)
        self._backends = Backends(self._deadlines, line_limits_of(inventory.gateway))
        self._situation = GatewayState(READY)
        self._counters = Counters()
        self._memory: tuple[HostMemory, ...] = ()
        self._request: Request | None = None

    async def go_on(self) -> NoReturn:
        """Until it is cancelled. What goes wrong before the cluster has answered once is raised."""
        try:
            await self._take(await self._muster(first=True).crew())
            while True:
                await self._turn()
        finally:
            self._backends.take_away()
            await until_done(self._end(self._crews))

    async def _turn(self) -> None:
        """Watch, and meanwhile try to replace what is missing, or work out a better plan, until there is news."""
        attempt = self._beside()
        lost = None
        try:
            lost = await self._until_lost(attempt)
        finally:
            if attempt is not None:
                attempt.cancel()
                await asyncio.wait((attempt,))
                if not attempt.cancelled():
                    await self._attempted(attempt.result())
        if lost:
            await self._lose(lost)

    def _beside(self) -> "asyncio.Task[_Came] | None":
        if self._cycle.wants_more:
            return asyncio.create_task(self._attempt())
        return None if self._request is None else asyncio.create_task(self._consider(self._request))

    async def _consider(self, request: Request) -> Moving | None:
        """Whether it is worth to move to a plan with what is not in use, and then a quiet moment for that."""
        try:
            worth = await self._better_plan()
        except MeshctlError as error:
            self._answer(moved=False, message=str(error), failed=True)
            return None
        if not worth.gain > WORTH:
            self._answer(moved=False, message=f"{self._inventory.cluster} stays as it is: {worth}")
            return None
        with suppress(TimeoutError):
            async with asyncio.timeout(0 if request.now else QUIET_WAIT_S):
                while self._counters.now.running:
                    await asyncio.sleep(QUIET_LOOK_S)
        self._inventory = worth.inventory
        return Moving(f"rebalancing: {worth}")

    async def _better_plan(self) -> Worth:
        inventory = inventory_now(self._inventory)
        known = [crew.prepared for crew in self._crews]
        connected = {name for crew in self._crews for name in crew.hosts.by_name}
        unused = tuple(host for host in inventory.hosts if host.name not in connected)
        surveys = [one.survey for one in known]
        if unused:
            there = replace(inventory, hosts=unused)
            async with open_hosts(there, self._folders, self._report, tolerant=True) as hosts:
                there = replace(there, hosts=tuple(host for host in unused if host.name in hosts.by_name))
                hurried = replace(self._wishes, hurry=True)
                surveys.append((await prepare(there, hosts, self._folders, self._report, hurried)).survey)
        asked = asked_of(self._wishes, inventory)
        survey = joined(surveys)
        survey = replace(survey, hosts=tuple(host for host in survey.hosts if host.name in _names(inventory)))
        ranking = rank_within(survey, known[0].memories, asked, known[0].experience)
        present = plan_of([crew.plan for crew in self._crews], [one.group for one in groups_of(self._crews).values()])
        return Worth(inventory, ranking.chosen, gain(present, ranking))

    def _answer(self, *, moved: bool, message: str, failed: bool = False) -> None:
        """Tell whoever asked to rebalance, if somebody does."""
        if self._request is not None:
            tell(self._folder, Outcome(self._request.number, moved, message, failed))
            self._request = None

    async def _attempt(self) -> Crew | NothingFits | CannotStart:
        """After the wait that is due: a crew that takes the place of what is lost, or why there is none."""
        await asyncio.sleep(self._cycle.wait_s(random()))
        others = bool(self._crews)
        muster = self._muster(first=False)
        if {host.name for host in self._inventory.hosts} <= set(muster.without):
            return NothingFits("every other host is in use or set aside", others)
        self._report.step(f"Recovering: {self._cycle.reason}" if self._cycle.fits else "Waiting for more memory")
        try:
            return await muster.crew()
        except PlanError as error:
            return NothingFits(str(error), others)
        except MeshctlError as error:
            return CannotStart(str(error), blamed(error), others)

    def _muster(self, *, first: bool) -> Muster:
        count = len(self._inventory.hosts)
        self._report.step(f"Connecting to {count} host{'s' if count != 1 else ''}")
        busy = busy_devices(self._crews)
        hurried = replace(self._wishes, recalibrate=False, hurry=True, busy=busy)
        serving = sum(one.group.parallel for one in groups_of(self._crews).values())
        return Muster(
            replace(self._inventory, parallel=max(1, self._inventory.parallel - serving)),
            self._folders,
            self._report,
            wishes=self._wishes if first else hurried,
            without={*self._cycle.without(monotonic()), *taken_hosts(self._crews)},
            tolerant=not first,
            measure=first,
            taken=tuple(groups_of(self._crews)),
            on_plan=self._planned,
        )

    def _planned(self, prepared: Prepared, plan: Plan) -> None:
        for line in plan_lines(plan, prepared.survey):
            self._report.say(line)
        if not self._crews:
            self._keeper.update(plan=plan)

    async def _attempted(self, came: "_Came") -> None:
        if isinstance(came, Crew):
            await self._take(came)
            return
        if came is None:
            return
        if isinstance(came, Moving):
            self._backends.take_away()
            await until_done(self._end(self._crews))
            self._crews = []
        else:
            self._answer(moved=False, message=f"it does not come up: {came.why}", failed=True)
        self._cycle = self._cycle.after(came, monotonic())
        self._tell()

    async def _take(self, crew: Crew) -> None:
        """Let the gateway have its heads; it is opened if it is not open yet."""
        self._crews.append(crew)
        self._cycle = self._cycle.after(Up(crew.hosts.missing), monotonic())
        self._situation.become(READY)
        self._backends.add(head_addresses(crew.groups.values()))
        figures = self._figures()
        if self._keeper.state.gateway:
            self._keeper.phase(self._cycle.state, self._cycle.reason, **figures)
            self._report.say(f"{self._inventory.cluster} answers again")
            name, plan = self._inventory.cluster, crew.plan
            self._answer(moved=True, message=f"{name} answers again: {plan.mode} on {devices_text(plan)}")
            return
        url, key_file = await self._open_gateway()
        if self._tls is not None:
            figures |= {"certificate": str(self._tls.certificate), "certificate_sha256": self._tls.fingerprint}
        self._keeper.phase(
            self._cycle.state, self._cycle.reason, gateway=f"{url}/v1", key_file=str(key_file), **figures
        )
        self._report.ready(ready_text(self._inventory.cluster, url, key_file, self._tls))

    def _figures(self) -> dict[str, object]:
        """What the state file has of the groups that serve."""
        groups = groups_of(self._crews).values()
        processes = [process for crew in self._crews for process in crew.processes]
        plan = plan_of([crew.plan for crew in self._crews], [one.group for one in groups])
        self._memory = host_memory(plan, processes)
        return {
            "plan": plan,
            "speeds": tuple(group_speed(one) for one in groups),
            "processes": process_states(processes),
        }

    async def _open_gateway(self) -> tuple[str, Path]:
        """Its address and where this user's key is."""
        self._report.step("Opening the gateway")
        inventory, folder = self._inventory, self._folders.cluster(self._inventory.cluster)
        settings = inventory.gateway
        ensure_own_key(folder.gateway_keys, folder.gateway_key)
        app = create_app(
            self._backends,
            KeyFile(folder.gateway_keys).now,
            display_name(inventory),
            context=inventory.context,
            parallel=inventory.parallel,
            created=int(datetime.now(UTC).timestamp()),
            state=self._situation,
            counters=self._counters,
            deadlines=self._deadlines,
            memory=lambda: self._memory,
            body_bytes=settings.body_bytes,
            allowed_origins=settings.allowed_origins,
        )
        context = None if self._tls is None else self._tls.context
        serving = serve(app, settings.host, settings.port, tls=context, limits=connection_limits_of(settings))
        server = await self._gateway.enter_async_context(serving)
        return server.url, folder.gateway_key

    async def _until_lost(self, attempt: "asyncio.Task[_Came] | None") -> "_Loss | None":
        """Refresh the state file until groups are lost, the attempt has ended, or somebody asks to rebalance."""
        ends = [process.on_exit for one in groups_of(self._crews).values() for process in one.processes]
        hangs = [watch for crew in self._crews for watch in crew.watches.values()]
        waiting: set[asyncio.Future[Any]] = {*ends, *hangs, *((attempt,) if attempt else ())}
        memory = MemoryWatch(memory_of_hosts(self._crews))
        while True:
            done, _ = await asyncio.wait(waiting, timeout=STATE_EVERY_S, return_when=asyncio.FIRST_COMPLETED)
            if done:
                return await self._what_is_lost()
            self._refresh()
            if self._request is None and (request := take_request(self._folder)) is not None:
                self._request = request
                if attempt is None:
                    return None
                self._answer(moved=False, message=f"{self._inventory.cluster} is being brought up again already")
            if short := memory.short(process for crew in self._crews for process in crew.processes):
                return self._short_of_memory(short)

    def _refresh(self) -> None:
        processes = [process for crew in self._crews for process in crew.processes]
        now = self._counters.now
        if self._keeper.state.plan is not None:
            self._memory = host_memory(self._keeper.state.plan, processes)
        self._keeper.update(
            processes=process_states(processes),
            requests_running=now.running,
            requests_waiting=now.waiting,
            requests_finished=now.finished,
        )

    async def _what_is_lost(self) -> "_Loss | None":
        """None: nothing."""
        groups = groups_of(self._crews)
        if _ended(groups):
            self._backends.remove(_ended(groups))
            error = await ended_by_itself(
                [process for name in _ended(groups) for process in groups[name].processes], "while the cluster served"
            )
            return _Loss(error.host, str(error), _ended(groups))
        for name, watch in ((name, watch) for crew in self._crews for name, watch in crew.watches.items()):
            if watch.done():
                host = groups[name].head.host
                return _Loss(host, f"{name} on {host} hangs: no progress for {watch.result():.0f} s", (name,))
        return None

    def _short_of_memory(self, short: Mapping[str, int]) -> "_Loss":
        host, free_bytes = next(iter(short.items()))
        names = tuple(
            name
            for name, one in groups_of(self._crews).items()
            if any(process.host == host for process in one.processes)
        )
        return _Loss(host, f"{host}: its memory runs out, {bytes_text(free_bytes)} are left", names)

    async def _lose(self, loss: "_Loss") -> None:
        """End what is left of the groups that are lost, heads first; the others serve on."""
        self._backends.remove(loss.names)
        self._report.warn(loss.what)
        others = bool(groups_of(self._crews).keys() - loss.names)
        self._cycle = self._cycle.after(Lost(loss.host, loss.what, others), monotonic())
        self._tell()
        for crew in self._crews:
            await until_done(crew.lose(loss.names, away=loss.host))
        self._crews = [crew for crew in self._crews if crew.groups]
        self._keeper.update(**self._figures() if self._crews else {"processes": ()})

    def _tell(self) -> None:
        """Say to everybody how it stands, and why."""
        cycle = self._cycle
        if cycle.state == "failed":
            self._situation.become(Situation("failed", cycle.reason))
            self._backends.give_up(unavailable(cycle.reason, code="failed"))
        elif cycle.state == "recovering":
            self._situation.become(Situation("recovering", cycle.reason))
        self._keeper.phase(cycle.state, cycle.reason)

    async def _end(self, crews: Iterable[Crew]) -> None:
        await asyncio.gather(*(crew.end() for crew in crews))


def _names(inventory: Inventory) -> frozenset[str]:
    return frozenset(host.name for host in inventory.hosts)


_Came = Crew | NothingFits | CannotStart | Moving | None
"""What comes of the work beside watching."""


@dataclass(frozen=True)
class _Loss:
    """Groups that are lost, by the names of their heads: on which host it began, and what."""

    host: str
    what: str
    names: tuple[str, ...]


def _ended(groups: Mapping[str, RunningGroup]) -> tuple[str, ...]:
    """Those of which any process has ended."""
    return tuple(name for name, one in groups.items() if not all(process.running for process in one.processes))


def blamed(error: MeshctlError) -> tuple[str, ...]:
    """The hosts that an error is about. One that cannot be reached is away, which is no fault: it has to come back."""
    if isinstance(error, HostsError):
        return tuple(host for host, one in error.errors.items() if not isinstance(one, ConnectError))
    if isinstance(error, HostError | BringUpError) and not isinstance(error, ConnectError):
        return (error.host,) if error.host else ()
    return ()


def plan_of(plans: Sequence[Plan], groups: Sequence[Group]) -> Plan:
    """The plan of a cluster whose groups came up with these plans, the oldest first."""
    mode: PlanMode = groups[0].mode if len(groups) == 1 else "replicas"
    return replace(plans[-1], mode=mode, groups=tuple(groups))


def memory_of_hosts(crews: Iterable[Crew]) -> dict[str, int]:
    """The memory of each host in bytes, also of the controller."""
    totals = {}
    for survey in (crew.prepared.survey for crew in crews):
        totals[CONTROLLER] = survey.controller.memory_total_bytes
        totals |= {host.name: host.facts.memory_total_bytes for host in survey.hosts}
    return totals


def host_memory(plan: Plan, processes: Iterable[Leashed]) -> tuple[HostMemory, ...]:
    """The plan's budget on each host, with what a head there takes, and what its processes hold now (0: not known)."""
    budgets = Counter[str]()
    for group in plan.groups:
        budgets[group.head or CONTROLLER] += group.head_bytes
        for share in group.shares:
            budgets[share.device.partition("/")[0]] += share.budget_bytes
    used = Counter[str]()
    for process in processes:
        used[process.host] += process.rss_bytes or 0
    return tuple(HostMemory(host, size, used[host]) for host, size in budgets.items() if size)


def process_states(processes: Iterable[Leashed]) -> tuple[ProcessState, ...]:
    """The processes as the state file shows them."""
    return tuple(ProcessState(process.host, process.name, process.pid, process.rss_bytes) for process in processes)


def head_addresses(heads: Iterable[RunningGroup]) -> tuple[HeadAddress, ...]:
    """What the gateway routes among, each with its measured speed."""
    return tuple(
        HeadAddress(
            name=one.name,
            url=one.head.url,
            key=one.head.key,
            parallel=one.group.parallel,
            token_s=one.speed.token_s,
            step_s=one.speed.step_s,
            prefill_token_s=one.speed.prefill_s / one.group.prompt_tokens,
        )
        for one in heads
    )


def group_speed(one: RunningGroup) -> GroupSpeed:
    """Predicted against measured, as the state file keeps it."""
    group = one.group
    return GroupSpeed(
        name=one.name,
        host=one.head.host,
        mode=group.mode,
        predicted_decode_tokens_per_s=group.decode_tokens_per_s,
        measured_decode_tokens_per_s=one.decode_tokens_per_s,
        predicted_aggregate_tokens_per_s=group.aggregate_tokens_per_s,
        measured_aggregate_tokens_per_s=one.aggregate_tokens_per_s,
        predicted_prefill_tokens_per_s=group.prefill_tokens_per_s,
        measured_prefill_tokens_per_s=one.prefill_tokens_per_s,
    )


def plan_lines(plan: Plan, survey: Survey) -> tuple[str, ...]:
    """The plan as `meshctl plan` shows it, line by line, for the talk of `up`."""
    console = Console(width=PLAN_WIDTH, color_system=None, record=True, file=StringIO())
    console.print(plan_view(plan, survey))
    lines = (line.rstrip() for line in console.export_text().splitlines())
    return tuple(line for line in lines if line)


def ready_text(cluster: str, url: str, key_file: Path, tls: Tls | None) -> str:
    """What the user sees when the cluster answers. Events are kept in a file, so the key itself is never in here."""
    shown = "" if tls is None else f"Certificate: in {tls.certificate}, SHA-256 {tls.fingerprint}\n"
    return f"{cluster} answers at {url}/v1\nAPI key: in {key_file}\n{shown}Talk to it: meshctl chat"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
