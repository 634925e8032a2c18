"""The heads that hold a whole copy of the model: single devices, and groups of devices that do not. Pure.

Which devices form groups: of up to `EVERY_SET` of them every choice of sets is tried. Of more, the best groups of the
other modes, one at a time; and those that hold no copy alone are gathered until they do, then those that are left, and
so on: once the fastest first, with memory for half of the conversations in each group; and once each largest with the
smallest that completes it, with memory for one conversation, which makes the most groups.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from orchestrator.plan.costs import MARGIN_PERCENT, needed_bytes
from orchestrator.plan.pools import CONTROLLER, Candidate, Pooled, pool_budgets
from orchestrator.plan.single import alone_bytes, beside_bytes, run_alone, why_not_alone
from orchestrator.plan.split import SplitSearch, fastest_split, head_need_bytes, split_again
from orchestrator.plan.tensor import Errors, corrected, fastest_tensor, tensor_group
from orchestrator.plan.values import Group, GroupMode, ModelMemory, group_key
from orchestrator.survey.values import Survey

EVERY_SET = 4
"""Up to this many devices form groups in every way: at most 14 sets leave others a copy."""

EVERY_COUNT = 4
"""Up to this many conversations, groups of few devices are placed for each number of them."""

WORTH_WORKERS = 0.2
"""What a device that holds a copy must gain as a worker for several conversations: passes of several tokens are timed
less exactly than those of one. Where `scripts/bench-plan` took a gain of 9 % for one, nothing came of it."""

MOST_MIXTURES = 8
"""Of more devices this many groups, those with the fastest steps, are each tried beside single devices."""

Rates = NDArray[np.float64]
"""[head, p]: tokens per second of this head with p conversations; 0 for none, minus infinity where it does not fit."""


@dataclass(frozen=True)
class Head:
    """One way to hold a whole copy: the group for each number of conversations that it has memory for."""

    groups: Mapping[int, Group]

    @property
    def mode(self) -> GroupMode:
        return next(iter(self.groups.values())).mode

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


@dataclass(frozen=True)
class Size:
    """For how many conversations groups are placed: the model for those, and the search for their layer splits."""

    count: int
    survey: Survey
    memories: Sequence[ModelMemory]
    splits: SplitSearch

    def layers(self, members: Sequence[Candidate]) -> Group | None:
        return fastest_split(self.survey, self.memories, self.splits, members) if self.may_be_held(members) else None

    def tensor(self, members: Sequence[Candidate]) -> Group | None:
        several = len(members) > 1 and self.may_be_held(members)
        return fastest_tensor(self.survey, self.memories, members) if several else None

    def may_be_held(self, members: Sequence[Candidate]) -> bool:
        """Whether these have memory enough if layers could be cut at will; the output layer may be on a head."""
        memory = self.memories[0]
        held = sum(memory.layer_weights_bytes) + sum(memory.layer_kv_bytes)
        buffers = min(memory.compute_bytes, memory.compute_tensor_bytes - memory.cut_compute_bytes)
        free = (one.budget_bytes * 100 // (100 + MARGIN_PERCENT) - buffers for one in members)
        return sum(max(0, one) for one in free) >= held


@dataclass(frozen=True)
class Room:
    """The devices with the budgets that they have where the controller holds the heads of up to `groups` groups.

    `by_count` is the model for each number of conversations, `errors` how far off the formula of mode `tensor` is.
    """

    survey: Survey
    by_count: Mapping[int, Sequence[ModelMemory]]
    errors: Errors
    devices: tuple[Candidate, ...]
    groups: int

    @cached_property
    def sizes(self) -> tuple[Size, Size]:
        """For half of the conversations, so that any two groups serve all; and for one, so that most groups form."""
        return self._size((max(self.by_count) + 1) // 2), self._size(1)

    @cached_property
    def every_size(self) -> tuple[Size, ...]:
        """For each number of conversations; of more than `EVERY_COUNT` only those above."""
        most = max(self.by_count)
        return tuple(map(self._size, range(most, 0, -1))) if most <= EVERY_COUNT else self.sizes

    def _size(self, count: int) -> Size:
        memories = self.by_count[count]
        return Size(count, self.survey, memories, SplitSearch(memories[0], self.devices, count))


def pools_with(
    survey: Survey, by_count: Mapping[int, Sequence[ModelMemory]], candidates: Sequence[Candidate], head_bytes: int
) -> tuple[tuple[Candidate, ...], ...]:
    """Heads on one machine share its memory, and the controller's with the heads of groups, which take this much: in
    every way to share it out that is worth trying; of more than `EVERY_SET` devices fewer of them for groups.

    A head on a card takes main memory too. Where other devices have less for that, they are also tried without it.
    """
    on_cards = _cards_bytes(survey, by_count, candidates, head_bytes)
    pooled = _pooled(survey, candidates, head_bytes, on_cards)
    without = _pooled(survey, candidates, head_bytes, {})
    if pooled is None or without is None:
        return ()
    pairs = zip(pooled.in_equal_parts(), without.in_equal_parts(), strict=True)
    cut = {one.machine for one, other in pairs if one.budget_bytes < other.budget_bytes}
    on_other_cards = {one.device.name for one in candidates if one.machine not in cut} & on_cards.keys()
    fewer = _pooled(survey, candidates, head_bytes, {name: on_cards[name] for name in on_other_cards}) if cut else None
    found = (one for one in (pooled, fewer) if one is not None)
    wants = [*_wants(by_count, candidates)] if not head_bytes or len(candidates) <= EVERY_SET else []
    return (*dict.fromkeys(way for one in found for way in one.ways(wants)),)


def _pooled(
    survey: Survey, candidates: Sequence[Candidate], head_bytes: int, on_cards: Mapping[str, int]
) -> Pooled | None:
    """Where heads take so much main memory `on_cards`, by device; on other cards there are none."""
    limited = [
        one if one.in_main_memory else replace(one, machine_bytes=on_cards.get(one.device.name, 0))
        for one in candidates
    ]
    available = survey.controller.memory_available_bytes
    return pool_budgets(limited, controller_bytes=available, head_bytes=head_bytes, on_cards_bytes=on_cards)


def _cards_bytes(
    survey: Survey, by_count: Mapping[int, Sequence[ModelMemory]], candidates: Sequence[Candidate], head_bytes: int
) -> dict[str, int]:
    """What a head on each card that holds a copy takes of its machine's main memory: at the largest micro-batch that
    leaves room for it, the fastest card first; none where none does."""
    left, found = {CONTROLLER: survey.controller.memory_available_bytes - head_bytes}, {}
    for one in candidates:
        if one.in_main_memory or why_not_alone(by_count[1][0], one):
            continue
        room = left.setdefault(one.machine, one.machine_bytes)
        needed = max((size for memory in by_count[1] if (size := beside_bytes(memory, one)) <= room), default=0)
        if needed:
            left[one.machine] -= needed
            found[one.device.name] = needed
    return found


def _wants(
    by_count: Mapping[int, Sequence[ModelMemory]], candidates: Sequence[Candidate]
) -> Iterator[Mapping[str, int]]:
    """What a copy takes on each device: for one conversation, and for half of them."""
    for count in (1, (max(by_count) + 1) // 2):
        memory = by_count[count][0]
        yield {one.device.name: needed_bytes(alone_bytes(memory, one).total_bytes) for one in candidates}


def heads_alone(by_count: Mapping[int, Sequence[ModelMemory]], candidates: Sequence[Candidate]) -> list[Head]:
    """Every device that holds a copy for one conversation at least, and was timed natively."""
    return [head for one in candidates if (head := _alone(by_count, one)).groups]


def _alone(by_count: Mapping[int, Sequence[ModelMemory]], candidate: Candidate) -> Head:
    fitting = {count: memories for count, memories in by_count.items() if not why_not_alone(memories[0], candidate)}
    return Head({count: run_alone(memories, candidate) for count, memories in fitting.items()})


def rooms_for(
    survey: Survey, by_count: Mapping[int, Sequence[ModelMemory]], errors: Errors, candidates: Sequence[Candidate]
) -> Iterator[Room]:
    """For one group, for two, and for as many as there can be, where the controller's own devices have less for it."""
    head_bytes = head_need_bytes(by_count[max(by_count)][0], output=True)
    held = survey.controller.memory_available_bytes // head_bytes
    most = min(held, max(by_count), len(candidates))
    rooms = {
        devices: count
        for count in (1, 2, most)
        if 1 <= count <= most
        for devices in pools_with(survey, by_count, candidates, count * head_bytes)
    }
    yield from (Room(survey, by_count, errors, devices, count) for devices, count in rooms.items())


def choices_of_groups(room: Room, alone: Sequence[Head], several: Sequence[Group]) -> Iterator[tuple[Head, ...]]:
    """Groups without a device in common, the first of which is to be used.

    A group may be one worker, on a device that holds no copy alone, or of few devices on one that gains enough by it.
    """
    if len(room.devices) <= EVERY_SET:
        natively = {name: head for head in alone for name in head.devices}
        formed = [head for members in _sets(room) for head in _placed_for_each(room, members, natively)]
        yield from _apart(formed, room.groups)
        return
    yield from ((_head(room, group),) for group in _fastest(several)[:MOST_MIXTURES])
    holding = frozenset().union(*(head.devices for head in alone))
    rest = [one for one in room.devices if one.device.name not in holding]
    for size, gather in zip(room.sizes, (_by_speed, _by_size), strict=True):
        yield from _gathered(room, rest, size, gather)


def _apart(heads: Sequence[Head], most: int) -> Iterator[tuple[Head, ...]]:
    """Every choice of 1 to `most` of these heads that have no device in common."""
    for number, head in enumerate(heads):
        yield (head,)
        if most > 1:
            others = [one for one in heads[number + 1 :] if not one.devices & head.devices]
            yield from ((head, *more) for more in _apart(others, most - 1))


def _sets(room: Room) -> Iterator[tuple[Candidate, ...]]:
    """Devices that may hold a copy and leave what may hold another one."""
    smallest = room.sizes[-1]
    for count in range(1, len(room.devices)):
        for members in combinations(room.devices, count):
            left = [one for one in room.devices if one not in members]
            if smallest.may_be_held(members) and smallest.may_be_held(left):
                yield members


def _gathered(room: Room, rest: Sequence[Candidate], size: Size, gather: "_Gather") -> Iterator[tuple[Head, ...]]:
    """Groups of the rest, one after the other of what is left: the first, then two, and so on."""
    heads: list[Head] = []
    while len(heads) < room.groups:
        formed = next(filter(None, (_formed(room, members, [size]) for members in gather(size, rest))), [])
        if not formed:
            return
        yield from ((one, *heads) for one in formed)
        heads.append(max(formed, key=_best_rate))
        rest = [one for one in rest if one.device.name not in heads[-1].devices]


_Gather = Callable[[Size, Sequence[Candidate]], Iterator[tuple[Candidate, ...]]]
"""Sets of the devices, each larger than the one before, the first of which may hold a copy."""


def _by_speed(size: Size, devices: Sequence[Candidate]) -> Iterator[tuple[Candidate, ...]]:
    """The fastest; devices come fastest first."""
    sets = (tuple(devices[:count]) for count in range(1, len(devices) + 1))
    yield from filter(size.may_be_held, sets)


def _by_size(size: Size, devices: Sequence[Candidate]) -> Iterator[tuple[Candidate, ...]]:
    """The largest, if need be with the smallest that completes a copy; if none does, with the next largest, and on."""
    smaller = sorted(devices, key=lambda one: (-one.budget_bytes, one.device.name))
    members: tuple[Candidate, ...] = ()
    while smaller:
        completing = [one for one in smaller if members and size.may_be_held((*members, one))]
        members = (*members, completing[-1] if completing else smaller[0])
        smaller = [one for one in smaller if one not in members]
        if size.may_be_held(members):
            yield members


def _formed(room: Room, members: Sequence[Candidate], sizes: Sequence[Size]) -> list[Head]:
    """These devices as a head per mode, placed for the first of the sizes that fits."""
    members = [one for one in room.devices if one in members]
    found = [next(filter(None, (form(size, members) for size in sizes)), None) for form in (Size.layers, Size.tensor)]
    return [head for group in found if group is not None and (head := _head(room, group)).groups]


def _placed_for_each(room: Room, members: Sequence[Candidate], natively: Mapping[str, Head]) -> list[Head]:
    """These devices, all of them, as a head per mode, placed for each number of conversations; one that holds a copy as
    a worker only where that is worth it."""
    found = []
    for form in (Size.layers, Size.tensor):
        placed = {size.count: form(size, members) for size in room.every_size}
        fitting = {count: one for count, one in placed.items() if one is not None and len(one.shares) == len(members)}
        groups = dict(_for_each_count(room, fitting)) if fitting else {}
        if len(members) == 1 and (own := natively.get(members[0].device.name)):
            groups = {n: one for n, one in groups.items() if n not in own.groups or _is_worth_it(one, own.groups[n])}
        if groups:
            found.append(Head(groups))
    return found


def _for_each_count(room: Room, placed: Mapping[int, Group]) -> Iterator[tuple[int, Group]]:
    """Each number of conversations as placed for it, else for the next larger one, else for the largest there is."""
    for count in room.by_count:
        larger = [one for one in placed if one >= count]
        head = _head(room, placed[min(larger) if larger else max(placed)], (count,))
        yield from head.groups.items()


def _is_worth_it(worker: Group, own: Group) -> bool:
    return own.step_s / worker.step_s >= 1 + WORTH_WORKERS


def _fastest(groups: Sequence[Group]) -> list[Group]:
    """One per set of devices and mode, the fastest steps first."""
    found: dict[tuple[str, frozenset[str]], Group] = {}
    for group in sorted(groups, key=lambda one: (one.step_s / one.parallel, group_key(one))):
        found.setdefault((group.mode, _names(group)), group)
    return [*found.values()]


def _best_rate(head: Head) -> float:
    return max(group.aggregate_tokens_per_s for group in head.groups.values())


def _head(room: Room, group: Group, counts: Collection[int] = ()) -> Head:
    """The same placement for each of these numbers of conversations (all of them) that it has memory for."""
    by_name = {one.device.name: one for one in room.devices}
    members, survey = [by_name[share.device] for share in group.shares], _without_others(room, group)
    wanted = {count: room.by_count[count] for count in counts} if counts else room.by_count
    placed = {count: _placed_again(survey, memories, members, group) for count, memories in wanted.items()}
    return Head({count: corrected(one, room.errors) for count, one in placed.items() if one is not None})


def _without_others(room: Room, group: Group) -> Survey:
    """The survey whose controller has only what devices outside the group, and the heads of others, leave of its
    memory."""
    survey, ours = room.survey, _names(group)
    others = (one for one in room.devices if one.machine == CONTROLLER and one.device.name not in ours)
    taken = sum(one.budget_bytes if one.in_main_memory else one.machine_bytes for one in others)
    taken += (room.groups - 1) * head_need_bytes(room.by_count[max(room.by_count)][0], output=True)
    left = survey.controller.memory_available_bytes - taken
    return replace(survey, controller=replace(survey.controller, memory_available_bytes=left))


def _placed_again(
    survey: Survey, memories: Sequence[ModelMemory], members: Sequence[Candidate], group: Group
) -> Group | None:
    if group.mode == "tensor":
        return tensor_group(survey, memories, members, group.tensor_split)
    return split_again(survey, memories, members, group)


def _names(group: Group) -> frozenset[str]:
    return frozenset(share.device for share in group.shares)
