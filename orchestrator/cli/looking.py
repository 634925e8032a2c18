"""`meshctl status`, `events` and `logs`: what a cluster does, once or all the time."""

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.arguments import (
    DEFAULT_INVENTORY,
    AsJson,
    Cluster,
    OfInventory,
    Since,
    named_cluster,
    read_duration_s,
)

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from orchestrator.folders import Folders
    from orchestrator.history import HistoryEvent
    from orchestrator.host_logs import LogLine
    from orchestrator.inventory import Inventory
    from orchestrator.state import ClusterState

WATCH_EVERY_S = 1.0
LEAST_COLUMNS = 40
LINES = 50
FOLLOWED_LINES = 10
COLOURS = ("cyan", "green", "yellow", "magenta", "blue", "bright_red", "bright_cyan", "bright_green")


def status(
    inventory: OfInventory = None,
    cluster: Cluster = None,
    json: AsJson = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show it again and again, until Ctrl-C.")] = False,
) -> None:
    """Show how a cluster is: state, plan, hosts with memory, load and faults, heads, processes."""
    from orchestrator.cli.run import answer, until_stopped
    from orchestrator.errors import UsageError
    from orchestrator.folders import user_folders
    from orchestrator.state import state_json
    from orchestrator.status import last_state

    if watch and json:
        raise UsageError("--watch and --json exclude each other", hint="programs read `status --json` repeatedly")
    state = last_state(user_folders(), named_cluster(inventory, cluster))
    console = answer(LEAST_COLUMNS)
    if json:
        typer.echo(state_json(state))
    elif not watch:
        console.print(_status(state))
    else:
        until_stopped(lambda: (_watch if console.is_terminal else _print_changes)(console, state))
        if console.is_terminal:
            console.print(_status(last_state(user_folders(), state.cluster)))


def _status(state: "ClusterState") -> "RenderableType":
    from datetime import UTC, datetime

    from orchestrator.view.status import status_view

    return status_view(state, datetime.now(UTC))


def _watch(console: "Console", state: "ClusterState") -> None:
    """Until Ctrl-C; a cluster that ends meanwhile is shown as what it became."""
    from time import sleep

    from rich.live import Live

    from orchestrator.folders import user_folders
    from orchestrator.status import last_state

    with Live(_status(state), console=console, screen=True, auto_refresh=False) as live:
        while True:
            sleep(WATCH_EVERY_S)
            live.update(_status(last_state(user_folders(), state.cluster)), refresh=True)


def _print_changes(console: "Console", state: "ClusterState") -> None:
    """What `--watch` is to a pipe: the whole status whenever it has changed."""
    from time import sleep

    from orchestrator.cli.run import answer_is_gone
    from orchestrator.folders import user_folders
    from orchestrator.status import last_state

    shown = None
    while not answer_is_gone():
        if state != shown:
            console.print(_status(state), "")
            shown = state
        sleep(WATCH_EVERY_S)
        state = last_state(user_folders(), state.cluster)


def events(
    inventory: OfInventory = None,
    cluster: Cluster = None,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="How many of the last events.")] = LINES,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with those to come, until Ctrl-C.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print a JSON object per line.")] = False,
) -> None:
    """Show what has happened to a cluster, with the reasons; also after it has ended."""
    from orchestrator.cli.run import answer, until_stopped
    from orchestrator.folders import user_folders
    from orchestrator.history import read_events
    from orchestrator.status import last_state
    from orchestrator.view.events import events_table

    folders = user_folders()
    name = last_state(folders, named_cluster(inventory, cluster)).cluster
    if follow:
        until_stopped(lambda: _follow_events(folders, name, lines, json))
        return
    happened = read_events(folders.cluster(name), lines)
    if json:
        _print_events(happened, json=True)
    else:
        answer(LEAST_COLUMNS).print(events_table(happened))


def _follow_events(folders: "Folders", name: str, lines: int, json: bool) -> None:
    from orchestrator.cli.run import answer_is_gone
    from orchestrator.history import follow_events

    for event in follow_events(folders.cluster(name), lines):
        if event is not None:
            _print_events([event], json=json)
        elif answer_is_gone():
            return


def _print_events(happened: "Iterable[HistoryEvent]", *, json: bool) -> None:
    from orchestrator.history import event_json
    from orchestrator.view.events import event_line

    for event in happened:
        typer.echo(event_json(event) if json else event_line(event))


def logs(
    hosts: Annotated[
        list[str] | None,
        typer.Argument(help="Hosts of the inventory, or `controller`; all of them when none is named.", metavar="HOST"),
    ] = None,
    inventory: Annotated[
        Path | None,
        typer.Option(
            "--inventory", help=f"The inventory file [default: that of the running cluster, else {DEFAULT_INVENTORY}]."
        ),
    ] = None,
    lines: Annotated[
        int | None,
        typer.Option(
            "--lines",
            "-n",
            min=0,
            help=f"How many of the last lines of each log [default: {LINES}; {FOLLOWED_LINES} with --follow; "
            "all with --since].",
        ),
    ] = None,
    since: Since = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what is written, line by line, until Ctrl-C.")
    ] = False,
) -> None:
    """Show what a cluster's processes wrote, on all hosts or some of them."""
    from orchestrator.cli.run import run, until_stopped
    from orchestrator.folders import user_folders
    from orchestrator.host_logs import EVERY_LINE, host_logs, hosts_named
    from orchestrator.inventory_file import load_inventory
    from orchestrator.status import inventory_running

    names, folders = tuple(hosts or ()), user_folders()
    wanted = load_inventory(inventory or inventory_running(folders) or DEFAULT_INVENTORY)
    hosts_named(wanted, names)
    since_s = read_duration_s("--since", since)
    if lines is None:
        lines = EVERY_LINE if since_s is not None else FOLLOWED_LINES if follow else LINES
    if follow:
        until_stopped(lambda: asyncio.run(_follow_logs(wanted, folders, names, lines, since_s)))
        return
    for host, texts in run(host_logs(wanted, folders, names, lines, since_s)).items():
        for file, text in texts.items():
            if since_s is not None and not text:
                continue
            typer.echo(f"==> {file} <==" if len(names) == 1 else f"==> {host}: {file} <==")
            typer.echo(text)


async def _follow_logs(
    wanted: "Inventory", folders: "Folders", names: tuple[str, ...], lines: int, since_s: float | None
) -> None:
    """Until stdout is closed; Ctrl-C cancels it."""
    from orchestrator.cli.run import talk
    from orchestrator.host_logs import follow_logs, hosts_named

    show = _LinePrinter(tuple(hosts_named(wanted, names)))
    following = asyncio.ensure_future(
        follow_logs(
            wanted, folders, names, lines, since_s, show, lambda text: talk().print(text, markup=False, soft_wrap=True)
        )
    )
    closed = asyncio.ensure_future(_until_closed(show))
    try:
        await asyncio.wait({following, closed}, return_when=asyncio.FIRST_COMPLETED)
        if following.done():
            following.result()
    finally:
        following.cancel()
        closed.cancel()
        await asyncio.gather(following, closed, return_exceptions=True)


async def _until_closed(show: "_LinePrinter") -> None:
    from orchestrator.cli.run import answer_is_gone

    while not show.broken and not answer_is_gone():
        await asyncio.sleep(WATCH_EVERY_S / 4)


class _LinePrinter:
    """Prints lines with the names in front, below each other, in a colour for each host where there are colours."""

    def __init__(self, hosts: tuple[str, ...]) -> None:
        from orchestrator.cli.run import answer

        self.broken = False
        self._console = answer()
        self._colours = {host: COLOURS[number % len(COLOURS)] for number, host in enumerate(hosts)}
        self._width = 0

    def __call__(self, line: "LogLine") -> None:
        from rich.text import Text

        name = f"{line.host} {line.log}"
        self._width = max(self._width, len(name))
        text = "".join(character if character.isprintable() else " " for character in line.text)
        shown = Text(f"{name:<{self._width}} | ", self._colours[line.host]).append(text, "default")
        try:
            if not self.broken:
                self._console.print(shown, soft_wrap=True)
        except (BrokenPipeError, SystemExit):  # rich makes a SystemExit of the first
            self.broken = True
