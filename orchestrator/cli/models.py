"""`meshctl pull`."""

from typing import Annotated

import typer


def pull(
    name: Annotated[str, typer.Argument(help="A model of the catalogue, such as smollm2-135m.")],
) -> None:
    """Fetch a model so that later commands find it; prints where it lies."""
    from pathlib import Path

    from orchestrator.cli.run import run_shown
    from orchestrator.folders import user_folders
    from orchestrator.report import Report
    from quant.fetch import fetch_model

    async def work(report: Report) -> Path:
        report.step(f"Fetching {name}")
        return await fetch_model(name, user_folders().cache, report.bytes_of(name))

    typer.echo(run_shown(work))
