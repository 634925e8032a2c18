"""What every contiguous range of blocks would cost on every device, as tables for the search of a layer split.

A matrix is (blocks + 1) square: row j and column i mean blocks i to j - 1 as a stage that is not the last. A vector of
a last stage has an entry i for the blocks from i to the end. Times are those of `noise.even_speeds`, so that equal
machines cost the same, or those that were measured. Pure.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from orchestrator.plan.costs import (
    LAST_BLOCK_PREFILL,
    MARGIN_BYTES,
    MARGIN_PERCENT,
    Bytes,
    Seconds,
    context_seconds,
    head_share_bytes,
    layers_s,
    layers_seconds,
    output_seconds,
    stage_link_s,
)
from orchestrator.plan.noise import even_speeds
from orchestrator.plan.pools import Candidate
from orchestrator.plan.values import ModelMemory
from orchestrator.survey.values import Device, Speed

BALANCE = 1e-6
"""Weight of the tie-break: between plans of the same time per token, the one with the most even stages is taken.

Even stages overlap best when long prompts are read: on the pinned engine 4 + 5 blocks read 1.4 times faster than
6 + 3. So what is evened out is the time that the blocks of a stage take to read; the output layer plays no part there.
"""

MEASURED = 1e-10
"""Weight of the second tie-break: between plans as even as each other, the one that is faster by the measured speeds.

So far below `BALANCE` that it does not make stages less even, also where there are hundreds of layers.
"""

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Ranges:
    """For every range (ends > begins, flat) and every tail: seconds of one decode pass, and of one micro-batch.

    `uneven_s` are the seconds of a micro-batch, weighted by the part of the model's weights that it reads.
    """

    decode_s: Seconds
    prefill_s: Seconds
    uneven_s: Seconds
    tail_decode_s: Seconds
    tail_prefill_s: Seconds
    tail_uneven_s: Seconds


class StageTables:
    """The tables of one model over these devices, for decode passes of `tokens` conversations; made when asked for.
    `as_measured`: by each device's own speed."""

    def __init__(
        self, memory: ModelMemory, candidates: Sequence[Candidate], tokens: int = 1, *, as_measured: bool = False
    ) -> None:
        self.memory = memory
        self.tokens = tokens
        self._weights = _running_sum(memory.layer_weights_bytes)
        self._held = self._weights + _running_sum(memory.layer_kv_bytes)
        self._ends, self._begins = np.tril_indices(memory.blocks + 1, -1)
        measured = {one.device.name: one.device.speed for one in candidates}
        self._even = measured if as_measured else even_speeds(measured)
        self._total_s = {name: self._all_s(speed, tokens) for name, speed in self._even.items()}
        self._least_s = min(self._total_s.values(), default=0.0)
        self._longest_read_s = max(
            (self._all_s(speed, memory.micro_batch) for speed in self._even.values()), default=0.0
        )
        self._distinct, self._nth_distinct = np.unique(
            self._weights[self._ends] - self._weights[self._begins], return_inverse=True
        )
        needed = _with_margin(self._held[self._ends] - self._held[self._begins] + memory.compute_bytes)
        self._needed = self._matrix(needed.astype(np.float64))
        self.decode_s = cache(self._decode_matrix)
        self.prefill_s = cache(self._prefill_matrix)
        self._ranges = cache(self._measure_ranges)

    def too_large(self, budget_bytes: int) -> Mask:
        """Where a stage that is not last exceeds the budget."""
        mask: Mask = self._needed > budget_bytes
        return mask

    def last_too_large(self, budget_bytes: int, *, output: bool) -> Mask:
        """Where a last stage exceeds the budget, or has no block."""
        memory = self.memory
        more = memory.output_bytes + memory.compute_last_bytes if output else memory.compute_bytes
        mask: Mask = _with_margin(self._held[-1] - self._held + more) > budget_bytes
        mask[-1] = True
        return mask

    def native_too_large(self, budget_bytes: int, *, output_on_head: bool) -> Mask:
        """Where a native first stage of j blocks and the head exceed the budget, or where it has no block."""
        more = self.memory.compute_bytes + head_share_bytes(self.memory, output=output_on_head).total_bytes
        mask: Mask = _with_margin(self._held + more) > budget_bytes
        mask[0] = True
        return mask

    def native_s(self, device: Device, tokens: int) -> Seconds:
        """Seconds of the first j blocks natively on this device, a pass of `tokens` tokens, at its measured speed."""
        return layers_s(device.native, self._weights, tokens)

    def last_decode_s(self, device: Device, *, output: bool) -> Seconds:
        """Cost of each last stage."""
        speed, ranges = self._even[device.name], self._ranges(self._even[device.name])
        costs = self._costs(device, ranges.tail_decode_s, ranges.tail_uneven_s)
        costs += stage_link_s(self.memory, device, self.tokens, output_rows=self.tokens if output else 0)
        return costs + (output_seconds(speed, self.memory.output_bytes, self.tokens) if output else 0.0)

    def last_prefill_s(self, device: Device, *, output: bool) -> Seconds:
        """Seconds of one micro-batch of a prompt in each last stage."""
        link_s = stage_link_s(
            self.memory, device, self.memory.micro_batch, output_rows=1 if output else 0, hidden_rows=1
        )
        return self._ranges(self._even[device.name]).tail_prefill_s + link_s

    def _decode_matrix(self, device: Device) -> Seconds:
        ranges = self._ranges(self._even[device.name])
        costs = self._costs(device, ranges.decode_s, ranges.uneven_s)
        return self._matrix(costs + stage_link_s(self.memory, device, self.tokens))

    def _prefill_matrix(self, device: Device) -> Seconds:
        link_s = stage_link_s(self.memory, device, self.memory.micro_batch)
        return self._matrix(self._ranges(self._even[device.name]).prefill_s + link_s)

    def _costs(self, device: Device, decode_s: Seconds, uneven_s: Seconds) -> Seconds:
        """The even seconds and both tie-breaks, which are far smaller.

        Among devices of one decode speed, the sum of the reading times weighted by what is read is least where all
        stages take the same time: at p seconds per block the sum of p n^2 for a given sum of n has p n alike.
        """
        measured = self._all_s(device.speed, self.tokens) / self._total_s[device.name] - 1
        balance = BALANCE * self._least_s / self._longest_read_s
        return decode_s * (1 + MEASURED * measured) + balance * uneven_s

    def _measure_ranges(self, speed: Speed) -> Ranges:
        memory, distinct, every = self.memory, self._distinct, self._nth_distinct
        tail = self._weights[-1] - self._weights
        read = np.maximum(tail - int((1 - LAST_BLOCK_PREFILL) * memory.layer_weights_bytes[-1]), 0)
        context_s = context_seconds(speed, 1, memory.micro_batch, memory)
        blocks, tail_blocks = self._ends - self._begins, memory.blocks - np.arange(memory.blocks + 1)
        prefill_s = layers_s(speed, distinct, memory.micro_batch)[every] + context_s * blocks
        tail_prefill_s = layers_s(speed, read, memory.micro_batch) + context_s * tail_blocks
        return Ranges(
            decode_s=layers_s(speed, distinct, self.tokens)[every],
            prefill_s=prefill_s,
            uneven_s=prefill_s * (distinct / self._weights[-1])[every],
            tail_decode_s=layers_s(speed, tail, self.tokens),
            tail_prefill_s=tail_prefill_s,
            tail_uneven_s=tail_prefill_s * (read / self._weights[-1]),
        )

    def _all_s(self, speed: Speed, tokens: int) -> float:
        return layers_seconds(speed, int(self._weights[-1]), tokens)

    def _matrix(self, ranges: Seconds) -> Seconds:
        """The flat entries in their places, infinity where there is no range."""
        matrix = np.full((self.memory.blocks + 1,) * 2, np.inf)
        matrix[self._ends, self._begins] = ranges
        return matrix


def _running_sum(values: Sequence[int]) -> Bytes:
    return np.concatenate(([0], np.cumsum(np.array(values, dtype=np.int64))))


def _with_margin(held: Bytes) -> Bytes:
    """`costs.needed_bytes` for a whole array."""
    return held + np.maximum(MARGIN_BYTES, -(-held * MARGIN_PERCENT // 100))
