"""Mode `layers`: contiguous layers over devices, one behind the other, as the groups that are worth considering. Pure.

Tried are the output layer on the last device and on the head, and each way for the head to compute layers itself: the
first blocks on a local CPU (repacked kernels and no link, but no overlap when a prompt is read), and any on the GPUs of
a local host, which the engine takes by their names among the workers (native speed, no link, all overlap). Each of them
is a loopback worker, too, like anywhere else. For each way the placement of the least time per token; and without a
native first stage also the one whose slowest stage is fastest, which reads long prompts fastest. Then the micro-batch
that reads a prompt fastest among those whose buffers fit. Formulas: `stages`, `costs`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import inf

from orchestrator.plan.costs import fastest_reading, head_share_bytes, needed_bytes, output_seconds
from orchestrator.plan.layers import LayerSearch, Rules
from orchestrator.plan.noise import LEAST_NOISE, even_speeds
from orchestrator.plan.pools import CONTROLLER, Candidate, Pooled, fastest_first, pool_budgets
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
from orchestrator.survey.values import Device, Link, Speed, Survey

ENGINE_DEVICES = 15
"""At most this many devices take part in one split: the pinned engine's own limit."""

TRIED_AS_MEASURED = 8
"""Up to so many devices are placed by their measured speeds, too, where some of these count as one."""

IN_THE_HEAD = Link("", round_trip_s=0.0, up_bytes_per_s=inf, down_bytes_per_s=inf)
"""The way from a head to a GPU of its own: copies to and from the card were timed with the GPU's native speed."""


@dataclass(frozen=True)
class Variant:
    """Where the output layer is, and what the head computes itself: the first blocks on the CPU `native` (a device's
    name; None: none there), and layers on the GPUs of the host `gpus_of` ("": on none)."""

    output_on_head: bool
    native: str | None = None
    gpus_of: str = ""

    def has_gpu(self, device: Device) -> bool:
        """Whether this device is one of the head's own GPUs."""
        return device.host == self.gpus_of and device.kind != "cpu" and device.native.measured

    def seen(self, candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
        """The candidates as this head has them: its own GPUs at their native speed and without a link."""
        if not self.gpus_of:
            return tuple(candidates)
        return fastest_first(
            replace(one, device=replace(one.device, speed=one.device.native, link=IN_THE_HEAD))
            if self.has_gpu(one.device)
            else one
            for one in candidates
        )


_Placed = tuple[Variant, tuple[Stage, ...]]

Place = Callable[[Sequence[Candidate]], tuple[Stage, ...] | None]
"""A search: the stages over these candidates and their budgets, None where nothing fits."""


class SplitSearch:
    """Searches over any of these candidates for steps of so many tokens; what they have in common is worked out once.

    There is one for each host whose GPUs the head may compute on itself, since devices differ by that. `as_measured`:
    speeds that differ by no more than noise are not one speed.
    """

    def __init__(
        self, memory: ModelMemory, candidates: Sequence[Candidate], tokens: int, *, as_measured: bool = False
    ) -> None:
        self.memory, self._candidates, self._tokens, self._as_measured = memory, candidates, tokens, as_measured
        self._made: dict[str, LayerSearch] = {}

    def of(self, variant: Variant) -> LayerSearch:
        if variant.gpus_of not in self._made:
            seen = variant.seen(self._candidates)
            tables = StageTables(self.memory, seen, self._tokens, as_measured=self._as_measured)
            self._made[variant.gpus_of] = LayerSearch(tables)
        return self._made[variant.gpus_of]


def variant_of(group: Group) -> Variant:
    """How the head of this layer split was placed."""
    native = next((share.device for share in group.shares if share.native and not share.gpu), None)
    return Variant(group.output_on_head, native, group.head if any(share.gpu for share in group.shares) else "")


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
    device that is no candidate or its layers are not the model's. Where speeds that count as one hide a placement that
    is faster by more than noise, as measured, that is there, too.
    """

    def seconds(group: Group) -> float:
        return group.token_s if goal == "latency" else group.step_s

    if split is not None:
        found = _groups(survey, memories, candidates, _forced(survey, memories[0], candidates, split))
    else:
        tokens = 1 if goal == "latency" else memories[0].parallel
        search = SplitSearch(memories[0], candidates, tokens)
        found = _groups(survey, memories, candidates, _placements(survey, search, candidates, even_too=True))
        if found and len(candidates) <= TRIED_AS_MEASURED and not _differ_by_more_than_noise(candidates):
            best_s = min(map(seconds, found)) / (1 + LEAST_NOISE)
            search = SplitSearch(memories[0], candidates, tokens, as_measured=True)
            others = _groups(survey, memories, candidates, _placements(survey, search, candidates, even_too=False))
            found += [one for one in others if seconds(one) < best_s]
    by_key = {group_key(group): group for group in found}
    return tuple(sorted(by_key.values(), key=lambda one: (seconds(one), group_key(one))))


def _differ_by_more_than_noise(candidates: Sequence[Candidate]) -> bool:
    """Whether each is placed by its own speed anyway."""
    speeds = {one.device.name: one.device.speed for one in candidates}
    return even_speeds(speeds) == speeds


def fastest_split(
    survey: Survey, memories: Sequence[ModelMemory], search: SplitSearch, candidates: Sequence[Candidate]
) -> Group | None:
    """The split over these of the search's candidates, or some of them, of the least time for a step of all
    conversations; None where none fits."""
    groups = _groups(survey, memories, candidates, _placements(survey, search, candidates, even_too=False))
    return min(groups, key=lambda one: (one.step_s, group_key(one)), default=None)


def split_again(
    survey: Survey, memories: Sequence[ModelMemory], candidates: Sequence[Candidate], group: Group
) -> Group | None:
    """The same layers and the same head for another number of conversations, None where that does not fit."""
    variant, split = variant_of(group), {share.device: share.layers for share in group.shares}
    stages = _stages(survey, memories[0], candidates, variant, split)
    return _group(survey, memories, candidates, variant, stages) if stages else None


def head_need_bytes(memory: ModelMemory, *, output: bool) -> int:
    """What the head of a split needs of the controller's memory, margin included."""
    return needed_bytes(head_share_bytes(memory, output=output).total_bytes)


def holds_a_head(survey: Survey, memory: ModelMemory) -> bool:
    """Whether the controller has memory for the head of a split without an output layer: any takes that much."""
    return head_need_bytes(memory, output=False) <= survey.controller.memory_available_bytes


def pool_for(survey: Survey, memory: ModelMemory, candidates: Sequence[Candidate], variant: Variant) -> Pooled | None:
    """The candidates as such a head has them, and the memories that they share beside it; None when the controller does
    not hold it.

    A head with a native first stage is counted within that device's own budget.
    """
    head_bytes = 0 if variant.native else head_need_bytes(memory, output=variant.output_on_head)
    available = survey.controller.memory_available_bytes
    return pool_budgets(variant.seen(candidates), controller_bytes=available, head_bytes=head_bytes)


def placed_within(memory: ModelMemory, pooled: Pooled, variant: Variant, place: Place) -> Iterator[tuple[Stage, ...]]:
    """What is found with each device's budget alone, where the memories hold that: nothing else is better. Otherwise
    what is found in each way to share them out, with what that leaves given to the same devices and others.

    Where nothing is found with those budgets there is nothing.
    """
    stages = place(pooled.alone)
    if stages is None:
        return
    needs = _needs(memory, variant, stages)
    if pooled.hold(needs):
        yield stages
        return
    for budgets in pooled.ways_for(needs):
        placed = place(budgets)
        if placed is not None:
            yield place(pooled.beside(_needs(memory, variant, placed))) or placed


def _placements(
    survey: Survey, search: SplitSearch, candidates: Sequence[Candidate], *, even_too: bool
) -> Iterator[_Placed]:
    """For each way for the head the fastest placements, and the most even ones where those are wanted, too."""
    for variant in _variants(candidates):
        pooled = pool_for(survey, search.memory, candidates, variant)
        if pooled is None:
            continue
        layers, rules = search.of(variant), Rules(variant.output_on_head, variant.native)
        searches: list[Place] = [partial(_place_within_limit, layers, rules=rules)]
        if even_too and variant.native is None:
            searches.append(partial(_most_even, layers, rules=rules))
        for place in searches:
            yield from ((variant, stages) for stages in placed_within(search.memory, pooled, variant, place))


def _variants(candidates: Sequence[Candidate]) -> tuple[Variant, ...]:
    """Every way for a head; a CPU and GPUs of its own are those of one host, whose engine it is."""
    own = [one.device for one in candidates if one.machine == CONTROLLER and one.device.native.measured]
    natives = [device for device in own if device.kind == "cpu"]
    heads: list[tuple[str | None, str]] = [(None, ""), *((device.name, "") for device in natives)]
    for host in dict.fromkeys(device.host for device in own if device.kind != "cpu"):
        heads += [(native, host) for native in (None, *(one.name for one in natives if one.host == host))]
    return tuple(Variant(on_head, native, host) for native, host in heads for on_head in (False, True))


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


def _most_even(search: LayerSearch, candidates: Sequence[Candidate], rules: Rules) -> tuple[Stage, ...] | None:
    return search.most_even(_at_most(candidates, ENGINE_DEVICES), rules)


def _at_most(candidates: Sequence[Candidate], count: int) -> tuple[Candidate, ...]:
    """The fastest; candidates come fastest first."""
    return tuple(candidates[:count])


def _largest(candidates: Sequence[Candidate], count: int) -> tuple[Candidate, ...]:
    largest = sorted(candidates, key=lambda one: (-one.budget_bytes, one.device.name))[:count]
    return tuple(one for one in candidates if one in largest)


def _forced(
    survey: Survey, memory: ModelMemory, candidates: Sequence[Candidate], split: Mapping[str, int]
) -> Iterator[_Placed]:
    """The split as it was given, wherever its budgets allow the output layer and the first stage."""
    if sum(split.values()) != memory.blocks or min(split.values()) < 1 or len(split) > ENGINE_DEVICES:
        return
    first, *others = split
    for variant in _variants(candidates):
        if variant.native is None or (variant.native == first and others):
            stages = _stages(survey, memory, candidates, variant, split)
            if stages:
                yield variant, stages


def _stages(
    survey: Survey,
    memory: ModelMemory,
    candidates: Sequence[Candidate],
    variant: Variant,
    split: Mapping[str, int],
) -> tuple[Stage, ...]:
    """The stages of this split; none where a device is no candidate, or too small."""
    used = [one for one in candidates if one.device.name in split]
    pooled = pool_for(survey, memory, used, variant)
    if pooled is None or len(used) < len(split):
        return ()
    by_name = {one.device.name: one for one in pooled.candidates}
    stages = _given_stages([by_name[name] for name in split], [*split.values()], variant)
    return stages if pooled.hold(_needs(memory, variant, stages)) else ()


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


def _needs(memory: ModelMemory, variant: Variant, stages: Sequence[Stage]) -> dict[str, int]:
    """Of each device, what is the head's beside a native stage included."""
    on_head = variant.output_on_head
    return {one.candidate.device.name: stage_needs_bytes(memory, one, output_on_head=on_head) for one in stages}


def _groups(
    survey: Survey, memories: Sequence[ModelMemory], candidates: Sequence[Candidate], placements: Iterable[_Placed]
) -> list[Group]:
    return [
        _group(survey, memories, candidates, variant, stages)
        for variant, stages in placements
        if len(stages) > 1 or not variant.has_gpu(stages[0].candidate.device)  # a GPU alone is mode single
    ]


def _group(
    survey: Survey,
    memories: Sequence[ModelMemory],
    candidates: Sequence[Candidate],
    variant: Variant,
    stages: tuple[Stage, ...],
) -> Group:
    allowed = _allowed(survey, memories, candidates, variant, stages)
    memory = fastest_reading([one for one, _ in allowed], lambda one: stages_prefill_s(one, stages))
    budgets = next(budgets for one, budgets in allowed if one is memory)
    speed, notes = _head_speed(survey, candidates, variant)
    head = head_share_bytes(memory, output=variant.output_on_head)
    head_s = {
        rows: output_seconds(speed, memory.output_bytes, rows) if variant.output_on_head else 0.0
        for rows in (1, memory.parallel)
    }
    return Group(
        mode="layers",
        head=next((stage.candidate.device.host for stage in stages if _by_head(stage, variant)), CONTROLLER),
        shares=tuple(_share(memory, stage, variant, budgets[stage.candidate.device.name]) for stage in stages),
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


def _allowed(
    survey: Survey,
    memories: Sequence[ModelMemory],
    candidates: Sequence[Candidate],
    variant: Variant,
    stages: Sequence[Stage],
) -> list[tuple[ModelMemory, dict[str, int]]]:
    """The micro-batches whose buffers fit, each with the devices' budgets beside each other. Those of the first, for
    which stages were placed, do by construction."""
    used = [one for one in candidates if any(one.device.name == stage.candidate.device.name for stage in stages)]
    allowed = []
    for memory in memories:
        pooled, needs = pool_for(survey, memory, used, variant), _needs(memory, variant, stages)
        if pooled is not None and pooled.hold(needs):
            allowed.append((memory, {one.device.name: one.budget_bytes for one in pooled.beside(needs)}))
    return allowed


def _head_speed(survey: Survey, candidates: Sequence[Candidate], variant: Variant) -> tuple[Speed, tuple[str, ...]]:
    """How fast the head computes an output layer, and a note where another device's speed stands for it."""
    if variant.native is not None:
        return next(one.device.native for one in candidates if one.device.name == variant.native), ()
    if survey.controller_speed.measured:
        return survey.controller_speed, ()
    like = candidates[len(candidates) // 2].device
    note = f"the controller was not measured: its output layer is predicted as on {like.name}"
    return like.speed, (note,) if variant.output_on_head else ()


def _share(memory: ModelMemory, stage: Stage, variant: Variant, budget_bytes: int) -> Share:
    held = stage_bytes(memory, stage)
    return Share(
        device=stage.candidate.device.name,
        first_layer=stage.first_layer,
        layers=stage.layers,
        output=stage.output,
        weights_bytes=held.weights_bytes,
        kv_bytes=held.kv_bytes,
        compute_bytes=held.compute_bytes,
        budget_bytes=budget_bytes,
        time_s=stage_time_s(memory, stage),
        native=_by_head(stage, variant),
        gpu=stage.candidate.device.engine_name if variant.has_gpu(stage.candidate.device) else "",
        own_memory=not stage.candidate.in_main_memory,
    )


def _by_head(stage: Stage, variant: Variant) -> bool:
    """Whether the head computes this stage itself, without a worker."""
    return stage.native or variant.has_gpu(stage.candidate.device)


def _traffic(memory: ModelMemory, stages: Sequence[Stage], variant: Variant) -> Traffic:
    """Per token and worker: the hidden state there, and back again; from the last one the logits if it makes them."""
    workers = [stage for stage in stages if not _by_head(stage, variant)]
    return Traffic(
        hops=len(workers),
        synchronisations=len(workers),
        up_bytes=len(workers) * memory.hidden_bytes,
        down_bytes=sum(memory.logits_bytes if stage.output else memory.hidden_bytes for stage in workers),
    )
