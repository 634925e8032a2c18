"""`meshctl model quantise` and `meshctl model perplexity`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.arguments import AsJson
from orchestrator.cli.fitting import Preferred
from workers.perplexity_output import LEAST_CONTEXT

if TYPE_CHECKING:
    from orchestrator.perplexity import Told
    from orchestrator.plan.fit import Option, Prefer
    from orchestrator.quantising import Wanted
    from orchestrator.report import Report


def quantise(
    source: Annotated[str, typer.Argument(help="A model of the catalogue, or a .gguf file (or its first shard).")],
    kind: Annotated[str | None, typer.Option("--type", help="What it shall become, such as Q4_K_M.")] = None,
    inventory: Annotated[
        Path | None,
        typer.Option("--fit", metavar="INVENTORY", help="The best that fits these hosts, as meshctl model fit says."),
    ] = None,
    survey: Annotated[Path | None, typer.Option("--survey", help="With --fit: use this saved survey.")] = None,
    prefer: Preferred = "balance",
    out: Annotated[Path | None, typer.Option("--out", help="The file to write; else one in the models folder.")] = None,
    imatrix: Annotated[
        Path | None, typer.Option("--imatrix", help="An importance matrix of this model, from llama-imatrix.")
    ] = None,
    allow_requantise: Annotated[
        bool,
        typer.Option("--allow-requantise", help="Also a model that is quantised already: what it lost stays lost."),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
) -> None:
    """Make a smaller model of another one, which is fetched first where it is not here; prints where it lies.

    What it takes is said before it is written.
    """
    from orchestrator.cli.fitting import check_folder
    from orchestrator.errors import UsageError
    from orchestrator.quantising import Wanted
    from quant.errors import QuantiseError
    from quant.quantisations import find_quantisation

    if out is not None:
        check_folder("--out", out)
    if (kind is None) == (inventory is None):
        raise UsageError("what shall it become?", hint="give either --type TYPE or --fit INVENTORY")
    best = None if inventory is None else _best(source, inventory, survey, prefer, imatrix)
    if best is not None and best.where == "here":
        if out is not None or force:
            raise UsageError(
                f"{best.name}, the best, is here already: {best.model.path}",
                hint=f"use it without --out and --force; or make one: --type {best.name}",
            )
        typer.echo(best.model.path)
        return
    source, name = (best.origin, best.name) if best else (source, str(kind))
    try:
        wanted = Wanted(source, find_quantisation(name), out, imatrix, allow_requantise, force)
    except QuantiseError as error:
        raise UsageError(str(error), hint=error.hint) from error
    typer.echo(_made(wanted))


def _made(wanted: "Wanted") -> Path:
    from orchestrator.cli.run import run_shown
    from orchestrator.folders import user_folders
    from orchestrator.quantising import quantise as run_quantise

    async def work(report: "Report") -> Path:
        return await run_quantise(wanted, user_folders(), report)

    return run_shown(work)


def _best(source: str, inventory: Path, survey: Path | None, prefer: "Prefer", importance: Path | None) -> "Option":
    """What `meshctl model fit` marks; it is shown, on stderr. PlanError where nothing fits."""
    from orchestrator.cli.fitting import ask, read_question
    from orchestrator.cli.run import talk, terminal_columns
    from orchestrator.errors import PlanError, UsageError
    from orchestrator.fitting import published_name
    from orchestrator.view.fit import columns_for, fit_view

    answer = ask(read_question(source, inventory, prefer=prefer, survey=survey, importance=importance))
    room = terminal_columns(stderr=True)
    talk(columns_for(answer, room)).print(fit_view(answer, room))
    if answer.wanted is None:
        raise PlanError(f"no quantisation of {source} fits these hosts", hint="see the table: meshctl model fit")
    option = answer.wanted.option
    if option.where == "hub":
        raise UsageError(
            f"{option.name} is published already", hint=f"fetch it: meshctl pull {published_name(source, option.name)}"
        )
    return option


def perplexity(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Models; each is compared with the first.")],
    text: Annotated[Path, typer.Option("--text", help="The text they foretell: a file, the same for all.")],
    context: Annotated[int, typer.Option("--context", min=LEAST_CONTEXT, help="Tokens per chunk of the text.")] = 512,
    chunks: Annotated[int | None, typer.Option("--chunks", min=1, help="Only the first so many; else all.")] = None,
    again: Annotated[bool, typer.Option("--again", help="Measure also what is known from an earlier run.")] = False,
    json: AsJson = False,
) -> None:
    """Measure on this machine's CPU how well models foretell a text: what quantising has cost. Results are kept."""
    from orchestrator.cli.run import answer, run_shown, talk
    from orchestrator.folders import user_folders
    from orchestrator.perplexity import Asked, compare_perplexities
    from orchestrator.view.perplexity import measured_text, perplexities_json, perplexities_view

    asked = Asked(tuple(models), text, context, chunks, again)

    async def work(report: "Report") -> "tuple[Told, ...]":
        return await compare_perplexities(asked, user_folders(), report)

    told = run_shown(work)
    if json:
        typer.echo(perplexities_json(told))
        return
    talk().print(measured_text(told, text.name), markup=False)
    answer().print(perplexities_view(told))
