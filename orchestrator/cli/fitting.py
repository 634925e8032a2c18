"""`meshctl model fit`: which quantisation of a model to take on the machines of an inventory."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from orchestrator.cli.arguments import DEFAULT_INVENTORY, AsJson, Goal, Inventory, Recalibrate, read_cache_type

if TYPE_CHECKING:
    from orchestrator.fitting import Answer, Question
    from orchestrator.report import Report
    from workers.engine_commands import CacheType

Name = Annotated[str, typer.Argument(help="A name that meshctl pull knows, also one not fetched yet, or a .gguf file.")]
Contexts = Annotated[
    str | None, typer.Option("--context", metavar="TOKENS,...", help="Contexts to compare; else the inventory's.")
]
CacheTypes = Annotated[
    str | None,
    typer.Option("--cache-type", metavar="TYPE,...", help="KV cache as f16, q8_0, q4_0; else the inventory's."),
]
Types = Annotated[
    str | None,
    typer.Option(
        "--types", metavar="TYPE,...", help="Quantisations to compare; else all there are, and a dozen to make."
    ),
]
Preferred = Annotated[
    Literal["speed", "balance", "quality"],
    typer.Option(
        "--prefer",
        help="balance: the most precise at 80 % of the fastest's speed; quality: the most precise; speed: the fastest.",
    ),
]
Saved = Annotated[Path | None, typer.Option("--survey", help="Use this saved survey; no host is contacted.")]


def fit(
    name: Name,
    inventory: Inventory = DEFAULT_INVENTORY,
    context: Contexts = None,
    cache_type: CacheTypes = None,
    types: Types = None,
    goal: Goal = None,
    parallel: Annotated[int | None, typer.Option("--parallel", min=1, max=256, help="Conversations at once.")] = None,
    prefer: Preferred = "balance",
    survey: Saved = None,
    save: Annotated[Path | None, typer.Option("--save", help="Keep the survey in this file, for --survey.")] = None,
    recalibrate: Recalibrate = False,
    json: AsJson = False,
) -> None:
    """Show which quantisations of a model fit these machines, how fast each would be, and which is the best.

    Kernels are timed once for each device and quantisation, and kept. Of a published model only headers are fetched.
    Ends with status 1 where nothing fits.
    """
    from orchestrator.cli.run import answer, terminal_columns
    from orchestrator.survey.values import survey_json
    from orchestrator.view.fit import columns_for, fit_json, fit_view
    from quant.whole_file import written_whole

    check_save(save)
    question = read_question(
        name,
        inventory,
        context=context,
        cache_type=cache_type,
        types=types,
        goal=goal,
        parallel=parallel,
        prefer=prefer,
        survey=survey,
        recalibrate=recalibrate,
    )
    found = ask(question)
    if json:
        typer.echo(fit_json(found))
    else:
        room = terminal_columns()
        answer(columns_for(found, room)).print(fit_view(found, room))
    if save is not None:
        with written_whole(save) as partial:
            partial.write_text(survey_json(found.survey))
    if all(row.plan is None for row in found.rows):
        raise typer.Exit(1)


def check_save(save: Path | None) -> None:
    """UsageError where nothing can be written there: better before minutes of measuring than after them."""
    from orchestrator.errors import UsageError

    if save is None:
        return
    if save.is_dir():
        raise UsageError(f"--save {save} is a folder", hint="name a file in it")
    check_folder("--save", save)


def check_folder(option: str, file: Path) -> None:
    """UsageError where the folder that a file shall be written to is not there: none is made unasked."""
    from orchestrator.errors import UsageError

    if not file.absolute().parent.is_dir():
        raise UsageError(f"{option} {file}: there is no folder {file.parent}", hint="make it, or name another file")


def ask(question: "Question") -> "Answer":
    """The answer, with its steps shown."""
    from orchestrator.cli.run import run_shown
    from orchestrator.fitting import answer_fit
    from orchestrator.folders import user_folders

    async def work(report: "Report") -> "Answer":
        return await answer_fit(question, user_folders(), report)

    return run_shown(work)


def read_question(
    name: str,
    inventory: Path,
    *,
    context: str | None = None,
    cache_type: str | None = None,
    types: str | None = None,
    goal: Literal["latency", "throughput"] | None = None,
    parallel: int | None = None,
    prefer: Literal["speed", "balance", "quality"] = "balance",
    survey: Path | None = None,
    recalibrate: bool = False,
    importance: Path | None = None,
) -> "Question":
    """What the options ask; UsageError for what cannot be meant, before a host is reached."""
    from orchestrator.errors import UsageError
    from orchestrator.fitting import Question
    from orchestrator.inventory_file import load_inventory
    from orchestrator.survey.values import read_survey

    if survey is not None and recalibrate:
        raise UsageError("--survey and --recalibrate exclude each other", hint="a saved survey is not measured again")
    written = load_inventory(inventory)
    contexts = _contexts(context) if context is not None else (written.context,)
    cache_types = _cache_types(cache_type) if cache_type is not None else (written.cache_type,)
    asked = replace(
        written,
        goal=goal or written.goal,
        parallel=parallel or written.parallel,
        context=written.context if written.context in contexts else max(contexts),
        cache_type=written.cache_type if written.cache_type in cache_types else cache_types[0],
    )
    return Question(
        model=name,
        base=Path.cwd(),
        inventory=asked,
        written=written,
        contexts=contexts,
        cache_types=cache_types,
        types=None if types is None else _types(types),
        prefer=prefer,
        saved=None if survey is None else (read_survey(survey), survey),
        recalibrate=recalibrate,
        importance=importance,
    )


def _words(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))


def _contexts(text: str) -> tuple[int, ...]:
    from orchestrator.errors import UsageError
    from orchestrator.inventory_fields import CONTEXT_RANGE

    words, (least, most) = _words(text), CONTEXT_RANGE
    wrong = [word for word in words if not word.isdecimal() or not least <= int(word) <= most]
    if wrong or not words:
        raise UsageError(
            f"--context {text!r}: {wrong[0] if wrong else 'nothing'} is no number of {least} to {most} tokens",
            hint="write numbers with commas between, such as 4096,16384",
        )
    return tuple(sorted(int(word) for word in words))


def _cache_types(text: str) -> "tuple[CacheType, ...]":
    """The most precise first."""
    from orchestrator.errors import UsageError
    from workers.engine_commands import CACHE_TYPES

    kinds = {read_cache_type(word) for word in _words(text)}
    if not kinds:
        raise UsageError("--cache-type names nothing", hint=f"such as {','.join(CACHE_TYPES)}")
    return tuple(kind for kind in CACHE_TYPES if kind in kinds)


def _types(text: str) -> tuple[str, ...]:
    words = tuple(word.upper() for word in _words(text))
    if not words:
        from orchestrator.errors import UsageError

        raise UsageError("--types names nothing", hint="such as Q4_K_M,Q6_K")
    return words
