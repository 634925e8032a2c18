"""Runs one cluster from bring-up to its end: holds its lock, writes its state, serves its gateway, ends everything.

Foreground and `--detach` are this same function; only who listens to the report differs.
"""

import asyncio
import os
from collections.abc import Collection, Iterable, Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from random import random
from time import monotonic
from typing import NoReturn

from rich.console import Console

from orchestrator.chronicle import Chronicle
from orchestrator.cluster import Running, RunningGroup, bring_up
from orchestrator.errors import BringUpError, HostError, HostsError, MeshctlError, PlanError
from orchestrator.folders import ClusterFolder, Folders
from orchestrator.gateway.api_error import unavailable
from orchestrator.gateway.app import create_app
from orchestrator.gateway.backends import Backends
from orchestrator.gateway.head import Deadlines
from orchestrator.gateway.keys import KeyFile, ensure_own_key
from orchestrator.gateway.routing import HeadAddress
from orchestrator.gateway.server import check_address, serve
from orchestrator.gateway.state import READY, Counters, GatewayState, Situation
from orchestrator.history import EventKind, HistoryEvent, add_event
from orchestrator.host_state import StepState
from orchestrator.host_view import HostView, process_states
from orchestrator.hosts import OpenHosts, open_hosts
from orchestrator.inventory import Inventory
from orchestrator.leash import Exit
from orchestrator.lifecycle import CannotStart, Event, Lifecycle, Lost, NothingFits, Up
from orchestrator.plan.values import Plan
from orchestrator.prepare import display_name, prepare_ranking
from orchestrator.processes import Started, ended_by_itself
from orchestrator.report import Report, both
from orchestrator.state import ClusterState, GroupSpeed, Phase, hold, inventory_digest, write_state
from orchestrator.steps import StepListener
from orchestrator.survey.values import Survey
from orchestrator.view.plan import plan_view
from orchestrator.watchdog import until_stuck
from orchestrator.wishes import Wishes

STATE_EVERY_S = 2.0
PLAN_WIDTH = 78
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
        changes = {"step": None, **changes}
        self.state = replace(self.state, phase=phase, message=message, since=_now(), **changes)  # type: ignore[arg-type]
        write_state(self._folder, self.state)
        add_event(self._folder, HistoryEvent(self.state.since, phase, message))

    def note(self, kind: EventKind, phase: Phase, message: str, host: str = "", seconds: float | None = None) -> None:
        """Write down what happened beside the phases."""
        add_event(self._folder, HistoryEvent(_now(), phase, message, kind, host, seconds))

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
    check_address(inventory.gateway.host, inventory.gateway.port)
    async with AsyncExitStack() as gateway:
        await _Lives(inventory, folders, report, wishes, keeper, gateway).go_on()


class _Lives:
    """One life of the cluster after the other: brought up, served from, and when something of it ends brought up anew.

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
    ) -> None:
        self._inventory = inventory
        self._folders = folders
        self._report = Report(both(report.listen, StepListener(self._reach).listen))
        self._wishes = wishes
        self._keeper = keeper
        self._gateway = gateway
        self._cycle = Lifecycle()
        self._situation = GatewayState(READY)
        self._backends = Backends(Deadlines(), situation=self._situation.told)
        self._counters = Counters()
        self._view = HostView(inventory, self._counters, monotonic(), datetime.now(UTC))
        self._chronicle = Chronicle(keeper.note, self._counters)

    async def go_on(self) -> NoReturn:
        """Until it is cancelled. What goes wrong before the cluster has answered once is raised."""
        while True:
            self._turn(await self._live())
            self._tell()
            await asyncio.sleep(self._cycle.wait_s(random()))

    async def _live(self) -> Event:
        """One life, up to the event that ended it; nothing of it is left then."""
        first = self._cycle.state == "starting"
        started = Started()
        self._report.step(f"Connecting to {_hosts_text(self._inventory)}", "connecting")
        try:
            async with open_hosts(
                self._inventory,
                self._folders,
                self._report,
                without=self._cycle.without(monotonic()),
                tolerant=not first,
            ) as hosts:
                try:
                    running = await self._bring_up(hosts, started, measure=first)
                    self._turn(Up(hosts.missing))
                    await self._serve(running, started)
                    return await self._until_lost(running, started)
                finally:
                    self._backends.take_away()
                    await asyncio.shield(started.stop())
        except PlanError as error:
            if not self._keeper.state.gateway:
                raise
            return NothingFits(str(error))
        except MeshctlError as error:
            if not self._keeper.state.gateway:
                raise
            return CannotStart(str(error), blamed(error))

    def _turn(self, event: Event) -> None:
        """The event happens to the cluster."""
        before, now_s = self._cycle, monotonic()
        self._cycle = before.after(event, now_s)
        self._chronicle.turn(before, self._cycle, event, now_s)

    def _reach(self, step: StepState | None) -> None:
        """The bring-up is at this step."""
        self._keeper.update(step=step)
        if step is not None:
            self._situation.reach(step.stage, step.fraction)

    def _figures(self, running: Running, started: Started) -> dict[str, object]:
        """What changes while the cluster serves, for its state; the metrics have it then, too."""
        self._view.look(self._cycle, monotonic(), running.plan, started.processes)
        now = self._counters.now
        return {
            "processes": process_states(started.processes),
            "hosts": self._view.hosts,
            "heads": self._view.heads,
            "requests_running": now.running,
            "requests_waiting": now.waiting,
            "requests_finished": now.finished,
            "tokens_per_s": round(sum(head.tokens_per_s for head in self._view.heads), 1),
        }

    async def _bring_up(self, hosts: OpenHosts, started: Started, *, measure: bool) -> Running:
        self._view.meet(hosts)
        self._view.look(self._cycle, monotonic())
        self._keeper.update(hosts=self._view.hosts)
        there = replace(
            self._inventory, hosts=tuple(host for host in self._inventory.hosts if host.name in hosts.by_name)
        )
        wishes = self._wishes if measure else replace(self._wishes, recalibrate=False, hurry=True)
        prepared, ranking = await prepare_ranking(there, hosts, self._folders, self._report, wishes)
        plan = ranking.chosen
        for line in plan_lines(plan, prepared.survey):
            self._report.say(line)
        self._keeper.update(plan=plan)
        return await bring_up(prepared, plan, hosts, self._folders, started, self._report, measure=measure)

    async def _serve(self, running: Running, started: Started) -> None:
        """Let the gateway have the heads; it is opened if it is not open yet."""
        figures = {"speeds": tuple(map(group_speed, running.heads)), **self._figures(running, started)}
        self._situation.become(Situation("ready" if self._cycle.state == "ready" else "degraded"))
        self._backends.replace(head_addresses(running.heads))
        if self._keeper.state.gateway:
            self._keeper.phase(self._cycle.state, self._cycle.reason, **figures)
            self._report.say(f"{self._inventory.cluster} answers again")
            return
        url, key_file = await self._open_gateway()
        self._keeper.phase(
            self._cycle.state, self._cycle.reason, gateway=f"{url}/v1", key_file=str(key_file), **figures
        )
        self._report.ready(ready_text(self._inventory.cluster, url, key_file))

    async def _open_gateway(self) -> tuple[str, Path]:
        """Its address and where this user's key is."""
        self._report.step("Opening the gateway", "opening")
        inventory, folder = self._inventory, self._folders.cluster(self._inventory.cluster)
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
            hosts=lambda: self._view.hosts,
        )
        server = await self._gateway.enter_async_context(serve(app, inventory.gateway.host, inventory.gateway.port))
        return server.url, folder.gateway_key

    async def _until_lost(self, running: Running, started: Started) -> Lost:
        """Refresh the state file until any process of the cluster ends by itself, or a head gets nowhere."""
        exits = {asyncio.ensure_future(process.wait()) for process in started.processes}
        stuck = {
            asyncio.create_task(until_stuck(one.head, one.group, self._inventory.context)): one for one in running.heads
        }
        try:
            while True:
                done, _ = await asyncio.wait(
                    {*exits, *stuck}, timeout=STATE_EVERY_S, return_when=asyncio.FIRST_COMPLETED
                )
                if done:
                    self._backends.take_away()
                    self._chronicle.interrupted(monotonic())
                    lost = await self._what_is_lost(started, exits, stuck)
                    self._report.warn(lost.what)
                    return lost
                self._keeper.update(**self._figures(running, started))
        finally:
            for waiting in (*exits, *stuck):
                waiting.cancel()

    async def _what_is_lost(
        self,
        started: Started,
        exits: Collection[asyncio.Future[Exit]],
        stuck: Mapping[asyncio.Task[float], RunningGroup],
    ) -> Lost:
        if any(future.done() for future in exits):
            error = await ended_by_itself(started, "while the cluster served")
            return Lost(error.host, str(error))
        future, one = next((future, one) for future, one in stuck.items() if future.done())
        return Lost(one.head.host, f"{one.name} on {one.head.host} hangs: no progress for {future.result():.0f} s")

    def _tell(self) -> None:
        """Say to everybody that nothing answers now, and why."""
        cycle = self._cycle
        if cycle.state == "failed":
            self._situation.become(Situation("failed", cycle.reason))
            self._backends.give_up(unavailable(cycle.reason, code="failed"))
        else:
            self._situation.become(Situation("recovering", cycle.reason))
        self._view.look(cycle, monotonic())
        self._keeper.phase(
            cycle.state, cycle.reason, processes=(), hosts=self._view.hosts, heads=self._view.heads, tokens_per_s=0.0
        )
        title = f"Recovering: {cycle.reason}" if cycle.state == "recovering" else "Waiting for more memory"
        self._report.step(title, "waiting")


def blamed(error: MeshctlError) -> tuple[str, ...]:
    """The hosts that an error is about."""
    if isinstance(error, HostsError):
        return tuple(error.errors)
    if isinstance(error, HostError | BringUpError):
        return (error.host,) if error.host else ()
    return ()


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


def ready_text(cluster: str, url: str, key_file: Path) -> str:
    """What the user sees when the cluster answers. Events are kept in a file, so the key itself is never in here."""
    return f"{cluster} answers at {url}/v1\nAPI key: in {key_file}\nTalk to it: meshctl chat"


def _hosts_text(inventory: Inventory) -> str:
    count = len(inventory.hosts)
    return f"{count} host{'s' if count != 1 else ''}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
