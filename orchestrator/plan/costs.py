"""What a share of a model costs: bytes of memory and seconds per pass, from measured speeds and links.

Pure arithmetic; every formula that planning uses is here or in its mode's own module. Nothing here decides anything.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from orchestrator.plan.values import ModelMemory, Share
from orchestrator.survey.values import Device, Link, PassTime, Speed
from workers.budget import MIB

MARGIN_BYTES = 16 * MIB
MARGIN_PERCENT = 4
"""A worker may take this much more than the engine predicts, whichever is larger.

Measured on the pinned engine: resident memory after one prompt over the full context was between 2.3 % below and
9.1 % above the engine's prediction, and a worker that is not last ended 6 to 10 MiB above it.
"""

LAST_BLOCK_PREFILL = 0.3
"""The part of the last block that reading a prompt costs: its feed-forward runs only for rows whose logits are wanted.

Measured on the pinned engine: prefill time is linear in the number of blocks with an intercept of -0.7 blocks.
"""

Seconds = NDArray[np.float64]
Bytes = NDArray[np.int64]


@dataclass(frozen=True)
class ShareBytes:
    """What one process takes, by kind, as the engine counts it."""

    weights_bytes: int
    kv_bytes: int
    compute_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.kv_bytes + self.compute_bytes


def share_bytes(memory: ModelMemory, first_layer: int, layers: int, *, output: bool) -> ShareBytes:
    """What a worker takes for `layers` blocks from `first_layer` on, and for the output layer if `output`."""
    blocks = slice(first_layer, first_layer + layers)
    return ShareBytes(
        weights_bytes=sum(memory.layer_weights_bytes[blocks]) + (memory.output_bytes if output else 0),
        kv_bytes=sum(memory.layer_kv_bytes[blocks]),
        compute_bytes=memory.compute_last_bytes if output else memory.compute_bytes,
    )


def largest_of_each(held: Sequence[ShareBytes | Share]) -> ShareBytes:
    """The most that any of them takes of each kind: what the engine tells of devices in mode `tensor`."""
    return ShareBytes(
        weights_bytes=max(one.weights_bytes for one in held),
        kv_bytes=max(one.kv_bytes for one in held),
        compute_bytes=max(one.compute_bytes for one in held),
    )


def head_share_bytes(memory: ModelMemory, *, output: bool) -> ShareBytes:
    """What the head of a layer split takes itself: the input tensors, its buffers, and the output layer if `output`.

    The two are counted separately even where they are tied: the engine lays the head's output layer out anew for its
    own processor, the embedding stays as it is.
    """
    weights = memory.input_bytes + (memory.output_bytes if output else 0)
    return ShareBytes(weights_bytes=weights, kv_bytes=0, compute_bytes=memory.compute_head_bytes)


def margin_bytes(predicted_bytes: int) -> int:
    """What is kept beside the prediction: max(16 MiB, 4 %), rounded up."""
    return max(MARGIN_BYTES, -(-predicted_bytes * MARGIN_PERCENT // 100))


def needed_bytes(predicted_bytes: int) -> int:
    """The budget that a process with this prediction needs: prediction and margin."""
    return predicted_bytes + margin_bytes(predicted_bytes)


def layers_s(speed: Speed, layers_bytes: Bytes, tokens: int) -> Seconds:
    """Seconds of one pass of `tokens` tokens through layers of these weights, for each entry of the array.

    Linear in the bytes between the slices that were timed and with the last slope beyond them (`PassTime`); linear in
    the tokens between the passes that were timed, in proportion to the tokens above the largest. 0.0 for no layers.
    """
    below, above, share = _between(speed.passes, tokens)
    seconds = _pass_s(below, layers_bytes)
    if above is not below:
        seconds = seconds + share * (_pass_s(above, layers_bytes) - seconds)
    elif tokens > below.tokens:
        seconds = seconds * (tokens / below.tokens)
    found: Seconds = np.where(layers_bytes > 0, seconds, 0.0)
    return found


def layers_seconds(speed: Speed, layers_bytes: int, tokens: int) -> float:
    """`layers_s` of one value; without an array, which would take ten times as long."""
    if layers_bytes <= 0:
        return 0.0
    below, above, share = _between(speed.passes, tokens)
    seconds = _one_pass_s(below, layers_bytes)
    if above is not below:
        return seconds + share * (_one_pass_s(above, layers_bytes) - seconds)
    return seconds * max(1.0, tokens / below.tokens)


def fixed_seconds(speed: Speed, tokens: int) -> float:
    """What a pass of so many tokens costs a stage of no layer at all."""
    below, above, share = _between(speed.passes, tokens)
    return below.fixed_s + share * (above.fixed_s - below.fixed_s)


def output_seconds(speed: Speed, output_bytes: int, rows: int = 1) -> float:
    """Seconds of the output layer for `rows` rows of logits.

    Scaled by the bytes when the speed was timed with another output layer. More rows cost as much more as a pass of
    that many tokens costs more than one of one: the kernels are the same.
    """
    one_s = speed.output_s * output_bytes / speed.output_bytes if speed.output_bytes else speed.output_s
    if rows == 1:
        return one_s
    deepest = speed.passes[0].layers_bytes[-1]
    return one_s * layers_seconds(speed, deepest, rows) / layers_seconds(speed, deepest, 1)


def transfer_s(link: Link, up_bytes: float, down_bytes: float) -> float:
    """Seconds on the wire of one blocking exchange: a round trip and both ways' bytes."""
    return link.round_trip_s + up_bytes / link.up_bytes_per_s + down_bytes / link.down_bytes_per_s


def stage_link_s(
    memory: ModelMemory, device: Device, tokens: int, *, output_rows: int = 0, hidden_rows: int | None = None
) -> float:
    """Seconds that the link of one RPC stage costs per pass: hidden states up; hidden states, or logits, down.

    The head waits for all of it: one blocking round trip per stage and pass. `hidden_rows`: how many hidden states
    come back (None: all).
    """
    hidden = memory.hidden_bytes * (tokens if hidden_rows is None else hidden_rows)
    down = memory.logits_bytes * output_rows if output_rows else hidden
    return transfer_s(device.link, memory.hidden_bytes * tokens, down)


def stage_s(
    memory: ModelMemory, device: Device, first_layer: int, layers: int, *, tokens: int = 1, output: bool, rows: int = 1
) -> float:
    """Seconds of one decode pass of `tokens` conversations through one RPC worker, link included."""
    weights = sum(memory.layer_weights_bytes[first_layer : first_layer + layers])
    seconds = layers_seconds(device.speed, weights, tokens)
    seconds += stage_link_s(memory, device, tokens, output_rows=rows if output else 0)
    return seconds + (output_seconds(device.speed, memory.output_bytes, rows) if output else 0.0)


def prefill_bytes(memory: ModelMemory, first_layer: int, layers: int) -> int:
    """Weights worked through per prompt pass; the model's last block counts `LAST_BLOCK_PREFILL` of its bytes."""
    weights = memory.layer_weights_bytes[first_layer : first_layer + layers]
    has_last = layers > 0 and first_layer + layers == memory.blocks
    return sum(weights) - (int((1 - LAST_BLOCK_PREFILL) * weights[-1]) if has_last else 0)


def prefill_stage_s(
    memory: ModelMemory, device: Device, first_layer: int, layers: int, micro_batch: int, *, output: bool
) -> float:
    """Seconds of one micro-batch of a prompt in one RPC worker, link included, without any context before it.

    Logits are wanted for one row only: the last stage sends no more back, with the output layer or to it.
    """
    seconds = layers_seconds(device.speed, prefill_bytes(memory, first_layer, layers), micro_batch)
    rows = 1 if first_layer + layers == memory.blocks else micro_batch
    return seconds + stage_link_s(memory, device, micro_batch, output_rows=1 if output else 0, hidden_rows=rows)


def context_seconds(speed: Speed, layers: int, tokens: int, memory: ModelMemory) -> float:
    """What a micro-batch of a prompt takes longer in so many layers for the context before it, on the average.

    Linear in both, measured: 1.2 B natively, per token 2.86 / 3.03 / 3.23 / 3.53 ms after 0 / 256 / 512 / 1,024 tokens.
    """
    return speed.context_s * layers * tokens * average_context(memory, speed.passes[-1].tokens)


def average_context(memory: ModelMemory, timed_tokens: int) -> float:
    """Tokens before a token of the prompt that prefill is predicted for, beyond those of its timed pass.

    A token of a prompt of t has t / 2 before it on the average. A pass was timed with its own tokens only, u / 2 for
    each of a micro-batch of u; one larger than the longest that was timed is taken as several of those.
    """
    return (memory.prompt_tokens - min(memory.micro_batch, memory.prompt_tokens, timed_tokens)) / 2


def fastest_reading(memories: Sequence[ModelMemory], prefill_s: Callable[[ModelMemory], float]) -> ModelMemory:
    """The one at whose micro-batch a prompt is read fastest; of those that are as fast, to the nanosecond, the largest:
    every pass costs something, which the proportion to the longest timed pass leaves out."""
    return min(memories, key=lambda one: (round(prefill_s(one), 9), -one.micro_batch))


def pipeline_s(stages_s: tuple[float, ...], prompt_tokens: int, micro_batch: int, *, overlap: bool) -> float:
    """Seconds for a prompt: the stages' sum, and for every further micro-batch the slowest stage (or all of them).

    T = sum + (m - 1) * max, m = prompt / micro-batch; fits 20 measured points of the pinned engine within 5 % (two
    within 7 %). Without overlap each micro-batch passes all stages before the next one begins.
    """
    further = max(0.0, prompt_tokens / micro_batch - 1)
    each = max(stages_s) if overlap else sum(stages_s)
    return sum(stages_s) * min(1.0, prompt_tokens / micro_batch) + further * each


def _between(passes: tuple[PassTime, ...], tokens: int) -> tuple[PassTime, PassTime, float]:
    """The measured passes around this many tokens, and how far it is from the first to the second (0 to 1)."""
    if tokens <= passes[0].tokens:
        return passes[0], passes[0], 0.0
    for below, above in pairwise(passes):
        if tokens <= above.tokens:
            return below, above, (tokens - below.tokens) / (above.tokens - below.tokens)
    return passes[-1], passes[-1], 0.0


def _one_pass_s(one: PassTime, layers_bytes: int) -> float:
    at_bytes, at_s = (0, *one.layers_bytes), (one.fixed_s, *one.layers_s)
    k = min(bisect_left(at_bytes, layers_bytes), len(at_bytes) - 1)
    slope = (at_s[k] - at_s[k - 1]) / (at_bytes[k] - at_bytes[k - 1])
    return at_s[k - 1] + slope * (layers_bytes - at_bytes[k - 1])


def _pass_s(one: PassTime, layers_bytes: Bytes) -> Seconds:
    at_bytes, at_s = (0, *one.layers_bytes), (one.fixed_s, *one.layers_s)
    seconds: Seconds = np.interp(layers_bytes, at_bytes, at_s).astype(np.float64)
    slope = (at_s[-1] - at_s[-2]) / (at_bytes[-1] - at_bytes[-2])
    beyond = at_s[-1] + slope * (layers_bytes - at_bytes[-1])
    found: Seconds = np.where(layers_bytes > at_bytes[-1], beyond, seconds)
    return found
