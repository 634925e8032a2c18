"""Runs one cluster from bring-up to its end: holds its lock, writes its state, serves its gateway, ends everything.

Foreground and `--detach` are this same function; only who listens to the report differs.
"""

import asyncio
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path

from rich.console import Console

from orchestrator.cluster import Running, RunningGroup, bring_up
from orchestrator.folders import ClusterFolder, Folders
from orchestrator.gateway.app import create_app
from orchestrator.gateway.keys import KeyFile, ensure_own_key
from orchestrator.gateway.metrics import HostMemory
from orchestrator.gateway.routing import HeadAddress
from orchestrator.gateway.server import check_address, serve
from orchestrator.gateway.state import READY, Counters, GatewayState, Situation
from orchestrator.history import HistoryEvent, add_event
from orchestrator.hosts import OpenHosts, open_hosts
from orchestrator.inventory import CONTROLLER, Inventory
from orchestrator.leash import Leashed
from orchestrator.plan.values import Plan
from orchestrator.prepare import display_name, prepare_ranking
from orchestrator.processes import Started, ended_by_itself
from orchestrator.report import Report
from orchestrator.state import ClusterState, GroupSpeed, Phase, ProcessState, hold, inventory_digest, write_state
from orchestrator.survey.values import Survey
from orchestrator.view.plan import plan_view
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

    Raises what went wrong: at bring-up, or a process that ended while the cluster served.
    """
    folder = folders.cluster(inventory.cluster)
    with hold(folder):
        keeper = StateKeeper(folder, inventory)
        keeper.phase("starting", "starting")
        try:
            await _until_stopped(inventory, folders, report, stop, wishes, keeper)
        except Exception as error:
            keeper.phase("failed", str(error) or repr(error), processes=())
            raise
        except BaseException:
            keeper.phase("stopped", "interrupted", processes=())
            raise
        keeper.phase("stopped", "stopped on request", processes=())


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
    report.step(f"Connecting to {_hosts_text(inventory)}")
    async with open_hosts(inventory, folders, report) as hosts:
        started = Started()
        try:
            running = await _bring_up(inventory, hosts, folders, started, report, wishes, keeper)
            await _serve(inventory, folders, running, started, report, keeper)
        finally:
            await asyncio.shield(started.stop())


async def _bring_up(
    inventory: Inventory,
    hosts: OpenHosts,
    folders: Folders,
    started: Started,
    report: Report,
    wishes: Wishes,
    keeper: StateKeeper,
) -> Running:
    prepared, ranking = await prepare_ranking(inventory, hosts, folders, report, wishes)
    plan = ranking.chosen
    for line in plan_lines(plan, prepared.survey):
        report.say(line)
    keeper.update(plan=plan)
    return await bring_up(prepared, plan, hosts, folders, started, report)


async def _serve(
    inventory: Inventory, folders: Folders, running: Running, started: Started, report: Report, keeper: StateKeeper
) -> None:
    report.step("Opening the gateway")
    folder = folders.cluster(inventory.cluster)
    key_file = folder.gateway_key
    ensure_own_key(folder.gateway_keys, key_file)
    gateway_state, counters = GatewayState(READY), Counters()
    app = create_app(
        head_addresses(running.heads),
        KeyFile(folder.gateway_keys).now,
        display_name(inventory),
        context=inventory.context,
        created=int(datetime.now(UTC).timestamp()),
        state=gateway_state,
        counters=counters,
        memory=lambda: host_memory(running.plan, started.processes),
    )
    async with serve(app, inventory.gateway.host, inventory.gateway.port) as server:
        keeper.phase(
            "ready",
            "answers",
            gateway=f"{server.url}/v1",
            key_file=str(key_file),
            speeds=tuple(group_speed(one) for one in running.heads),
            processes=process_states(started.processes),
        )
        report.ready(ready_text(inventory.cluster, server.url, key_file))
        await _watch(started, keeper, gateway_state, counters)


async def _watch(started: Started, keeper: StateKeeper, gateway_state: GatewayState, counters: Counters) -> None:
    """Refresh the state file; raise BringUpError as soon as any process of the cluster ends by itself."""
    exits = {asyncio.ensure_future(process.wait()): process for process in started.processes}
    try:
        while True:
            done, _ = await asyncio.wait(exits, timeout=STATE_EVERY_S, return_when=asyncio.FIRST_COMPLETED)
            if done:
                gateway_state.become(Situation("stopping", "a process of the cluster ended; the cluster stops"))
                raise await ended_by_itself(started, "while the cluster served; it has been stopped")
            keeper.update(
                processes=process_states(started.processes),
                requests_running=counters.now.running,
                requests_waiting=counters.now.waiting,
                requests_finished=counters.now.finished,
            )
    finally:
        for waiting in exits:
            waiting.cancel()


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


def ready_text(cluster: str, url: str, key_file: Path) -> str:
    """What the user sees when the cluster answers. Events are kept in a file, so the key itself is never in here."""
    return f"{cluster} answers at {url}/v1\nAPI key: in {key_file}\nTalk to it: meshctl chat"


def _hosts_text(inventory: Inventory) -> str:
    count = len(inventory.hosts)
    return f"{count} host{'s' if count != 1 else ''}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
