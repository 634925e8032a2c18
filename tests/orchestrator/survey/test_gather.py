"""Which devices a host has, how much of their memory may be used, and what they are timed on; the bench is replaced."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from orchestrator.engine.store import Engine
from orchestrator.errors import EngineError
from orchestrator.hosts import OpenHost, OpenHosts
from orchestrator.inventory import Host
from orchestrator.plan.costs import transfer_s
from orchestrator.report import Event, Remark, Report
from orchestrator.shell.local import LocalShell
from orchestrator.survey import depths, gather, slices
from orchestrator.survey.gather import BESIDE_MODEL_BYTES, MachineLocks, may_be_of_head, targets_of
from orchestrator.survey.slices import Slice, SliceStore
from orchestrator.survey.speeds import CONTEXT_TOKENS, FEW_REPETITIONS, HURRIED_REPETITIONS, passes_for
from orchestrator.survey.timing import Measuring, Timing
from orchestrator.survey.values import NOT_MEASURED, Link, Speed
from quant.errors import SliceError
from quant.gguf_file import read_model
from quant.model import Model
from quant.synthetic import write_random_model
from tests.orchestrator.plan.examples import FACTS, GIB, LOOPBACK
from tests.orchestrator.survey.test_slices import SHAPE
from workers.budget import GPU_RESERVE_BYTES, RESERVE_BYTES, MemoryCap
from workers.devices import SOFTWARE_TOO, EngineGpu
from workers.facts import Gpu
from workers.pass_bench import REPETITIONS, Timed

CARD = EngineGpu("CUDA0", "NVIDIA GeForce RTX 4090", 24 * GIB, 22 * GIB)
CHIP = EngineGpu("MTL0", "Apple M2 Pro", 21 * GIB, 21 * GIB)
SOFTWARE = EngineGpu("Vulkan0", "llvmpipe", 64 * GIB, 64 * GIB, tuple(SOFTWARE_TOO.items()))


def desk(tmp_path: Path, *gpus: Gpu, memory: MemoryCap | None = None, threads: int | None = None) -> OpenHost:
    host = Host("desk", "local", memory=memory or MemoryCap(share=0.5), threads=threads)
    return OpenHost(host, LocalShell("desk", tmp_path, tmp_path), "agent.py", replace(FACTS, gpus=gpus))


def test_every_gpu_is_a_device_beside_the_cpu_with_a_budget_from_its_own_free_memory(tmp_path: Path) -> None:
    cpu, first, second = targets_of(desk(tmp_path), (CARD, replace(CARD, name="CUDA1")))
    assert [target.name for target in (cpu, first, second)] == ["desk/cpu", "desk/cuda0", "desk/cuda1"]
    assert [target.spec.engine_name for target in (cpu, first, second)] == ["CPU", "CUDA0", "CUDA1"]
    assert (cpu.spec.threads, cpu.budget.usable_bytes) == (8, 24 * GIB - RESERVE_BYTES)
    assert (first.available_bytes, first.budget.usable_bytes) == (22 * GIB, 11 * GIB - GPU_RESERVE_BYTES)
    assert (cpu.where, first.where is not None, first.shares_memory) == (None, True, False)


@pytest.mark.parametrize(
    ("gpu", "told"),
    [
        (CHIP, (Gpu("metal", 0, "Apple M2 Pro", 21 * GIB, 21 * GIB, shares_memory=True),)),
        (SOFTWARE, ()),
    ],
)
def test_what_has_no_memory_of_its_own_has_no_more_than_its_host_has_free(
    tmp_path: Path, gpu: EngineGpu, told: tuple[Gpu, ...]
) -> None:
    host = desk(tmp_path, *told)
    host = replace(host, facts=replace(host.facts, memory_available_bytes=8 * GIB))
    _, target = targets_of(host, (gpu,))
    assert (target.available_bytes, target.shares_memory) == (8 * GIB, True)
    assert target.spec.environment == gpu.environment


@dataclass
class Benches:
    """Stands for the engine's bench: the sources of what it was given, and how it fails with those it cannot load;
    `asked` are layers, passes and repetitions, `token_s` a token through a layer, `link` what each pass goes over,
    `disturbed` the passes that something else goes on beside when they are timed for the next time."""

    fails: EngineError | None = None
    sources: list[str] = field(default_factory=list)
    asked: list[tuple[int, tuple[int, ...], int]] = field(default_factory=list)
    token_s: float = 1e-3
    link: Link | None = None
    disturbed: set[int] = field(default_factory=set)

    async def time(
        self,
        at: Timing,
        one: Slice,
        passes: Sequence[int],
        repetitions: int = REPETITIONS,
        *,
        turns: int = 1,
        context: int = 0,
    ) -> Mapping[int, Timed]:
        self.sources.append(one.source)
        self.asked.append((one.layers, (*passes, *([-context] if context else [])), repetitions))
        if self.fails is not None and one.source != "synthetic":
            raise self.fails
        sizes = at.measuring.slices.slices()
        assert sizes is not None
        link_s = {
            tokens: transfer_s(self.link, tokens * sizes.hidden_bytes, sizes.logits_bytes) if self.link else 0.0
            for tokens in passes
        }
        beside, self.disturbed = self.disturbed.intersection(passes), self.disturbed.difference(passes)
        return {
            tokens: Timed((tokens + context / 100) * self.token_s * one.layers + link_s[tokens], 0.01)
            if tokens not in beside
            else Timed(3 * tokens * self.token_s * one.layers, 0.4)
            for tokens in passes
        }


@pytest.fixture
def benches(monkeypatch: pytest.MonkeyPatch) -> Benches:
    made = Benches()
    for module in (depths, gather):
        monkeypatch.setattr(module, "time_passes", made.time)

    @asynccontextmanager
    async def workers_of(*others: object) -> AsyncIterator[gather.Workers]:
        @asynccontextmanager
        async def worker() -> AsyncIterator[str]:
            yield "endpoint"

        yield worker

    monkeypatch.setattr(gather, "workers_of", workers_of)
    return made


def measuring(tmp_path: Path, *, recalibrate: bool = False, parallel: int = 1) -> Measuring:
    """Of a model of six layers, with this machine as the controller."""
    path = tmp_path / "whole.gguf"
    if not path.exists():
        write_random_model(path, SHAPE, "Q4_0")
    engine = SimpleNamespace(folder=tmp_path, manifest=SimpleNamespace(engine="engine"))
    model = read_model(path)
    return Measuring(
        cluster="demo",
        hosts=cast(OpenHosts, SimpleNamespace(controller=desk(tmp_path), by_name={})),
        engine=cast(Engine, engine),
        engine_folders={},
        gpus={},
        model="whole.gguf",
        model_bytes=model.size_bytes,
        slices=SliceStore(model, tmp_path / "slices"),
        parallel=parallel,
        kept=tmp_path / "calibration",
        recalibrate=recalibrate,
    )


async def controller_speed(one: Measuring) -> tuple[Speed, list[str]]:
    warnings: list[str] = []

    def note(event: Event) -> None:
        if isinstance(event, Remark) and event.level == "warning":
            warnings.append(event.text)

    return await gather._controller_speed(one, Report(note)), warnings


REFUSED = "error loading model: unknown model architecture: 'nova'"


async def test_where_the_engine_refuses_slices_a_synthetic_model_stands_in_and_the_talk_says_so_every_time(
    tmp_path: Path, benches: Benches
) -> None:
    benches.fails = EngineError("status 1", details=f"print_info: arch\nllama_model_load: {REFUSED}")
    said = f"slices of this model cannot be timed, others of like shapes are: llama_model_load: {REFUSED}"
    speed, warnings = await controller_speed(measuring(tmp_path))
    assert (speed.source, warnings) == ("synthetic", [said])
    assert benches.sources[:2] == ["slice", "synthetic"]
    assert set(benches.sources[1:]) == {"synthetic"}
    again, warnings = await controller_speed(measuring(tmp_path))
    assert (again, warnings) == (speed, [said])


async def test_where_a_model_cannot_be_cut_the_talk_says_so(
    tmp_path: Path, benches: Benches, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(model: Model, layers: int, path: Path, *, made_up: bool) -> None:
        raise SliceError("two stacks of layers")

    monkeypatch.setattr(slices, "write_slice", refuse)
    speed, warnings = await controller_speed(measuring(tmp_path))
    assert speed.source == "synthetic"
    assert warnings == ["slices of this model cannot be timed, others of like shapes are: two stacks of layers"]


async def test_a_bench_that_was_killed_says_nothing_of_the_model(tmp_path: Path, benches: Benches) -> None:
    """Nobody's memory is endless: the next survey times slices again."""
    benches.fails = EngineError("llama-bench ended with status -9", details="load_tensors: CPU model buffer size")
    with pytest.raises(EngineError, match="status -9"):
        await controller_speed(measuring(tmp_path))
    benches.fails = None
    speed, warnings = await controller_speed(measuring(tmp_path))
    assert (speed.source, warnings) == ("model", [])


async def test_a_speed_is_measured_once_kept_and_measured_again_where_that_is_asked_for(
    tmp_path: Path, benches: Benches
) -> None:
    first, _ = await controller_speed(measuring(tmp_path))
    benched = len(benches.sources)
    assert benched > 0
    assert (await controller_speed(measuring(tmp_path)))[0] == first
    assert len(benches.sources) == benched
    await controller_speed(measuring(tmp_path, recalibrate=True))
    assert len(benches.sources) == 2 * benched


async def test_for_other_conversations_only_their_own_steps_are_timed_and_all_else_is_what_it_was(
    tmp_path: Path, benches: Benches
) -> None:
    alone, _ = await controller_speed(measuring(tmp_path))
    for parallel, its_own in ((8, (4, 8)), (4, (2,)), (2, ())):
        benches.asked = []
        speed, _ = await controller_speed(measuring(tmp_path, parallel=parallel))
        assert benches.asked == [(layers, (1, *its_own), REPETITIONS) for layers in (2, 6) if its_own]
        wanted = passes_for(parallel)
        assert tuple(one.tokens for one in speed.passes) == wanted
        assert replace(speed, passes=tuple(one for one in speed.passes if one.tokens in (1, 64, 256))) == alone
    assert (await controller_speed(measuring(tmp_path)))[0] == alone
    (tmp_path / "elsewhere").mkdir()
    at_once, _ = await controller_speed(measuring(tmp_path / "elsewhere", parallel=8))
    later, _ = await controller_speed(measuring(tmp_path, parallel=8))
    assert later == at_once


async def test_steps_that_are_timed_on_a_slower_day_count_by_how_much_longer_they_take_than_decoding(
    tmp_path: Path, benches: Benches
) -> None:
    (tmp_path / "at once").mkdir()
    at_once, _ = await controller_speed(measuring(tmp_path / "at once", parallel=8))
    await controller_speed(measuring(tmp_path))
    benches.token_s *= 1.3
    later, _ = await controller_speed(measuring(tmp_path, parallel=8))
    for one, other in zip(later.passes, at_once.passes, strict=True):
        assert one.layers_s == pytest.approx(other.layers_s)


def test_links_within_a_machine_are_alike_however_much_they_scatter(tmp_path: Path) -> None:
    """1.2 and 3.2 GB/s were measured at the same time."""
    slow, fast = (replace(LOOPBACK, up_bytes_per_s=rate, down_bytes_per_s=rate) for rate in (1e6, 3e9))
    slices = measuring(tmp_path).slices.slices()
    assert slices is not None
    timed = {tokens: Timed(1.0, 0.0) for tokens in (1, 64)}
    known = depths.Timings(timed, timed, link=slow)
    assert gather._went_over(known, slices, fast)
    far = replace(known, link=replace(slow, kind="tunnel"))
    assert not gather._went_over(far, slices, replace(fast, kind="tunnel"))


async def test_passes_that_something_went_on_beside_are_timed_once_more_those_alone(
    tmp_path: Path, benches: Benches
) -> None:
    """Steps of several conversations too: with goal throughput a plan is worth what they say."""
    (tmp_path / "calmly").mkdir()
    calm, _ = await controller_speed(measuring(tmp_path / "calmly", parallel=8))
    benches.asked, benches.disturbed = [], {4, 8}
    speed, _ = await controller_speed(measuring(tmp_path, parallel=8))
    assert benches.asked[:2] == [(2, (1, 4, 8, 64), REPETITIONS), (2, (4, 8), REPETITIONS)]
    assert speed == calm


async def test_what_is_alike_is_timed_again_once(tmp_path: Path, benches: Benches) -> None:
    one = measuring(tmp_path, recalibrate=True)
    first, _ = await controller_speed(one)
    benched, benches.token_s = len(benches.asked), 2e-3
    assert (await controller_speed(one))[0] == first
    assert len(benches.asked) == benched
    assert (await controller_speed(measuring(tmp_path, recalibrate=True)))[0] != first


async def test_more_steps_of_a_very_slow_processor_are_timed_briefly_and_long_ones_worked_out(
    tmp_path: Path, benches: Benches
) -> None:
    """Steps of 64 conversations are timed as a prompt of 64 tokens is, those of 128 as a longer one."""
    benches.token_s = 1e-2
    await controller_speed(measuring(tmp_path))
    benches.asked = []
    speed, _ = await controller_speed(measuring(tmp_path, parallel=128))
    assert benches.asked == []
    assert [one.tokens for one in speed.passes] == [1, 64, 128, 256]
    await controller_speed(measuring(tmp_path, parallel=32))
    assert benches.asked == [(2, (1, 16, 32), REPETITIONS), (6, (1, 16, 32), FEW_REPETITIONS)]


WIRED, WIRELESS = (Link("tunnel", s, rate, rate) for s, rate in ((0.0005, 100e6), (0.01, 4e6)))


async def rpc_speed(one: Measuring, link: Link = WIRED, head: Speed = NOT_MEASURED, *, room: bool = True) -> Speed:
    """Of a worker on another machine, which has room for the output layer or not."""
    host = replace(desk(one.kept.parent), host=Host("box", "ssh"))
    both = one.slices.slices()
    assert both is not None
    there = replace(both, output_fits=room)
    return await gather._through_rpc(one, host, targets_of(host, ())[0], there, head, link, Report(lambda event: None))


async def test_steps_of_more_conversations_join_what_was_timed_through_rpc_over_such_a_link(
    tmp_path: Path, benches: Benches
) -> None:
    head, _ = await controller_speed(measuring(tmp_path))
    for number, (before, now) in enumerate(((WIRED, WIRED), (WIRED, WIRELESS), (WIRELESS, WIRED))):
        folder = tmp_path / str(number)
        (folder / "fresh").mkdir(parents=True)
        benches.link = before
        await rpc_speed(measuring(folder), before, head)
        benches.asked, benches.link = [], now
        speed = await rpc_speed(measuring(folder, parallel=8), now, head)
        assert (benches.asked == [(2, (1, 4, 8), REPETITIONS), (6, (1, 4, 8), REPETITIONS)]) is (before is now)
        assert speed == await rpc_speed(measuring(folder / "fresh", parallel=8), now, head)


async def test_what_was_timed_through_rpc_stays_what_it_was_with_another_link_or_controller(
    tmp_path: Path, benches: Benches
) -> None:
    head, _ = await controller_speed(measuring(tmp_path))
    benches.link = WIRED
    first = await rpc_speed(measuring(tmp_path), WIRED, head)
    assert await rpc_speed(measuring(tmp_path), WIRELESS, replace(head, output_s=3 * head.output_s)) == first
    assert await rpc_speed(measuring(tmp_path), WIRED, NOT_MEASURED) == first


async def test_a_worker_without_room_for_the_output_layer_is_never_timed_in_a_context(
    tmp_path: Path, benches: Benches
) -> None:
    speed = await rpc_speed(measuring(tmp_path), room=False)
    assert benches.asked == [(2, (1, 64), REPETITIONS), (6, (1, 64), REPETITIONS)]
    assert speed.context_s == 0.0


async def test_timings_that_lack_what_all_is_worked_out_from_count_as_none(tmp_path: Path, benches: Benches) -> None:
    speed, _ = await controller_speed(measuring(tmp_path))
    (file,) = (tmp_path / "calibration").glob("*.json")
    whole = json.loads(file.read_text())
    short = {"1": whole["shallow"]["1"]}
    for damaged in ("{", json.dumps({**whole, "deep": {}}), json.dumps({**whole, "shallow": short})):
        file.write_text(damaged)
        assert (await controller_speed(measuring(tmp_path)))[0] == speed
        assert json.loads(file.read_text()) == whole


async def test_a_very_slow_processor_is_asked_for_short_passes_only_and_its_long_ones_are_worked_out(
    tmp_path: Path, benches: Benches
) -> None:
    """A short prompt through the shallow slice takes 0.13 and 1.3 s."""
    shallow, deep = 2, 6
    fast, _ = await controller_speed(measuring(tmp_path))
    assert benches.asked == [
        (shallow, (1, 64), REPETITIONS),
        (shallow, (256,), REPETITIONS),
        (deep, (1, 64), REPETITIONS),
        (shallow, (64, -CONTEXT_TOKENS), REPETITIONS),
    ]
    benches.asked, benches.token_s = [], 1e-2
    slow, _ = await controller_speed(measuring(tmp_path, recalibrate=True))
    assert benches.asked == [
        (shallow, (1, 64), REPETITIONS),
        (deep, (1, 64), FEW_REPETITIONS),
        (shallow, (64, -CONTEXT_TOKENS), HURRIED_REPETITIONS),
    ]
    assert slow.context_s == pytest.approx(10 * fast.context_s)
    assert [one.tokens for one in slow.passes] == [one.tokens for one in fast.passes] == [1, 64, 256]
    assert slow.passes[2].layers_s == pytest.approx([10 * one_s for one_s in fast.passes[2].layers_s], rel=0.02)


def test_hosts_of_one_machine_are_timed_one_after_the_other_and_others_side_by_side() -> None:
    locks = MachineLocks()

    def lock(name: str, boot: str, *, local: bool = False) -> asyncio.Lock:
        facts = replace(FACTS, boot=boot)
        return locks.of(cast(OpenHost, SimpleNamespace(name=name, is_local=local, facts=facts)))

    assert lock("box", "one") is lock("pod", "one")
    assert lock("box", "one") is lock("me", "one", local=True)
    assert lock("left", "two") is not lock("right", "three")
    # Where the start of a machine is not told, only local hosts are known to share one.
    assert lock("left", "") is not lock("right", "")
    assert lock("me", "", local=True) is lock("too", "", local=True)


def test_what_a_head_may_compute_on_is_timed_natively(tmp_path: Path) -> None:
    """All of the model anywhere, or on the controller some layers of a split, by its CPU or a GPU of its own."""
    for target in targets_of(desk(tmp_path), (CARD,)):
        most = target.budget.usable_bytes - BESIDE_MODEL_BYTES
        assert [may_be_of_head(target, most + more, local=False) for more in (0, 1)] == [True, False]
        assert may_be_of_head(target, 100 * GIB, local=True)
