"""Why a plan does not use a device, in numbers: what the best plan with it would look like. Pure."""

from collections.abc import Collection, Sequence

from orchestrator.plan.costs import layers_seconds, needed_bytes, share_bytes, stage_link_s
from orchestrator.plan.layers import Rules, place_layers
from orchestrator.plan.pools import Candidate, find_candidates, why_unusable
from orchestrator.plan.split import ENGINE_DEVICES, Variant, pooled_for
from orchestrator.plan.stage_tables import StageTables
from orchestrator.plan.stages import stages_s
from orchestrator.plan.values import Group, LeftOut, ModelMemory, Plan
from orchestrator.survey.values import Device, Survey
from orchestrator.view.sizes import bytes_text, duration_text

TIE = 1e-5
"""Two plans whose times differ by less than this part are as fast as each other."""

MOST_PLACED = 16
"""With more devices than this, a plan with one of those left out is not worked out; its own costs are told instead."""


def left_out_of(survey: Survey, memory: ModelMemory, plan: Plan, names: Collection[str] | None) -> tuple[LeftOut, ...]:
    """Every device that the plan does not use, by name, with the reason. `names` are those that were asked for."""
    used = {share.device for share in plan.shares}
    candidates = find_candidates(survey, names)
    tried = {one.device.name: one for one in candidates}
    unused = sorted((device for device in survey.devices if device.name not in used), key=lambda device: device.name)

    tables = StageTables(memory, candidates)

    def reason(device: Device) -> str:
        if device.name not in tried:
            return _why_not_tried(device, names)
        return _why_slower(survey, tables, plan, candidates, tried[device.name])

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


def _why_not_tried(device: Device, names: Collection[str] | None) -> str:
    if names is not None and device.name not in names:
        return "not among the devices asked for"
    return why_unusable(device)


def _why_slower(
    survey: Survey, tables: StageTables, plan: Plan, candidates: Sequence[Candidate], one: Candidate
) -> str:
    group, memory = plan.fastest, tables.memory
    if plan.mode in ("single", "replicas"):
        return _against_whole(memory, group, one)
    if plan.mode == "tensor":
        return _against_tensor(memory, group, one)
    return holds_no_layer(memory, one) or _against_split(survey, tables, group, candidates, one)


def _against_whole(memory: ModelMemory, group: Group, one: Candidate) -> str:
    """The plan has whole copies of the model only."""
    whole = sum(memory.layer_weights_bytes)
    if needed_bytes(memory.total_bytes) > one.budget_bytes:
        needed, budget = bytes_text(needed_bytes(memory.total_bytes)), bytes_text(one.budget_bytes)
        return f"alone it would need {needed}, its budget is {budget}; a split with it was predicted to be slower"
    if not one.device.native.measured:
        return "its speed without RPC was not measured"
    alone_s = layers_seconds(one.device.native, whole, 1) + one.device.native.output_s
    return f"alone {duration_text(alone_s)} per token, {group.shares[0].device} {duration_text(group.token_s)}"


def _against_tensor(memory: ModelMemory, group: Group, one: Candidate) -> str:
    exchanges = group.traffic.synchronisations // max(1, len(group.shares))
    cost_s = exchanges * stage_link_s(memory, one.device, 1)
    whole_s = layers_seconds(one.device.speed, sum(memory.layer_weights_bytes), 1)
    return (
        f"it would take part in {exchanges} exchanges per token, {duration_text(cost_s)} through its link; "
        f"all layers alone would take it {duration_text(whole_s)}, a token takes {duration_text(group.token_s)} now"
    )


def _against_split(
    survey: Survey, tables: StageTables, group: Group, candidates: Sequence[Candidate], one: Candidate
) -> str:
    """Compare with the best split that has to use this device, with the head as it is in the plan."""
    memory = tables.memory
    if len(candidates) > MOST_PLACED:
        return _own_costs(memory, group, one)
    native = next((share.device for share in group.shares if share.native), None)
    variant = Variant(group.output_on_head, native)
    pooled = pooled_for(survey, memory, candidates, variant)
    rules = Rules(variant.output_on_head, variant.native, required=one.device.name)
    stages = place_layers(tables, pooled, rules)
    if stages is None or len(stages) > ENGINE_DEVICES:
        return "no split with it fits the budgets"
    layers = sum(stage.layers for stage in stages if stage.candidate.device.name == one.device.name)
    longer_s = stages_s(memory, stages) - (group.token_s - group.head_time_s)
    link_s = one.device.speed.passes[0].fixed_s + stage_link_s(memory, one.device, 1)
    return _told(layers, memory.blocks, longer_s, link_s, TIE * group.token_s)


def _told(layers: int, blocks: int, longer_s: float, link_s: float, tie_s: float) -> str:
    """Such as "it would take 6 of 32 layers and save 1.2 ms per token, its link and stage cost 3.1 ms"."""
    took, cost = f"it would take {layers} of {blocks} layers", duration_text(link_s)
    if longer_s < -tie_s:
        return f"{took} and save {duration_text(-longer_s)} per token, within what counts as noise"
    if longer_s <= tie_s:
        return f"{took}, and a token would take as long as without it"
    saved_s = link_s - longer_s
    if saved_s > tie_s:
        return f"{took} and save {duration_text(saved_s)} per token, its link and stage cost {cost}"
    slower = f"compute {duration_text(-saved_s)} longer than others do" if saved_s < -tie_s else "save nothing"
    return f"{took} and {slower}, and its link and stage cost {cost} per token"


def _own_costs(memory: ModelMemory, group: Group, one: Candidate) -> str:
    whole_s = layers_seconds(one.device.speed, sum(memory.layer_weights_bytes), 1)
    link_s = stage_link_s(memory, one.device, 1)
    return (
        f"all layers alone would take it {duration_text(whole_s)} per token and its link {duration_text(link_s)}, "
        f"the plan takes {duration_text(group.token_s)} for all of it"
    )
