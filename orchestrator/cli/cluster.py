"""`meshctl up`, `down` and the hidden `supervise` that `up --detach` starts."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.arguments import (
    DEFAULT_INVENTORY,
    CacheType,
    Cluster,
    Devices,
    Goal,
    Inventory,
    KnownHosts,
    Mode,
    OfInventory,
    Recalibrate,
    Split,
    named_cluster,
    read_wishes,
    wish_options,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from orchestrator.folders import ClusterFolder, Folders
    from orchestrator.inventory import Inventory as InventoryValue
    from orchestrator.report import Report
    from orchestrator.state import ClusterState
    from orchestrator.wishes import Wishes


def up(
    inventory: Inventory = DEFAULT_INVENTORY,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Return when it answers; it runs on behind.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Measure and plan, print the exact command for every host, start nothing.")
    ] = False,
    mode: Mode = None,
    devices: Devices = None,
    split: Split = None,
    goal: Goal = None,
    cache_type: CacheType = None,
    recalibrate: Recalibrate = False,
) -> None:
    """Bring the cluster of an inventory up and keep it running."""
    from orchestrator.cli.run import talk
    from orchestrator.detach import starting
    from orchestrator.folders import user_folders
    from orchestrator.inventory_file import load_inventory
    from orchestrator.state import being_measured, is_held, is_measured, read_state

    wanted = load_inventory(inventory)
    folders = user_folders()
    wishes = read_wishes(
        KnownHosts.of(wanted),
        mode=mode,
        devices=devices,
        split=split,
        goal=goal,
        recalibrate=recalibrate,
        cache_type=cache_type,
    )
    if dry_run:
        _dry_run(wanted, folders, wishes)
        return
    folder = folders.cluster(wanted.cluster)
    if is_held(folder):
        state = read_state(folder)
        _check_kept(wanted.cluster, wishes)
        if state is not None and state.phase == "starting" and detach:
            _wait_for_the_other(wanted.cluster, folder)
            return
        talk().print(_already(wanted.cluster, state), markup=False, soft_wrap=True)
        if state is not None and state.inventory_sha256 != wanted.sha256:
            talk().print(f"{inventory} has changed since: `meshctl down`, then `meshctl up` again", markup=False)
    elif is_measured(folder):
        raise being_measured(folder)
    elif not detach:
        _foreground(wanted, folders, wishes)
    else:
        with starting(folder) as first:
            if first:
                _detach(inventory, wanted, folders, wishes)
            else:
                _check_kept(wanted.cluster, wishes)
                _wait_for_the_other(wanted.cluster, folder)


def _check_kept(cluster: str, wishes: "Wishes") -> None:
    """A cluster that is up keeps its plan: ClusterStateError where another one is asked for."""
    from orchestrator.errors import ClusterStateError

    if words := wish_options(wishes):
        raise ClusterStateError(
            f"{cluster} is up already and keeps its plan: {' '.join(words)} would not be followed",
            hint="`meshctl down` first; see its plan with `meshctl status`",
        )


def _wait_for_the_other(cluster: str, folder: "ClusterFolder") -> None:
    from orchestrator.cli.run import run, talk
    from orchestrator.detach import until_up

    talk().print(f"{cluster} is starting already; waiting until it answers", markup=False, soft_wrap=True)
    state = run(until_up(folder))
    talk().print(f"{cluster} answers at {state.gateway}", markup=False, soft_wrap=True)


def _already(cluster: str, state: "ClusterState | None") -> str:
    """What a second `up` says; `state` is None when the first one has not written any yet."""
    from orchestrator.state import SERVING

    if state is not None and state.phase in SERVING:
        return f"{cluster} is up already at {state.gateway}; see `meshctl status`"
    doing = state.phase if state is not None and state.phase in ("stopping", "recovering") else "starting"
    return f"{cluster} is {doing} already; see `meshctl status`"


def down(inventory: OfInventory = None, cluster: Cluster = None) -> None:
    """Stop the cluster: head, workers, links, on every host."""
    from orchestrator.cli.run import run, talk
    from orchestrator.detach import stop_cluster
    from orchestrator.folders import user_folders
    from orchestrator.state import check_known, running_clusters, the_running_cluster

    folders, name = user_folders(), named_cluster(inventory, cluster)
    if cluster is not None:
        check_known(folders, cluster)
    if name is None and not running_clusters(folders):
        talk().print("no cluster runs")
        return
    name = name if name is not None else the_running_cluster(folders, None).cluster
    stopped = run(stop_cluster(folders.cluster(name)))
    talk().print(f"{name} is stopped" if stopped else f"{name} was not running", markup=False, soft_wrap=True)


def rebalance(
    inventory: OfInventory = None,
    cluster: Cluster = None,
    now: Annotated[
        bool, typer.Option("--now", help="Do not wait for a quiet moment; running answers are carried over.")
    ] = False,
) -> None:
    """Take in hosts that have come back or were added to the inventory, if that gains more than 10 %."""
    from orchestrator.cli.run import run, talk
    from orchestrator.detach import until_rebalanced
    from orchestrator.folders import user_folders
    from orchestrator.rebalance import ask
    from orchestrator.state import the_running_cluster

    folders = user_folders()
    name = the_running_cluster(folders, named_cluster(inventory, cluster)).cluster
    folder = folders.cluster(name)
    talk().print(f"{name}: asking its supervisor; hosts that are not in use are surveyed", markup=False, soft_wrap=True)
    outcome = run(until_rebalanced(folder, ask(folder, now=now)))
    talk().print(outcome.message, markup=False, soft_wrap=True)
    if not outcome.moved:
        raise SystemExit(1 if outcome.failed else 0)


def supervise(
    inventory: Inventory,
    mode: Mode = None,
    devices: Devices = None,
    split: Split = None,
    goal: Goal = None,
    cache_type: CacheType = None,
    recalibrate: Recalibrate = False,
) -> None:
    """Run one cluster, writing the report to its events file; what `up --detach` starts."""
    from orchestrator.cli.run import run
    from orchestrator.folders import user_folders
    from orchestrator.inventory_file import load_inventory
    from orchestrator.report import Report, to_file

    wanted = load_inventory(inventory)
    folders = user_folders()
    report = Report(to_file(folders.cluster(wanted.cluster).events))
    wishes = read_wishes(
        KnownHosts.of(wanted),
        mode=mode,
        devices=devices,
        split=split,
        goal=goal,
        recalibrate=recalibrate,
        cache_type=cache_type,
    )
    run(_supervise(wanted, folders, report, wishes))


async def _supervise(wanted: "InventoryValue", folders: "Folders", report: "Report", wishes: "Wishes") -> None:
    """Supervise until a signal; a failure is reported before it is raised, for whoever follows."""
    from orchestrator.cli.run import stop_on_signals
    from orchestrator.errors import REPORTED, of_system
    from orchestrator.supervisor import supervise

    stop = asyncio.Event()
    stop_on_signals(stop)
    try:
        await supervise(wanted, folders, report, stop, wishes)
    except REPORTED as error:
        report.failed(str(error), error.hint, getattr(error, "details", ""))
        raise
    except OSError as error:
        refused = of_system(error)
        report.failed(str(refused), refused.hint)
        raise refused from error


def _foreground(wanted: "InventoryValue", folders: "Folders", wishes: "Wishes") -> None:
    from orchestrator.cli.run import INTERRUPTED, run_shown, talk
    from orchestrator.report import Event, Ready, Report, both, while_heard

    ready = asyncio.Event()
    new_key = _new_key_of(folders.cluster(wanted.cluster))

    def note_ready(event: Event) -> None:
        if isinstance(event, Ready):
            ready.set()

    def show_ready(event: Event) -> None:
        if isinstance(event, Ready):
            _tell_ready(event.text, new_key(), "Stop it with Ctrl-C.")

    async def work(report: Report) -> None:
        shown = while_heard(both(report.listen, show_ready))
        await _supervise(wanted, folders, Report(both(note_ready, shown)), wishes)

    run_shown(work)
    talk().print(f"{wanted.cluster} is stopped", markup=False, soft_wrap=True)
    if not ready.is_set():
        raise SystemExit(INTERRUPTED)


def _detach(inventory: Path, wanted: "InventoryValue", folders: "Folders", wishes: "Wishes") -> None:
    from orchestrator.cli.run import run, talk
    from orchestrator.detach import follow, start_supervisor
    from orchestrator.errors import BringUpError
    from orchestrator.report import Failed, Ready
    from orchestrator.view.progress import ProgressView

    folder = folders.cluster(wanted.cluster)
    new_key = _new_key_of(folder)
    supervisor = start_supervisor(inventory, folder, wish_options(wishes))

    async def watch() -> None:
        with ProgressView(talk()) as view:
            async for event in follow(folder, supervisor):
                view.listen(event)
                if isinstance(event, Failed):
                    raise BringUpError(event.message, hint=event.hint, details=event.details)
                if isinstance(event, Ready):
                    _tell_ready(event.text, new_key(), "Stop it: meshctl down")

    try:
        run(watch())
    except SystemExit:
        supervisor.terminate()
        supervisor.wait()
        raise


def _new_key_of(folder: "ClusterFolder") -> "Callable[[], str | None]":
    """A function that gives the gateway's key if it was made after this call; it is shown then, and never again."""
    from orchestrator.gateway.keys import read_own_key

    there_already = folder.gateway_key.exists()
    return lambda: None if there_already else read_own_key(folder.gateway_key)


def _tell_ready(text: str, new_key: str | None, how_to_stop: str) -> None:
    from orchestrator.cli.run import talk

    key = f"API key (shown once): {new_key}\n" if new_key else ""
    talk().print(f"\n{text}\n{key}{how_to_stop}", markup=False, soft_wrap=True)


def _dry_run(wanted: "InventoryValue", folders: "Folders", wishes: "Wishes") -> None:
    from orchestrator.cli.run import answer, run_shown
    from orchestrator.dry_run import planned_commands

    commands = run_shown(lambda report: planned_commands(wanted, folders, report, wishes))
    for where, line in commands:
        answer().print(f"# {where}", markup=False, soft_wrap=True)
        typer.echo(line)
