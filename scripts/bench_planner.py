"""The command line of `scripts/bench-planner`: time `rank_plans` on many made-up devices, as a Markdown table."""

import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from random import Random

from orchestrator.plan.asked import Asked
from orchestrator.plan.choose import rank_plans
from orchestrator.plan.values import GOALS, ModelMemory
from orchestrator.survey.values import Survey
from tests.orchestrator.plan.examples import LOOPBACK, make_device, make_memories, make_memory, make_survey

REPETITIONS = 3
LAYER_MIB = 100


@dataclass(frozen=True)
class Size:
    """`budget_part`: what each device may hold, by what it would hold of an equal split.

    The engine takes at most 15 devices, so many small ones together are of no use: 64 need more each.
    """

    devices: int
    layers: int
    within_s: float
    budget_part: float = 1.5

    @property
    def budgets(self) -> str:
        return "tight" if self.budget_part < 10 else "ample"


@dataclass(frozen=True)
class Kind:
    """Whether layers differ in their bytes, as in most published quantisations, and how many hosts are the controller
    itself: on each of those the head may compute the first layers."""

    uneven: bool
    local: int


SIZES = (Size(16, 200, 0.2), Size(64, 200, 2.0, 6.0), Size(16, 200, 0.2, 40.0), Size(64, 200, 2.0, 100.0))
KINDS = (Kind(uneven=False, local=0), Kind(uneven=True, local=1))


def main() -> int:
    print("| devices | here | layers | of | budgets | goal | seconds | wanted | met |")
    print("| --: | --: | --: | --- | --- | --- | --: | --: | --- |")
    missed = 0
    for size, kind, goal, seconds in _timed():
        met = seconds <= size.within_s
        missed += not met
        sizes = "different sizes" if kind.uneven else "one size"
        figures = f"{seconds:.3f}", f"≤ {size.within_s}", "yes" if met else "no"
        cells = (size.devices, kind.local, size.layers, sizes, size.budgets, goal, *figures)
        print(f"| {' | '.join(map(str, cells))} |", flush=True)
    return 1 if missed else 0


def _timed() -> Iterator[tuple[Size, Kind, str, float]]:
    for size in SIZES:
        for kind in KINDS:
            survey, memories = _survey(size, kind), make_memories(_memory(size, kind))
            for goal in GOALS:
                seconds = []
                for _ in range(REPETITIONS):
                    begun = time.perf_counter()
                    rank_plans(survey, memories, Asked(goal))
                    seconds.append(time.perf_counter() - begun)
                yield size, kind, goal, statistics.median(seconds)


def _memory(size: Size, kind: Kind) -> ModelMemory:
    """Every eighth layer a quarter larger, and the first and last ones, as "more bits" quantisations have it."""
    if not kind.uneven:
        return make_memory(size.layers, layer_mib=LAYER_MIB, parallel=8)
    edge = size.layers // 8
    larger = [k < edge or k >= size.layers - edge or k % 8 == 0 for k in range(size.layers)]
    return make_memory([LAYER_MIB * 5 // 4 if one else LAYER_MIB for one in larger], parallel=8)


def _survey(size: Size, kind: Kind) -> Survey:
    """Devices of all speeds and budgets, the same in every run."""
    random = Random(size.devices)
    equal_mib = size.layers * 1.1 * LAYER_MIB / size.devices + 300
    devices = [
        make_device(
            f"host{number}/cpu",
            int(equal_mib * size.budget_part * random.uniform(0.7, 1.3)),
            gib_per_s=random.uniform(2, 20),
            fixed_s=random.uniform(0, 0.002),
        )
        for number in range(size.devices)
    ]
    here = [one.host for one in devices[: kind.local]]
    devices = [replace(one, link=LOOPBACK) if one.host in here else one for one in devices]
    return make_survey(devices, local=here)


if __name__ == "__main__":
    sys.exit(main())
