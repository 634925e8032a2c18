"""`meshctl model fit`: every quantisation of a model, at each context and cache type, planned on the user's machines.

From a survey taken now, in which kernels are timed that are not known yet, or from a saved one in seconds.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.engine.stock import Stock
from orchestrator.engine.store import Engine
from orchestrator.errors import MeshctlError, UsageError
from orchestrator.experience_store import circumstances_of, load_experience
from orchestrator.fanout import each_host
from orchestrator.fit_options import Choices, find_choices
from orchestrator.folders import Folders
from orchestrator.hosts import open_hosts
from orchestrator.inventory import Inventory
from orchestrator.memory import count_memory
from orchestrator.plan.experience import Experience
from orchestrator.plan.fit import Fit, Memories, Option, Prefer, fit_all
from orchestrator.plan.retyped import Work, work_of
from orchestrator.plan.values import ModelMemory
from orchestrator.prepare import MICRO_BATCHES, asked_of, make_ready, take_survey
from orchestrator.report import Report
from orchestrator.survey.rates import measure_rates
from orchestrator.survey.values import Survey, doubts
from orchestrator.wishes import Wishes
from quant.catalogue import CatalogueModel, HubSource
from quant.errors import QuantError
from quant.fetch import find_model
from quant.gguf_file import read_model
from quant.model import Model
from quant.slice import shape_digest
from quant.source import read_source
from workers.engine_commands import CacheType

_COUNTS_AT_ONCE = 4


@dataclass(frozen=True)
class Question:
    """What is asked: this model on the inventory's hosts. `inventory` has the context, parallel, cache type and goal
    that are asked for, `written` what the file says. `types` None: all that there are. `saved`: the survey to use, and
    where it is from. `importance`: a matrix that quantisations would be made with."""

    model: str
    base: Path
    inventory: Inventory
    written: Inventory
    contexts: tuple[int, ...]
    cache_types: tuple[CacheType, ...]
    types: tuple[str, ...] | None = None
    prefer: Prefer = "balance"
    saved: tuple[Survey, Path] | None = None
    recalibrate: bool = False
    importance: Path | None = None


@dataclass(frozen=True)
class Answer:
    """The rows, the most bits first, and the survey that they are from, with all rates that they needed."""

    model: str
    question: Question
    rows: tuple[Fit, ...]
    survey: Survey

    @property
    def wanted(self) -> Fit | None:
        """The best at the inventory's context, or at the largest that was asked for where that is none of them."""
        contexts, own = self.question.contexts, self.question.inventory.context
        context = own if own in contexts else max(contexts)
        return next((row for row in self.rows if row.best and row.context == context), None)


def published_name(name: str, kind: str) -> str:
    """What to call another quantisation of the same repository: "hf:owner/repository:Q6_K"."""
    source = read_source(name)
    place = source.source if isinstance(source, CatalogueModel) else source
    return replace(place, wanted=kind).text if isinstance(place, HubSource) else name


async def answer_fit(question: Question, folders: Folders, report: Report) -> Answer:
    """The table. PlanError is for a single plan: what fits nowhere is a row of its own here. EngineError where the
    engine can count nothing of what is asked."""
    report.step("Reading the model")
    engine = await Stock(folders.cache, report).cpu()
    base, types, importance = question.base, question.types, question.importance
    choices = await find_choices(question.model, base, types, engine, folders, report, importance=importance)
    if not choices.options:
        raise UsageError(f"{question.model}: it cannot be had in any of these types", hint="leave --types out")
    report.say(f"{choices.source.name}: {', '.join(option.name for option in choices.options)}")
    report.step("Counting memory")
    memories = await _memories(question, choices.source, engine, folders)
    if question.saved is not None:
        survey, surveyed = _from_saved(question, choices, *question.saved)
        path, attention = str(question.saved[1]), question.inventory.flash_attention
        caps = {host.name: host.memory for host in question.inventory.hosts}
        for doubt in doubts(
            *(survey, path, question.cache_types, attention, engine.manifest.engine),
            hosts=caps,
            parallel=question.inventory.parallel,
            caps=caps,
        ):
            report.warn(doubt)
    else:
        survey, surveyed = await _surveyed(question, choices, memories, folders, report)
    report.step("Planning")
    options = _experienced(choices.options, question, surveyed, survey, folders)
    asked = asked_of(Wishes(), question.inventory)
    rows = fit_all(survey, _work_of(surveyed, choices), options, memories, asked, question.prefer)
    _tell_unmeasured(rows, question, report)
    return Answer(choices.name, question, rows, survey)


async def _memories(question: Question, source: Model, engine: Engine, folders: Folders) -> Memories:
    """Counted by the engine for one type: no buffer and no cache depends on the weights' types. The first error where
    it counts none."""
    asked = {
        f"{context} {kept_as} {size}": count_memory(
            engine.folder,
            source,
            context=context,
            parallel=question.inventory.parallel,
            micro_batch=size,
            cache_type=kept_as,
            flash_attention=question.inventory.flash_attention,
            cache=folders.cache / "memory",
        )
        for context in question.contexts
        for kept_as in question.cache_types
        for size in _sizes(context)
    }
    counted = await each_host(asked, limit=_COUNTS_AT_ONCE)
    found = {
        (context, kept_as): _all_or_why([counted[f"{context} {kept_as} {size}"] for size in _sizes(context)])
        for context in question.contexts
        for kept_as in question.cache_types
    }
    failed = [one for one in found.values() if isinstance(one, MeshctlError)]
    if len(failed) == len(found):
        raise failed[0]
    return {at: str(one) if isinstance(one, MeshctlError) else one for at, one in found.items()}


def _sizes(context: int) -> list[int]:
    return [size for size in MICRO_BATCHES if size <= context or size == MICRO_BATCHES[0]]


def _all_or_why(counted: Sequence[ModelMemory | MeshctlError]) -> Sequence[ModelMemory] | MeshctlError:
    failed = [one for one in counted if isinstance(one, MeshctlError)]
    return failed[0] if failed else [one for one in counted if not isinstance(one, MeshctlError)]


def _from_saved(question: Question, choices: Choices, survey: Survey, path: Path) -> tuple[Survey, Model]:
    surveyed = choices.surveyed(survey.shape)
    if surveyed is None:
        raise UsageError(
            f"{path} was measured with {survey.model}, which is none of the quantisations of {question.model}",
            hint="take one with this model: meshctl model fit NAME INVENTORY --save FILE",
        )
    return survey, surveyed


async def _surveyed(
    question: Question, choices: Choices, memories: Memories, folders: Folders, report: Report
) -> tuple[Survey, Model]:
    """A survey with the model that the inventory runs, where it is one of them: its speeds are known already."""
    surveyed = _of_inventory(question.inventory, choices, folders) or choices.source
    context, kept_as = _counted_at(question.inventory, memories)
    inventory = replace(question.inventory, model=str(surveyed.path), context=context, cache_type=kept_as)
    least = min(option.model.size_bytes for option in choices.options)
    wishes = Wishes(recalibrate=question.recalibrate)
    report.step("Connecting")
    async with open_hosts(inventory, folders, report) as hosts:
        ready = await make_ready(inventory, hosts, folders, report, wishes, least)
        survey = await take_survey(ready, report, wishes)
        report.step("Measuring kernels")
        works = {**_works_to_time(survey, choices.options), surveyed.name: _work_of(surveyed, choices)}
        return await measure_rates(ready.measuring, survey, works, report), surveyed


def _counted_at(inventory: Inventory, memories: Memories) -> tuple[int, CacheType]:
    """The inventory's context and cache type, or others that the engine does not refuse."""
    counted = (at for at, memory in memories.items() if not isinstance(memory, str))
    return min(counted, key=lambda at: (at[1] != inventory.cache_type, at[0] != inventory.context))


def _works_to_time(survey: Survey, options: Iterable[Option]) -> dict[str, Work]:
    """Those of options whose weights all devices together could hold; how fast others would be does not matter."""
    room = sum(device.budget.usable_bytes for device in survey.devices) + survey.controller.memory_available_bytes
    return {option.name: option.work for option in options if option.model.size_bytes < room}


def _of_inventory(inventory: Inventory, choices: Choices, folders: Folders) -> Model | None:
    try:
        model = read_model(find_model(inventory.model, folders.cache, inventory.path.parent))
    except QuantError:
        return None
    return model if choices.surveyed(shape_digest(model)) is not None else None


def _work_of(model: Model, choices: Choices) -> Work:
    """That of the option with the same tensors, or its own."""
    shape = shape_digest(model)
    same = (option.work for option in choices.options if shape_digest(option.model) == shape)
    return next(same, None) or work_of(model)


def _experienced(
    options: Iterable[Option], question: Question, surveyed: Model, survey: Survey, folders: Folders
) -> list[Option]:
    """Each with what runs of its own have shown, else with how far predictions were off for the others: by cache type,
    since what a run shows is of one."""
    options = list(options)
    of = circumstances_of(surveyed, survey.engine, survey, question.inventory)
    shapes = {option.name: shape_digest(option.model) for option in options}
    found: dict[str, dict[CacheType, Experience]] = {name: {} for name in shapes}
    for kept_as in question.cache_types:
        run = {
            shape: load_experience(folders, replace(of, cache_type=kept_as, shape=shape))
            for shape in dict.fromkeys((of.shape, *shapes.values()))
        }
        of_others = tuple(record for one in run.values() for record in one.of_another().records)
        others = Experience(of_others, kinds=of.kinds)
        for name, shape in shapes.items():
            found[name][kept_as] = run[shape] if run[shape].records else others
    return [replace(option, experience=found[option.name]) for option in options]


def _tell_unmeasured(rows: Iterable[Fit], question: Question, report: Report) -> None:
    """Of what is shown: the speeds of rows that have a plan."""
    missing = dict.fromkeys(row.option.name for row in rows if row.plan is not None and row.unmeasured)
    if missing:
        how = "; without --survey they are timed" if question.saved is not None else ""
        report.warn(f"{', '.join(missing)}: not timed on every device, speeds of these are worked out by bytes{how}")
