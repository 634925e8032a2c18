"""Why a plan does not use a device, in numbers: what the best plan with it would look like. Pure."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import lru_cache, partial

from orchestrator.plan.contention import contended
from orchestrator.plan.conversations import with_kv
from orchestrator.plan.costs import (
    fixed_seconds,
    layers_seconds,
    needed_bytes,
    share_bytes,
    stage_link_s,
)
from orchestrator.plan.cut import cut_bytes, part_bytes, whole_parts
from orchestrator.plan.experience import uncorrected
from orchestrator.plan.layers import LayerSearch, Rules
from orchestrator.plan.noise import ORDER_NOISE, difference
from orchestrator.plan.pools import Candidate, find_candidates, pool_budgets, why_unusable
from orchestrator.plan.single import run_alone, why_not_alone
from orchestrator.plan.split import ENGINE_DEVICES, placed_within, pool_for, variant_of
from orchestrator.plan.stage_tables import StageTables
from orchestrator.plan.stages import Stage, stages_s
from orchestrator.plan.values import Group, Known, LeftOut, ModelMemory, Plan
from orchestrator.survey.values import Device, Survey
from orchestrator.view.sizes import bytes_text, duration_text, parts_text, tokens_text

TIE = 1e-5
"""Two plans whose times differ by less than this part are as fast as each other."""

MOST_PLACED = 16
"""With more devices than this, a plan with one of those left out is not worked out; its own costs are told instead."""

AS_KNOWN: dict[Known, str] = {
    "predicted": " as predicted",
    "corrected": " as corrected by earlier runs",
    "measured": " as measured",
}


def left_out_of(
    survey: Survey, memory: ModelMemory, plan: Plan, others: Sequence[Plan], names: Collection[str] | None
) -> tuple[LeftOut, ...]:
    """Every device that the plan does not use, by name, with the reason. `names` are those that were asked for,
    `others` the plans that it was preferred to, of what was asked for."""
    used = {share.device for share in plan.shares}
    candidates = find_candidates(survey, names)
    tried = {one.device.name: one for one in candidates}
    unused = sorted((device for device in survey.devices if device.name not in used), key=lambda device: device.name)

    tokens = 1 if plan.goal == "latency" else memory.parallel
    search = LayerSearch(StageTables(memory, variant_of(plan.fastest).seen(candidates), tokens))

    def reason(device: Device) -> str:
        if device.name not in tried:
            return _why_not_tried(device, names)
        return _why_slower(survey, search, plan, others, candidates, tried[device.name])

    return tuple(LeftOut(device.name, reason(device)) for device in unused)


def holds_no_layer(memory: ModelMemory, candidate: Candidate) -> str:
    """A sentence when the budget is too small for even the smallest layer, else ""."""
    layers = range(len(memory.layer_weights_bytes))
    smallest = min(needed_bytes(share_bytes(memory, layer, 1, output=False).total_bytes) for layer in layers)
    if candidate.budget_bytes >= smallest:
        return ""
    return (
        f"budget {bytes_text(candidate.budget_bytes)} holds no layer: "
        f"the smallest needs {bytes_text(smallest)} with its buffers and margin"
    )


def figure(plan: Plan) -> str:
    """What plans are compared by."""
    if plan.goal == "latency":
        return f"{duration_text(plan.token_s)} per token"
    return f"{plan.aggregate_tokens_per_s:.1f} tokens per second"


def _why_not_tried(device: Device, names: Collection[str] | None) -> str:
    if names is not None and device.name not in names:
        return "not among the devices asked for"
    return why_unusable(device)


def _why_slower(
    survey: Survey,
    search: LayerSearch,
    plan: Plan,
    others: Sequence[Plan],
    candidates: Sequence[Candidate],
    one: Candidate,
) -> str:
    memory = search.tables.memory
    if plan.mode in ("single", "replicas"):
        return _against_whole(survey, memory, plan, others, candidates, one)
    if plan.mode == "tensor":
        return _against_tensor(search.tables, plan, others, one)
    return holds_no_layer(memory, one) or _against_split(survey, search, plan, others, candidates, one)


def _against_whole(
    survey: Survey,
    memory: ModelMemory,
    plan: Plan,
    others: Sequence[Plan],
    candidates: Sequence[Candidate],
    one: Candidate,
) -> str:
    """The plan has whole copies of the model only."""
    name, for_one = one.device.name, with_kv(memory, memory.context, 1)
    alone = next((other for other in others if other.mode == "single" and other.shares[0].device == name), None)
    if alone is not None:
        theirs, ours = _as_known(alone, plan)
        used = ", ".join(f"{_names(group)} {_group_figure(plan, group)}" for group in plan.groups)
        return f"alone {figure(alone)}{theirs}, {used}{ours}{_reads(alone, plan)}{_crowded(survey, for_one, plan, one)}"
    if plan.mode == "single":
        return f"alone it {why_not_alone(memory, one)}{_best_with(plan, others, name)}"
    return f"{_beside_copies(survey, for_one, plan, candidates, one)}{_best_with(plan, others, name)}"


def _reads(alone: Plan, plan: Plan) -> str:
    """How prompts are read, after a comma, where nothing else speaks for the plan: it is a tie by the goal."""
    tied = alone.goal_s < plan.goal_s <= alone.goal_s * (1 + ORDER_NOISE)
    apart = difference(plan.prefill_tokens_per_s, alone.prefill_tokens_per_s)
    if plan.mode != "single" or not tied or apart < ORDER_NOISE:
        return ""
    return f", which is as much; {_names(plan.fastest)} reads prompts {apart:.0%} faster"


def _beside_copies(
    survey: Survey, for_one: ModelMemory, plan: Plan, candidates: Sequence[Candidate], one: Candidate
) -> str:
    """What keeps the device from being a head, or how fast it would be with one conversation, as `for_one` has it."""
    if why := why_not_alone(for_one, one):
        return f"alone it {why}"
    taken = {share.device: needed_bytes(share.total_bytes) for share in plan.shares}
    there = [replace(each, budget_bytes=taken[each.device.name]) for each in candidates if each.device.name in taken]
    available = survey.controller.memory_available_bytes
    pooled = pool_budgets([*there, one], controller_bytes=available, head_bytes=0)
    beside = pooled.beside(taken)[-1] if pooled else one
    if why := why_not_alone(for_one, beside):
        return f"beside the others on its machine it {why}"
    alone_per_s = run_alone((for_one,), one).aggregate_tokens_per_s
    used = ", ".join(
        f"{_names(group)} {tokens_text(group.aggregate_tokens_per_s)} with {group.parallel}" for group in plan.groups
    )
    return f"with one conversation it does {tokens_text(alone_per_s)}, {used}{_crowded(survey, for_one, plan, one)}"


def _crowded(survey: Survey, for_one: ModelMemory, plan: Plan, one: Candidate) -> str:
    """What several heads would take from this one, after a semicolon, where its machine computes for them, too."""
    if len(plan.groups) < 2:
        return ""
    beside = contended(survey, (*plan.groups, run_alone((for_one,), one)))[-1].beside
    if beside == 1:
        return ""
    return f"; beside what computes on its machine a step of it would take {beside:.1f} times as long"


def _against_tensor(tables: StageTables, plan: Plan, others: Sequence[Plan], one: Candidate) -> str:
    group, memory, tokens = plan.fastest, tables.memory, tables.tokens
    whole = whole_parts(memory, len(group.shares) + 1) or memory.kv_heads
    least = needed_bytes(_least_part(memory, whole))
    if one.budget_bytes < least:
        return f"budget {bytes_text(one.budget_bytes)} holds no part: one of {whole} needs {bytes_text(least)}"
    best_with = _best_with(plan, others, one.device.name)
    if len(group.shares) >= memory.kv_heads:
        return f"each of the {len(group.shares)} others has one of the {memory.kv_heads} KV heads{best_with}"
    exchanges = group.traffic.synchronisations
    cost_s = exchanges * stage_link_s(memory, one.device, tokens)
    return (
        f"it would take part in {exchanges} exchanges per {_unit(tokens)}, {duration_text(cost_s)} through its link"
        f"{best_with}"
    )


@lru_cache(maxsize=64)
def _least_part(memory: ModelMemory, whole: int) -> int:
    """Bytes of the smallest part of a cut: of so many equal ones, or as the engine cuts among any number of devices of
    which one, in whichever place, has all that the others leave."""
    cuts = (
        (*[1] * before, whole - others, *[1] * (others - before))
        for others in range(1, min(whole, ENGINE_DEVICES))
        for before in range(others + 1)
    )
    beside = (one for parts in cuts for one in cut_bytes(memory, parts))
    return min(one.total_bytes for one in (part_bytes(memory, 1, whole), *beside))


def _best_with(plan: Plan, others: Sequence[Plan], name: str) -> str:
    """What the best of the plans that this device shares with others would come to, after a semicolon; else ""."""
    sharing = [one for one in others if len(one.shares) > 1 and _uses(one, name)]
    return f"; the best plan with it {_compared(min(sharing, key=lambda one: one.goal_s), plan)}" if sharing else ""


def _compared(other: Plan, plan: Plan) -> str:
    theirs, ours = _as_known(other, plan)
    devices = "device" if len(other.shares) == 1 else "devices"
    return f"({other.mode} over {len(other.shares)} {devices}) {figure(other)}{theirs}, this {figure(plan)}{ours}"


def _as_known(other: Plan, plan: Plan) -> tuple[str, str]:
    """How the figures of both are known, where not both are predictions."""
    known = _known(other), _known(plan)
    return ("", "") if known == ("predicted", "predicted") else (AS_KNOWN[known[0]], AS_KNOWN[known[1]])


def _known(plan: Plan) -> Known:
    """Of heads that are known in several ways the aggregate is a prediction that was corrected."""
    known = {group.known for group in plan.groups}
    return known.pop() if len(known) == 1 else "corrected"


def _uses(plan: Plan, name: str) -> bool:
    return any(share.device == name for share in plan.shares)


def _names(group: Group) -> str:
    return "+".join(share.device for share in group.shares)


def _group_figure(plan: Plan, group: Group) -> str:
    return duration_text(group.token_s) if plan.goal == "latency" else f"{group.aggregate_tokens_per_s:.1f}"


def _unit(tokens: int) -> str:
    """What a duration is of: a token of one conversation, or a step of several, which gives each of them one."""
    return "token" if tokens == 1 else f"step of {tokens} conversations"


def _time_s(group: Group, tokens: int) -> float:
    return group.token_s if tokens == 1 else group.step_s


def _against_split(
    survey: Survey,
    search: LayerSearch,
    plan: Plan,
    others: Sequence[Plan],
    candidates: Sequence[Candidate],
    one: Candidate,
) -> str:
    """Compare with the best split that has to use this device, with the head as it is in the plan."""
    group, name, tables, memory = plan.fastest, one.device.name, search.tables, search.tables.memory
    if len(candidates) > MOST_PLACED:
        return _own_costs(tables, group, one)
    variant = variant_of(group)
    pooled = pool_for(survey, memory, candidates, variant)
    rules = Rules(variant.output_on_head, variant.native, required=name)
    found = [*placed_within(memory, pooled, variant, partial(search.fastest, rules=rules))] if pooled else []
    placed = [stages for stages in found if len(stages) <= ENGINE_DEVICES]
    if not pooled or not placed:
        return _none_placed(memory, found, pooled.in_equal_parts() if pooled else candidates)
    stages = min(placed, key=lambda each: stages_s(memory, each, tables.tokens))
    layers = sum(stage.layers for stage in stages if stage.candidate.device.name == name)
    then_s = stages_s(memory, stages, tables.tokens)
    now_s = stages_s(memory, _stages_of(group, pooled.candidates), tables.tokens)
    longer_s, tie_s = then_s - now_s, TIE * now_s
    ran = _as_it_ran(plan, others, name, helps=longer_s < -tie_s)
    if len(stages) == 1:
        by = f" by the survey alone{ran}" if ran else ""
        alone = f"alone {duration_text(then_s)} per {_unit(tables.tokens)}"
        return f"{alone}, {_names(group)} {duration_text(now_s)}{by}"
    took = f"it would take {layers} of {memory.blocks} layers{_in_place_of(group, stages)}"
    device = next(each.device for each in pooled.candidates if each.device.name == name)
    link_s = fixed_seconds(device.speed, tables.tokens) + stage_link_s(memory, device, tables.tokens)
    return _told(took, longer_s, link_s, tie_s, _unit(tables.tokens), ran)


def _in_place_of(group: Group, stages: Sequence[Stage]) -> str:
    """Which devices of the plan the split does without, if any."""
    there = {stage.candidate.device.name for stage in stages}
    gone = [share.device for share in group.shares if share.device not in there]
    return f" in the place of {' and '.join(gone)}" if gone else ""


def _none_placed(memory: ModelMemory, found: Sequence[Sequence[Stage]], candidates: Sequence[Candidate]) -> str:
    if found:
        return f"the best split with it takes {len(found[0])} devices, the engine {ENGINE_DEVICES} at most"
    layers_bytes = sum(memory.layer_weights_bytes) + sum(memory.layer_kv_bytes)
    budgets = parts_text({one.device.name: one.budget_bytes for one in candidates})
    return (
        f"no split with it fits the budgets: whole layers of {bytes_text(layers_bytes)} in sum, and on each device "
        f"{bytes_text(needed_bytes(memory.compute_bytes))} or more for buffers and margin; they are {budgets}"
    )


def _stages_of(group: Group, candidates: Sequence[Candidate]) -> tuple[Stage, ...]:
    """The plan's own stages, so that both are predicted alike: what earlier runs have corrected is in neither."""
    by_name = {one.device.name: one for one in candidates}
    return tuple(
        Stage(by_name[share.device], share.first_layer, share.layers, share.output, share.native and not share.gpu)
        for share in group.shares
    )


def _as_it_ran(plan: Plan, others: Sequence[Plan], name: str, *, helps: bool) -> str:
    """How a split with this device, or of it alone, compares with the plan where it was measured; or where by the
    survey alone the device `helps`, and the plan was preferred to one that is faster by the survey alone. Else ""."""
    splits = [
        other
        for other in others
        if other.mode == "layers"
        and _uses(other, name)
        and (_known(other) == "measured" or (helps and _surveyed_s(other) < _surveyed_s(plan)))
    ]
    best = min(splits, key=lambda other: (_known(other) != "measured", other.goal_s), default=None)
    if best is None:
        return ""
    return f"; a plan {'with it' if len(best.shares) > 1 else 'of it alone'} {_compared(best, plan)}"


def _surveyed_s(plan: Plan) -> float:
    """`goal_s` without what earlier runs have corrected."""
    return replace(plan, groups=tuple(uncorrected(group) for group in plan.groups)).goal_s


def _told(took: str, longer_s: float, link_s: float, tie_s: float, unit: str, ran: str) -> str:
    """Such as "it would take 6 of 32 layers and save 1.2 ms per token, its link and stage cost 3.1 ms", of which `took`
    is the beginning; `ran` is what else is known, after a semicolon."""
    cost = duration_text(link_s)
    if longer_s < -tie_s:
        why = f" by the survey alone{ran}" if ran else ", within what counts as noise"
        return f"{took} and save {duration_text(-longer_s)} per {unit}{why}"
    if longer_s <= tie_s:
        return f"{took}, and a {unit} would take as long as without it{ran}"
    saved_s = link_s - longer_s
    if saved_s > tie_s:
        return f"{took} and save {duration_text(saved_s)} per {unit}, its link and stage cost {cost}{ran}"
    slower = f"compute {duration_text(-saved_s)} longer than others do" if saved_s < -tie_s else "save nothing"
    return f"{took} and {slower}, and its link and stage cost {cost} per {unit}{ran}"


def _own_costs(tables: StageTables, group: Group, one: Candidate) -> str:
    memory, tokens = tables.memory, tables.tokens
    whole_s = layers_seconds(one.device.speed, sum(memory.layer_weights_bytes), tokens)
    link_s = stage_link_s(memory, one.device, tokens)
    what, now_s = _unit(tokens), _time_s(group, tokens)
    return (
        f"all layers alone would take it {duration_text(whole_s)} per {what} and its link {duration_text(link_s)}, "
        f"the plan takes {duration_text(now_s)} for all of it"
    )
