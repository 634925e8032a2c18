"""`meshctl survey` and `meshctl plan`: look, decide, change nothing that runs."""

from collections.abc import Collection, Sequence
from dataclasses import replace
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
    from orchestrator.inventory import Inventory as InventoryValue
    from orchestrator.plan.values import ModelMemory, Ranking
    from orchestrator.prepare import Prepared
    from orchestrator.survey.values import Survey
    from orchestrator.what_if import Addition
    from orchestrator.wishes import Wishes


def survey(inventory: Inventory = DEFAULT_INVENTORY, json: AsJson = False, recalibrate: Recalibrate = False) -> None:
    """Measure memory, links and speeds of every host.

    The JSON can be kept and planned from later: meshctl survey --json > here.json; meshctl plan --survey here.json
    """
    from orchestrator.cli.run import answer
    from orchestrator.inventory_file import load_inventory
    from orchestrator.survey.values import survey_json
    from orchestrator.view.survey import survey_view
    from orchestrator.wishes import Wishes

    prepared = _prepared(load_inventory(inventory), Wishes(recalibrate=recalibrate))
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
    split: Split = None,
    goal: Goal = None,
    cache_type: CacheType = None,
    without: Annotated[
        list[str] | None,
        typer.Option("--without", metavar="HOST", help="As if this host were not there; may be repeated."),
    ] = None,
    add: Annotated[
        list[str] | None,
        typer.Option(
            "--add",
            metavar="NAME=MEMORY,SPEED,LINK",
            help="As if there were this machine too, such as new=16GiB,desktop*0.5,gigabit or "
            "new=16GiB,12t/s,1Gbit/s@0.5ms; may be repeated.",
        ),
    ] = None,
    recalibrate: Recalibrate = False,
) -> None:
    """Show how the model would run, what it would be like, what else was considered, and why."""
    from orchestrator.cli.run import answer
    from orchestrator.errors import UsageError
    from orchestrator.inventory_file import load_inventory
    from orchestrator.survey.values import read_survey
    from orchestrator.view.plan_json import ranking_json
    from orchestrator.view.ranking import ranking_view
    from orchestrator.what_if import check_names, parse_addition

    if survey is not None and recalibrate:
        raise UsageError("--survey and --recalibrate exclude each other", hint="a saved survey is not measured again")
    wanted = load_inventory(inventory)
    adds = [parse_addition(text) for text in add or ()]
    saved = None if survey is None else read_survey(survey)
    hosts = KnownHosts.of(wanted) if saved is None else _hosts_of(saved, survey)
    check_names(hosts.names, without or (), adds)
    wishes = read_wishes(
        _planned_for(hosts, without or (), adds),
        mode=mode,
        devices=devices,
        split=split,
        goal=goal,
        recalibrate=recalibrate,
        cache_type=cache_type,
    )
    if saved is None:
        ranking, surveyed = _ranked_live(wanted, without or (), adds, wishes)
    else:
        ranking, surveyed = _ranked_from(wanted, saved, str(survey), without or (), adds, wishes)
    if json:
        typer.echo(ranking_json(ranking, surveyed))
    else:
        answer().print(ranking_view(ranking, surveyed))


def _hosts_of(survey: "Survey", path: Path | None) -> KnownHosts:
    return KnownHosts(tuple(host.name for host in survey.hosts), str(path))


def _planned_for(hosts: KnownHosts, without: Sequence[str], adds: "Sequence[Addition]") -> KnownHosts:
    """The hosts that there are when all that was supposed is so."""
    kept = [name for name in hosts.names if name not in without]
    place = f"{hosts.place} without {', '.join(without)}" if without else hosts.place
    return replace(hosts, names=(*kept, *(one.name for one in adds)), place=place)


def _ranked_live(
    inventory: "InventoryValue", without: Sequence[str], adds: "Sequence[Addition]", wishes: "Wishes"
) -> "tuple[Ranking, Survey]":
    """The ranking from a survey taken now; hosts that are taken away are not reached unless one added is like them."""
    from orchestrator.prepare import as_wished
    from orchestrator.what_if import what_if

    liked = {one.like.split("/")[0] for one in adds}
    reached = tuple(host for host in inventory.hosts if host.name not in without or host.name in liked)
    there = replace(inventory, hosts=reached or inventory.hosts)
    if not adds:
        return _ranked_as_it_is(there, wishes)
    prepared = _prepared(as_wished(there, wishes), wishes)
    gone = [host.name for host in there.hosts if host.name in without]
    supposed = what_if(prepared.survey, prepared.memory, gone, adds)
    return _rank(inventory, supposed, prepared.memories, wishes), supposed


def _ranked_as_it_is(inventory: "InventoryValue", wishes: "Wishes") -> "tuple[Ranking, Survey]":
    from orchestrator.cli.run import run_shown
    from orchestrator.folders import user_folders
    from orchestrator.hosts import open_hosts
    from orchestrator.prepare import prepare_ranking
    from orchestrator.report import Report

    async def work(report: Report) -> "tuple[Ranking, Survey]":
        folders = user_folders()
        report.step("Connecting")
        async with open_hosts(inventory, folders, report) as hosts:
            prepared, ranking = await prepare_ranking(inventory, hosts, folders, report, wishes)
            return ranking, prepared.survey

    return run_shown(work)


def _ranked_from(
    inventory: "InventoryValue",
    saved: "Survey",
    path: str,
    without: Sequence[str],
    adds: "Sequence[Addition]",
    wishes: "Wishes",
) -> "tuple[Ranking, Survey]":
    """The ranking from a saved survey; no host is reached. UsageError when it was taken with another model."""
    from orchestrator.prepare import as_wished
    from orchestrator.what_if import what_if

    hosts = {host.name for host in inventory.hosts} - {one.name for one in adds} | {*without}
    memories = _memories(as_wished(inventory, wishes), saved, path, hosts)
    refused = memories[0].tensor_refused or saved.tensor_refused
    supposed = what_if(replace(saved, tensor_refused=refused), memories[0], without, adds)
    return _rank(inventory, supposed, memories, wishes), supposed


def _rank(
    inventory: "InventoryValue", survey: "Survey", memories: "tuple[ModelMemory, ...]", wishes: "Wishes"
) -> "Ranking":
    from orchestrator.plan.robust import rank_within
    from orchestrator.prepare import asked_of

    return rank_within(survey, memories, asked_of(wishes, inventory))


def _prepared(inventory: "InventoryValue", wishes: "Wishes") -> "Prepared":
    from orchestrator.cli.run import run_shown
    from orchestrator.folders import user_folders
    from orchestrator.hosts import open_hosts
    from orchestrator.prepare import prepare
    from orchestrator.report import Report

    async def work(report: Report) -> "Prepared":
        folders = user_folders()
        report.step("Connecting")
        async with open_hosts(inventory, folders, report) as hosts:
            return await prepare(inventory, hosts, folders, report, wishes)

    return run_shown(work)


def _memories(
    inventory: "InventoryValue", saved: "Survey", path: str, hosts: Collection[str]
) -> "tuple[ModelMemory, ...]":
    """The model as the engine here counts it; what a survey that should be of these `hosts` leaves in doubt is told."""
    from orchestrator.cli.run import run_shown
    from orchestrator.engine.stock import Stock
    from orchestrator.errors import UsageError
    from orchestrator.folders import user_folders
    from orchestrator.prepare import prepare_memories, prepare_model
    from orchestrator.report import Report
    from orchestrator.survey.values import doubts
    from quant.slice import shape_digest
    from quant.source import display_name

    async def work(report: Report) -> "tuple[ModelMemory, ...]":
        folders = user_folders()
        report.step("Reading the model")
        engine = await Stock(folders.cache, report).cpu()
        model = await prepare_model(inventory.model, inventory.path.parent, folders, report)
        if saved.shape not in ("", shape_digest(model)):
            shown = display_name(inventory.model)
            raise UsageError(
                f"{path} was measured with {saved.model}: {shown} has other tensors, at other speeds",
                hint="take a survey with this model: meshctl survey INVENTORY --json > FILE",
            )
        kept_as = (inventory.cache_type,), inventory.flash_attention, engine.manifest.engine
        caps = {host.name: host.memory for host in inventory.hosts}
        for doubt in doubts(saved, path, *kept_as, hosts=hosts, parallel=inventory.parallel, caps=caps):
            report.warn(doubt)
        return await prepare_memories(inventory, engine, model, folders)

    return run_shown(work)
