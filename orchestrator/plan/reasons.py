"""Why a plan is as it is, as sentences with numbers, and what its prediction rests on. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchestrator.plan.costs import needed_bytes
from orchestrator.plan.noise import decode_groups, difference
from orchestrator.plan.pools import Candidate
from orchestrator.plan.single import Single, run_alone
from orchestrator.plan.split import Split, Splits
from orchestrator.plan.values import ModelMemory
from orchestrator.survey.values import Device
from orchestrator.view.sizes import bytes_text, duration_text


@dataclass(frozen=True)
class Asked:
    """What the user asked of the plan; None allows everything."""

    goal: str
    devices: frozenset[str] | None
    mode: str | None


def single_reasons(asked: Asked, single: Single, split: Split | None) -> tuple[str, ...]:
    """Why one device, compared with the best split."""
    name = single.candidate.device.name
    against = "no split fits" if split is None else f"the best split {duration_text(split.token_s)}"
    return (
        *_asked_for(asked, "single"),
        f"{name} holds the whole model: {duration_text(single.token_s)} per token, {against}",
        f"predicted from {name}'s speed through RPC; run natively it is usually as fast or faster",
        *_goal(asked),
    )


def split_reasons(
    asked: Asked, memory: ModelMemory, single: Single | None, splits: Splits, candidates: Sequence[Candidate]
) -> tuple[str, ...]:
    """Why a split, compared with the best single device, and why the output layer is where it is."""
    return (
        *_asked_for(asked, "layers"),
        _against_single(memory, splits.best, single, candidates),
        *_output(memory, splits),
        *_shared_evenly(splits.best),
        *splits.best.budget_reasons,
        *_goal(asked),
    )


def _asked_for(asked: Asked, mode: str) -> tuple[str, ...]:
    return (f"mode {mode} was asked for",) if asked.mode == mode else ()


def _goal(asked: Asked) -> tuple[str, ...]:
    if asked.goal == "latency":
        return ()
    return ("goal throughput: planned for one conversation's time per token, the engine batches several",)


def _against_single(memory: ModelMemory, split: Split, single: Single | None, candidates: Sequence[Candidate]) -> str:
    if single is not None:
        alone = f"{single.candidate.device.name} alone {duration_text(single.token_s)}"
        return f"{_count(len(split.stages))} {duration_text(split.token_s)} per token, {alone}"
    largest = max(candidates, key=lambda one: (one.budget_bytes, one.device.name))
    needed = bytes_text(needed_bytes(run_alone(memory, largest).share.total_bytes))
    return (
        f"no single device holds the whole model: it needs {needed}, "
        f"the largest budget is {bytes_text(largest.budget_bytes)} ({largest.device.name})"
    )


def _count(devices: int) -> str:
    return "one worker" if devices == 1 else f"{devices} devices"


def _shared_evenly(split: Split) -> tuple[str, ...]:
    """A sentence for each group of used devices whose speeds differ and were taken for one speed."""
    layers = {stage.candidate.device.name: stage.layers for stage in split.stages}
    groups = decode_groups([one.device for one in split.candidates])
    used = [[device for device in group if device.name in layers] for group in groups]
    return tuple(
        _shared_by(group, layers) for group in used if len({one.speed.decode_bytes_per_s for one in group}) > 1
    )


def _shared_by(group: Sequence[Device], layers: Mapping[str, int]) -> str:
    """The group is fastest first."""
    counts = [layers[device.name] for device in group]
    apart = difference(group[0].speed.decode_bytes_per_s, group[-1].speed.decode_bytes_per_s)
    percent = f"{'up to ' if len(group) > 2 else ''}{apart:.0%}" if apart >= 0.01 else "less than 1%"
    even = max(counts) - min(counts) <= 1
    how = "evenly" if even else "as evenly as their sizes, the budgets and the prefill speeds allow"
    names = " and ".join(sorted(device.name for device in group))
    return f"{names} differ by {percent}, within what counts as noise: layers shared {how}"


def _output(memory: ModelMemory, splits: Splits) -> tuple[str, ...]:
    best, other = splits.best, splits.other
    where, elsewhere = ("on the head", "on the last device")[:: 1 if best.output_on_head else -1]
    against = "does not fit" if other is None else f"{duration_text(other.token_s)}"
    choice = f"output layer {where}: {duration_text(best.token_s)} per token, {elsewhere} {against}"
    if best.output_on_head:
        choice = f"{choice}; {bytes_text(memory.logits_bytes)} of logits per token stay off the link"
    return (choice, _head_speed(splits)) if best.output_on_head or other is not None else (choice,)


def _head_speed(splits: Splits) -> str:
    name = splits.head_like.name
    if splits.head_assumed:
        return f"the controller was not measured: the head is taken to be as fast as {name}, the median device"
    return f"the head is taken to be as fast as {name} through RPC"
