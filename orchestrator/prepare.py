"""Everything before a plan: engine on every host, model, the engine's memory arithmetic, and the survey.

Nothing is started that outlives these functions; what they put on a host is its own copy of the engine.
"""

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from orchestrator.engine.build import build_engine, local_platform
from orchestrator.engine.install import ensure_on_host, prove_here
from orchestrator.engine.store import Engine, find_engine
from orchestrator.fanout import all_or_raise, each_host
from orchestrator.folders import Folders
from orchestrator.hosts import OpenHosts
from orchestrator.inventory import Inventory
from orchestrator.memory import count_memory
from orchestrator.plan.values import ModelMemory
from orchestrator.report import Report
from orchestrator.survey.gather import Measuring, gather_survey
from orchestrator.survey.values import Survey
from orchestrator.view.sizes import bytes_text
from quant.catalogue import CATALOGUE
from quant.fetch import fetch_model, find_model
from quant.gguf_file import read_model
from quant.model import Model

MICRO_BATCH = 64
"""Prompt tokens per pass through the pipeline: stages overlap only over several of them (64: 1.73 times one worker at
1,024 tokens and two equal stages, the engine's default of 512: 1.23 times), and 32 slows each worker by a quarter."""


@dataclass(frozen=True)
class Prepared:
    """What planning, bringing up and benchmarking start from. `engine_folders` has each host's own copy by name."""

    inventory: Inventory
    engine: Engine
    engine_folders: dict[str, str]
    model: Model
    memory: ModelMemory
    survey: Survey


async def prepare(
    inventory: Inventory, hosts: OpenHosts, folders: Folders, report: Report, *, recalibrate: bool = False
) -> Prepared:
    """Run every step up to the survey, the model first: a wrong one shall cost no host a transfer.

    Each step checks all hosts before it fails.
    """
    report.step("Reading the model")
    model = await prepare_model(inventory.model, inventory.path.parent, folders, report)
    engine, engine_folders = await prepare_engine(hosts, folders, report)
    memory = await prepare_memory(inventory, engine, model, folders)
    report.step("Measuring links and speeds")
    measuring = Measuring(
        cluster=inventory.cluster,
        hosts=hosts,
        engine=engine,
        engine_folders=engine_folders,
        tensor_type=model.quantisation,
        kept=folders.cache / "calibration",
        recalibrate=recalibrate,
    )
    survey = await gather_survey(measuring, report, datetime.now(UTC))
    return Prepared(inventory, engine, engine_folders, model, memory, survey)


async def prepare_engine(hosts: OpenHosts, folders: Folders, report: Report) -> tuple[Engine, dict[str, str]]:
    """The controller's engine, built when it is not there yet, and a copy on every host; each smoke-tested there."""
    report.step("Checking the engine")
    engine = await local_engine(folders, report)
    engine = await prove_here(hosts.controller.shell, hosts.controller.facts, engine)
    report.step("Putting the engine on every host")
    answers = await each_host(
        {
            name: ensure_on_host(host.shell, host.facts, host.agent, engine, report.bytes_of(name))
            for name, host in hosts.by_name.items()
        }
    )
    return engine, all_or_raise(answers)


async def local_engine(folders: Folders, report: Report) -> Engine:
    """The controller's own engine, built when it is not there yet."""
    engine = find_engine(folders.cache, "cpu", local_platform())
    if engine is None:
        report.step("Building the engine (once, several minutes)")
        engine = await build_engine(folders.cache, "cpu", report.progress)
    return engine


async def prepare_model(name: str, base: Path, folders: Folders, report: Report) -> Model:
    """The model of this name, fetched first when it is a catalogue name that is not here yet."""
    if name in CATALOGUE:
        path = await fetch_model(name, folders.cache, report.bytes_of(name))
    else:
        path = find_model(name, folders.cache, base)
    model = read_model(path)
    size = bytes_text(sum(tensor.size_bytes for tensor in model.tensors))
    report.say(f"{path.name}: {model.architecture}, {model.block_count} layers, mostly {model.quantisation}, {size}")
    return model


async def prepare_memory(inventory: Inventory, engine: Engine, model: Model, folders: Folders) -> ModelMemory:
    """The engine's own count of what this model takes at the inventory's context and parallel."""
    memory = await count_memory(
        engine.folder,
        model,
        context=inventory.context,
        parallel=inventory.parallel,
        micro_batch=MICRO_BATCH,
        cache=folders.cache / "memory",
    )
    return replace(memory, model=display_name(inventory))


def display_name(inventory: Inventory) -> str:
    """What the user calls the model: the catalogue's name, or the file's own."""
    return inventory.model if inventory.model in CATALOGUE else Path(inventory.model).name
