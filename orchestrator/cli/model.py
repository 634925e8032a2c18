"""`meshctl model`: what a model is, and its files."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.arguments import AsJson

if TYPE_CHECKING:
    from collections.abc import Callable

    from orchestrator.report import Report

app = typer.Typer(
    name="model",
    help="Describe models, fit them to machines, quantise, compare, split and keep them.",
    no_args_is_help=True,
)

Name = Annotated[str, typer.Argument(help="A name that meshctl pull knows, or a .gguf file (or its first shard).")]
Force = Annotated[bool, typer.Option("--force", help="Replace files that exist.")]


@app.command()
def show(name: Name, json: AsJson = False) -> None:
    """Show what a model is, what of it takes how much, and what a conversation takes beside it.

    Reads headers only; of a model that is not here they are fetched, a few MB. KV caches are counted as the engine
    does; meshctl plan asks the engine itself.
    """
    from orchestrator.cli.run import answer, run_shown
    from orchestrator.folders import user_folders
    from orchestrator.view.model import model_json, model_view
    from quant.described import described
    from quant.remote_header import find_model_or_headers, is_header

    folders = user_folders()
    path = run_shown(lambda report: find_model_or_headers(name, folders.cache, Path.cwd(), report.say))
    description, is_here = described(path, folders.descriptions), not is_header(path, folders.cache)
    if json:
        typer.echo(model_json(description, is_here=is_here))
    else:
        answer().print(model_view(description, is_here=is_here))


@app.command()
def split(
    name: Name,
    max_size: Annotated[str, typer.Option("--max-size", help="How large a shard may be: 2GiB, 500MB.")],
    out: Annotated[Path, typer.Option("--out", help="The folder for the shards.", show_default="this one")] = Path(),
    force: Force = False,
) -> None:
    """Cut a model into files of a limited size, as llama-gguf-split does; prints them, the first one first.

    That first shard is the model's name from then on.
    """
    from orchestrator.cli.run import run_shown
    from orchestrator.errors import UsageError
    from orchestrator.sizes import parse_memory
    from quant.shards import split_model

    try:
        max_bytes = parse_memory(max_size)
    except ValueError as error:
        message, _, hint = str(error).partition("; ")
        raise UsageError(f"--max-size {message}", hint=hint) from error
    path = _found(name)

    async def work(report: "Report") -> tuple[Path, ...]:
        report.step(f"Splitting {path.name}")
        on_progress = _progress(report, path.name)
        return split_model(path, out, max_bytes, force=force, on_progress=on_progress, say=report.warn)

    for shard in run_shown(work):
        typer.echo(shard)


@app.command()
def join(
    first: Annotated[str, typer.Argument(metavar="FIRST-SHARD", help="The file whose name has -00001-of-.")],
    out: Annotated[Path, typer.Option("--out", help="The file to write.")],
    force: Force = False,
) -> None:
    """Put the shards of a model together into one file; prints it.

    What was split is the same file again, if it was written as llama.cpp does; else split has said so.
    """
    from orchestrator.cli.run import run_shown
    from quant.shards import join_model

    path = _found(first)

    async def work(report: "Report") -> None:
        report.step(f"Joining {path.name}")
        join_model(path, out, force=force, on_progress=_progress(report, out.name))

    run_shown(work)
    typer.echo(out)


def _found(name: str) -> Path:
    from orchestrator.folders import user_folders
    from quant.fetch import find_model

    return find_model(name, user_folders().cache, Path.cwd())


def _progress(report: "Report", label: str) -> "Callable[[int, int], None]":
    """Tells how far it is; ends the work, which cleans up, when the first Ctrl-C has come."""
    import asyncio

    tell, task = report.bytes_of(label), asyncio.current_task()

    def on_progress(done: int, total: int) -> None:
        tell(done, total)
        if task is not None and task.cancelling():
            raise asyncio.CancelledError

    return on_progress
