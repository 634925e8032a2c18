"""Mode `layers`: contiguous layers over devices, one behind the other, as the groups that are worth considering. Pure.

Tried are the output layer on the last device and on the head, and the first blocks on each local CPU natively (the
head itself computes them there: repacked kernels and no link, but no overlap when a prompt is read) or through a
loopback worker like anywhere else. For each the placement of the least time per token; and without a native stage also
the one whose slowest stage is fastest, which reads long prompts fastest. Then the micro-batch that reads a prompt
fastest among those whose buffers fit. Formulas: `stages`, `costs`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.plan.costs import head_share_bytes, needed_bytes, output_seconds
from orchestrator.plan.layers import LayerSearch, Rules
from orchestrator.plan.pools import CONTROLLER, Candidate, pool_budgets
from orchestrator.plan.stage_tables import StageTables
from orchestrator.plan.stages import (
    Stage,
    stage_bytes,
    stage_needs_bytes,
    stage_time_s,
    stages_prefill_s,
    stages_s,
)
from orchestrator.plan.values import Group, ModelMemory, Share, Traffic, group_key
from orchestrator.survey.values import Speed, Survey

ENGINE_DEVICES = 15
"""At most this many devices take part in one split: the pinned engine's own limit."""


@dataclass(frozen=True)
class Variant:
    """Where the output layer is, and which device computes the first blocks natively (None: no one does)."""

    output_on_head: bool
    native: str | None = None


def find_splits(
    survey: Survey,
    memories: Sequence[ModelMemory],
    candidates: Sequence[Candidate],
    *,
    goal: str,
    split: Mapping[str, int] | None = None,
) -> tuple[Group, ...]:
    """The layer splits worth considering, best first for the goal; empty when none fits.

    Goal "latency" places and ranks by the time of a token of one conversation, "throughput" by that of a step of all
    conversations. `split` gives devices in pipeline order with their numbers of layers; empty, too, when it names a
    device that is no candidate or its layers are not the model's.
    """
    if split is not None:
        placements = _forced(survey, memories[0], candidates, split)
    else:
        placements = _placements(survey, memories[0], candidates, 1 if goal == "latency" else memories[0].parallel)
    groups = [_group(survey, memories, candidates, variant, stages) for variant, stages in placements]
    by_key = {group_key(group): group for group in groups}
    return tuple(
        sorted(by_key.values(), key=lambda one: (one.token_s if goal == "latency" else one.step_s, group_key(one)))
    )


def head_need_bytes(memory: ModelMemory, *, output: bool) -> int:
    """What the head of a split needs of the controller's memory, margin included."""
    return needed_bytes(head_share_bytes(memory, output=output).total_bytes)


def pooled_for(
    survey: Survey, memory: ModelMemory, candidates: Sequence[Candidate], variant: Variant
) -> tuple[Candidate, ...]:
    """The candidates with the budgets that they have beside such a head; none when the controller does not hold it.

    A head with a native stage is counted within that device's own budget.
    """
    head_bytes = 0 if variant.native else head_need_bytes(memory, output=variant.output_on_head)
    pooled = pool_budgets(candidates, controller_bytes=survey.controller.memory_available_bytes, head_bytes=head_bytes)
    return pooled.candidates if pooled else ()


def _placements(
    survey: Survey, memory: ModelMemory, candidates: Sequence[Candidate], tokens: int
) -> Iterator[tuple[Variant, tuple[Stage, ...]]]:
    search = LayerSearch(StageTables(memory, candidates, tokens))
    for variant in _variants(candidates):
        pooled, rules = pooled_for(survey, memory, candidates, variant), Rules(variant.output_on_head, variant.native)
        stages = _place_within_limit(search, pooled, rules)
        if stages is None:
            continue
        yield variant, stages
        if variant.native is None:
            yield variant, search.most_even(_at_most(pooled, ENGINE_DEVICES), rules) or stages


def _variants(candidates: Sequence[Candidate]) -> tuple[Variant, ...]:
    natives = [one.device.name for one in candidates if may_be_native(one)]
    return tuple(Variant(on_head, native) for native in (None, *natives) for on_head in (False, True))


def may_be_native(candidate: Candidate) -> bool:
    """Whether a head on this device's host can compute the first layers on it: a CPU of the controller itself."""
    device = candidate.device
    return candidate.machine == CONTROLLER and device.kind == "cpu" and device.native.measured


def _place_within_limit(search: LayerSearch, candidates: Sequence[Candidate], rules: Rules) -> tuple[Stage, ...] | None:
    """Place over all candidates; where that takes more devices than the engine does, over the fastest or largest."""
    stages = search.fastest(candidates, rules)
    if stages is None or len(stages) <= ENGINE_DEVICES:
        return stages
    found = [
        fewer
        for kept in (_at_most(candidates, ENGINE_DEVICES), _largest(candidates, ENGINE_DEVICES))
        if (fewer := search.fastest(kept, rules)) is not None
    ]
    return min(found, key=lambda one: stages_s(search.tables.memory, one, search.tables.tokens), default=None)


def _at_most(candidates: Sequence[Candidate], count: int) -> tuple[Candidate, ...]:
    """The fastest; candidates come fastest first."""
    return tuple(candidates[:count])


def _largest(candidates: Sequence[Candidate], count: int) -> tuple[Candidate, ...]:
    largest = sorted(candidates, key=lambda one: (-one.budget_bytes, one.device.name))[:count]
    return tuple(one for one in candidates if one in largest)


def _forced(
    survey: Survey, memory: ModelMemory, candidates: Sequence[Candidate], split: Mapping[str, int]
) -> Iterator[tuple[Variant, tuple[Stage, ...]]]:
    """The split as it was given, wherever its budgets allow the output layer and the first stage."""
    first = next(iter(split), None)
    if sum(split.values()) != memory.blocks or min(split.values()) < 1 or len(split) > ENGINE_DEVICES:
        return
    for variant in _variants(candidates):
        by_name = {one.device.name: one for one in pooled_for(survey, memory, candidates, variant)}
        if not split.keys() <= by_name.keys() or (
            variant.native is not None and (variant.native != first or len(split) == 1)
        ):
            continue
        stages = _given_stages([by_name[name] for name in split], [*split.values()], variant)
        if all(fits(memory, stage, variant) for stage in stages):
            yield variant, stages


def _given_stages(candidates: Sequence[Candidate], layers: Sequence[int], variant: Variant) -> tuple[Stage, ...]:
    last = len(layers) - 1
    return tuple(
        Stage(
            one,
            first_layer=sum(layers[:k]),
            layers=layers[k],
            output=k == last and not variant.output_on_head,
            native=one.device.name == variant.native,
        )
        for k, one in enumerate(candidates)
    )


def fits(memory: ModelMemory, stage: Stage, variant: Variant) -> bool:
    """Whether the stage's budget holds it, and what is the head's beside a native one."""
    needed = stage_needs_bytes(memory, stage, output_on_head=variant.output_on_head)
    return needed <= stage.candidate.budget_bytes


def _group(
    survey: Survey,
    memories: Sequence[ModelMemory],
    candidates: Sequence[Candidate],
    variant: Variant,
    stages: tuple[Stage, ...],
) -> Group:
    memory = _best_memory(survey, memories, candidates, variant, stages)
    speed, notes = _head_speed(survey, candidates, variant)
    head = head_share_bytes(memory, output=variant.output_on_head)
    head_s = {
        rows: output_seconds(speed, memory.output_bytes, rows) if variant.output_on_head else 0.0
        for rows in (1, memory.parallel)
    }
    return Group(
        mode="layers",
        head=stages[0].candidate.device.host if variant.native else CONTROLLER,
        shares=tuple(_share(memory, stage, variant, alone=len(stages) == 1) for stage in stages),
        parallel=memory.parallel,
        micro_batch=memory.micro_batch,
        output_on_head=variant.output_on_head,
        head_bytes=head.total_bytes,
        head_compute_bytes=head.compute_bytes,
        head_time_s=head_s[1],
        token_s=stages_s(memory, stages) + head_s[1],
        step_s=stages_s(memory, stages, memory.parallel) + head_s[memory.parallel],
        prefill_s=stages_prefill_s(memory, stages),
        context_s=stages_prefill_s(memory, stages) - stages_prefill_s(memory, stages, context=False),
        prompt_tokens=memory.prompt_tokens,
        traffic=_traffic(memory, stages, variant),
        notes=notes,
    )


def _best_memory(
    survey: Survey,
    memories: Sequence[ModelMemory],
    candidates: Sequence[Candidate],
    variant: Variant,
    stages: Sequence[Stage],
) -> ModelMemory:
    """The micro-batch that reads a prompt fastest; the first, for which stages were placed, fits by construction."""

    def fitting(memory: ModelMemory) -> bool:
        budgets = {one.device.name: one.budget_bytes for one in pooled_for(survey, memory, candidates, variant)}
        return all(
            stage_needs_bytes(memory, stage, output_on_head=variant.output_on_head)
            <= budgets.get(stage.candidate.device.name, 0)
            for stage in stages
        )

    allowed = [memories[0], *(memory for memory in memories[1:] if fitting(memory))]
    return min(allowed, key=lambda memory: stages_prefill_s(memory, stages))


def _head_speed(survey: Survey, candidates: Sequence[Candidate], variant: Variant) -> tuple[Speed, tuple[str, ...]]:
    """How fast the head computes an output layer, and a note where another device's speed stands for it."""
    if variant.native is not None:
        return next(one.device.native for one in candidates if one.device.name == variant.native), ()
    if survey.controller_speed.measured:
        return survey.controller_speed, ()
    like = candidates[len(candidates) // 2].device
    note = f"the controller was not measured: its output layer is predicted as on {like.name}"
    return like.speed, (note,) if variant.output_on_head else ()


def _share(memory: ModelMemory, stage: Stage, variant: Variant, *, alone: bool) -> Share:
    """Its buffers are those it will have; for the budgets all have the most that any device of the split could."""
    held = stage_bytes(memory, stage)
    one_copy = alone or variant.output_on_head or variant.native is not None
    return Share(
        device=stage.candidate.device.name,
        first_layer=stage.first_layer,
        layers=stage.layers,
        output=stage.output,
        weights_bytes=held.weights_bytes,
        kv_bytes=held.kv_bytes,
        compute_bytes=(one_copy and memory.compute_one_copy_bytes) or held.compute_bytes,
        budget_bytes=stage.candidate.budget_bytes,
        time_s=stage_time_s(memory, stage),
        native=stage.native,
    )


def _traffic(memory: ModelMemory, stages: Sequence[Stage], variant: Variant) -> Traffic:
    """Per token and worker: the hidden state there, and back again; from the last one the logits if it makes them."""
    workers = sum(not stage.native for stage in stages)
    last_down = memory.hidden_bytes if variant.output_on_head else memory.logits_bytes
    return Traffic(
        hops=workers,
        synchronisations=workers,
        up_bytes=workers * memory.hidden_bytes,
        down_bytes=(workers - 1) * memory.hidden_bytes + last_down,
    )
