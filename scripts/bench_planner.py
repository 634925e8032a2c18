"""The command line of `scripts/bench-planner`: time `rank_plans` on many made-up devices, as a Markdown table."""

import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from orchestrator.plan.asked import Asked
from orchestrator.plan.choose import rank_plans
from orchestrator.plan.values import GOALS
from orchestrator.survey.values import Survey
from tests.orchestrator.plan.examples import make_device, make_memories, make_memory, make_survey

REPETITIONS = 3


@dataclass(frozen=True)
class Size:
    """`budget_part`: what each device may hold, by what it would hold of an equal split.

    The engine takes at most 15 devices, so many small ones together are of no use: 64 need more each.
    """

    devices: int
    layers: int
    within_s: float
    budget_part: float = 1.5


SIZES = (Size(16, 200, 0.2), Size(64, 200, 2.0, 6.0), Size(16, 200, 0.2, 40.0), Size(64, 200, 2.0, 100.0))


def main() -> int:
    print("| devices | layers | budgets | goal | seconds | wanted | met |\n| --: | --: | --- | --- | --: | --: | --- |")
    missed = 0
    for size, goal, seconds in _timed():
        met = seconds <= size.within_s
        missed += not met
        budgets = "tight" if size.budget_part < 10 else "ample"
        cells = (
            size.devices,
            size.layers,
            budgets,
            goal,
            f"{seconds:.3f}",
            f"≤ {size.within_s}",
            "yes" if met else "no",
        )
        print(f"| {' | '.join(map(str, cells))} |")
    return 1 if missed else 0


def _timed() -> Iterator[tuple[Size, str, float]]:
    for size in SIZES:
        survey, memories = _survey(size), make_memories(make_memory(size.layers, parallel=8))
        for goal in GOALS:
            seconds = []
            for _ in range(REPETITIONS):
                begun = time.perf_counter()
                rank_plans(survey, memories, Asked(goal))
                seconds.append(time.perf_counter() - begun)
            yield size, goal, statistics.median(seconds)


def _survey(size: Size) -> Survey:
    """Devices of all speeds and budgets, the same in every run."""
    random = Random(size.devices)
    equal_mib = size.layers * 110 / size.devices + 300
    return make_survey(
        [
            make_device(
                f"host{number}/cpu",
                int(equal_mib * size.budget_part * random.uniform(0.7, 1.3)),
                gib_per_s=random.uniform(2, 20),
                fixed_s=random.uniform(0, 0.002),
            )
            for number in range(size.devices)
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
