"""Mode `replicas`: several heads, each with a whole copy of the model, share the conversations among them. Pure.

A head is one device alone, or a `layers` or `tensor` group (`heads`); each device is used once. A head with p
conversations keeps the KV cache of p only and gives each of them a token per step_s(p) seconds. The aggregate is the
sum of p / step_s(p) tokens per second, and `parallel` conversations are distributed so that it is greatest: exactly, by
a dynamic programme over heads and conversations. Among the heads that this takes they are then moved as long as the
slowest conversation gets faster and the aggregate loses next to nothing. Each plan has two heads or more.

For goal "latency" the same heads are also shared out another way: the one that is fastest for a single conversation
serves as many as it may be that fast with, and only the others are distributed by their aggregate.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from math import inf

import numpy as np
from numpy.typing import NDArray

from orchestrator.plan.contention import contended
from orchestrator.plan.conversations import for_conversations
from orchestrator.plan.costs import Seconds
from orchestrator.plan.heads import Head, Rates, choices_of_groups, heads_alone, pools_with, rooms_for
from orchestrator.plan.pools import Candidate
from orchestrator.plan.tensor import formula_errors
from orchestrator.plan.values import Group, ModelMemory, group_key
from orchestrator.survey.values import Survey

LEAST_HEADS = 2

EVEN_COST = 0.05
"""So much of the aggregate is given up for a slowest conversation that is faster: most predictions are off by as much,
and where one conversation has a device to itself, seven others wait for the other device."""

SAME = 1e-9
"""Times of one conversation that differ by no more than this part are the same ones, but for how they were added up."""

MOST_TRIED = 8
"""Up to so many heads on one machine are each left out to see whether the others gain by it; of more, half at once."""


def find_replicas(
    survey: Survey,
    memories: Sequence[ModelMemory],
    splits: Sequence[Group],
    tensors: Sequence[Group],
    candidates: Sequence[Candidate],
    *,
    goal: str = "throughput",
) -> tuple[tuple[Group, ...], ...]:
    """The heads of each plan worth considering, the greatest aggregate first; heads fastest first. For goal "latency"
    there may be two for the same heads.

    One plan of single devices alone, and one for each choice of groups, beside the single devices that it leaves.
    `splits` and `tensors` are the best groups of all devices.
    """
    parallel = memories[0].parallel
    if parallel < LEAST_HEADS or len(candidates) < LEAST_HEADS:
        return ()
    by_count = {count: for_conversations(memories, count) for count in range(1, parallel + 1)}
    several = [group for group in (*splits, *tensors) if len(group.shares) > 1]
    plans = []
    for heads, first in _sets_of_heads(survey, by_count, candidates, several):
        plan = _beside_each_other(survey, heads, parallel, first)
        plans.append(plan)
        if goal == "latency" and plan:
            plans.append(_around_a_faster_head(survey, heads, parallel, plan[0].token_s))
    found = {_plan_key(plan): plan for plan in plans if plan}
    return tuple(sorted(found.values(), key=lambda plan: (-_aggregate(plan), _plan_key(plan))))


def _sets_of_heads(
    survey: Survey,
    by_count: Mapping[int, Sequence[ModelMemory]],
    candidates: Sequence[Candidate],
    several: Sequence[Group],
) -> Iterator[tuple[list[Head], Collection[int]]]:
    """Heads that have no device in common, and of how many conversations the first one has to get one: a group at least
    one, a device alone may get none."""
    for devices in pools_with(survey, by_count, candidates, 0):
        yield heads_alone(by_count, devices), ()
    errors = formula_errors(survey, by_count[max(by_count)])
    for room in rooms_for(survey, by_count, errors, candidates):
        alone = heads_alone(by_count, room.devices)
        for groups in choices_of_groups(room, alone, several):
            used = frozenset().union(*(head.devices for head in groups))
            yield [*groups, *(one for one in alone if not one.devices & used)], by_count.keys()


def _around_a_faster_head(
    survey: Survey, heads: Sequence[Head], conversations: int, token_s: float
) -> tuple[Group, ...]:
    """The plan around the head that is fastest for a conversation alone, or the next one, where the others do not serve
    what it leaves; empty where none takes less than `token_s`."""
    found = []
    for number, head in enumerate(heads):
        least_s = min((group.token_s for group in head.groups.values()), default=inf)
        if least_s < token_s * (1 - SAME):
            counts = [count for count, group in head.groups.items() if group.token_s <= least_s * (1 + SAME)]
            found.append((least_s, number, counts))
    for _, number, counts in sorted(found):
        others = (*heads[:number], *heads[number + 1 :])
        if plan := _beside_each_other(survey, (heads[number], *others), conversations, counts):
            return plan
    return ()


def _beside_each_other(
    survey: Survey, heads: Sequence[Head], conversations: int, first: Collection[int] = ()
) -> tuple[Group, ...]:
    """As `distribute`, with what heads on one machine take from each other; without those that cost more than they
    bring, one after the other."""
    alone = distribute(heads, conversations, first)
    plan = contended(survey, alone)
    while slower := [one for one, before in zip(plan, alone, strict=True) if one is not before]:
        for ways in _without_some(heads, plan, slower, keep_first=bool(first)):
            shared_out = [(way, distribute(way, conversations, first)) for way in ways]
            found = [(way, groups, contended(survey, groups)) for way, groups in shared_out]
            best = max(found, key=lambda one: _aggregate(one[2]), default=(heads, (), ()))
            if _aggregate(best[2]) > _aggregate(plan):
                heads, alone, plan = best
                break
        else:
            break
    return plan


def _without_some(
    heads: Sequence[Head], plan: Sequence[Group], slower: Sequence[Group], *, keep_first: bool
) -> tuple[list[list[Head]], ...]:
    """Ways to try, the later ones where none of the first is better: without one of the heads that others slow down, of
    many one of those that bring least; and without half of them, and what the plan does not use, which would take their
    place on the same machine."""
    brings = {share.device: group.aggregate_tokens_per_s for group in slower for share in group.shares}
    used = {share.device for group in plan for share in group.shares}
    least_first = sorted(
        (min(brings[name] for name in head.devices & brings.keys()), number)
        for number, head in enumerate(heads)
        if head.devices & brings.keys() and not (keep_first and number == 0)
    )
    numbers = [number for _, number in least_first]
    one_less = [[*heads[:number], *heads[number + 1 :]] for number in numbers[:MOST_TRIED]]
    half = numbers[: len(numbers) // 2]
    without_half = [head for number, head in enumerate(heads) if number not in half and head.devices & used]
    return ([*one_less, without_half],) if len(numbers) > MOST_TRIED else (one_less, [without_half])


def distribute(heads: Sequence[Head], conversations: int, first: Collection[int] = ()) -> tuple[Group, ...]:
    """The groups that serve all conversations with the greatest aggregate, fastest first; at least two heads.

    `first`: one of these numbers is what the first head gets (without any: as many as it may be, or none). Empty where
    memory is too small.
    """
    if len(heads) < LEAST_HEADS:
        return ()
    rates = np.stack([head.rates(conversations) for head in heads])
    if first:
        rates[0, [count not in first for count in range(conversations + 1)]] = -np.inf
    counts = evened(rates, best_counts(rates)) or (0,) * len(heads)
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


def evened(rates: Rates, counts: tuple[int, ...]) -> tuple[int, ...]:
    """The same heads with conversations moved to where they are faster, from the heads whose own are the slowest."""
    if not counts:
        return counts
    least = (1 - EVEN_COST) * _sum_of(rates, counts)
    while True:
        slowest = _slowest_of(rates, counts)
        giver = min((head for head, count in enumerate(counts) if count), key=lambda head: _each(rates, counts, head))
        takers = [head for head, count in enumerate(counts) if count and head != giver]
        ways = (_moved(counts, giver, taker, some) for taker in takers for some in range(1, counts[giver]))
        allowed = [way for way in ways if _sum_of(rates, way) >= least]
        best = max(allowed, key=lambda way: _slowest_of(rates, way), default=counts)
        if _slowest_of(rates, best) <= slowest:
            return counts
        counts = best


def _moved(counts: tuple[int, ...], giver: int, taker: int, some: int) -> tuple[int, ...]:
    return tuple(count + some * ((head == taker) - (head == giver)) for head, count in enumerate(counts))


def _sum_of(rates: Rates, counts: tuple[int, ...]) -> float:
    return float(sum(row[count] for row, count in zip(rates, counts, strict=True)))


def _slowest_of(rates: Rates, counts: tuple[int, ...]) -> float:
    return min(_each(rates, counts, head) for head, count in enumerate(counts) if count)


def _each(rates: Rates, counts: tuple[int, ...], head: int) -> float:
    """Tokens per second of each conversation of that head."""
    return float(rates[head, counts[head]]) / counts[head]


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


def _aggregate(groups: Sequence[Group]) -> float:
    return sum(group.aggregate_tokens_per_s for group in groups)


def _plan_key(groups: Sequence[Group]) -> str:
    return " + ".join(group_key(group) for group in groups)
