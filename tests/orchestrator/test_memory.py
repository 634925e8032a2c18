"""Counting memory: the arithmetic on the engine's recorded answers, and the engine itself on the demo model."""

import asyncio
import contextlib
import dataclasses
import os
import stat
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from orchestrator.engine.store import Engine
from orchestrator.errors import EngineError
from orchestrator.memory import (
    ComputeBuffers,
    compute_buffers,
    count_memory,
    even_split,
    one_layer_each,
    plain_kv,
    spread_kv,
    surplus_logits_bytes,
    tensor_buffers,
)
from orchestrator.plan.conversations import with_kv
from orchestrator.plan.values import ModelMemory
from quant.engine_caches import cache_of
from quant.gguf_file import read_model, read_model_and_facts
from quant.kv_cache import layer_cache_bytes
from quant.model import Model
from quant.synthetic import Shape, write_random_model
from tests.quant.architectures import KINDS
from workers.budget import MIB
from workers.engine_commands import CACHE_TYPES, CacheType
from workers.fit_table import FitRow, fit_command, read_fit_table

RECORDED = Path(__file__).parents[1] / "workers" / "recorded"
TINY = Shape(layers=2, embedding=256, feed_forward=512, heads=4, kv_heads=2, vocabulary=32)


def recorded(name: str, devices: int) -> tuple[FitRow, ...]:
    return read_fit_table((RECORDED / name).read_bytes(), devices)


@pytest.fixture
def tiny(tmp_path: Path) -> Model:
    path = tmp_path / "tiny.gguf"
    write_random_model(path, TINY, "Q4_0")
    return read_model(path)


@pytest.mark.parametrize(
    ("layers", "devices", "split"), [(30, 3, (10, 10, 11)), (8, 3, (3, 3, 3)), (2, 2, (1, 2)), (1, 1, (2,))]
)
def test_split_is_even_and_the_output_is_the_last_item(layers: int, devices: int, split: tuple[int, ...]) -> None:
    assert even_split(layers, devices) == split


def test_compute_buffers_of_the_demo_model() -> None:
    """The server itself logs 4.11 MiB on each worker and 2.71 MiB on the head for this case."""
    surplus = 60 * 49152 * 4
    buffers = compute_buffers(
        recorded("fit_native.txt", 0)[0],
        recorded("fit_three_workers.txt", 3),
        recorded("fit_three_workers_output_on_head.txt", 3),
        surplus,
    )
    assert buffers == ComputeBuffers(inner_bytes=5 * MIB, last_bytes=5 * MIB, head_bytes=3 * MIB)


def test_compute_buffers_with_large_logits() -> None:
    native = FitRow("Host", 0, 0, 300)
    remote = (FitRow("RPC0", 0, 0, 80), FitRow("RPC1", 0, 0, 320), FitRow("Host", 0, 0, 10))
    on_head = (FitRow("RPC0", 0, 0, 60), FitRow("RPC1", 0, 0, 60), FitRow("Host", 0, 0, 260))
    assert compute_buffers(native, remote, on_head, 200 * MIB) == ComputeBuffers(81 * MIB, 121 * MIB, 61 * MIB)


def test_one_device_alone_counts_as_last() -> None:
    native = FitRow("Host", 0, 0, 9)
    buffers = compute_buffers(native, (FitRow("RPC0", 0, 0, 4), native), (FitRow("RPC0", 0, 0, 2), native), 0)
    assert buffers == ComputeBuffers(3 * MIB, 10 * MIB, 10 * MIB)


def test_logits_beyond_one_row_per_conversation_are_surplus(tiny: Model) -> None:
    assert surplus_logits_bytes(tiny, parallel=4, micro_batch=64) == 60 * 32 * 4
    assert surplus_logits_bytes(tiny, parallel=4, micro_batch=2) == 0


def test_buffers_of_mode_tensor_are_cut_with_the_feed_forward(tiny: Model) -> None:
    """Hidden states of 256 and a feed-forward of 512 in F32; never below half of what the engine counts."""
    assert tensor_buffers(tiny, 64, 1_000_000) == (1_000_000, 458_752)
    assert tensor_buffers(tiny, 64, 800_000) == (868_352, 458_752)
    assert tensor_buffers(tiny, 64, 4_000_000) == (4_000_000, 458_752)
    assert tensor_buffers(dataclasses.replace(tiny, tensors=()), 64, 1_000_000) == (1_000_000, 0)


def test_kv_counts_whole_steps_of_256_tokens_per_conversation(tiny: Model) -> None:
    token_bytes = 2 * 64 * 2 * 2
    assert plain_kv(tiny, context=4096, parallel=4) == (4096 * 4 * token_bytes,) * 2
    assert plain_kv(tiny, context=257, parallel=3) == (512 * 3 * token_bytes,) * 2
    assert plain_kv(tiny, context=257, parallel=3, cache_type="q8_0") == (512 * 3 * 2 * 64 * 2 // 32 * 34,) * 2


def test_every_layer_is_asked_for_once() -> None:
    assert one_layer_each(30, first=0, asked=13) == (0, *(1,) * 13, 18)
    assert one_layer_each(30, first=26, asked=4) == (26, 1, 1, 1, 1, 1)


def test_what_the_cuts_lost_goes_to_the_layers_that_have_any() -> None:
    assert spread_kv((3, 0, 3), 7) == (4 * MIB, 0, 4 * MIB)
    assert spread_kv((0, 0), 0) == (MIB // 2, MIB // 2)


async def test_missing_engine_is_reported(tmp_path: Path, tiny: Model) -> None:
    with pytest.raises(EngineError) as caught:
        await count_memory(tmp_path, tiny, context=256, parallel=1, micro_batch=64)
    assert str(caught.value) == f"{tmp_path}/llama-fit-params cannot be run: No such file or directory"
    assert caught.value.hint == "build it: meshctl engine build"


async def test_failing_engine_is_reported_with_its_last_words(tmp_path: Path, tiny: Model) -> None:
    program = tmp_path / "llama-fit-params"
    program.write_text("#!/bin/sh\necho unknown architecture >&2\nexit 3\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    with pytest.raises(EngineError) as caught:
        await count_memory(tmp_path, tiny, context=256, parallel=1, micro_batch=64)
    assert str(caught.value) == f"the engine cannot count the memory of {tiny.path}: llama-fit-params ended with 3"
    assert caught.value.details == "unknown architecture"


@pytest.mark.engine
async def test_demo_model_is_counted_by_the_engine(engine: Engine, demo_model: Path, tmp_path: Path) -> None:
    model = read_model(demo_model)
    memory = await count_memory(engine.folder, model, context=4096, parallel=4, micro_batch=64, cache=tmp_path)
    assert memory == ModelMemory(
        model="Smollm2 135M 8k Lc100K Mix1 Ep2",
        path=str(demo_model),
        context=4096,
        parallel=4,
        micro_batch=64,
        layer_weights_bytes=(2_216_448,) * 30,
        layer_kv_bytes=(12 * MIB,) * 30,
        output_bytes=30_083_328,
        output_tied=True,
        input_bytes=30_081_024,
        compute_bytes=3 * MIB,
        compute_last_bytes=3 * MIB,
        compute_head_bytes=1_835_008,
        logits_bytes=196_608,
        hidden_bytes=2304,
        kv_heads=3,
        compute_tensor_bytes=3 * MIB,
        cut_compute_bytes=int(3.5 * 1536 * 4 * 64),
        head_groups=((192, 32),),
        attention_bytes=16_588_800,
        mirrored_bytes=138_240,
    )


@pytest.mark.engine
@pytest.mark.parametrize(("cache_type", "of_32"), [("f16", 64), ("q8_0", 34), ("q4_0", 18)])
def test_kv_of_every_type_is_what_the_engine_counts(
    engine: Engine, demo_model: Path, cache_type: CacheType, of_32: int
) -> None:
    """The demo model at 16,384 cells: 30 layers of 3 heads of 64 elements; to the MiB that the engine prints."""
    model = read_model(demo_model)
    memory = asyncio.run(
        count_memory(engine.folder, model, context=4096, parallel=4, micro_batch=64, cache_type=cache_type)
    )
    assert (memory.cache_type, memory.layer_kv_bytes) == (cache_type, (16384 * 3 * 2 * 64 // 32 * of_32,) * 30)
    words = fit_command(
        str(engine.program("llama-fit-params")),
        model=str(demo_model),
        context=4096,
        parallel=4,
        micro_batch=64,
        placement=None,
        cache_type=cache_type,
    )
    told = subprocess.run(words, capture_output=True, check=True)
    assert read_fit_table(told.stdout, 0)[0].context_mib == sum(memory.layer_kv_bytes) // MIB


@pytest.mark.engine
async def test_a_cache_type_that_the_engine_refuses_is_said_with_its_reason(engine: Engine, tmp_path: Path) -> None:
    """Heads of 48 elements are no whole number of blocks of 32; as f16 the same model is counted."""
    path = tmp_path / "odd.gguf"
    write_random_model(path, dataclasses.replace(TINY, embedding=768, heads=16, kv_heads=4), "Q4_0")
    model = read_model(path)
    with pytest.raises(EngineError) as refused:
        await count_memory(engine.folder, model, context=256, parallel=1, micro_batch=64, cache_type="q8_0")
    assert str(refused.value) == (
        "the engine cannot keep keys and values of odd.gguf as q8_0:"
        " its heads have 48 and 48 numbers, which it packs by 32"
    )
    assert refused.value.hint == 'write "cache_type: f16" in the inventory, or ask for it: --cache-type f16'
    counted = await count_memory(engine.folder, model, context=256, parallel=1, micro_batch=64)
    assert counted.layer_kv_bytes == (256 * 4 * 48 * 2 * 2,) * 2


@pytest.mark.engine
async def test_answers_of_other_cache_types_are_kept_apart(engine: Engine, tiny: Model, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    for _ in range(2):
        kept = [
            await count_memory(
                engine.folder, tiny, context=256, parallel=1, micro_batch=64, cache_type=cache_type, cache=cache
            )
            for cache_type in CACHE_TYPES
        ]
        assert [sum(one.layer_kv_bytes) for one in kept] == [256 * 2 * 256 * size // 32 for size in (64, 34, 18)]
    assert len(list(cache.iterdir())) == 3


@pytest.mark.engine
async def test_without_flash_attention_buffers_are_counted_anew_and_no_layer_is_cut(
    engine: Engine, demo_model: Path, tmp_path: Path
) -> None:
    model, cache = read_model(demo_model), tmp_path / "cache"
    count = partial(count_memory, engine.folder, model, context=4096, parallel=1, micro_batch=512, cache=cache)
    auto, off = await count(), await count(flash_attention="off")
    assert off.compute_last_bytes > auto.compute_last_bytes
    assert (auto.tensor_refused, off.tensor_refused, off.flash_attention) == (
        "",
        "it reads keys and values of such layers by flash attention only, and that is off in the inventory",
        "off",
    )
    with pytest.raises(EngineError, match="keys and values as q8_0 by flash attention only, and that is off") as caught:
        await count(cache_type="q8_0", flash_attention="off")
    assert caught.value.hint == 'write "flash_attention: auto" in the inventory, or "cache_type: f16"'


@pytest.mark.engine
async def test_answer_is_kept_and_a_broken_one_is_counted_again(engine: Engine, tiny: Model, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = await count_memory(engine.folder, tiny, context=256, parallel=1, micro_batch=64, cache=cache)
    (stored,) = cache.iterdir()
    moved = dataclasses.replace(tiny, path=tmp_path / "moved.gguf")
    again = await count_memory(engine.folder, moved, context=256, parallel=1, micro_batch=64, cache=cache)
    assert again == dataclasses.replace(first, path=str(tmp_path / "moved.gguf"))
    stored.write_text('{"half": ')
    assert await count_memory(engine.folder, tiny, context=256, parallel=1, micro_batch=64, cache=cache) == first
    assert list(cache.iterdir()) == [stored]


@pytest.mark.engine
async def test_kv_that_is_not_plain_is_taken_from_the_engine(engine: Engine, demo_model: Path) -> None:
    """A model whose stated heads give a wrong sum stands for one with a sliding window."""
    misread = dataclasses.replace(read_model(demo_model), head_count_kv=(1,) * 30)
    memory = await count_memory(engine.folder, misread, context=4096, parallel=4, micro_batch=64)
    assert max(memory.layer_kv_bytes) - 12 * MIB < MIB // 16
    assert min(memory.layer_kv_bytes) >= 12 * MIB


@pytest.mark.engine
@pytest.mark.parametrize("kind", ["window in most layers", "recurrent", "attention beside recurrence", "gated delta"])
async def test_a_shorter_context_is_never_given_less_than_the_engine_takes(
    engine: Engine, tmp_path: Path, kind: str
) -> None:
    """Windows and recurrent states do not shrink; within what is lost where the engine prints whole MiB."""
    model, facts = read_model_and_facts(KINDS[kind].write(tmp_path / "model.gguf"))
    asked = await count_memory(engine.folder, model, context=4096, parallel=256, micro_batch=512)
    shorter = with_kv(asked, 1024, 256)
    exact = layer_cache_bytes(cache_of(model, facts), "f16", context=1024, parallel=256, micro_batch=512)
    assert len(asked.layer_kv_fixed_bytes) == model.block_count
    assert shorter.layer_kv_bytes == pytest.approx(exact, abs=3 * MIB)
    assert sum(shorter.layer_kv_bytes) > sum(exact) - 2 * MIB


@pytest.mark.engine
@pytest.mark.parametrize("layers", [1, 2, 3])
async def test_models_of_few_layers_are_counted(engine: Engine, tmp_path: Path, layers: int) -> None:
    path = tmp_path / "few.gguf"
    write_random_model(path, dataclasses.replace(TINY, layers=layers), "Q4_0")
    memory = await count_memory(engine.folder, read_model(path), context=512, parallel=2, micro_batch=64)
    assert memory.layer_kv_bytes == (512 * 2 * 512,) * layers


@pytest.mark.engine
@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc for children")
async def test_no_process_is_left(engine: Engine, tiny: Model) -> None:
    before = children()
    await count_memory(engine.folder, tiny, context=256, parallel=1, micro_batch=64)
    assert children() <= before


def children() -> set[str]:
    """The pids of what the threads of this process started, those that end meanwhile left out."""
    found: set[str] = set()
    for task in Path(f"/proc/{os.getpid()}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found |= set((task / "children").read_text().split())
    return found
