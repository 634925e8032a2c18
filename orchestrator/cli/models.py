"""`meshctl pull`."""

from typing import Annotated

import typer

from orchestrator.cli.arguments import AsJson


def pull(
    name: Annotated[
        str | None,
        typer.Argument(
            help="A model of the catalogue, hf:OWNER/REPOSITORY[:QUANTISATION], or the link or path of a .gguf file. "
            "Without one: show the catalogue."
        ),
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Ask where it comes from whether it has changed, though it is here.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Fetch a model so that later commands find it; prints where it lies."""
    import json

    if name is None:
        _show_catalogue(as_json)
        return
    path = _fetch(name, again=again)
    typer.echo(json.dumps({"name": name, "path": path}) if as_json else path)


def _show_catalogue(as_json: bool) -> None:
    from orchestrator.cli.run import answer
    from orchestrator.view.catalogue import catalogue_json, catalogue_view
    from quant.catalogue import CATALOGUE

    if as_json:
        typer.echo(catalogue_json(CATALOGUE))
    else:
        answer().print(catalogue_view(CATALOGUE))


def _fetch(name: str, *, again: bool) -> str:
    from pathlib import Path

    from orchestrator.cli.run import run_shown
    from orchestrator.folders import user_folders
    from orchestrator.models_quota import room_in_quota
    from orchestrator.report import Report
    from quant.catalogue import CATALOGUE
    from quant.fetch import fetch_model
    from quant.source import display_name

    async def work(report: Report) -> Path:
        shown = display_name(name)
        report.step(f"Fetching {shown}")
        folders = user_folders()
        room, tell = room_in_quota(folders, report.warn), report.bytes_of(shown)
        path = await fetch_model(name, folders.cache, tell, say=report.say, again=again, make_room=room)
        if name in CATALOGUE:
            entry = CATALOGUE[name]
            report.say(f"{entry.licence}; begin with `context: {entry.suggested_context}` in inventory.yaml")
        return path

    return str(run_shown(work))
