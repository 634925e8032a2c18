"""What a share of a model costs: bytes of memory and seconds per token, from measured speeds and links.

Pure arithmetic; every formula that planning uses is here and nowhere else. Nothing here decides anything.
"""

from dataclasses import dataclass

from orchestrator.plan.values import ModelMemory
from orchestrator.survey.values import Device, Speed
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


def compute_s(weights_bytes: int, speed: Speed) -> float:
    """Seconds per decoded token to work through these weights: weights / decode speed.

    The KV cache that is read beside the weights is not counted (the calibration model's is part of its speed), so
    long conversations are slower than predicted.
    """
    return weights_bytes / speed.decode_bytes_per_s


def stage_s(memory: ModelMemory, device: Device, *, output: bool) -> float:
    """Seconds per decoded token that a worker costs beside its compute, however many blocks it has.

    Counted: the worker's fixed cost per token (measured without the link), one round trip of 16 KiB through the link,
    the hidden state up, and down either the hidden state or, with the output layer, the logits. The head waits for
    all of it: one blocking round trip per stage and token.
    """
    link = device.link
    down_bytes = memory.logits_bytes if output else memory.hidden_bytes
    transfers_s = memory.hidden_bytes / link.up_bytes_per_s + down_bytes / link.down_bytes_per_s
    return device.speed.fixed_s + link.round_trip_s + transfers_s


def decode_s(memory: ModelMemory, device: Device, first_layer: int, layers: int, *, output: bool) -> float:
    """Seconds per decoded token of one worker: its compute and what it costs beside that."""
    weights = share_bytes(memory, first_layer, layers, output=output).weights_bytes
    return compute_s(weights, device.speed) + stage_s(memory, device, output=output)


def prefill_s(memory: ModelMemory, device: Device, first_layer: int, layers: int) -> float:
    """Seconds per prompt token of one worker: compute, hidden state up and down, its share of each micro-batch's cost.

    Per micro-batch the worker costs its fixed time and one round trip. The output layer runs once per prompt, not per
    token, and is not counted; neither is overlap of the stages, which needs prompts of several micro-batches.
    """
    link, speed = device.link, device.speed
    compute = prefill_bytes(memory, first_layer, layers) / speed.prefill_bytes_per_s
    transfers = memory.hidden_bytes / link.up_bytes_per_s + memory.hidden_bytes / link.down_bytes_per_s
    return compute + transfers + (speed.fixed_s + link.round_trip_s) / memory.micro_batch


def prefill_bytes(memory: ModelMemory, first_layer: int, layers: int) -> float:
    """Weight bytes worked through per prompt token; the model's last block counts `LAST_BLOCK_PREFILL` of its bytes."""
    weights = memory.layer_weights_bytes[first_layer : first_layer + layers]
    has_last = layers > 0 and first_layer + layers == len(memory.layer_weights_bytes)
    return sum(weights) - (1 - LAST_BLOCK_PREFILL) * (weights[-1] if has_last else 0)
