"""Bytes on each device: what was counted for it beforehand, and what the head says it holds there.

Of models that are here and of made-up ones of many architectures, in modes `layers` and `tensor`.
"""

from pathlib import Path

import pytest

from orchestrator.cluster import ALL_DEVICES
from orchestrator.engine.store import Engine
from orchestrator.memory import count_memory
from orchestrator.plan.costs import ShareBytes, largest_of_each, share_bytes
from orchestrator.plan.cut import cut_bytes
from orchestrator.plan.values import ModelMemory
from quant.gguf_file import read_model
from tests.end_to_end.answers import plain_head, plain_workers
from tests.quant.architectures import KINDS
from workers.engine_commands import Placement, placement_words
from workers.head_log import MIB, Buffers, read_buffers

pytestmark = pytest.mark.engine

CONTEXT, PARALLEL, MICRO_BATCH = 4096, 4, 512
SIZES = ("--ctx-size", str(CONTEXT * PARALLEL), "--parallel", str(PARALLEL), "--ubatch-size", str(MICRO_BATCH))

OFF, WHOLE_MIB = 0.05, MIB
"""For buffers the engine is asked beforehand in whole MiB, of which these models have few."""

DEMO = "the demo model"
LAYERS = (
    *(DEMO, "experts", "compressed", "window in every other layer", "window in most layers", "window and experts"),
    *("recurrent", "receptance", "attention in some layers", "attention beside recurrence", "gated delta"),
)
TENSOR = (DEMO, "experts", "window in every other layer", "window in most layers")
"""The engine cuts no layers of the others."""


async def counted(engine: Engine, demo_model: Path, folder: Path, kind: str) -> tuple[Path, ModelMemory]:
    """A model of that kind, and what it takes."""
    path = demo_model if kind == DEMO else KINDS[kind].write(folder / "model.gguf")
    memory = await count_memory(
        engine.folder, read_model(path), context=CONTEXT, parallel=PARALLEL, micro_batch=MICRO_BATCH
    )
    return path, memory


def held(engine: Engine, path: Path, placement: Placement, folder: Path) -> dict[str, Buffers]:
    log = folder / "head.log"
    with plain_head(engine, path, *placement_words(placement), *SIZES, "--log-verbosity", "4", log=log):
        return dict(read_buffers(log.read_text().splitlines()))


def check(planned: ShareBytes, told: Buffers) -> None:
    """Keys, values and states are exact, to what a log of hundredths of a MiB tells of two caches; weights but for what
    aligns them. All of it is never more than 5 % less than is told."""
    assert planned.weights_bytes == pytest.approx(told.model_bytes, rel=0.01, abs=MIB // 100)
    assert planned.kv_bytes == pytest.approx(told.kv_bytes, abs=MIB // 100)
    assert told.total_bytes <= planned.total_bytes * (1 + OFF) + WHOLE_MIB


@pytest.mark.parametrize("kind", LAYERS)
async def test_layers_on_two_devices_take_what_was_counted(
    engine: Engine, demo_model: Path, tmp_path: Path, kind: str
) -> None:
    path, memory = await counted(engine, demo_model, tmp_path, kind)
    here = memory.blocks // 2
    with plain_workers(engine, 2, tmp_path) as endpoints:
        split = (here, memory.blocks - here + 1)
        told = held(engine, path, Placement(tuple(endpoints), split, False, memory.output_tied), tmp_path)
    check(share_bytes(memory, 0, here, output=False), told[endpoints[0]])
    check(share_bytes(memory, here, memory.blocks - here, output=True), told[endpoints[1]])


@pytest.mark.parametrize("kind", TENSOR)
async def test_layers_that_are_cut_take_what_was_counted(
    engine: Engine, demo_model: Path, tmp_path: Path, kind: str
) -> None:
    """The engine tells the largest of either device."""
    path, memory = await counted(engine, demo_model, tmp_path, kind)
    with plain_workers(engine, 2, tmp_path) as endpoints:
        placement = Placement(tuple(endpoints), (1, 1), False, memory.output_tied, mode="tensor")
        told = held(engine, path, placement, tmp_path)[ALL_DEVICES]
    check(largest_of_each(cut_bytes(memory, (1, 1))), told)
