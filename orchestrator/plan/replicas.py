"""Mode `replicas`: several heads, each with a whole copy of the model, share the conversations among them. Pure.

A head is one device alone, or, at most once in a plan, a `layers` or `tensor` group; each device is used once. A head
with p conversations keeps the KV cache of p only and gives each of them a token per step_s(p) seconds. The aggregate
is the sum of p / step_s(p) tokens per second, and `parallel` conversations are distributed so that it is greatest:
exactly, by a dynamic programme over heads and conversations. Each plan has two heads or more.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from orchestrator.plan.conversations import for_conversations
from orchestrator.plan.costs import Seconds
from orchestrator.plan.pools import CONTROLLER, Candidate, pool_budgets
from orchestrator.plan.single import run_alone, why_not_alone
from orchestrator.plan.split import find_splits, head_need_bytes
from orchestrator.plan.tensor import find_tensors, tensor_group
from orchestrator.plan.values import Group, ModelMemory, group_key
from orchestrator.survey.values import Survey

LEAST_HEADS = 2

MOST_MIXTURES = 8
"""This many groups, those with the fastest steps, are tried beside single devices."""

Rates = NDArray[np.float64]
"""[head, p]: tokens per second of this head with p conversations; 0 for none, minus infinity where it does not fit."""


@dataclass(frozen=True)
class Head:
    """One way to hold a whole copy: the group for each number of conversations that it has memory for."""

    groups: Mapping[int, Group]

    @cached_property
    def devices(self) -> frozenset[str]:
        return frozenset(share.device for group in self.groups.values() for share in group.shares)

    def rates(self, conversations: int) -> Rates:
        """Tokens per second with 0, 1, ... conversations."""
        rates = np.full(conversations + 1, -np.inf)
        rates[0] = 0.0
        for count, group in self.groups.items():
            rates[count] = group.aggregate_tokens_per_s
        return rates


def find_replicas(
    survey: Survey,
    memories: Sequence[ModelMemory],
    singles: Sequence[Group],
    splits: Sequence[Group],
    tensors: Sequence[Group],
    candidates: Sequence[Candidate],
) -> tuple[tuple[Group, ...], ...]:
    """The heads of each plan worth considering, the greatest aggregate first; heads fastest first.

    One plan of single devices alone, and one for each of the `splits` and `tensors`, and of the groups that the devices
    which hold no copy can form, beside the single devices that it leaves.
    """
    parallel = memories[0].parallel
    if parallel < LEAST_HEADS or len(candidates) < LEAST_HEADS:
        return ()
    by_count = {count: for_conversations(memories, count) for count in range(1, parallel + 1)}
    plans = [distribute(_heads_alone(by_count, _pooled(survey, candidates, 0)), parallel)]
    pooled = _pooled(survey, candidates, head_need_bytes(memories[0], output=True))
    alone = _heads_alone(by_count, pooled)
    holding = frozenset().union(*(head.devices for head in alone), *(_names(group) for group in singles))
    rest = [one for one in pooled if one.device.name not in holding]
    several = [group for group in (*splits, *tensors) if len(group.shares) > 1]
    for group in _beside(survey, by_count, several, rest) if pooled else ():
        head = _again(_without_others(survey, pooled, group), by_count, pooled, group)
        free = [one for one in alone if not one.devices & head.devices]
        if free and head.groups:
            plans.append(distribute([head, *free], parallel, first_used=True))
    found = {_plan_key(plan): plan for plan in plans if plan}
    return tuple(sorted(found.values(), key=lambda plan: (-_aggregate(plan), _plan_key(plan))))


def distribute(heads: Sequence[Head], conversations: int, *, first_used: bool = False) -> tuple[Group, ...]:
    """The groups that serve all conversations with the greatest aggregate, fastest first; at least two heads.

    `first_used`: the first head gets a conversation at least. Empty where memory is too small.
    """
    if len(heads) < LEAST_HEADS:
        return ()
    rates = np.stack([head.rates(conversations) for head in heads])
    if first_used:
        rates[0, 0] = -np.inf
    counts = best_counts(rates) or (0,) * len(heads)
    groups = [head.groups[count] for head, count in zip(heads, counts, strict=True) if count]
    return tuple(sorted(groups, key=lambda group: (group.token_s, group_key(group))))


def best_counts(rates: Rates) -> tuple[int, ...]:
    """How many of all conversations each head gets so that the sum of rates is greatest, two heads or more; else none.

    Entry [used, c] of what is reached: the greatest sum of the heads so far that have c conversations among them, with
    0, 1, or 2 and more heads used. Of equal sums the one that uses fewer of the later heads.
    """
    total = rates.shape[1] - 1
    reached = np.full((LEAST_HEADS + 1, total + 1), -np.inf)
    reached[0, 0] = 0.0
    steps = []
    for row in rates:
        reached, step = _with_one_more(reached, row)
        steps.append(step)
    if not np.isfinite(reached[LEAST_HEADS, total]):
        return ()
    return _trace(steps, total)


def _with_one_more(reached: Seconds, row: Rates) -> tuple[Seconds, NDArray[np.intp]]:
    """What is reached with one more head, and for each entry the conversations that it gets and from which `used`."""
    total = len(row) - 1
    most, after = reached + row[0], np.zeros((*reached.shape, 2), dtype=np.intp)
    after[..., 1] = np.arange(len(reached))[:, None]
    for before in range(len(reached)):
        used = min(before + 1, LEAST_HEADS)
        for count in range(1, total + 1):
            ways = reached[before, : total + 1 - count] + row[count]
            better = ways > most[used, count:]
            most[used, count:][better] = ways[better]
            after[used, count:][better] = (count, before)
    return most, after


def _trace(steps: Sequence[NDArray[np.intp]], total: int) -> tuple[int, ...]:
    counts, used, left = [], LEAST_HEADS, total
    for step in reversed(steps):
        count, used = (int(value) for value in step[used, left])
        counts.append(count)
        left -= count
    return tuple(reversed(counts))


def _pooled(survey: Survey, candidates: Sequence[Candidate], head_bytes: int) -> tuple[Candidate, ...]:
    """Heads on one machine share its memory, and the controller's with the head of a group, if there is one."""
    available = survey.controller.memory_available_bytes
    pooled = pool_budgets(candidates, controller_bytes=available, head_bytes=head_bytes)
    return pooled.candidates if pooled else ()


def _heads_alone(by_count: Mapping[int, Sequence[ModelMemory]], candidates: Sequence[Candidate]) -> list[Head]:
    return [head for one in candidates if (head := _alone(by_count, one)).groups]


def _alone(by_count: Mapping[int, Sequence[ModelMemory]], candidate: Candidate) -> Head:
    fitting = {count: memories for count, memories in by_count.items() if not why_not_alone(memories[0], candidate)}
    return Head({count: run_alone(memories, candidate) for count, memories in fitting.items()})


def _beside(
    survey: Survey,
    by_count: Mapping[int, Sequence[ModelMemory]],
    groups: Sequence[Group],
    rest: Sequence[Candidate],
) -> list[Group]:
    """The groups to try beside single devices, one per set of devices and mode, those with the fastest steps."""
    few, half = by_count[1], by_count[(max(by_count) + 1) // 2]
    formed = [
        group
        for memories in (few, half)
        if rest
        for group in (
            *find_splits(survey, memories, rest, goal="throughput")[:1],
            *find_tensors(survey, memories, rest),
        )
    ]
    fastest: dict[tuple[str, frozenset[str]], Group] = {}
    for group in sorted([*groups, *formed], key=lambda one: (one.step_s / one.parallel, group_key(one))):
        fastest.setdefault((group.mode, _names(group)), group)
    ours = {one.device.name for one in rest}
    beside = [one for one in fastest.values() if _names(one) <= ours]
    others = [one for one in fastest.values() if not _names(one) <= ours]
    return [*beside, *others][:MOST_MIXTURES]


def _again(
    survey: Survey,
    by_count: Mapping[int, Sequence[ModelMemory]],
    candidates: Sequence[Candidate],
    group: Group,
) -> Head:
    """The same placement for every number of conversations that it has memory for."""
    by_name = {one.device.name: one for one in candidates}
    members = [by_name[share.device] for share in group.shares]
    placed = {count: _placed_again(survey, memories, members, group) for count, memories in by_count.items()}
    return Head({count: one for count, one in placed.items() if one is not None})


def _without_others(survey: Survey, candidates: Sequence[Candidate], group: Group) -> Survey:
    """The survey whose controller has only what the budgets of devices outside the group leave of its memory."""
    ours = _names(group)
    others = (one for one in candidates if one.machine == CONTROLLER and one.in_main_memory)
    taken = sum(one.budget_bytes for one in others if one.device.name not in ours)
    left = survey.controller.memory_available_bytes - taken
    return replace(survey, controller=replace(survey.controller, memory_available_bytes=left))


def _placed_again(
    survey: Survey, memories: Sequence[ModelMemory], members: Sequence[Candidate], group: Group
) -> Group | None:
    if group.mode == "tensor":
        return tensor_group(survey, memories, members, group.tensor_split)
    layers = {share.device: share.layers for share in group.shares}
    again = find_splits(survey, memories, members, goal="throughput", split=layers)
    return next(iter(again), None)


def _names(group: Group) -> frozenset[str]:
    return frozenset(share.device for share in group.shares)


def _aggregate(groups: Sequence[Group]) -> float:
    return sum(group.aggregate_tokens_per_s for group in groups)


def _plan_key(groups: Sequence[Group]) -> str:
    return " + ".join(group_key(group) for group in groups)
