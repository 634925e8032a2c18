"""`meshctl tune`: really run the best plans and keep the winner."""

from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.arguments import (
    DEFAULT_INVENTORY,
    AsJson,
    Devices,
    Goal,
    Inventory,
    KnownHosts,
    Mode,
    Recalibrate,
    read_wishes,
)

if TYPE_CHECKING:
    from orchestrator.report import Report
    from orchestrator.tune import TuneResult


def tune(
    inventory: Inventory = DEFAULT_INVENTORY,
    top: Annotated[int, typer.Option("--top", min=1, help="How many of the best plans are run.")] = 3,
    json: AsJson = False,
    mode: Mode = None,
    devices: Devices = None,
    goal: Goal = None,
    recalibrate: Recalibrate = False,
) -> None:
    """Run the best plans, one after the other, and keep what was measured for the plans to come.

    It can be stopped at any time with Ctrl-C: what was measured until then is kept, and nothing is left running.
    """
    from orchestrator.cli.run import answer, run_shown
    from orchestrator.folders import user_folders
    from orchestrator.inventory_file import load_inventory
    from orchestrator.tune import tune as run_tune
    from orchestrator.view.tune import tune_json, tune_view

    wanted = load_inventory(inventory)
    wishes = read_wishes(
        KnownHosts.of(wanted), mode=mode, devices=devices, split=None, goal=goal, recalibrate=recalibrate
    )

    async def work(report: "Report") -> "TuneResult":
        return await run_tune(wanted, user_folders(), report, wishes, top=top)

    result = run_shown(work)
    if json:
        typer.echo(tune_json(result))
    else:
        answer().print(tune_view(result))
