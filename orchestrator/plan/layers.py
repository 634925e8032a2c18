"""Contiguous layer ranges over devices that minimise the predicted seconds per decoded token under the budgets.

A dynamic programme: with the devices in a fixed order, the best way to have placed the first j blocks on the first k
devices follows from the best ways on k - 1 devices. The order is fastest first, and each device is tried as the last
one, which holds the output layer unless the head does. Speeds that differ by no more than noise are one speed here
(`noise.even_rates`). For those speeds and that set of orders the answer is exact (to one part in a million, see
`BALANCE`); where all blocks are of one size, no other order is better. Pure.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orchestrator.plan.costs import MARGIN_BYTES, MARGIN_PERCENT, decode_s, stage_s
from orchestrator.plan.noise import Rates, even_rates
from orchestrator.plan.pools import Candidate
from orchestrator.plan.values import ModelMemory

BALANCE = 1e-6
"""Weight of the tie-break: between plans of the same time per token, the one with the most even stages is taken.

Even stages overlap best when long prompts are read: on the pinned engine 4 + 5 blocks read 1.4 times faster than
6 + 3. So what is evened out is the time that the blocks of a stage take to read; the output layer plays no part there.
"""

MEASURED = 1e-10
"""Weight of the second tie-break: between plans as even as each other, the one that is faster by the measured speeds.

So far below `BALANCE` that it does not make stages less even, also where there are hundreds of layers.
"""

TIE = 1e-13
"""Costs that differ by less than this part are equal; then the slowest device stays the last one."""

Costs = NDArray[np.float64]
Bytes = NDArray[np.int64]


@dataclass(frozen=True)
class Stage:
    """Blocks on one device, in pipeline order; `output` if it holds the output layer too."""

    candidate: Candidate
    first_layer: int
    layers: int
    output: bool


@dataclass(frozen=True)
class Rules:
    """What a placement must do: keep the output layer on the head or not, use one device, end with one device."""

    output_on_head: bool
    required: str | None = None
    last: str | None = None


def place_layers(memory: ModelMemory, candidates: Sequence[Candidate], rules: Rules) -> tuple[Stage, ...] | None:
    """The best stages over any of the candidates (fastest first), or None when no placement fits their budgets."""
    programme = _Programme(memory, candidates, rules)
    best_cost, best = np.inf, None
    for k in reversed(range(len(candidates))):
        if rules.last not in (None, candidates[k].device.name):
            continue
        cost, stages = programme.end_with(k)
        if cost < best_cost * (1 - TIE):
            best_cost, best = cost, stages
    return best


def stages_s(memory: ModelMemory, stages: Sequence[Stage]) -> float:
    """Predicted seconds per decoded token of all stages, one after the other."""
    return sum(stage_time_s(memory, stage) for stage in stages)


def stage_time_s(memory: ModelMemory, stage: Stage) -> float:
    """Predicted seconds per decoded token of one stage, link included."""
    return decode_s(memory, stage.candidate.device, stage.first_layer, stage.layers, output=stage.output)


class _Programme:
    """The tables of one search. Matrices are (blocks + 1) square: row i and column j mean blocks i to j - 1."""

    def __init__(self, memory: ModelMemory, candidates: Sequence[Candidate], rules: Rules) -> None:
        self._memory = memory
        self._candidates = candidates
        self._rules = rules
        self._weights = _running_sum(memory.layer_weights_bytes)
        self._held = self._weights + _running_sum(memory.layer_kv_bytes)
        self._rates = even_rates([one.device for one in candidates])
        self._least_ratio = min((_ratio(rates) for rates in self._rates.values()), default=1.0)
        self._costs = [self._cost_matrix(one) for one in candidates]
        self._reached = [_nothing_placed(len(memory.layer_weights_bytes))]
        self._choices: list[Bytes] = []
        for costs in self._costs:
            reached, choice = _extend(self._reached[-1], costs)
            self._reached.append(reached)
            self._choices.append(choice)

    def end_with(self, last: int) -> tuple[float, tuple[Stage, ...] | None]:
        """The best cost and stages with candidate `last` behind all others; infinite and None where nothing fits."""
        order = [*range(last), *range(last + 1, len(self._candidates))]
        reached, choices = self._reached[last], self._choices[:last]
        for k in order[last:]:
            reached, choice = _extend(reached, self._costs[k])
            choices = [*choices, choice]
        ends = reached + self._last_costs(last)
        first = int(ends.argmin())
        if not np.isfinite(ends[first]):
            return np.inf, None
        return float(ends[first]), self._trace(order, choices, last, first)

    def _trace(self, order: list[int], choices: list[Bytes], last: int, first: int) -> tuple[Stage, ...]:
        blocks = len(self._memory.layer_weights_bytes)
        stages = [Stage(self._candidates[last], first, blocks - first, not self._rules.output_on_head)]
        for k, choice in zip(reversed(order), reversed(choices), strict=True):
            begin = int(choice[first])
            if begin < first:
                stages.append(Stage(self._candidates[k], begin, first - begin, False))
            first = begin
        return tuple(reversed(stages))

    def _cost_matrix(self, candidate: Candidate) -> Costs:
        """Cost of each range as a stage that is not last; no range at all costs nothing, unless it is required."""
        memory, device = self._memory, candidate.device
        weights = self._weights[None, :] - self._weights[:, None]
        held = self._held[None, :] - self._held[:, None] + memory.compute_bytes
        costs = self._compute_costs(candidate, weights, weights) + stage_s(memory, device, output=False)
        below = np.tri(len(self._weights), k=0, dtype=bool)
        costs[below | (_with_margin(held) > candidate.budget_bytes)] = np.inf
        if device.name != self._rules.required:
            np.fill_diagonal(costs, 0.0)
        return costs

    def _last_costs(self, last: int) -> Costs:
        """Cost of the blocks from each i to the end on the last device; it always has at least one."""
        memory, candidate, output = self._memory, self._candidates[last], not self._rules.output_on_head
        extra = memory.output_bytes if output else 0
        weights = self._weights[-1] - self._weights
        held = self._held[-1] - self._held + extra + (memory.compute_last_bytes if output else memory.compute_bytes)
        costs = self._compute_costs(candidate, weights + extra, weights) + stage_s(
            memory, candidate.device, output=output
        )
        costs[_with_margin(held) > candidate.budget_bytes] = np.inf
        costs[-1] = np.inf
        return costs

    def _compute_costs(self, candidate: Candidate, weights: Bytes, blocks: Bytes) -> Costs:
        """Seconds to compute `weights` at the even rate, and both tie-breaks, which are far smaller.

        `blocks` are the weights without the output layer. Among devices of one decode speed, the sum of their squares
        over the prefill speeds is least where all stages take the same time to read a prompt.
        """
        rates, own = self._rates[candidate.device.name], candidate.device.speed
        even_s = weights / rates.decode_bytes_per_s
        uneven_s = (
            blocks / rates.decode_bytes_per_s * (blocks / self._weights[-1]) * (self._least_ratio / _ratio(rates))
        )
        measured_s = weights / own.decode_bytes_per_s
        costs: Costs = even_s + BALANCE * uneven_s + MEASURED * (measured_s - even_s)
        return costs


def _ratio(rates: Rates) -> float:
    return rates.prefill_bytes_per_s / rates.decode_bytes_per_s


def _extend(reached: Costs, costs: Costs) -> tuple[Costs, Bytes]:
    """The best costs after one more device, and where its range begins for each end."""
    ways = reached[:, None] + costs
    choice = ways.argmin(axis=0)
    return ways[choice, np.arange(len(choice))], choice


def _nothing_placed(blocks: int) -> Costs:
    reached = np.full(blocks + 1, np.inf)
    reached[0] = 0.0
    return reached


def _running_sum(values: Sequence[int]) -> Bytes:
    return np.concatenate(([0], np.cumsum(np.array(values, dtype=np.int64))))


def _with_margin(held: Bytes) -> Bytes:
    """`costs.needed_bytes` for a whole array."""
    return held + np.maximum(MARGIN_BYTES, -(-held * MARGIN_PERCENT // 100))
