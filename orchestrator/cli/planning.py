"""`meshctl survey` and `meshctl plan`: look, decide, change nothing that runs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.arguments import DEFAULT_INVENTORY, AsJson, Devices, Inventory, Mode, Recalibrate, device_set

if TYPE_CHECKING:
    from orchestrator.inventory import Inventory as InventoryValue
    from orchestrator.plan.values import ModelMemory
    from orchestrator.prepare import Prepared
    from orchestrator.survey.values import Survey


def survey(inventory: Inventory = DEFAULT_INVENTORY, json: AsJson = False, recalibrate: Recalibrate = False) -> None:
    """Measure memory, links and speeds of every host.

    The JSON can be kept and planned from later: meshctl survey --json > here.json; meshctl plan --survey here.json
    """
    from orchestrator.cli.run import answer
    from orchestrator.inventory_file import load_inventory
    from orchestrator.survey.values import survey_json
    from orchestrator.view.survey import survey_view

    prepared = _prepared(load_inventory(inventory), recalibrate)
    if json:
        typer.echo(survey_json(prepared.survey))
    else:
        answer().print(survey_view(prepared.survey))


def plan(
    inventory: Inventory = DEFAULT_INVENTORY,
    survey: Annotated[
        Path | None, typer.Option("--survey", help="Plan from this saved survey; no host is contacted.")
    ] = None,
    json: AsJson = False,
    mode: Mode = None,
    devices: Devices = None,
    recalibrate: Recalibrate = False,
) -> None:
    """Show how the model would run: which layers on which device, bytes against budgets, time per token."""
    from orchestrator.cli.run import answer
    from orchestrator.inventory_file import load_inventory
    from orchestrator.plan.choose import make_plan
    from orchestrator.view.plan import plan_json, plan_view

    wanted = load_inventory(inventory)
    chosen = device_set(devices, wanted if survey is None else None)
    if survey is None:
        prepared = _prepared(wanted, recalibrate)
        surveyed, memory = prepared.survey, prepared.memory
    else:
        surveyed, memory = _from_survey(wanted, survey)
    made = make_plan(surveyed, memory, goal=wanted.goal, devices=chosen, mode=mode)
    if json:
        typer.echo(plan_json(made, surveyed))
    else:
        answer().print(plan_view(made, surveyed))


def _prepared(inventory: "InventoryValue", recalibrate: bool) -> "Prepared":
    from orchestrator.cli.run import run_shown
    from orchestrator.folders import user_folders
    from orchestrator.hosts import open_hosts
    from orchestrator.prepare import prepare
    from orchestrator.report import Report

    async def work(report: Report) -> "Prepared":
        folders = user_folders()
        report.step("Connecting")
        async with open_hosts(inventory, folders, report) as hosts:
            return await prepare(inventory, hosts, folders, report, recalibrate=recalibrate)

    return run_shown(work)


def _from_survey(inventory: "InventoryValue", path: Path) -> "tuple[Survey, ModelMemory]":
    from orchestrator.cli.run import run_shown
    from orchestrator.folders import user_folders
    from orchestrator.prepare import local_engine, prepare_memory, prepare_model
    from orchestrator.report import Report
    from orchestrator.survey.values import read_survey

    surveyed = read_survey(path)

    async def work(report: Report) -> "ModelMemory":
        folders = user_folders()
        report.step("Reading the model")
        engine = await local_engine(folders, report)
        model = await prepare_model(inventory.model, inventory.path.parent, folders, report)
        return await prepare_memory(inventory, engine, model, folders)

    return surveyed, run_shown(work)
