"""The whole model on one device: which device holds it, and which of those is fastest. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.plan.costs import ShareBytes, compute_s, head_share_bytes, needed_bytes, prefill_bytes
from orchestrator.plan.pools import Candidate
from orchestrator.plan.values import ModelMemory


@dataclass(frozen=True)
class Single:
    """One head that runs everything natively on one device; `head` is what it takes of main memory beside the device.

    Times are predicted with the speeds measured through RPC, without any stage cost.
    """

    candidate: Candidate
    share: ShareBytes
    head: ShareBytes
    token_s: float
    prefill_token_s: float


def best_single(memory: ModelMemory, candidates: Sequence[Candidate]) -> Single | None:
    """The fastest device that holds the whole model, or None."""
    holding = [single for one in candidates if fits(single := run_alone(memory, one))]
    return min(holding, key=lambda single: single.token_s, default=None)


def run_alone(memory: ModelMemory, candidate: Candidate) -> Single:
    """What the whole model takes on this device and how fast it would be, whether or not it fits."""
    speed, blocks = candidate.device.speed, len(memory.layer_weights_bytes)
    return Single(
        candidate=candidate,
        share=_device_bytes(memory, candidate),
        head=ShareBytes(0, 0, 0) if candidate.in_main_memory else head_share_bytes(memory, output=False),
        token_s=compute_s(sum(memory.layer_weights_bytes) + memory.output_bytes, speed),
        prefill_token_s=prefill_bytes(memory, 0, blocks) / speed.prefill_bytes_per_s,
    )


def fits(single: Single) -> bool:
    """Whether the device's budget, and for a GPU the main memory beside it, hold everything and the margin."""
    candidate = single.candidate
    if needed_bytes(single.share.total_bytes) > candidate.budget_bytes:
        return False
    return candidate.in_main_memory or needed_bytes(single.head.total_bytes) <= candidate.machine_bytes


def _device_bytes(memory: ModelMemory, candidate: Candidate) -> ShareBytes:
    """In main memory the input tensors count too, unless the output layer is the same tensor."""
    here_too = candidate.in_main_memory and not memory.output_tied
    return ShareBytes(
        weights_bytes=sum(memory.layer_weights_bytes) + memory.output_bytes + (memory.input_bytes if here_too else 0),
        kv_bytes=sum(memory.layer_kv_bytes),
        compute_bytes=memory.compute_last_bytes,
    )
