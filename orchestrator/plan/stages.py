"""One stage of a layer split: what it takes and how long its passes are, by the speed of its own path. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.plan.costs import (
    ShareBytes,
    context_seconds,
    head_share_bytes,
    layers_seconds,
    needed_bytes,
    pipeline_s,
    prefill_bytes,
    prefill_stage_s,
    share_bytes,
    stage_s,
)
from orchestrator.plan.pools import Candidate
from orchestrator.plan.values import ModelMemory


@dataclass(frozen=True)
class Stage:
    """Blocks on one device, in pipeline order; `output` if it holds the output layer too.

    `native`: the head computes it itself on this device, which is then the head's own CPU, and the stage the first. A
    GPU of the head's own is a stage like any other, of a candidate with its native speed and no link (`split.Variant`).
    """

    candidate: Candidate
    first_layer: int
    layers: int
    output: bool
    native: bool = False


def stage_bytes(memory: ModelMemory, stage: Stage) -> ShareBytes:
    """What the stage's blocks, output layer and buffers take on its device."""
    return share_bytes(memory, stage.first_layer, stage.layers, output=stage.output)


def stage_needs_bytes(memory: ModelMemory, stage: Stage, *, output_on_head: bool) -> int:
    """The budget that a stage needs, margin included; a native one has the head and all that is the head's with it."""
    taken = stage_bytes(memory, stage).total_bytes
    if stage.native:
        taken += head_share_bytes(memory, output=output_on_head).total_bytes
    return needed_bytes(taken)


def stage_time_s(memory: ModelMemory, stage: Stage, tokens: int = 1) -> float:
    """Seconds of one decode pass of `tokens` conversations through one stage, link and output layer included."""
    if stage.native:
        weights = sum(memory.layer_weights_bytes[stage.first_layer : stage.first_layer + stage.layers])
        return layers_seconds(stage.candidate.device.native, weights, tokens)
    return stage_s(
        memory,
        stage.candidate.device,
        stage.first_layer,
        stage.layers,
        tokens=tokens,
        output=stage.output,
        rows=tokens,
    )


def stages_s(memory: ModelMemory, stages: Sequence[Stage], tokens: int = 1) -> float:
    """Seconds of one decode pass through all stages, one after the other: decoding does not overlap."""
    return sum(stage_time_s(memory, stage, tokens) for stage in stages)


def stage_prefill_s(memory: ModelMemory, stage: Stage, micro_batch: int, *, context: bool = True) -> float:
    """Seconds of one micro-batch of a prompt in one stage, link and the context before it included."""
    first, layers = stage.first_layer, stage.layers
    if stage.native:
        speed = stage.candidate.device.native
        seconds = layers_seconds(speed, prefill_bytes(memory, first, layers), micro_batch)
    else:
        speed = stage.candidate.device.speed
        seconds = prefill_stage_s(memory, stage.candidate.device, first, layers, micro_batch, output=stage.output)
    return seconds + (context_seconds(speed, layers, micro_batch, memory) if context else 0.0)


def stages_prefill_s(memory: ModelMemory, stages: Sequence[Stage], *, context: bool = True) -> float:
    """Seconds until a prompt of `memory.prompt_tokens` is read at `memory.micro_batch`.

    A native stage ends the overlap: the engine wants all layers on devices for it, and its CPU is none.
    """
    micro_batch = min(memory.micro_batch, memory.prompt_tokens)
    each = tuple(stage_prefill_s(memory, stage, micro_batch, context=context) for stage in stages)
    overlap = not any(stage.native for stage in stages)
    return pipeline_s(each, memory.prompt_tokens, micro_batch, overlap=overlap)
