"""How kernels are compared; that they are really timed is in `tests/end_to_end/test_fit.py`."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from orchestrator.errors import BringUpError, ConnectError, DeadlineError, EngineError
from orchestrator.inventory import Host
from orchestrator.plan.retyped import Work
from orchestrator.report import Event, Remark, Report
from orchestrator.survey import rates
from orchestrator.survey.gather import Target
from orchestrator.survey.kept import read_kept
from orchestrator.survey.rates import Wanted, faster, times_slower
from orchestrator.survey.slices import KernelModel, Slice
from orchestrator.survey.timing import Measuring, Timing
from orchestrator.survey.values import NOT_MEASURED, DeviceSpec, KernelRate, Speed
from quant.errors import NoRoomError
from quant.mixture import Mixture
from quant.synthetic import Shape
from tests.orchestrator.plan.examples import FACTS, LOOPBACK
from workers.budget import Budget

SHAPE = Shape(layers=2, embedding=256, feed_forward=512, heads=4, kv_heads=2, vocabulary=256)
LAYERS = (("Q4_0",) * 7,) * 2
WANTED = Wanted({"Q8": Work(Mixture(((("Q8_0", 1),),) * 7), "Q8_0", 1, 1, 1.0)})
BYTES = {"F16": 500, "Q8_0": 260, "Q4_0": 140}
TARGET = Target(DeviceSpec("a/cpu", 1), "cpu", "a processor", Budget(10**9, 10**9, 0), 10**9)


def test_of_two_timings_each_pass_counts_where_the_machine_did_less_beside_it() -> None:
    first, second = (KernelRate("Q4_K", (1, 8, 64), times) for times in ((1.0, 3.0, 9.0), (2.0, 2.5, 8.0)))
    assert faster(first, second) == KernelRate("Q4_K", (1, 8, 64), (1.0, 2.5, 8.0))


class Machine:
    """Stands for a device that is timed: what it was asked for in turn, the workers it had, and how it fails."""

    def __init__(self, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        self.workers = 0
        self.errors: dict[str, BaseException] = {}
        self.told: list[str] = []
        self.times: list[float] = []
        host = SimpleNamespace(facts=FACTS, host=Host("a", "local"), name="a")
        self.measuring = measuring = SimpleNamespace(
            kept=kept, engine_name=lambda host: "engine", hosts=SimpleNamespace(controller=host)
        )
        self.begin(recalibrate=False)
        measuring.slices = None
        measuring.of_the_line = lambda link: nullcontext()
        self.path = rates._Path(cast(Measuring, measuring), host, TARGET, LOOPBACK)  # type: ignore[arg-type]
        self.models = {
            kind: KernelModel(Slice(Path(f"{kind}.gguf"), 2, (size, size), "synthetic"), SHAPE, kind, LAYERS, "F16")
            for kind, size in BYTES.items()
        }
        monkeypatch.setattr(rates, "workers_of", self.workers_of)
        monkeypatch.setattr(rates, "_rate", self.rate)
        monkeypatch.setattr(Wanted, "models", lambda wanted, slices, available_bytes: self.models)

    def begin(self, *, recalibrate: bool) -> None:
        """As another command does."""
        self.measuring.recalibrate, self.measuring.renewed = recalibrate, set()

    @asynccontextmanager
    async def workers_of(self, *_: object) -> AsyncIterator[str]:
        self.workers += 1
        yield "endpoint"

    async def rate(self, at: Timing, one: KernelModel, *_: object) -> KernelRate:
        self.asked.append(kind := one.rate)
        if (error := self.errors.pop(kind, None)) is not None:
            raise error
        return KernelRate(kind, (1,), (self.times.pop(0) if self.times else 1.0,))

    async def measure(self) -> list[str]:
        def listen(event: Event) -> None:
            if isinstance(event, Remark) and event.level == "warning":
                self.told.append(event.text)

        found = await rates._with_rates(self.path, NOT_MEASURED, WANTED, Report(listen))
        return sorted(rate.of for rate in found.rates)

    @property
    def kept(self) -> list[str]:
        """The types whose rates the next run will find."""
        return [kind for kind, one in self.models.items() if read_kept(self.path.kept_file(one), rates._TIMINGS)]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


async def test_all_are_timed_in_turns_the_smallest_first_each_by_a_worker_of_its_own(machine: Machine) -> None:
    assert await machine.measure() == ["F16", "Q4_0", "Q8_0"]
    assert machine.asked == ["Q4_0", "Q8_0", "F16"] * rates.TURNS
    assert (machine.workers, machine.kept, machine.told) == (3 * rates.TURNS, ["F16", "Q8_0", "Q4_0"], [])


@pytest.mark.parametrize("error", [EngineError("no kernel"), BringUpError("its worker was killed")])
async def test_one_that_fails_is_left_out_and_the_others_are_timed(machine: Machine, error: Exception) -> None:
    machine.errors["Q8_0"] = error
    assert await machine.measure() == ["F16", "Q4_0"]
    assert machine.asked == ["Q4_0", "Q8_0", "F16", *["Q4_0", "F16"] * (rates.TURNS - 1)]
    assert machine.told == [f"a/cpu: the speed of Q8 is worked out by its bytes: {error}"]


@pytest.mark.parametrize(
    "error", [DeadlineError("a", "llama-bench did not end within 600 s"), ConnectError("a", "gone")]
)
async def test_a_host_that_is_late_or_lost_ends_what_is_larger_and_nothing_else(
    machine: Machine, error: Exception
) -> None:
    machine.errors["Q8_0"] = error
    assert await machine.measure() == ["Q4_0"]
    assert machine.asked == ["Q4_0", "Q8_0", *["Q4_0"] * (rates.TURNS - 1)]
    assert machine.told == [f"a/cpu: the speed of Q8, F16 is worked out by its bytes: {error}"]


async def test_over_a_network_all_are_timed_less_often(machine: Machine) -> None:
    machine.path = replace(machine.path, link=replace(LOOPBACK, kind="tunnel"))
    assert await machine.measure() == ["F16", "Q4_0", "Q8_0"]
    assert machine.asked == ["Q4_0", "Q8_0", "F16"] * rates.TURNS_OVER_NETWORK


async def test_what_has_been_timed_once_counts_when_the_second_time_fails(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail_later(at: Timing, one: KernelModel, *rest: object) -> KernelRate:
        machine.errors = {"Q8_0": EngineError("killed")} if len(machine.asked) >= 3 else {}
        return await Machine.rate(machine, at, one, *rest)

    monkeypatch.setattr(rates, "_rate", fail_later)
    assert await machine.measure() == ["F16", "Q4_0", "Q8_0"]
    assert machine.told == []


async def test_what_was_timed_before_somebody_interrupts_is_kept(machine: Machine) -> None:
    machine.errors["F16"] = asyncio.CancelledError()
    with pytest.raises(asyncio.CancelledError):
        await machine.measure()
    assert machine.kept == ["Q8_0", "Q4_0"]


async def test_turns_that_were_cut_short_are_made_up_for_the_next_time(machine: Machine) -> None:
    async def interrupted(at: Timing, one: KernelModel, *rest: object) -> KernelRate:
        if len(machine.asked) == 4:
            raise asyncio.CancelledError
        return await Machine.rate(machine, at, one, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rates, "_rate", interrupted)
        with pytest.raises(asyncio.CancelledError):
            await machine.measure()
    machine.asked = []
    assert await machine.measure() == ["F16", "Q4_0", "Q8_0"]
    assert Counter(machine.asked) == {"Q4_0": rates.TURNS - 2, "Q8_0": rates.TURNS - 1, "F16": rates.TURNS - 1}
    machine.asked = []
    assert await machine.measure() == ["F16", "Q4_0", "Q8_0"]
    assert machine.asked == []


async def test_what_is_timed_again_is_timed_once_for_all_devices_that_are_alike(machine: Machine) -> None:
    await machine.measure()
    machine.begin(recalibrate=True)
    asked = []
    for _ in range(2):
        machine.asked = []
        assert await machine.measure() == ["F16", "Q4_0", "Q8_0"]
        asked.append(Counter(machine.asked))
    assert asked == [Counter(dict.fromkeys(machine.models, rates.TURNS)), Counter()]


async def test_what_was_disturbed_is_told_now_and_later(machine: Machine) -> None:
    machine.times = [1.0, 1.0, 1.0, 1.0, 1.7, 1.4]
    warning = (
        "a/cpu: something else ran when Q8 was timed through RPC (loopback), which makes the table wrong by as much; "
        "measure again when it has nothing else to do: --recalibrate"
    )
    for _ in range(2):
        await machine.measure()
        assert machine.told == [warning]
        machine.told = []


async def test_a_model_that_the_disk_has_no_room_for_leaves_the_others_timed(machine: Machine) -> None:
    machine.errors["F16"] = NoRoomError("a model to compare F16 by needs 1 GiB of disk")
    assert await machine.measure() == ["Q4_0", "Q8_0"]
    assert machine.told == [
        "a/cpu: the speed of F16 is worked out by its bytes: a model to compare F16 by needs 1 GiB of disk"
    ]


def test_a_processor_that_seems_slower_natively_than_through_rpc_is_odd() -> None:
    def speed(**weight_s: float) -> Speed:
        return replace(NOT_MEASURED, rates=tuple(KernelRate(kind, (1,), (one,)) for kind, one in weight_s.items()))

    assert times_slower(speed(Q4_0=3.0, Q8_0=4.0, F16=5.0), speed(Q4_0=1.0, Q8_0=2.0, F16=2.0)) == 2.5
    assert times_slower(speed(Q4_0=3.0), speed(Q8_0=1.0)) == 0.0
