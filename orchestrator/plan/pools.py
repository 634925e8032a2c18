"""Which devices may be used and how much memory each has, also where several share one machine's memory.

Two local hosts are the same machine, and so are a Mac's CPU and its GPU: what they take together, and on the
controller the head too, must fit what that machine has available. A device that takes nothing leaves all of it to the
others. Pure; nothing here places layers.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from orchestrator.plan.noise import decode_bytes_per_s
from orchestrator.survey.values import Device, HostSurvey, Survey
from orchestrator.view.sizes import bytes_text

CONTROLLER = ""
"""The controller's name as a machine, also in `Group.head`."""

EVERY_TURN = 4
"""Up to this many devices that need more than their memories hold are each served first once, and last once."""


@dataclass(frozen=True)
class Candidate:
    """A device that a plan may use. `machine` is its host, or `CONTROLLER` for every local host."""

    device: Device
    machine: str
    machine_bytes: int  # available main memory of the machine; of several heads, what one on this card may take of it
    budget_bytes: int

    @property
    def in_main_memory(self) -> bool:
        return self.device.in_main_memory


@dataclass(frozen=True)
class SharedMemory:
    """A memory that does not hold the budgets of all its devices; heads take `heads_bytes` beside `limit_bytes`.

    `whose` begins what is said of it.
    """

    names: frozenset[str]
    limit_bytes: int
    heads_bytes: int = 0
    whose: str = "their machine has"


@dataclass(frozen=True)
class Pooled:
    """Candidates, fastest first, with their own budgets, and the memories that do not hold all of these."""

    candidates: tuple[Candidate, ...]
    memories: tuple[SharedMemory, ...]

    @cached_property
    def alone(self) -> tuple[Candidate, ...]:
        """Each with the budget that it has where the others take nothing."""
        if not self.memories:
            return self.candidates
        return tuple(
            replace(one, budget_bytes=min([one.budget_bytes, *(memory.limit_bytes for memory in self._of(one))]))
            for one in self.candidates
        )

    @cached_property
    def crowded(self) -> frozenset[str]:
        """The devices that cannot all have that budget at once."""
        budgets = _budgets(self.alone)
        short = (one for one in self.memories if sum(budgets[name] for name in one.names) > one.limit_bytes)
        return frozenset().union(*(memory.names for memory in short))

    def hold(self, needs: Mapping[str, int]) -> bool:
        """Whether devices may take so many bytes, each by its budget, and all of them by their memories."""
        budgets = _budgets(self.alone)
        return all(needed <= budgets.get(name, 0) for name, needed in needs.items()) and all(
            sum(needs.get(name, 0) for name in memory.names) <= memory.limit_bytes for memory in self.memories
        )

    def beside(self, needs: Mapping[str, int]) -> tuple[Candidate, ...]:
        """The budgets beside these needs, which the memories hold: each keeps its own, and has of the rest as much as
        it may, the fastest first."""
        return self._in_turn(self.alone, needs) if self.crowded else self.alone

    def ways(self, wants: Iterable[Mapping[str, int]] = ()) -> tuple[tuple[Candidate, ...], ...]:
        """The ways to share out memory that are worth trying for several heads: equal parts; the fastest first, each as
        much as it may have; and before that, each what it `wants`."""
        if not self.crowded:
            return (self.alone,)
        wanted = (self.beside(self._as_far_as_they_go(want)) for want in wants)
        return (*dict.fromkeys((self.in_equal_parts(), self.beside({}), *wanted)),)

    def ways_for(self, needs: Mapping[str, int]) -> tuple[tuple[Candidate, ...], ...]:
        """The ways that are worth trying where these needs are more than the memories hold: equal parts for those that
        need any; the fastest first, each what it needs; and each as much as it may have, every one of them first once
        and last once."""
        needing = [one for one in self.alone if one.device.name in self.crowded and needs.get(one.device.name)]
        others = [one for one in self.alone if one not in needing]
        orders = [[*needing, *others]]
        if len(needing) <= EVERY_TURN:
            orders += [[one, *_without(needing, one), *others] for one in needing]
            orders += [[*_without(needing, one), *others, one] for one in needing]
        equally = self.in_equal_parts([one.device.name for one in needing])
        as_needed = self.beside(self._as_far_as_they_go(needs))
        return (*dict.fromkeys((equally, as_needed, *(self._in_turn(order, {}) for order in orders))),)

    def in_equal_parts(self, names: Collection[str] | None = None) -> tuple[Candidate, ...]:
        """Budgets cut by the same part in each memory; of those in crowded ones only `names` have any (None: all)."""
        return self._with(self._cut_equally(names)[0])

    @property
    def reasons(self) -> tuple[str, ...]:
        """A sentence for each memory: by how much budgets are cut there."""
        return self._cut_equally(None)[1]

    def _cut_equally(self, names: Collection[str] | None) -> tuple[dict[str, int], tuple[str, ...]]:
        budgets = {
            name: budget if names is None or name in names or name not in self.crowded else 0
            for name, budget in _budgets(self.candidates).items()
        }
        reasons = []
        for memory in self.memories:
            wanted = sum(budgets[name] for name in memory.names)
            if wanted > memory.limit_bytes:
                reasons.append(_cut_reason(memory, wanted))
                budgets |= {name: budgets[name] * memory.limit_bytes // wanted for name in memory.names}
        return budgets, tuple(reasons)

    def _as_far_as_they_go(self, wants: Mapping[str, int]) -> dict[str, int]:
        """What each wants, the fastest first, as far as budgets and memories go."""
        wanting = (
            replace(one, budget_bytes=min(one.budget_bytes, wants.get(one.device.name, 0))) for one in self.alone
        )
        return _budgets(self._in_turn(wanting, {}))

    def _in_turn(self, order: Iterable[Candidate], kept: Mapping[str, int]) -> tuple[Candidate, ...]:
        """Each up to its budget, of what those before it, and all that is `kept`, leave."""
        left = [memory.limit_bytes - sum(kept.get(name, 0) for name in memory.names) for memory in self.memories]
        budgets = {}
        for one in order:
            name = one.device.name
            mine = [k for k, memory in enumerate(self.memories) if name in memory.names]
            more = max(0, min([one.budget_bytes - kept.get(name, 0), *(left[k] for k in mine)]))
            budgets[name] = kept.get(name, 0) + more
            for k in mine:
                left[k] -= more
        return self._with(budgets)

    def _with(self, budgets: Mapping[str, int]) -> tuple[Candidate, ...]:
        return tuple(replace(one, budget_bytes=budgets[one.device.name]) for one in self.candidates)

    def _of(self, candidate: Candidate) -> Iterator[SharedMemory]:
        return (memory for memory in self.memories if candidate.device.name in memory.names)


def find_candidates(survey: Survey, names: Collection[str] | None) -> tuple[Candidate, ...]:
    """The usable devices among `names` (None: all), fastest first; the order of hosts in the survey plays no part."""
    found = [
        _candidate(survey, host, device)
        for host in survey.hosts
        for device in host.devices
        if (names is None or device.name in names) and not why_unusable(device)
    ]
    return fastest_first(found)


def fastest_first(candidates: Iterable[Candidate]) -> tuple[Candidate, ...]:
    """By decode speed, of equal ones by name."""
    return tuple(sorted(candidates, key=lambda one: (-decode_bytes_per_s(one.device.speed), one.device.name)))


def why_unusable(device: Device) -> str:
    """What keeps a device out of every plan, or ""."""
    if not device.speed.measured:
        return device.note or "its speed was not measured"
    if min(device.link.up_bytes_per_s, device.link.down_bytes_per_s) <= 0:
        return "the throughput of its link was not measured"
    if device.budget.usable_bytes <= 0:
        return "it has no budget"
    return ""


def pool_budgets(
    candidates: Sequence[Candidate],
    *,
    controller_bytes: int,
    head_bytes: int,
    on_cards_bytes: Mapping[str, int] | None = None,
) -> Pooled | None:
    """The candidates, and which memories do not hold all of their budgets: a host's, its machine's, or that of a card.

    A host's CPU and its GPUs without memory of their own have the largest of their budgets together. Heads on the
    controller take `head_bytes` (margin included) of its `controller_bytes`; None when they do not hold it. Heads on
    cards take `on_cards_bytes`, by device, of their machines' main memory.
    """
    if head_bytes > controller_bytes:
        return None
    memories: list[SharedMemory] = []
    for machine in dict.fromkeys(one.machine for one in candidates):
        members = [one for one in candidates if one.machine == machine]
        here = machine == CONTROLLER
        has = controller_bytes if here else max((one.machine_bytes for one in members if one.in_main_memory), default=0)
        heads = sum((on_cards_bytes or {}).get(one.device.name, 0) for one in members) + (head_bytes if here else 0)
        memories += [*_host_memories(members), _main_memory(members, has, heads), *_card_memories(members)]
    budgets = _budgets(candidates)
    short = (one for one in memories if sum(budgets[name] for name in one.names) > one.limit_bytes)
    return Pooled(tuple(candidates), tuple(short))


def cut_reasons(
    survey: Survey, candidates: Sequence[Candidate], head_bytes: int, on_cards_bytes: Mapping[str, int] | None = None
) -> tuple[str, ...]:
    """By how much budgets are cut where these devices share a memory, beside heads that take so much of the
    controller's and on cards."""
    available = survey.controller.memory_available_bytes
    pooled = pool_budgets(candidates, controller_bytes=available, head_bytes=head_bytes, on_cards_bytes=on_cards_bytes)
    return pooled.reasons if pooled else ()


def _host_memories(members: Iterable[Candidate]) -> Iterator[SharedMemory]:
    """A host's share of its machine's memory is there once, whatever of it computes."""
    hosts: dict[str, list[Candidate]] = {}
    for one in members:
        if one.in_main_memory:
            hosts.setdefault(one.device.host, []).append(one)
    for devices in hosts.values():
        limit = max(one.device.budget.usable_bytes for one in devices)  # what is cut already stays so
        yield SharedMemory(_names(devices), limit, whose="they share")


def _main_memory(members: Iterable[Candidate], has_bytes: int, heads_bytes: int) -> SharedMemory:
    names = _names(one for one in members if one.in_main_memory)
    return SharedMemory(names, max(0, has_bytes - heads_bytes), heads_bytes)


def _card_memories(members: Iterable[Candidate]) -> Iterator[SharedMemory]:
    """Two local hosts may have the same card, and its memory is there once."""
    cards: dict[str, list[Candidate]] = {}
    for one in members:
        if not one.in_main_memory:
            cards.setdefault(one.device.engine_name, []).append(one)
    for devices in cards.values():
        if len(devices) > 1:
            yield SharedMemory(_names(devices), max(one.device.budget.free_bytes for one in devices))


def _names(candidates: Iterable[Candidate]) -> frozenset[str]:
    return frozenset(one.device.name for one in candidates)


def _budgets(candidates: Iterable[Candidate]) -> dict[str, int]:
    return {one.device.name: one.budget_bytes for one in candidates}


def _without(candidates: Iterable[Candidate], one: Candidate) -> list[Candidate]:
    return [other for other in candidates if other is not one]


def _candidate(survey: Survey, host: HostSurvey, device: Device) -> Candidate:
    facts = survey.controller if host.local else host.facts
    kernel = "" if facts.memory_limited_by else facts.boot  # a limit of its own is not shared with others there
    machine = CONTROLLER if host.local else kernel or host.name
    return Candidate(device, machine, facts.memory_available_bytes, device.budget.usable_bytes)


def _cut_reason(memory: SharedMemory, wanted: int) -> str:
    names = " and ".join(sorted(memory.names))
    together = " together" if len(memory.names) > 1 else ""
    beside = f" beside {bytes_text(memory.heads_bytes)} of heads" if memory.heads_bytes else ""
    return (
        f"budgets of {names} cut to {memory.limit_bytes / wanted:.0%}{together}: {memory.whose} "
        f"{bytes_text(memory.limit_bytes)}{beside}, they add up to {bytes_text(wanted)}"
    )
