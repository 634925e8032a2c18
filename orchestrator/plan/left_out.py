"""Why a plan does not use a device, in numbers: what the best plan with it would look like. Pure."""

from collections.abc import Callable, Collection

from orchestrator.plan.costs import needed_bytes, share_bytes, stage_s
from orchestrator.plan.layers import Rules, place_layers, stages_s
from orchestrator.plan.pools import Candidate, find_candidates, why_unusable
from orchestrator.plan.single import Single, run_alone
from orchestrator.plan.single import fits as fits_alone
from orchestrator.plan.split import ENGINE_DEVICES, Split
from orchestrator.plan.values import LeftOut, ModelMemory
from orchestrator.survey.values import Device, Survey
from orchestrator.view.sizes import bytes_text, duration_text

TIE = 1e-5
"""Two plans whose times differ by less than this part are as fast as each other."""


def left_out_of_split(
    survey: Survey, memory: ModelMemory, split: Split, names: Collection[str] | None
) -> tuple[LeftOut, ...]:
    """Every device without a stage, by name, with the reason."""
    used = {stage.candidate.device.name for stage in split.stages}
    tried = {one.device.name: one for one in split.candidates}

    def reason(device: Device) -> str:
        if device.name not in tried:
            return _why_not_tried(device, names) or f"the engine splits over at most {ENGINE_DEVICES} devices"
        return holds_no_layer(memory, tried[device.name]) or _why_slower(memory, split, tried[device.name])

    return _reasons(survey, used, reason)


def left_out_of_single(
    survey: Survey, memory: ModelMemory, single: Single, names: Collection[str] | None
) -> tuple[LeftOut, ...]:
    """Every other device, by name, with the reason."""
    candidates = {one.device.name: one for one in find_candidates(survey, names)}
    chosen = single.candidate.device.name

    def reason(device: Device) -> str:
        if device.name not in candidates:
            return _why_not_tried(device, names)
        alone = run_alone(memory, candidates[device.name])
        if fits_alone(alone):
            return f"alone {duration_text(alone.token_s)} per token, {chosen} {duration_text(single.token_s)}"
        needed, budget = needed_bytes(alone.share.total_bytes), alone.candidate.budget_bytes
        return f"alone it would need {bytes_text(needed)}, its budget is {bytes_text(budget)}"

    return _reasons(survey, {chosen}, reason)


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


def _reasons(survey: Survey, used: Collection[str], reason: Callable[[Device], str]) -> tuple[LeftOut, ...]:
    unused = sorted((device for device in survey.devices if device.name not in used), key=lambda device: device.name)
    return tuple(LeftOut(device.name, reason(device)) for device in unused)


def _why_not_tried(device: Device, names: Collection[str] | None) -> str:
    if names is not None and device.name not in names:
        return "not among the devices asked for"
    return why_unusable(device)


def _why_slower(memory: ModelMemory, split: Split, candidate: Candidate) -> str:
    """Compare with the best split that has to use this device and ends with the same last one."""
    name, blocks = candidate.device.name, len(memory.layer_weights_bytes)
    last = split.stages[-1].candidate.device.name
    with_it = place_layers(memory, split.candidates, Rules(split.output_on_head, required=name, last=last))
    if with_it is None:
        return f"no split with it and with {last} as the last device fits the budgets"
    layers = sum(stage.layers for stage in with_it if stage.candidate.device.name == name)
    cost_s = stage_s(memory, candidate.device, output=False)
    longer_s = stages_s(memory, with_it) - stages_s(memory, split.stages)
    costs = (
        f"{duration_text(cost_s)} as one more stage (round trip {duration_text(candidate.device.link.round_trip_s)})"
    )
    if longer_s < -TIE * split.token_s:
        return (
            f"with {layers} of {blocks} layers it would save {duration_text(-longer_s)} per token, "
            "within what counts as noise"
        )
    if longer_s <= TIE * split.token_s:
        return f"with {layers} of {blocks} layers on it a token would take as long as without it"
    if len(with_it) <= len(split.stages):
        slower = duration_text(longer_s)
        return f"with {layers} of {blocks} layers on it a token would take {slower} longer than without it"
    if cost_s - longer_s > TIE * split.token_s:
        saved = duration_text(cost_s - longer_s)
        return f"with {layers} of {blocks} layers it would save {saved} per token, but costs {costs}"
    if longer_s - cost_s <= TIE * split.token_s:
        return f"with {layers} of {blocks} layers it would save nothing, and costs {costs}"
    slower = duration_text(longer_s - cost_s)
    return f"with {layers} of {blocks} layers it would compute {slower} per token slower than others, and costs {costs}"
