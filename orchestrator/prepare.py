"""Everything before a plan: engine on every host, model, the engine's memory arithmetic, the survey; then the ranking.

Nothing is started that outlives these functions; what they put on a host is its own copy of the engine, and slices.
"""

import asyncio
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from orchestrator.engine.build import build_engine, local_platform
from orchestrator.engine.host_build import BuildKit
from orchestrator.engine.install import Installed, ensure_on_host, prove_here
from orchestrator.engine.source_archive import pack_source
from orchestrator.engine.store import Engine, find_engine
from orchestrator.errors import MeshctlError, PlanError
from orchestrator.experience_store import Circumstances, circumstances_of, load_experience
from orchestrator.fanout import all_or_raise, each_host
from orchestrator.folders import Folders
from orchestrator.hosts import OpenHosts, open_hosts
from orchestrator.inventory import Inventory
from orchestrator.memory import count_memory
from orchestrator.plan.asked import Asked
from orchestrator.plan.choose import rank_plans
from orchestrator.plan.conversations import for_conversations
from orchestrator.plan.experience import NO_EXPERIENCE, Experience
from orchestrator.plan.pools import find_candidates
from orchestrator.plan.robust import find_fallbacks, rank_within
from orchestrator.plan.tensor import finalists
from orchestrator.plan.values import ModelMemory, Ranking
from orchestrator.report import Report
from orchestrator.survey.gather import gather_survey
from orchestrator.survey.slices import SliceStore
from orchestrator.survey.tensor_times import measure_tensor, with_kept
from orchestrator.survey.timing import Measuring
from orchestrator.survey.values import Survey
from orchestrator.tuned import is_beaten, load_tuned, memory_at, prefer, tuned_plan, valid_for, with_threads
from orchestrator.view.sizes import bytes_text
from orchestrator.wishes import Wishes
from quant.catalogue import CATALOGUE
from quant.fetch import fetch_model, find_model, model_path
from quant.gguf_file import read_model
from quant.model import Model
from workers.agent import Recorded, is_damaged, read_record, write_record
from workers.engine import RECIPES

MICRO_BATCHES = (64, 256, 512)
"""Prompt tokens per pass. Stages overlap only over several passes (64: 1.73 times one worker at 1,024 tokens and two
equal stages, the engine's default of 512: 1.23 times; 32 slows each worker by a quarter); a device alone is faster with
large ones. Plans are placed with the buffers of the first."""


@dataclass(frozen=True)
class Prepared:
    """What planning, bringing up and benchmarking start from. `engine_folders` has each host's own copy by name.

    `memories` has the model at each of `MICRO_BATCHES`, `experience` what earlier runs have measured.
    """

    inventory: Inventory
    engine: Engine
    engine_folders: dict[str, str]
    model: Model
    memories: tuple[ModelMemory, ...]
    survey: Survey
    experience: Experience

    @property
    def memory(self) -> ModelMemory:
        """At the micro-batch that plans are placed with."""
        return self.memories[0]

    @property
    def circumstances(self) -> Circumstances:
        """What anything measured with it is of."""
        return circumstances_of(self.model, self.engine.manifest.engine, self.survey, self.inventory)


def asked_of(wishes: Wishes, inventory: Inventory) -> Asked:
    """What the planner is asked for: the wishes, and the inventory's goal where they have none.

    In a recovery the loss that was to be survived has happened, and any mode is better than none.
    """
    return Asked(
        wishes.goal or inventory.goal,
        wishes.devices,
        wishes.mode,
        wishes.split,
        survive=0 if wishes.hurry else inventory.survive,
        minimum_context=inventory.minimum_context or 0,
        lenient=wishes.hurry,
    )


async def prepare_ranking(
    inventory: Inventory, hosts: OpenHosts, folders: Folders, report: Report, wishes: Wishes
) -> tuple[Prepared, Ranking]:
    """Measure, then rank every way to run the model, a tuned winner first. PlanError with every shortfall when there is
    no way."""
    prepared = await prepare(inventory, hosts, folders, report, wishes)
    report.step("Planning", "planning")
    asked = _but_busy(asked_of(wishes, inventory), prepared.survey, wishes.busy)
    if wishes.parallel is not None:
        prepared = replace(prepared, memories=for_conversations(prepared.memories, wishes.parallel))
    anew = wishes.recalibrate or wishes.parallel is not None
    tuned = None if anew else await _tuned(prepared, folders, asked)
    if tuned is not None:
        return tuned
    survey, memories, experience = prepared.survey, prepared.memories, prepared.experience
    ranking = await asyncio.to_thread(rank_within, survey, memories, asked, experience)
    if ranking.chosen.context < inventory.context:
        fitting = ranking.chosen.context
        report.warn(f"at context {inventory.context} it does not fit: conversations may hold {fitting} tokens")
    return prepared, ranking


def _but_busy(asked: Asked, survey: Survey, busy: frozenset[str]) -> Asked:
    """Only with devices that are not in use."""
    if not busy:
        return asked
    free = frozenset(device.name for device in survey.devices) - busy
    return replace(asked, devices=free if asked.devices is None else asked.devices & free)


async def _tuned(prepared: Prepared, folders: Folders, asked: Asked) -> tuple[Prepared, Ranking] | None:
    """The ranking with the winner of `meshctl tune` first, at its threads; None when there is
    none that still fits, or one that was measured to be better."""
    inventory = prepared.inventory
    valid = valid_for(inventory, prepared.model, prepared.engine.manifest.engine, asked)
    tuned = None if asked.split else load_tuned(folders.cluster(inventory.cluster), valid)
    if tuned is None:
        return None
    run = replace(prepared, survey=with_threads(prepared.survey, tuned.threads))
    run = replace(run, experience=load_experience(folders, run.circumstances))
    try:
        ranking = rank_plans(run.survey, run.memories, asked, run.experience)
    except PlanError:  # it does not fit any more as it did then
        return None
    memory = await memory_at(tuned.micro_batch, run.memory, run.engine.folder, run.model, folders)
    plan = tuned_plan(ranking, run.survey, memory, tuned, run.experience)
    if plan is None or is_beaten(plan, ranking):
        return None
    preferred = prefer(ranking, plan, run.survey, run.memory, asked)
    if not asked.survive:
        return run, preferred
    fallbacks = find_fallbacks(run.survey, run.memories, asked, run.experience, plan)
    return run, replace(preferred, plans=(replace(preferred.chosen, fallbacks=fallbacks), *preferred.plans[1:]))


async def prepare(inventory: Inventory, hosts: OpenHosts, folders: Folders, report: Report, wishes: Wishes) -> Prepared:
    """Run every step up to the survey, the model first: a wrong one shall cost no host a transfer.

    Each step checks all hosts before it fails.
    """
    report.step("Reading the model", "preparing")
    model = await prepare_model(inventory.model, inventory.path.parent, folders, report)
    engine, installed = await prepare_engine(hosts, folders, report)
    engine_folders = {name: one.folder for name, one in all_or_raise(installed).items()}
    memories = await prepare_memories(inventory, engine, model, folders)
    measuring = Measuring(
        cluster=inventory.cluster,
        hosts=hosts,
        engine=engine,
        engine_folders=engine_folders,
        model=display_name(inventory),
        model_bytes=model.size_bytes,
        slices=SliceStore(model, folders.cache / "slices"),
        parallel=inventory.parallel,
        kept=folders.cache / "calibration",
        recalibrate=wishes.recalibrate,
    )
    survey = await gather_survey(measuring, report, datetime.now(UTC))
    survey = await _with_tensor(measuring, survey, memories, wishes, report)
    prepared = Prepared(inventory, engine, engine_folders, model, memories, survey, NO_EXPERIENCE)
    if wishes.recalibrate:
        return prepared
    return replace(prepared, experience=load_experience(folders, prepared.circumstances))


async def _with_tensor(
    measuring: Measuring, survey: Survey, memories: tuple[ModelMemory, ...], wishes: Wishes, report: Report
) -> Survey:
    """The survey with the groups that are worth timing in mode `tensor`, or the engine's reason why there are none."""
    survey = replace(survey, tensor_refused=memories[0].tensor_refused)
    if survey.tensor_refused or wishes.split is not None or wishes.mode not in (None, "tensor", "replicas"):
        return survey
    candidates = find_candidates(survey, wishes.devices)
    every = finalists(survey, memories, candidates, asked_for=True)
    if not wishes.hurry:
        worth = every if wishes.mode == "tensor" else finalists(survey, memories, candidates)
        survey = await measure_tensor(measuring, survey, worth, report)
    return survey if survey.tensor_refused else with_kept(measuring, survey, every)


async def prepare_engine(
    hosts: OpenHosts, folders: Folders, report: Report
) -> tuple[Engine, dict[str, Installed | MeshctlError]]:
    """The controller's engine, built when it is not there yet, and that of every host; each smoke-tested there."""
    report.step("Checking the engine", "preparing")
    engine = await local_engine(folders, report)
    engine = await prove_here(hosts.controller.shell, hosts.controller.facts, engine)
    report.step("Putting the engine on every host", "preparing")
    kit = BuildKit(RECIPES["cpu"], lambda: pack_source(folders.cache))
    return engine, await each_host(
        {
            name: ensure_on_host(host.shell, host.facts, host.agent, engine, kit, report, own=host.host.engine)
            for name, host in hosts.by_name.items()
        }
    )


async def install_engines(
    inventory: Inventory, folders: Folders, report: Report
) -> dict[str, Installed | MeshctlError]:
    """The engine on every host of the inventory, and nothing else: each host's own answer or failure."""
    count = len(inventory.hosts)
    report.step(f"Connecting to {count} host{'s' if count != 1 else ''}", "connecting")
    async with open_hosts(inventory, folders, report) as hosts:
        _, installed = await prepare_engine(hosts, folders, report)
        return installed


async def local_engine(folders: Folders, report: Report) -> Engine:
    """The controller's own engine, built when it is not there yet."""
    engine = find_engine(folders.cache, "cpu", local_platform())
    if engine is None:
        report.step("Building the engine (once, several minutes)", "preparing")
        engine = await build_engine(folders.cache, "cpu", report.progress)
    return engine


async def prepare_model(name: str, base: Path, folders: Folders, report: Report) -> Model:
    """The model of this name, fetched first when it is a catalogue name that is not here yet."""
    if name in CATALOGUE:
        path = await _fetched(name, folders, report)
    else:
        path = find_model(name, folders.cache, base)
    model = read_model(path)
    size = bytes_text(sum(tensor.size_bytes for tensor in model.tensors))
    report.say(f"{path.name}: {model.architecture}, {model.block_count} layers, mostly {model.quantisation}, {size}")
    return model


async def _fetched(name: str, folders: Folders, report: Report) -> Path:
    """The model of the catalogue, fetched again when it is not what was published; its digest is recorded."""
    entry = CATALOGUE[name]
    path = model_path(entry, folders.cache)
    published = Recorded("", entry.size_bytes, entry.sha256)
    if path.is_file() and path.stat().st_size != entry.size_bytes:
        size = path.stat().st_size
        report.warn(f"{path.name} has {size} bytes, {entry.size_bytes} were published: it is fetched again")
    elif path.is_file() and await asyncio.to_thread(_has_changed, path, published):
        report.warn(f"{path.name} has changed since it was fetched (by its sha256): it is fetched again")
        path.unlink()
    path = await fetch_model(name, folders.cache, report.bytes_of(name))
    if not _known(path, published):
        write_record(str(path), published)
    return path


def _has_changed(path: Path, published: Recorded) -> bool:
    """Every byte is read where somebody has changed it since that was last done, or where that is not known."""
    return is_damaged(str(path), next(iter(_known(path, published)), published))


def _known(path: Path, published: Recorded) -> list[Recorded]:
    """What is recorded of it, if that is what was published."""
    return [one for one in read_record(str(path)) if one.digest == published.digest]


async def prepare_memories(
    inventory: Inventory, engine: Engine, model: Model, folders: Folders
) -> tuple[ModelMemory, ...]:
    """The engine's own count of what this model takes at the inventory's context and parallel, by micro-batch."""

    async def count(micro_batch: int) -> ModelMemory:
        memory = await count_memory(
            engine.folder,
            model,
            context=inventory.context,
            parallel=inventory.parallel,
            micro_batch=micro_batch,
            cache=folders.cache / "memory",
        )
        return replace(memory, model=display_name(inventory))

    first, *larger = MICRO_BATCHES
    fitting = (first, *(size for size in larger if size <= inventory.context))
    counted = await each_host({f"micro-batch {size}": count(size) for size in fitting})
    return tuple(all_or_raise(counted).values())


def display_name(inventory: Inventory) -> str:
    """What the user calls the model: the catalogue's name, or the file's own."""
    return inventory.model if inventory.model in CATALOGUE else Path(inventory.model).name
