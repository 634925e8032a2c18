"""Why a plan is as it is, as sentences with numbers that a person can hold against a stopwatch. Pure."""

from collections.abc import Mapping, Sequence

from orchestrator.plan.asked import Asked
from orchestrator.plan.costs import needed_bytes
from orchestrator.plan.left_out import figure
from orchestrator.plan.noise import LEAST_NOISE, ORDER_NOISE, decode_bytes_per_s, decode_groups, difference
from orchestrator.plan.pools import Candidate, cut_reasons
from orchestrator.plan.single import alone_bytes, why_not_alone
from orchestrator.plan.tensor import is_guessed
from orchestrator.plan.values import MODES, Group, ModelMemory, Plan, PlanMode, Traffic
from orchestrator.survey.values import Device, Survey
from orchestrator.view.sizes import bytes_text

BLOCK, BLOCK_BYTES = 32, {"f16": 64, "q8_0": 34, "q4_0": 18}
"""Numbers that the engine packs together, and the bytes that they take with their scale (ggml-common.h)."""


WORTH_A_WORKER = 0.05
"""What one worker for all layers must gain over a head at its device, with the output layer on the controller. In the
eight runs of `scripts/bench-plan` where 5 to 10 % were predicted, 4 to 17 % were measured; in six with 2 to 5 %, -1 to
16 %."""


WORTH_MEETING = 0.05
"""What a plan with a group of mode `tensor` must gain in aggregate over one without. 19 of 25 such plans that
`scripts/bench-plan` has run gave less than predicted, and all were predicted 14 % too fast on the median: a step of
several conversations is timed on slices, while nothing disturbs the devices, which meet twice per layer."""


STARVED, WORTH_STARVING = 2.0, 0.5
"""Where the slowest conversation of several heads is this many times as slow as in another plan, the fastest one must
gain at least this part: who asks for several conversations wants each of them answered."""


def gains_too_little(plan: Plan, other: Plan, ratio: float) -> bool:
    """Whether a plan of `ratio` times the time of another one is not worth it beside that one."""
    rules = (_is_a_lone_worker, _meets_for_little, _starves_for_little)
    return any(rule(plan, other, ratio) for rule in rules)


def _starves_for_little(plan: Plan, other: Plan, ratio: float) -> bool:
    """One conversation alone is what goal "latency" goes by, but not at any price."""
    if plan.goal != "latency" or plan.mode != "replicas":
        return False
    return _slowest_s(plan) > STARVED * _slowest_s(other) and 1 / ratio < 1 + WORTH_STARVING


def _slowest_s(plan: Plan) -> float:
    """Per token of the slowest conversation while all are served."""
    return max(group.step_s for group in plan.groups)


def _meets_for_little(plan: Plan, other: Plan, ratio: float) -> bool:
    """What was measured is taken at its word."""
    cut = [group for group in plan.groups if group.mode == "tensor" and group.known != "measured"]
    if plan.goal != "throughput" or not cut or any(group.mode == "tensor" for group in other.groups):
        return False
    return 1 / ratio < 1 + WORTH_MEETING


def _is_a_lone_worker(worker: Plan, alone: Plan, ratio: float) -> bool:
    """One worker for all layers beside a head at the same device.

    Nobody shares its work, and the two are timed apart, through RPC and natively: what they differ by less than
    `WORTH_A_WORKER` may not be there at all.
    """
    if (worker.mode, alone.mode, len(worker.shares)) != ("layers", "single", 1):
        return False
    return worker.shares[0].device == alone.shares[0].device and 1 / ratio < 1 + WORTH_A_WORKER


def reasons_for(
    survey: Survey,
    memory: ModelMemory,
    candidates: Sequence[Candidate],
    plan: Plan,
    others: Sequence[Plan],
    asked: Asked,
) -> tuple[str, ...]:
    """Why the best plan: what it does, and how the best of each other mode compares. `others` are best first."""
    best_others = {other.mode: other for other in reversed(others) if other.mode != plan.mode}
    return (
        *_asked_for(asked),
        *_kept_as(plan),
        *_read_by(plan),
        _does(plan),
        *(_compared(plan, best_others[mode]) for mode in MODES if mode in best_others),
        *_not_found(survey, memory, candidates, plan, best_others),
        *_layers_reasons(memory, candidates, plan, others),
        *_too_many_at_once(plan),
        *_beside_each_other(plan),
        *_cut_budgets(survey, candidates, plan),
    )


def runner_up_reasons(plan: Plan, best: Plan) -> tuple[str, ...]:
    """Why not this plan: what it does, and how the best one compares."""
    return (_does(plan), _compared(plan, best))


def _asked_for(asked: Asked) -> tuple[str, ...]:
    if asked.split is not None:
        return ("this split was asked for",)
    return (f"mode {asked.mode} was asked for",) if asked.mode is not None else ()


def _kept_as(plan: Plan) -> tuple[str, ...]:
    if plan.cache_type == "f16":
        return ()
    of_block = f"{BLOCK_BYTES[plan.cache_type]} bytes for {BLOCK} numbers, where f16 takes {BLOCK_BYTES['f16']}"
    return (f"keys and values are kept as {plan.cache_type}: {of_block}",)


def _read_by(plan: Plan) -> tuple[str, ...]:
    if plan.flash_attention != "off":
        return ()
    return ("flash attention is off, as the inventory has it",)


def _does(plan: Plan) -> str:
    if plan.mode == "replicas":
        counts = ", ".join(f"{_names(group)} {group.parallel}" for group in plan.groups)
        return f"{len(plan.groups)} heads share {plan.parallel} conversations ({counts}): {_speeds(plan)}"
    group = plan.groups[0]
    how = {
        "single": "holds the whole model and runs it natively",
        "layers": "one after the other, each with some of the layers" if len(group.shares) > 1 else "as one worker",
        "tensor": "each with a part of every layer",
    }[plan.mode]
    return f"{_names(group)} {how}: {_speeds(plan)}"


def _compared(plan: Plan, other: Plan) -> str:
    """The other plan's figure beside this one's, by the measure that the goal goes by."""
    ours, theirs = plan.goal_s, other.goal_s
    guessed = ", by a formula alone" if any(is_guessed(group) for group in other.groups) else ""
    names = " + ".join(_names(group) for group in other.groups)
    named = f"{other.mode} ({names}): {_speeds(other)}{guessed}{_on_links(other)}"
    if abs(theirs / ours - 1) <= ORDER_NOISE:
        alone = _is_a_lone_worker(other, plan, theirs / ours)
        why = "; without a worker is simpler" if alone else _tie(plan, other)
        return f"{named}, as fast within {ORDER_NOISE:.0%}{why}"
    if theirs > ours:
        return f"{named}; this is {theirs / ours:.2f} times as fast"
    faster = f"{named}, {ours / theirs:.2f} times as fast as this"
    if _is_a_lone_worker(other, plan, theirs / ours):
        return f"{faster}, which two timings may differ by; without a worker is simpler"
    if _meets_for_little(other, plan, theirs / ours):
        return f"{faster}: too little, since the aggregate of mode tensor is mostly predicted too high"
    if _starves_for_little(other, plan, theirs / ours):
        slower = _slowest_s(other) / _slowest_s(plan)
        return f"{faster} for one conversation alone: too little, since its slowest is {slower:.1f} times as slow"
    return faster


def _tie(plan: Plan, other: Plan) -> str:
    faster, slower = sorted((plan, other), key=lambda one: one.prefill_tokens_per_s, reverse=True)
    apart = faster.prefill_tokens_per_s / slower.prefill_tokens_per_s - 1
    if apart > ORDER_NOISE and "replicas" not in (plan.mode, other.mode):
        return f"; {faster.mode} ({_names(faster.fastest)}) reads prompts {apart:.0%} faster"
    if plan.mode == other.mode:
        return ""
    simpler = f"; {min(plan, other, key=lambda one: MODES.index(one.mode)).mode} is simpler"
    more = other.aggregate_tokens_per_s / plan.aggregate_tokens_per_s
    if plan.goal != "latency" or more < 1 + LEAST_NOISE:
        return simpler
    together = _count(plan.parallel, "conversation")
    return f"{simpler}; for {together} at once the other is {more:.1f} times as fast: `--goal throughput`"


def _speeds(plan: Plan) -> str:
    together = "" if plan.goal == "latency" else f" with {_count(plan.parallel, 'conversation')}"
    return f"{figure(plan)}{together}"


def _on_links(plan: Plan) -> str:
    """What a token of one conversation costs on the network, where it costs anything."""
    traffic = plan.fastest.traffic
    if traffic == Traffic():
        return ""
    sent = bytes_text(traffic.up_bytes + traffic.down_bytes)
    return f" ({_count(traffic.hops, 'hop')}, {_count(traffic.synchronisations, 'synchronisation')}, {sent} per token)"


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" + ("" if number == 1 else "s")


def _names(group: Group) -> str:
    return " and ".join(share.device for share in group.shares)


def _not_found(
    survey: Survey,
    memory: ModelMemory,
    candidates: Sequence[Candidate],
    plan: Plan,
    others: Mapping[PlanMode, Plan],
) -> tuple[str, ...]:
    """Why modes that were not found are not there."""
    found = {plan.mode, *others}
    sentences = []
    if "single" not in found and plan.mode != "replicas":
        sentences.append(_no_single(memory, candidates))
    if "tensor" not in found and survey.tensor_refused:
        sentences.append(f"no tensor: the engine cannot cut this model's layers ({survey.tensor_refused})")
    return tuple(sentences)


def _no_single(memory: ModelMemory, candidates: Sequence[Candidate]) -> str:
    largest = max(candidates, key=lambda one: (one.budget_bytes, one.device.name))
    needed = needed_bytes(alone_bytes(memory, largest).total_bytes)
    name, budget = largest.device.name, bytes_text(largest.budget_bytes)
    if needed <= largest.budget_bytes:
        why = why_not_alone(memory, largest)
        if why == "was not timed natively":
            return f"no single device: {name} would hold the whole model but {why}"
        return f"no single device holds the whole model: {name} {why}"
    needs = f"it needs {bytes_text(needed)}, the largest budget is {budget} ({name})"
    return f"no single device holds the whole model: {needs}"


def _too_many_at_once(plan: Plan) -> tuple[str, ...]:
    """The engine has no fast kernels for some small batches: then a queue is better than company."""
    return tuple(
        f"{_names(group)}: {group.parallel} conversations at once give {together:.1f} tokens per second together, one "
        f"alone {group.decode_tokens_per_s:.1f}: a lower `parallel` serves them sooner"
        for group in plan.groups
        if (together := group.aggregate_alone_tokens_per_s) < (1 - LEAST_NOISE) * group.decode_tokens_per_s
    )


def _beside_each_other(plan: Plan) -> tuple[str, ...]:
    """What heads take from each other whose machine has too few cores for all of them."""
    return tuple(
        f"{_names(group)}: a step takes {group.beside:.1f} times as long while all heads on its machine are busy"
        for group in plan.groups
        if group.beside >= 1 + LEAST_NOISE
    )


def _cut_budgets(survey: Survey, candidates: Sequence[Candidate], plan: Plan) -> tuple[str, ...]:
    """Where devices of the plan share a memory, by how much their budgets are cut beside all its heads."""
    used = {share.device for share in plan.shares}
    of_splits = (group for group in plan.groups if group.mode != "single" and not group.head_layers)
    alone = (group for group in plan.groups if group.mode == "single")
    return cut_reasons(
        survey,
        [one for one in candidates if one.device.name in used],
        sum(needed_bytes(group.head_bytes) for group in of_splits),
        {group.shares[0].device: needed_bytes(group.head_bytes) for group in alone if group.head_bytes},
    )


def _layers_reasons(
    memory: ModelMemory, candidates: Sequence[Candidate], plan: Plan, others: Sequence[Plan]
) -> tuple[str, ...]:
    return tuple(
        sentence
        for group in plan.groups
        if group.mode == "layers"
        for sentence in (*_output(memory, plan, group, others), *_shared_evenly(candidates, group))
    )


def _output(memory: ModelMemory, plan: Plan, group: Group, others: Sequence[Plan]) -> tuple[str, ...]:
    where, elsewhere = ("on the head", "on the last device")[:: 1 if group.output_on_head else -1]
    splits = (other for other in others if other.mode == "layers")
    other = next((one for one in splits if one.groups[0].output_on_head != group.output_on_head), None)
    if other is None or plan.mode != "layers":
        return ()
    choice = f"output layer {where}: {_speeds(plan)}, {elsewhere} {_speeds(other)}"
    if group.output_on_head:
        choice += f"; {bytes_text(memory.logits_bytes)} of logits per token stay off the link"
    return (choice,)


def _shared_evenly(candidates: Sequence[Candidate], group: Group) -> tuple[str, ...]:
    """A sentence for each set of used workers whose speeds differ and were taken for one speed."""
    layers = {share.device: share.layers for share in group.workers}
    alike = decode_groups([one.device for one in candidates])
    used = [[device for device in devices if device.name in layers] for devices in alike]
    return tuple(
        _shared_by(devices, layers)
        for devices in used
        if len({decode_bytes_per_s(device.speed) for device in devices}) > 1
    )


def _shared_by(group: Sequence[Device], layers: Mapping[str, int]) -> str:
    """The group is fastest first."""
    counts = [layers[device.name] for device in group]
    apart = difference(decode_bytes_per_s(group[0].speed), decode_bytes_per_s(group[-1].speed))
    percent = f"{'up to ' if len(group) > 2 else ''}{apart:.0%}" if apart >= 0.01 else "less than 1%"
    even = max(counts) - min(counts) <= 1
    how = "evenly" if even else "as evenly as their sizes, the budgets and the prefill speeds allow"
    names = " and ".join(sorted(device.name for device in group))
    return f"{names} differ by {percent}, within what counts as noise: layers shared {how}"
