"""`meshctl tune`: really run the best plans and keep the winner."""

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
    cache_type: CacheType = None,
    recalibrate: Recalibrate = False,
    forget: Annotated[
        bool, typer.Option("--forget", help="Run nothing: drop the winners kept for this inventory's cluster.")
    ] = False,
) -> None:
    """Run the best plans, one after the other, and keep what was measured for the plans to come.

    The best one is what `meshctl up` runs from then on, until another plan is measured to be better. It can be
    stopped at any time with Ctrl-C: what was measured until then is kept, and nothing is left running.
    """
    from orchestrator.cli.run import answer, run_shown, talk
    from orchestrator.folders import user_folders
    from orchestrator.inventory_file import load_inventory
    from orchestrator.tune import tune as run_tune
    from orchestrator.tuned import forget_tuned
    from orchestrator.view.tune import tune_json, tune_view

    wanted = load_inventory(inventory)
    if forget:
        count = forget_tuned(user_folders().cluster(wanted.cluster))
        talk().print(f"{wanted.cluster}: {count} kept {'winner' if count == 1 else 'winners'} dropped", markup=False)
        return
    wishes = read_wishes(
        KnownHosts.of(wanted),
        mode=mode,
        devices=devices,
        split=None,
        goal=goal,
        recalibrate=recalibrate,
        cache_type=cache_type,
    )

    async def work(report: "Report") -> "TuneResult":
        return await run_tune(wanted, user_folders(), report, wishes, top=top)

    result = run_shown(work)
    if json:
        typer.echo(tune_json(result))
    else:
        answer().print(tune_view(result))
