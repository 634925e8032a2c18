"""The grid of the planner's benchmark: which devices, which goal, which model. Values only."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

CONTROLLER_CORES = 1.0
"""The machine that heads of splits run on. With all devices, no more than two cores: nobody takes another's time."""

LOCAL = "local"
"""The link of devices on this very machine."""

STREAMS = 8
CONTEXT = 1024


@dataclass(frozen=True)
class Setup:
    """Devices by their parts of one core. `memory_part`: each may hold this part of what the model takes in all."""

    name: str
    title: str
    cores: tuple[float, ...]
    memory_part: float | None = None


SETUPS = (
    Setup("two-equal", "two equal slow", (0.25, 0.25)),
    Setup("three-to-one", "speeds 3 : 1", (0.6, 0.2)),
    Setup("fast-two-slow", "one fast, two slow", (0.6, 0.2, 0.2)),
    Setup("fast-very-slow", "one fast, one very slow", (0.8, 0.1)),
    Setup("four-equal", "four equal slow", (0.25, 0.25, 0.25, 0.25)),
    Setup("too-small", "memory too small for any one", (0.5, 0.5), memory_part=0.7),
)


@dataclass(frozen=True)
class Goal:
    """What is asked of the plan: the speed of one conversation, or of `parallel` together."""

    name: str
    parallel: int


GOALS = (Goal("latency", 1), Goal("throughput", STREAMS))


@dataclass(frozen=True)
class BenchModel:
    """`large` models are run in few cells only, since each takes many minutes."""

    name: str
    title: str
    generate: int
    large: bool = False


MODELS = (
    BenchModel("135m", "135 M", generate=32),
    BenchModel("1b", "1.2 B", generate=12),
    BenchModel("3b", "3.0 B", generate=8, large=True),
)
LARGE_MODEL_SETUPS = ("two-equal", "four-equal", "too-small")


@dataclass(frozen=True)
class Cell:
    """One place of the grid; `link` is "local" or a rate in tc's words, such as "1gbit"."""

    setup: Setup
    goal: Goal
    model: BenchModel
    link: str = "local"

    @property
    def key(self) -> str:
        """Such as "two-equal/latency/1b/local"."""
        return "/".join((self.setup.name, self.goal.name, self.model.name, self.link))


def cells(setups: Collection[str], goals: Collection[str], models: Collection[str], link: str) -> Iterator[Cell]:
    """The grid's cells of these names, the small models first; large models only where the grid has them."""
    for model in MODELS:
        for setup in SETUPS:
            for goal in GOALS:
                chosen = setup.name in setups and goal.name in goals and model.name in models
                if chosen and (not model.large or (setup.name in LARGE_MODEL_SETUPS and goal.name == "latency")):
                    yield Cell(setup, goal, model, link)


def host_names(setup: Setup) -> tuple[str, ...]:
    """ "a", "b", ... in the order of `cores`."""
    return tuple("abcdefgh"[: len(setup.cores)])
