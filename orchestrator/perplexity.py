"""`meshctl model perplexity`: how well models foretell a text, by the engine's own program on this machine's CPU."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import EngineError, UsageError
from orchestrator.folders import Folders
from orchestrator.leash import Exit, start_leashed
from orchestrator.own_machine import OwnMachine, own_machine
from orchestrator.perplexities import (
    Circumstances,
    MeasuredPerplexity,
    keep_perplexity,
    measured_perplexities,
    text_digest,
)
from orchestrator.prepare import prepare_model
from orchestrator.report import Report
from orchestrator.survey.gather import default_threads
from quant.model import Model
from workers.engine_commands import ENVIRONMENT, perplexity_command
from workers.errors import FactsError, LostResultsError
from workers.perplexity_output import ChunkCounter, Perplexity, read_perplexity

LOGS = "perplexity"
RUNS = 3
"""How often a model is measured at most: results that the program did not come to write are measured again."""

LOOKED_AT_BYTES = 64 * 1024
"""Of what is no text; the engine would take hours to cut a model's file into tokens."""


@dataclass(frozen=True)
class Asked:
    """Models by their names, the text's file, tokens per chunk, how many chunks (None: all); `again`: also where it
    is known."""

    models: tuple[str, ...]
    text: Path
    context: int
    chunks: int | None
    again: bool = False


@dataclass(frozen=True)
class Told:
    """A model and how well it foretells the text."""

    model: Model
    perplexity: Perplexity


async def compare_perplexities(asked: Asked, folders: Folders, report: Report) -> tuple[Told, ...]:
    """Of each model in turn; what was measured is kept, also when a later one fails."""
    _check_text(asked.text)
    report.step("Reading the models" if len(asked.models) > 1 else "Reading the model")
    models = [await prepare_model(name, Path.cwd(), folders, report) for name in asked.models]
    _warn_of_others(models, report)
    async with own_machine(folders, report) as own:
        return tuple([Told(model, await _perplexity(asked, model, own, folders, report)) for model in models])


def _check_text(path: Path) -> None:
    if not path.is_file():
        raise UsageError(f"{path} is no file", hint="name a text: --text FILE")
    with path.open("rb") as file:
        if b"\0" in file.read(LOOKED_AT_BYTES):
            raise UsageError(f"{path} is no text: there are bytes of value 0 in it", hint="name a text: --text FILE")


def _warn_of_others(models: Sequence[Model], report: Report) -> None:
    if len({model.vocabulary for model in models}) > 1:
        report.warn("these models cut a text into other tokens, and perplexity is per token: do not compare them")


async def _perplexity(asked: Asked, model: Model, own: OwnMachine, folders: Folders, report: Report) -> Perplexity:
    report.step(f"Measuring {model.path.name}")
    circumstances = Circumstances(text_digest(asked.text), asked.context, asked.chunks, own.engine.manifest.engine)
    for known in measured_perplexities(folders.cache, model.files_digest):
        if known.circumstances == circumstances and not asked.again:
            report.say(f"{model.path.name}: known from an earlier run; --again measures it again")
            return known.perplexity
    measured = await _measure(asked, model, own, report)
    keep_perplexity(folders.cache, model.files_digest, MeasuredPerplexity(circumstances, asked.text.name, measured))
    return measured


async def _measure(asked: Asked, model: Model, own: OwnMachine, report: Report) -> Perplexity:
    """The program's log is read, so each run has its own: another one of this model may go on beside it.

    Again where results have been lost on the way to the log.
    """
    left = RUNS
    while True:
        left -= 1
        with own.log(LOGS) as log:
            ended = await _run(asked, model, own, log, report)
            if ended.status != 0:
                raise EngineError(
                    f"{model.path.name}: its perplexity could not be measured: llama-perplexity: {ended}",
                    hint="check the engine: meshctl engine check; a model needs its size in memory",
                    details=ended.tail,
                )
            try:
                return read_perplexity(Path(log).read_text(errors="replace"), asked.context)
            except FactsError as error:
                if not (left and isinstance(error, LostResultsError)):
                    raise EngineError(
                        f"{model.path.name}: its perplexity could not be measured: {error}", hint=error.hint
                    ) from error
        report.say(f"{model.path.name}: llama-perplexity ended before it had written all results: once more")


async def _run(asked: Asked, model: Model, own: OwnMachine, log: str, report: Report) -> Exit:
    host, counter = own.host, ChunkCounter()

    def follow(line: str) -> None:
        if counter.take(line):
            report.progress(model.path.name, counter.done, counter.total)

    words = perplexity_command(
        str(own.engine.program("llama-perplexity")),
        model=str(model.path),
        text=str(asked.text.absolute()),
        context=asked.context,
        chunks=asked.chunks,
        threads=default_threads(host.facts),
    )
    held = await start_leashed(
        host.shell,
        host.agent,
        words,
        log=log,
        environment={**ENVIRONMENT, "LC_ALL": "C"},
        name=f"llama-perplexity of {model.path.name}",
        uses=host.items(str(own.engine.folder), *(str(shard) for shard in model.shards)),
        may_end=True,
        on_line=follow,
    )
    try:
        return await held.wait()
    finally:
        await held.stop()
