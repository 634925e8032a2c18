"""Mode `single`: the whole model on one device, the head on that very host and native, without any worker. Pure.

Seconds, from passes timed natively on slices of the model (`survey.values.Speed`): a token is one pass of one token
through all blocks and the output layer; a step of n conversations one pass of n tokens and n rows of logits; a prompt
one pass per micro-batch (`costs.pipeline_s` of one stage). The link plays no part: only text crosses it.
"""

from collections.abc import Sequence
from dataclasses import replace

from orchestrator.plan.costs import (
    ShareBytes,
    context_seconds,
    fastest_reading,
    head_share_bytes,
    layers_seconds,
    needed_bytes,
    output_seconds,
    pipeline_s,
    prefill_bytes,
)
from orchestrator.plan.pools import Candidate
from orchestrator.plan.values import Group, ModelMemory, Share
from orchestrator.survey.values import Speed, Survey
from orchestrator.view.sizes import bytes_text


def find_singles(survey: Survey, memories: Sequence[ModelMemory], candidates: Sequence[Candidate]) -> tuple[Group, ...]:
    """Every device that holds all of it and was timed natively, the one with the fastest token first."""
    groups = [run_alone(memories, one) for one in candidates if not why_not_alone(memories[0], one)]
    return tuple(sorted(groups, key=lambda group: (group.token_s, group.shares[0].device)))


def run_alone(memories: Sequence[ModelMemory], candidate: Candidate) -> Group:
    """The whole model on this device, at the micro-batch that reads a prompt fastest among those that fit.

    The device was timed natively; the first of `memories` is taken as fitting.
    """
    speed = candidate.device.native
    allowed = [memories[0], *(memory for memory in memories[1:] if _fits(memory, candidate))]
    memory = fastest_reading(allowed, lambda one: _prefill_s(one, speed))
    held, head = alone_bytes(memory, candidate), _head_bytes(memory, candidate)
    token_s = _step_s(memory, speed, 1)
    share = Share(
        device=candidate.device.name,
        first_layer=0,
        layers=memory.blocks,
        output=True,
        weights_bytes=held.weights_bytes,
        kv_bytes=held.kv_bytes,
        compute_bytes=held.compute_bytes,
        budget_bytes=candidate.budget_bytes,
        time_s=token_s,
        native=True,
        own_memory=not candidate.in_main_memory,
    )
    return Group(
        mode="single",
        head=candidate.device.host,
        shares=(share,),
        parallel=memory.parallel,
        micro_batch=memory.micro_batch,
        output_on_head=False,
        head_bytes=head.total_bytes,
        head_compute_bytes=head.compute_bytes,
        head_time_s=0.0,
        token_s=token_s,
        step_s=_step_s(memory, speed, memory.parallel),
        prefill_s=_prefill_s(memory, speed),
        context_s=_prefill_s(memory, speed) - _prefill_s(memory, replace(speed, context_s=0.0)),
        prompt_tokens=memory.prompt_tokens,
    )


def why_not_alone(memory: ModelMemory, candidate: Candidate) -> str:
    """What keeps this device from running the model alone, every shortfall, or ""."""
    needed, beside = needed_bytes(alone_bytes(memory, candidate).total_bytes), beside_bytes(memory, candidate)
    why = []
    if needed > candidate.budget_bytes:
        why.append(f"needs {bytes_text(needed)} and has {bytes_text(candidate.budget_bytes)}")
    if beside > candidate.machine_bytes:
        why.append(f"needs {bytes_text(beside)} of main memory too, which has {bytes_text(candidate.machine_bytes)}")
    if not candidate.device.native.measured:
        why.append("was not timed natively")
    return " and ".join(why)


def alone_bytes(memory: ModelMemory, candidate: Candidate) -> ShareBytes:
    """What the device holds; in main memory also the input tensors, unless the output layer is the same tensor."""
    here_too = candidate.in_main_memory and not memory.output_tied
    return ShareBytes(
        weights_bytes=sum(memory.layer_weights_bytes) + memory.output_bytes + (memory.input_bytes if here_too else 0),
        kv_bytes=sum(memory.layer_kv_bytes),
        compute_bytes=memory.compute_last_bytes,
    )


def beside_bytes(memory: ModelMemory, candidate: Candidate) -> int:
    """Main memory that a head on a GPU needs, margin included."""
    return 0 if candidate.in_main_memory else needed_bytes(_head_bytes(memory, candidate).total_bytes)


def _fits(memory: ModelMemory, candidate: Candidate) -> bool:
    needed = needed_bytes(alone_bytes(memory, candidate).total_bytes)
    return needed <= candidate.budget_bytes and beside_bytes(memory, candidate) <= candidate.machine_bytes


def _head_bytes(memory: ModelMemory, candidate: Candidate) -> ShareBytes:
    return ShareBytes(0, 0, 0) if candidate.in_main_memory else head_share_bytes(memory, output=False)


def _step_s(memory: ModelMemory, speed: Speed, conversations: int) -> float:
    blocks_s = layers_seconds(speed, sum(memory.layer_weights_bytes), conversations)
    return blocks_s + output_seconds(speed, memory.output_bytes, conversations)


def _prefill_s(memory: ModelMemory, speed: Speed) -> float:
    micro_batch = min(memory.micro_batch, memory.prompt_tokens)
    each_s = layers_seconds(speed, prefill_bytes(memory, 0, memory.blocks), micro_batch)
    each_s += context_seconds(speed, memory.blocks, micro_batch, memory)
    return pipeline_s((each_s,), memory.prompt_tokens, micro_batch, overlap=False)
