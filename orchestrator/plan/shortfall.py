"""The error when a model fits nowhere: the numbers of every shortfall, and what helps (`ways_out`). Pure."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate

from orchestrator.errors import PlanError
from orchestrator.plan.conversations import with_kv
from orchestrator.plan.costs import needed_bytes, share_bytes
from orchestrator.plan.cut import part_bytes, whole_parts
from orchestrator.plan.layers import LayerSearch, Rules
from orchestrator.plan.left_out import holds_no_layer
from orchestrator.plan.pools import Candidate, Pooled, cut_reasons, why_unusable
from orchestrator.plan.single import beside_bytes, why_not_alone
from orchestrator.plan.split import ENGINE_DEVICES, Variant, head_need_bytes, holds_a_head, placed_within, pool_for
from orchestrator.plan.stage_tables import StageTables
from orchestrator.plan.tensor import most_parts
from orchestrator.plan.values import ModelMemory
from orchestrator.plan.ways_out import (
    SMALLER,
    Question,
    any_of,
    for_the_head,
    more_devices,
    other_modes,
    smaller_or,
    smaller_or_more,
    survey_again,
    without_split,
)
from orchestrator.survey.values import Survey
from orchestrator.view.sizes import bytes_text, parts_text


def no_device(survey: Survey, names: Collection[str] | None) -> PlanError:
    """No device at all can be used; says why for each."""
    return PlanError(
        "\n".join(["no device can be used", *_unusable(survey, names)]),
        hint="run `meshctl doctor` on the inventory, or survey it again with `meshctl survey`",
    )


def no_single(question: Question) -> PlanError:
    """Mode `single` was asked for and no device holds the whole model and was timed natively."""
    memory = question.memory
    why = [f"{one.device.name} {why_not_alone(memory, one)}" for one in question.candidates]
    lines = [f"{memory.model} at context {memory.context} fits no single device: {'; '.join(why)}"]
    return PlanError(
        "\n".join([*lines, *_unusable(question.survey, question.asked.devices)]),
        hint=smaller_or(question, *survey_again(question), *other_modes(question)),
    )


def no_replicas(question: Question) -> PlanError:
    """Mode `replicas` was asked for and there are no two heads with a whole copy, or no two conversations."""
    survey, memory, candidates = question.survey, question.memory, question.candidates
    if memory.parallel < 2:
        for_two = replace(question, memory=with_kv(memory, memory.context, 2))
        missing = more_devices(for_two) if len(candidates) < 2 else SMALLER
        more = "raise `parallel` to 2 or more" + ("" if for_two.fits(for_two.memory) else f" and {missing}")
        return PlanError(
            f"mode replicas shares conversations among heads, and parallel is {memory.parallel}",
            hint=any_of(more, *other_modes(question)),
        )
    for_one = with_kv(memory, memory.context, 1)
    alone = "; ".join(f"{one.device.name} {_held_alone(memory, one)}" for one in candidates)
    on_cards = {one.device.name: beside_bytes(for_one, one) for one in candidates if not why_not_alone(for_one, one)}
    lines = [
        f"{memory.model} at context {memory.context}: no two heads or more with a whole copy each hold its "
        f"{memory.parallel} conversations together, be they devices or groups of devices; alone {alone}",
        *cut_reasons(survey, candidates, 0, on_cards),
        *_failed(survey, candidates),
        *_unusable(survey, question.asked.devices),
    ]
    ways = (*survey_again(question), *other_modes(question))
    if len(candidates) < 2:  # no model is small enough for two heads on one device
        return PlanError("\n".join(lines), hint=any_of(more_devices(question), *ways))
    return PlanError("\n".join(lines), hint=smaller_or(question, *ways))


def no_tensor(question: Question) -> PlanError:
    """Mode `tensor` was asked for and no group of devices can cut the layers among them."""
    survey, memory, candidates = question.survey, question.memory, question.candidates
    others, unusable = other_modes(question), _unusable(survey, question.asked.devices)
    never = any_of(*others) or "leave the mode out: no other has a plan either, and the error then says what is missing"
    if survey.tensor_refused:
        return PlanError(f"the engine refuses mode tensor for {memory.model}: {survey.tensor_refused}", hint=never)
    if memory.kv_heads < 2:
        return PlanError(
            f"{memory.model} has one KV head: no device can have less than one, so mode tensor has nothing to share",
            hint=never,
        )
    if len(candidates) < 2:
        lines = ["mode tensor needs 2 devices or more, and one can be used", *unusable]
        return PlanError("\n".join(lines), hint=any_of(more_devices(question), *others))
    failed = _failed(survey, candidates)
    if failed and question.fits_on(replace(survey, tensor_failed=())):
        lines = [f"none of the groups that hold {memory.model} can run it in mode tensor", *failed]
        return PlanError("\n".join(lines), hint=any_of("see the warning of the survey on each", *others))
    whole = whole_parts(memory, 2) or memory.kv_heads
    each = "one per KV head" if whole == memory.kv_heads else f"{memory.kv_heads // whole} KV heads in each"
    lines = [
        f"{memory.model} at context {memory.context} does not fit in mode tensor: its layers are cut into "
        f"{whole} parts, {each}; 2 to {min(whole, ENGINE_DEVICES)} devices can share them",
        *_head_shortfall(survey, memory),
        *(_parts_held(memory, one, whole) for one in candidates),
        *cut_reasons(survey, candidates, head_need_bytes(memory, output=False)),
        *failed,
        *unusable,
    ]
    return PlanError("\n".join(lines), hint=smaller_or(question, *others))


def no_forced_split(question: Question, split: Mapping[str, int]) -> PlanError:
    """A split was given that cannot run; every reason gets a line."""
    survey, memory, candidates = question.survey, question.memory, question.candidates
    lines = [f"the split {' '.join(f'{name}={count}' for name, count in split.items())} cannot run"]
    if sum(split.values()) != memory.blocks:
        lines.append(f"it has {sum(split.values())} layers, {memory.model} has {memory.blocks}")
    lines += [f"{name} has {count} layers: it must have one or more" for name, count in split.items() if count < 1]
    lines += [f"{name} cannot be used: {why}" for name, why in _unusable_by_name(survey, split).items()]
    if len(split) > ENGINE_DEVICES:
        lines.append(f"the engine splits over at most {ENGINE_DEVICES} devices, these are {len(split)}")
    if len(lines) == 1:
        used = [one for one in candidates if one.device.name in split]
        lines += [*_too_small_for_split(memory, candidates, split), *_head_shortfall(survey, memory)]
        lines += cut_reasons(survey, used, head_need_bytes(memory, output=False))
    return PlanError("\n".join(lines), hint=without_split(question))


def no_split(question: Question) -> PlanError:
    """Neither one device nor all together hold the model; every shortfall gets a line."""
    survey, memory, candidates = question.survey, question.memory, question.candidates
    needed = bytes_text(needed_bytes(memory.total_bytes))
    budgets = {one.device.name: one.budget_bytes for one in candidates}
    lines = [f"{memory.model} needs {needed} at context {memory.context}; the devices have {parts_text(budgets)}"]
    pooled = pool_for(survey, memory, candidates, Variant(output_on_head=False))
    if pooled is None:
        return PlanError("\n".join([*lines, *_head_shortfall(survey, memory)]), hint=for_the_head(question))
    return PlanError(
        "\n".join(
            [
                *lines,
                *_split_shortfalls(survey, memory, candidates, pooled),
                *_too_many(candidates),
                *_not_native(memory, candidates),
                *_unusable(survey, question.asked.devices),
            ]
        ),
        hint=smaller_or_more(question),
    )


def _too_small_for_split(memory: ModelMemory, candidates: Sequence[Candidate], split: Mapping[str, int]) -> list[str]:
    """Each device whose layers do not fit; the output layer may be on the head."""
    budgets = {one.device.name: one.budget_bytes for one in candidates}
    firsts = accumulate(split.values(), initial=0)
    needs = {
        name: needed_bytes(share_bytes(memory, first, count, output=False).total_bytes)
        for (name, count), first in zip(split.items(), firsts, strict=False)
    }
    return [
        f"{name} needs {bytes_text(needed)} for {split[name]} layers and has {bytes_text(budgets[name])}"
        for name, needed in needs.items()
        if needed > budgets[name]
    ] or [f"the budgets do not hold it beside the output layer and the head: {parts_text(budgets)}"]


def _too_many(candidates: Sequence[Candidate]) -> list[str]:
    """Memory of more devices than the engine takes is of no use to one split."""
    if len(candidates) <= ENGINE_DEVICES:
        return []
    return [f"the engine splits over at most {ENGINE_DEVICES} devices, these are {len(candidates)}"]


def _unusable(survey: Survey, names: Collection[str] | None) -> list[str]:
    return [f"{name}: {why}" for name, why in _unusable_by_name(survey, names).items()]


def _unusable_by_name(survey: Survey, names: Collection[str] | None) -> dict[str, str]:
    asked = [device for device in survey.devices if names is None or device.name in names]
    return {device.name: why for device in asked if (why := why_unusable(device))}


def _not_native(memory: ModelMemory, candidates: Sequence[Candidate]) -> list[str]:
    """Devices that hold all of it alone, if only they had been timed natively."""
    whys = {one.device.name: why_not_alone(memory, one) for one in candidates}
    return [f"{name}: holds the whole model but {why}" for name, why in whys.items() if why == "was not timed natively"]


def _head_shortfall(survey: Survey, memory: ModelMemory) -> list[str]:
    if holds_a_head(survey, memory):
        return []
    needed, available = head_need_bytes(memory, output=False), survey.controller.memory_available_bytes
    return [f"the head needs {bytes_text(needed)} on the controller, which has {bytes_text(available)} available"]


def _failed(survey: Survey, candidates: Sequence[Candidate]) -> list[str]:
    """The groups that may have held the model, but failed in mode `tensor`."""
    there = {one.device.name for one in candidates}
    failed = (devices for devices in survey.tensor_failed if there.issuperset(devices))
    return [f"mode tensor over {', '.join(devices)} failed when it was tried" for devices in failed]


def _held_alone(memory: ModelMemory, candidate: Candidate) -> str:
    """Whether this device holds a copy, and of how many conversations where not of all."""
    why = why_not_alone(with_kv(memory, memory.context, 1), candidate)
    if why:
        return why
    counts = range(memory.parallel, 0, -1)
    most = next(one for one in counts if not why_not_alone(with_kv(memory, memory.context, one), candidate))
    return "holds one" if most == memory.parallel else f"holds one with {most} of {memory.parallel} conversations"


def _parts_held(memory: ModelMemory, candidate: Candidate, whole: int) -> str:
    one, budget = bytes_text(needed_bytes(part_bytes(memory, 1, whole).total_bytes)), bytes_text(candidate.budget_bytes)
    return (
        f"{candidate.device.name} holds {most_parts(memory, candidate, whole)} of {whole} parts in {budget}; "
        f"one part needs {one} with buffers and margin"
    )


def _split_shortfalls(
    survey: Survey, memory: ModelMemory, candidates: Sequence[Candidate], pooled: Pooled
) -> list[str]:
    """`pooled` are the candidates beside a head without the output layer."""
    beside_output = pool_for(survey, memory, candidates, Variant(output_on_head=True))
    with_output = _most_layers(memory, pooled, output_on_head=False)
    without = _most_layers(memory, beside_output, output_on_head=True) if beside_output else 0
    hold = f"{max(with_output, without)} of {memory.blocks} layers"
    elsewhere = ", with the output layer on the head" if without > with_output else " and the output layer"
    buffers = needed_bytes(memory.compute_bytes)
    empty = [f"{one.device.name}: {reason}" for one in pooled.candidates if (reason := holds_no_layer(memory, one))]
    return [
        f"split, each device also needs {bytes_text(buffers)} or more for its buffers and margin, and layers stay "
        f"whole: they hold {hold}{elsewhere}",
        *pooled.reasons,
        *empty,
    ]


def _most_layers(memory: ModelMemory, pooled: Pooled, *, output_on_head: bool) -> int:
    """How many of the first blocks the candidates hold, with the output layer where the head has not got it."""
    low, high = 0, len(memory.layer_weights_bytes)
    while low < high:
        middle = (low + high + 1) // 2
        if not _places(_first_layers(memory, middle), pooled, Variant(output_on_head)):
            high = middle - 1
        else:
            low = middle
    return low


def _places(memory: ModelMemory, pooled: Pooled, variant: Variant) -> bool:
    search, rules = LayerSearch(StageTables(memory, pooled.candidates, 1)), Rules(variant.output_on_head)
    found = placed_within(memory, pooled, variant, partial(search.fastest, rules=rules))
    return next(found, None) is not None


def _first_layers(memory: ModelMemory, layers: int) -> ModelMemory:
    return replace(
        memory,
        layer_weights_bytes=memory.layer_weights_bytes[:layers],
        layer_kv_bytes=memory.layer_kv_bytes[:layers],
        layer_kv_fixed_bytes=memory.layer_kv_fixed_bytes[:layers],
    )
