"""The best layer split: layer ranges, and whether the output layer is on the last device or on the head. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.plan.costs import ShareBytes, compute_s, head_share_bytes, needed_bytes, prefill_s
from orchestrator.plan.layers import Rules, Stage, place_layers, stages_s
from orchestrator.plan.pools import Candidate, pool_budgets
from orchestrator.plan.values import ModelMemory
from orchestrator.survey.values import Device, Survey

ENGINE_DEVICES = 15
"""At most this many devices take part in one split: the pinned engine's own limit."""


@dataclass(frozen=True)
class Split:
    """Stages in pipeline order and what the head does; `candidates` are those tried, with the budgets they had.

    `head_time_s` is the head's computing of the output layer per token (0.0 when a device does it).
    """

    candidates: tuple[Candidate, ...]
    stages: tuple[Stage, ...]
    output_on_head: bool
    head: ShareBytes
    head_time_s: float
    token_s: float
    prefill_token_s: float
    budget_reasons: tuple[str, ...]


@dataclass(frozen=True)
class Splits:
    """The faster of two splits, the other (None: it fits nowhere), and the device whose speed stands for the head's.

    The two have the output layer on the last device and on the head. `head_assumed` is true when the controller itself
    was not measured and the median device stands for it.
    """

    best: Split
    other: Split | None
    head_like: Device
    head_assumed: bool


def find_splits(survey: Survey, memory: ModelMemory, candidates: Sequence[Candidate]) -> Splits | None:
    """The best splits with the output layer on the last device and on the head; None when neither fits."""
    local, every = _measured(survey)
    head_like = local[0] if local else every[len(every) // 2]
    found = [
        split
        for output_on_head in (False, True)
        if (split := _best_split(survey, memory, candidates, head_like, output_on_head=output_on_head)) is not None
    ]
    if not found:
        return None
    best, *rest = sorted(found, key=lambda split: split.token_s)
    return Splits(best, rest[0] if rest else None, head_like, not local)


def head_need_bytes(memory: ModelMemory, *, output: bool) -> int:
    """What the head of a split needs of the controller's memory, margin included."""
    return needed_bytes(head_share_bytes(memory, output=output).total_bytes)


def _best_split(
    survey: Survey, memory: ModelMemory, candidates: Sequence[Candidate], head_like: Device, *, output_on_head: bool
) -> Split | None:
    pooled = pool_budgets(
        candidates,
        controller_bytes=survey.controller.memory_available_bytes,
        head_bytes=head_need_bytes(memory, output=output_on_head),
    )
    if pooled is None:
        return None
    tried, stages = _place_within_limit(memory, pooled.candidates, output_on_head=output_on_head)
    if stages is None:
        return None
    head_time_s = compute_s(memory.output_bytes, head_like.speed) if output_on_head else 0.0
    return Split(
        candidates=tried,
        stages=stages,
        output_on_head=output_on_head,
        head=head_share_bytes(memory, output=output_on_head),
        head_time_s=head_time_s,
        token_s=stages_s(memory, stages) + head_time_s,
        prefill_token_s=sum(prefill_s(memory, one.candidate.device, one.first_layer, one.layers) for one in stages),
        budget_reasons=pooled.reasons,
    )


def _place_within_limit(
    memory: ModelMemory, candidates: tuple[Candidate, ...], *, output_on_head: bool
) -> tuple[tuple[Candidate, ...], tuple[Stage, ...] | None]:
    """Place over all candidates, or over the largest ones when that takes more devices than the engine does."""
    rules = Rules(output_on_head)
    stages = place_layers(memory, candidates, rules)
    if stages is None or len(stages) <= ENGINE_DEVICES:
        return candidates, stages
    largest = sorted(candidates, key=lambda one: (-one.budget_bytes, one.device.name))[:ENGINE_DEVICES]
    kept = tuple(one for one in candidates if one in largest)
    return kept, place_layers(memory, kept, rules)


def _measured(survey: Survey) -> tuple[list[Device], list[Device]]:
    """Devices with a measured speed, fastest first: the controller's own CPUs, and all."""
    hosts = [(host, device) for host in survey.hosts for device in host.devices if device.speed.decode_bytes_per_s > 0]
    hosts.sort(key=lambda pair: (-pair[1].speed.decode_bytes_per_s, pair[1].name))
    local = [device for host, device in hosts if host.local and device.kind == "cpu"]
    return local, [device for _, device in hosts]
