"""Keeps a cluster true to its plan: brings it up, watches it, and replaces what is lost while the rest serves on."""

import asyncio
from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from random import random
from time import monotonic
from typing import Any, NoReturn

from orchestrator.announce import group_speed, head_addresses, plan_lines, ready_text
from orchestrator.better_plan import better_plan
from orchestrator.chronicle import Chronicle
from orchestrator.cluster import RunningGroup
from orchestrator.crew import (
    Crew,
    Muster,
    busy_devices,
    busy_hosts,
    groups_of,
    memory_of_hosts,
    plan_of,
    taken_hosts,
    until_done,
)
from orchestrator.errors import (
    FAILED,
    BringUpError,
    ConnectError,
    HostError,
    HostsError,
    PlanError,
    reason_of,
)
from orchestrator.folders import Folders
from orchestrator.gateway.api_error import unavailable
from orchestrator.gateway.app import create_app
from orchestrator.gateway.backends import Backends
from orchestrator.gateway.door import connection_limits_of, deadlines_of, line_limits_of
from orchestrator.gateway.keys import KeyFile, ensure_own_key
from orchestrator.gateway.server import serve
from orchestrator.gateway.state import READY, Counters, GatewayState, Situation
from orchestrator.gateway.tls import Tls
from orchestrator.host_state import StepState
from orchestrator.host_view import HostView, process_states
from orchestrator.hosts import OpenHosts
from orchestrator.inventory import CONTROLLER, Inventory
from orchestrator.leash import Leashed
from orchestrator.lifecycle import CannotStart, Event, Lifecycle, Lost, Moving, NothingFits, Up
from orchestrator.memory_watch import MemoryWatch
from orchestrator.plan.values import Plan
from orchestrator.prepare import Prepared
from orchestrator.processes import ended_by_itself, host_of
from orchestrator.quiet import LOOK_S, in_quiet
from orchestrator.rebalance import WORTH, Outcome, Request, devices_text, inventory_now, take_request, tell
from orchestrator.report import Report, both
from orchestrator.state import is_measured
from orchestrator.state_keeper import StateKeeper
from orchestrator.steps import StepClock, StepListener
from orchestrator.view.sizes import bytes_text
from orchestrator.wishes import Wishes
from quant.source import display_name

STATE_EVERY_S = 2.0
QUIET_WAIT_S = 60.0
MEASURE_AFTER_S = 5.0
"""Heads whose speed is not known are measured when nothing has been asked for so long."""


class Keeping:
    """One cluster from its first bring-up on.

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
        self._clock = StepClock(monotonic)
        self._report = Report(both(report.listen, both(StepListener(self._reach).listen, self._clock.listen)))
        self._wishes = wishes
        self._keeper = keeper
        self._folder = folders.cluster(inventory.cluster)
        self._gateway = gateway
        self._tls = tls
        self._cycle = Lifecycle()
        self._crews: list[Crew] = []
        self._as_planned: set[str] = set()  # heads that serve and are still to be measured
        self._situation = GatewayState(READY)
        self._deadlines = deadlines_of(inventory.gateway)
        self._backends = Backends(self._deadlines, line_limits_of(inventory.gateway), self._situation.told)
        self._counters = Counters()
        self._view = HostView(inventory, self._counters, monotonic(), datetime.now(UTC))
        self._chronicle = Chronicle(keeper.note, self._counters)
        self._request: Request | None = None
        take_request(self._folder)  # one that a former supervisor did not come to

    async def go_on(self) -> NoReturn:
        """Until it is cancelled. What goes wrong before the cluster has answered once is raised."""
        try:
            await self._take(await self._muster({}, first=True).crew())
            while True:
                await self._turn()
        finally:
            self._situation.become(Situation("stopping", "the cluster is stopped"))
            self._backends.line.turn_away(unavailable("the cluster is stopped", code="stopping"))
            await until_done(self._close())

    async def _turn(self) -> None:
        """Watch, and meanwhile try to replace what is missing, or work out a better plan, until there is news."""
        beside = self._beside()
        try:
            lost = await self._until_lost(beside)
            if lost is not None:
                if beside is not None:
                    beside.cancel()
                await self._lose(lost)
        finally:
            if beside is not None:
                beside.cancel()
                await asyncio.wait((beside,))
                if not beside.cancelled():
                    await self._came(beside.result())

    def _happen(self, event: Event) -> None:
        """The event happens to the cluster."""
        before, now_s = self._cycle, monotonic()
        self._cycle = before.after(event, now_s)
        self._chronicle.turn(before, self._cycle, event, now_s)

    def _reach(self, step: StepState | None) -> None:
        """A bring-up is at this step."""
        self._keeper.update(step=step)
        if step is not None:
            self._situation.reach(step.stage, step.fraction)

    # what is done beside watching

    def _beside(self) -> "asyncio.Task[_Came] | None":
        if self._cycle.wants_more:
            return asyncio.create_task(self._attempt())
        if self._request is not None:
            return asyncio.create_task(self._consider(self._request))
        return asyncio.create_task(self._measure()) if self._as_planned else None

    async def _attempt(self) -> Crew | NothingFits | CannotStart:
        """After the wait that is due: a crew that takes the place of what is lost, or why there is none."""
        title = f"Recovering: {self._cycle.reason}" if self._cycle.fits else "Waiting for more memory"
        self._report.step(title, "waiting")
        await asyncio.sleep(self._cycle.wait_s(random()))
        aside = self._cycle.without(monotonic())
        came = await self._try(aside)
        if isinstance(came, NothingFits) and aside and not self._crews:
            return await self._try({})  # a host that fails now and then is better than none
        return came

    async def _try(self, aside: Mapping[str, str]) -> Crew | NothingFits | CannotStart:
        others = bool(self._crews)
        muster = self._muster(aside, first=False)
        if {host.name for host in self._inventory.hosts} <= set(muster.without):
            return NothingFits("every other host is in use or set aside", others)
        try:
            return await muster.crew()
        except PlanError as error:
            return NothingFits(str(error), others)
        except FAILED as error:
            return CannotStart(reason_of(error), blamed(error), others)

    def _muster(self, aside: Mapping[str, str], *, first: bool) -> Muster:
        """What the next crew is to be made of: whatever is not in use, for the conversations that are left."""
        count = len(self._inventory.hosts)
        self._report.step(f"Connecting to {count} host{'s' if count != 1 else ''}", "connecting")
        serving = sum(one.group.parallel for one in groups_of(self._crews).values())
        left = max(1, self._inventory.parallel - serving) if serving else None
        busy = busy_devices(self._crews)
        hurried = replace(self._wishes, recalibrate=False, hurry=True, busy=busy, parallel=left)
        return Muster(
            self._inventory,
            self._folders,
            self._report,
            wishes=self._wishes if first else hurried,
            without={*aside, *taken_hosts(self._crews)},
            tolerant=not first,
            measure=first,
            taken=tuple(groups_of(self._crews)),
            on_hosts=self._met,
            on_plan=self._planned,
        )

    def _met(self, hosts: OpenHosts) -> None:
        self._view.meet(hosts)
        if not self._crews:
            self._view.look(self._cycle, monotonic())
            self._keeper.update(hosts=self._view.hosts)

    def _planned(self, prepared: Prepared, plan: Plan) -> None:
        self._keeper.update(model_path=str(prepared.model.path))
        for line in plan_lines(plan, prepared.survey):
            self._report.say(line)
        if not self._crews:
            self._keeper.update(plan=plan)

    async def _consider(self, request: Request) -> Moving | None:
        """Whether it is worth to move to a plan with what is not in use, and then a quiet moment for that."""
        try:
            aside = self._cycle.without(monotonic())
            worth = await better_plan(self._inventory, self._crews, self._folders, self._report, self._wishes, aside)
        except FAILED as error:
            self._answer(moved=False, message=reason_of(error), failed=True)
            return None
        if not worth.gain > WORTH:
            self._answer(moved=False, message=f"{self._inventory.cluster} stays as it is: {worth}")
            return None
        if not request.now and not await self._is_quiet():
            busy = f"{worth}, but there was no quiet moment within {QUIET_WAIT_S:.0f} s; `--now` carries answers over"
            self._answer(moved=False, message=busy, failed=True)
            return None
        self._adopt(worth.inventory)
        return Moving(f"rebalancing: {worth}")

    def _adopt(self, inventory: Inventory) -> None:
        """Go by the inventory as its file is now."""
        self._inventory = inventory
        self._view.know(inventory)
        self._keeper.update(inventory_sha256=inventory.sha256)

    def _tries_with_others(self) -> bool:
        """Whether the inventory's file has other hosts now, of which the next attempt is to be made.

        It is answered when that has ended; else at once.
        """
        name, reason = self._inventory.cluster, self._cycle.reason
        try:
            fresh = inventory_now(self._inventory)
        except FAILED as error:
            self._answer(moved=False, message=reason_of(error), failed=True)
            return False
        if fresh == self._inventory:
            self._answer(moved=False, message=f"{name} is being brought up again already: {reason}")
            return False
        self._adopt(fresh)
        return True

    async def _is_quiet(self) -> bool:
        """Whether a moment comes soon at which no request is with a head."""
        try:
            async with asyncio.timeout(QUIET_WAIT_S):
                while self._counters.now.running:
                    await asyncio.sleep(LOOK_S)
        except TimeoutError:
            return False
        return True

    async def _measure(self) -> None:
        """What came up while somebody waited for it: nothing is asked just now, and what is ends that at once."""
        for name in sorted(self._as_planned):
            crew = next(crew for crew in self._crews if name in crew.groups)
            work = partial(crew.measure, name, self._folders, self._report)
            try:
                measured = await in_quiet(self._is_busy, work, MEASURE_AFTER_S)
                self._backends.add(head_addresses([measured], crew.plan.context))
            except FAILED as error:
                self._report.warn(f"{name} was not measured: {reason_of(error)}")
            self._as_planned.discard(name)

    def _is_busy(self) -> bool:
        """Whether the cluster is asked for something, or measured from outside."""
        now = self._counters.now
        return now.running + now.waiting > 0 or is_measured(self._folder)

    def _answer(self, *, moved: bool, message: str, failed: bool = False) -> None:
        """Tell whoever asked to rebalance, if somebody does."""
        if self._request is not None:
            tell(self._folder, Outcome(self._request.number, moved, message, failed))
            self._request = None

    # what comes of it

    async def _came(self, came: "_Came") -> None:
        if isinstance(came, Crew):
            await self._take(came)
            return
        if came is None:
            self._keeper.update(step=None)
            return
        if isinstance(came, Moving):
            self._backends.take_away()
            await until_done(self._end(self._crews))
            self._crews = []
        else:
            self._answer(moved=False, message=f"it does not come up: {came.why}", failed=True)
        self._happen(came)
        self._tell()

    async def _take(self, crew: Crew) -> None:
        """Let the gateway have its heads; it is opened if it is not open yet."""
        self._crews.append(crew)
        self._as_planned = {name for name, one in groups_of(self._crews).items() if not one.measured}
        self._happen(Up(crew.hosts.missing, busy_hosts(self._crews)))
        self._situation.become(Situation("ready" if self._cycle.state == "ready" else "degraded", self._cycle.reason))
        self._backends.add(head_addresses(crew.groups.values(), crew.plan.context))
        figures = self._figures()
        if self._keeper.state.gateway:
            self._keeper.phase(self._cycle.state, self._cycle.reason, took=self._clock.take(), **figures)
            name, plan = self._inventory.cluster, crew.plan
            self._report.say(f"{name} answers again")
            self._answer(moved=True, message=f"{name} answers again: {plan.mode} on {devices_text(plan)}")
            return
        url, key_file = await self._open_gateway()
        figures["took"] = self._clock.take()
        if self._tls is not None:
            figures |= {"certificate": str(self._tls.certificate), "certificate_sha256": self._tls.fingerprint}
        self._keeper.phase(
            self._cycle.state, self._cycle.reason, gateway=f"{url}/v1", key_file=str(key_file), **figures
        )
        self._report.ready(ready_text(self._inventory.cluster, url, key_file, self._tls))

    async def _open_gateway(self) -> tuple[str, Path]:
        """Its address and where this user's key is."""
        self._report.step("Opening the gateway", "opening")
        inventory, folder, settings = self._inventory, self._folder, self._inventory.gateway
        ensure_own_key(folder.gateway_keys, folder.gateway_key)
        app = create_app(
            self._backends,
            KeyFile(folder.gateway_keys).now,
            display_name(inventory.model),
            context=inventory.context,
            parallel=inventory.parallel,
            created=int(datetime.now(UTC).timestamp()),
            state=self._situation,
            counters=self._counters,
            deadlines=self._deadlines,
            hosts=lambda: self._view.hosts,
            body_bytes=settings.body_bytes,
            allowed_origins=settings.allowed_origins,
        )
        context = None if self._tls is None else self._tls.context
        serving = serve(app, settings.host, settings.port, tls=context, limits=connection_limits_of(settings))
        server = await self._gateway.enter_async_context(serving)
        return server.url, folder.gateway_key

    # watching

    async def _until_lost(self, beside: "asyncio.Task[_Came] | None") -> "_Loss | None":
        """Refresh the state file until groups are lost, `beside` has ended, or somebody asks to rebalance."""
        ends = [process.on_exit for one in groups_of(self._crews).values() for process in one.processes]
        hangs = [watch for crew in self._crews for watch in crew.watches.values()]
        waiting: set[asyncio.Future[Any]] = {*ends, *hangs, *((beside,) if beside else ())}
        memory = MemoryWatch(memory_of_hosts(self._crews))
        while True:
            done, _ = await asyncio.wait(waiting, timeout=STATE_EVERY_S, return_when=asyncio.FIRST_COMPLETED)
            if done:
                return await self._what_is_lost()
            self._keeper.update(**(self._figures() if self._crews else self._nothing()))
            if self._request is None and (request := take_request(self._folder)) is not None:
                self._request = request
                if not self._cycle.wants_more or self._tries_with_others():
                    return None
            if (loss := self._short_of_memory(memory.short(self._processes))) is not None:
                return loss

    async def _what_is_lost(self) -> "_Loss | None":
        """None: nothing."""
        groups = groups_of(self._crews)
        if names := ended(groups):
            self._backends.remove(names)
            self._chronicle.interrupted(monotonic())
            error = await ended_by_itself(
                [process for name in names for process in groups[name].processes], "while the cluster served"
            )
            return _Loss(error.host, str(error), ended(groups))
        for name, watch in ((name, watch) for crew in self._crews for name, watch in crew.watches.items()):
            if watch.done():
                self._backends.remove([name])
                self._chronicle.interrupted(monotonic())
                host, what = why_it_hangs(name, groups[name].head.host, groups[name].processes, watch.result())
                return _Loss(host, what, (name,))
        return None

    def _short_of_memory(self, short: Mapping[str, int]) -> "_Loss | None":
        """Groups on a machine whose memory runs out; None where there are none, and so nothing to be freed by an end.

        Local hosts are the controller's machine, and may be told of by its name.
        """
        local = {CONTROLLER, *(host.name for host in self._inventory.hosts if host.connection == "local")}
        for host, free_bytes in short.items():
            machine = local if host in local else {host}
            names = tuple(
                name
                for name, one in groups_of(self._crews).items()
                if machine & {one.head.host, *(worker.host for worker in one.workers)}
            )
            if names:
                self._backends.remove(names)
                return _Loss(host, f"{host}: its memory runs out, {bytes_text(free_bytes)} are left", names)
        return None

    async def _lose(self, loss: "_Loss") -> None:
        """End what is left of the groups that are lost, heads first; the others serve on."""
        self._backends.remove(loss.names)
        self._report.warn(loss.what)
        self._answer(moved=False, message=f"interrupted: {loss.what}", failed=True)
        others = bool(groups_of(self._crews).keys() - loss.names)
        self._happen(Lost(loss.host, loss.what, others))
        self._tell()
        for crew in self._crews:
            await until_done(crew.lose(loss.names, away=loss.host))
        self._crews = [crew for crew in self._crews if crew.groups]
        if self._crews:
            self._keeper.update(**self._figures())

    def _tell(self) -> None:
        """Say to everybody how it stands, and why."""
        cycle = self._cycle
        if cycle.state == "failed":
            self._situation.become(Situation("failed", cycle.reason))
            self._backends.give_up(unavailable(cycle.reason, code="failed"))
        elif cycle.state == "recovering":
            self._situation.become(Situation("recovering", cycle.reason))
        elif cycle.state == "degraded":
            self._situation.become(Situation("degraded", cycle.reason))
        self._keeper.phase(cycle.state, cycle.reason, **({} if cycle.serves else self._nothing()))

    def _nothing(self) -> dict[str, object]:
        """What the state file has while nothing serves."""
        self._view.look(self._cycle, monotonic())
        shown = {"processes": (), "hosts": self._view.hosts, "heads": self._view.heads, "tokens_per_s": 0.0}
        return {**shown, **self._requests()}

    def _requests(self) -> dict[str, object]:
        now = self._counters.now
        return {
            "requests_running": now.running,
            "requests_waiting": now.waiting,
            "requests_finished": now.finished,
        }

    def _figures(self) -> dict[str, object]:
        """What the state file has of the groups that serve."""
        groups = groups_of(self._crews)
        plan = plan_of(self._crews)
        self._view.look(self._cycle, monotonic(), plan, self._processes, tuple(groups))
        return {
            "plan": plan,
            "speeds": tuple(group_speed(one, awaited=name in self._as_planned) for name, one in groups.items()),
            "processes": process_states(self._processes),
            "hosts": self._view.hosts,
            "heads": self._view.heads,
            **self._requests(),
            "tokens_per_s": round(sum(head.tokens_per_s for head in self._view.heads), 1),
        }

    @property
    def _processes(self) -> tuple[Leashed, ...]:
        return tuple(process for crew in self._crews for process in crew.processes)

    async def _close(self) -> None:
        """The gateway first: it takes no new request, and gives running answers a while to come to their ends."""
        await self._gateway.aclose()
        self._backends.take_away()
        await self._end(self._crews)

    async def _end(self, crews: Iterable[Crew]) -> None:
        await asyncio.gather(*(crew.end() for crew in crews))


_Came = Crew | NothingFits | CannotStart | Moving | None
"""What comes of the work beside watching."""


@dataclass(frozen=True)
class _Loss:
    """Groups that are lost, by the names of their heads: on which host it began, and what."""

    host: str
    what: str
    names: tuple[str, ...]


def ended(groups: Mapping[str, RunningGroup]) -> tuple[str, ...]:
    """Those of which any process has ended."""
    return tuple(name for name, one in groups.items() if not all(process.running for process in one.processes))


def why_it_hangs(head: str, host: str, processes: Iterable[Leashed], stuck_s: float) -> tuple[str, str]:
    """The host to blame for a head that has made no progress for so long, and what to say: a head waits for its workers
    without a word, so what is stopped behind it is looked for first."""
    what = f"{head} on {host} hangs: no progress for {stuck_s:.0f} s"
    stopped = sorted((one for one in processes if one.stopped), key=lambda one: one.name.startswith("head"))
    if not stopped:
        return host, what
    return host_of(stopped[0]), f"{stopped[0].name} on {stopped[0].host} is stopped: {what}"


def blamed(error: Exception) -> tuple[str, ...]:
    """The hosts that an error is about. One that cannot be reached is away, which is no fault: it has to come back."""
    if isinstance(error, HostsError):
        return tuple(host for host, one in error.errors.items() if not isinstance(one, ConnectError))
    if isinstance(error, HostError | BringUpError) and not isinstance(error, ConnectError):
        return (error.host,) if error.host else ()
    return ()
