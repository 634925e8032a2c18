"""`meshctl bench`: is the cluster faster than each machine alone?"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.arguments import (
    DEFAULT_INVENTORY,
    AsJson,
    CacheType,
    Devices,
    Goal,
    Inventory,
    KnownHosts,
    Mode,
    Recalibrate,
    Split,
    read_wishes,
)

if TYPE_CHECKING:
    from orchestrator.bench import Comparison
    from orchestrator.group_bench import BenchSize
    from orchestrator.inventory import Inventory as InventoryValue
    from orchestrator.report import Report
    from orchestrator.wishes import Wishes


def bench(
    inventory: Inventory = DEFAULT_INVENTORY,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer tokens and repetitions.")] = False,
    json: AsJson = False,
    csv: Annotated[bool, typer.Option("--csv", help="Print only CSV on stdout.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table on stdout.")] = False,
    chart: Annotated[Path | None, typer.Option("--chart", help="Also write a bar chart, .png or .svg.")] = None,
    mode: Mode = None,
    devices: Devices = None,
    split: Split = None,
    goal: Goal = None,
    cache_type: CacheType = None,
    top: Annotated[int, typer.Option("--top", min=0, help="Also measure this many of the best other plans.")] = 0,
    recalibrate: Recalibrate = False,
) -> None:
    """Measure each device alone, then the cluster, and say which to use.

    The bench starts workers of its own; a cluster that is up stays up, and its memory counts as taken.
    """
    from orchestrator.bench import FULL, QUICK
    from orchestrator.cli.run import answer
    from orchestrator.errors import UsageError
    from orchestrator.inventory_file import load_inventory
    from orchestrator.view.bench import bench_csv, bench_json, bench_markdown, bench_view, check_chart, write_chart

    if json + csv + markdown > 1:
        raise UsageError("--json, --csv and --markdown exclude each other", hint="choose one")
    if chart is not None:
        check_chart(chart)
    wanted = load_inventory(inventory)
    wishes = read_wishes(
        KnownHosts.of(wanted),
        mode=mode,
        devices=devices,
        split=split,
        goal=goal,
        recalibrate=recalibrate,
        cache_type=cache_type,
    )
    comparison = _compare(wanted, QUICK if quick else FULL, wishes, top)
    if chart is not None:
        write_chart(comparison, chart)
    if json:
        typer.echo(bench_json(comparison))
    elif csv:
        typer.echo(bench_csv(comparison), nl=False)
    elif markdown:
        typer.echo(bench_markdown(comparison), nl=False)
    else:
        answer().print(bench_view(comparison))


def _compare(wanted: "InventoryValue", size: "BenchSize", wishes: "Wishes", top: int) -> "Comparison":
    from orchestrator.bench import run_bench
    from orchestrator.cli.run import run_shown
    from orchestrator.folders import user_folders
    from orchestrator.hosts import open_hosts
    from orchestrator.prepare import prepare_ranking
    from orchestrator.processes import Started
    from orchestrator.state import measuring

    folders = user_folders()

    async def work(report: "Report") -> "Comparison":
        report.step("Connecting")
        with measuring(folders.cluster(wanted.cluster)):
            return await compare(report)

    async def compare(report: "Report") -> "Comparison":
        async with open_hosts(wanted, folders, report) as hosts:
            prepared, ranking = await prepare_ranking(wanted, hosts, folders, report, wishes)
            started = Started()
            try:
                return await run_bench(prepared, ranking, hosts, folders, size, started, report, top=top)
            finally:
                await started.stop()

    return run_shown(work)
