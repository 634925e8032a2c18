"""What heads that answer at once take from each other's processors. Pure.

Heads of mode `replicas` work at the same time, and several of them may compute on one machine: hosts that are one
kernel, and the output layers of groups, whose heads are all on the controller. A head keeps a processor busy for the
part `time_s / token_s` of its steps (one alone all of the time), with as many threads as the host has, or as its quota
lets run. Where the threads of all that are busy there at once are more than the cores, what a single thread computes
takes `threads / cores` times as long: the kernel gives them equal parts of the time. Where there are several threads,
each waits for the others after every operation, without giving its core away: that to the power of `TOGETHER`.

Measured on the pinned engine on two cores, 135 M as Q4_1, four conversations per head: three heads of one thread took
1.5 times as long as one alone, four 2.0 times; one of two threads beside one of one 2.4 times, the other 1.5 times; two
of two threads 4 to 12 times.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from orchestrator.plan.company import machine_of
from orchestrator.plan.values import Group
from orchestrator.survey.values import Device, HostSurvey, Survey
from workers.facts import HostFacts

ROUNDS = 4
"""A head that is slowed down keeps what it does not share busy for a smaller part of its steps; that soon settles."""

TOGETHER = 2
"""The least that was measured; what else is planned is far better anyway."""


@dataclass(frozen=True)
class _Load:
    """What a head does on one host's processor: so many threads on so many cores, for this part of its steps."""

    machine: str
    processors: frozenset[int]
    cores: int
    threads: float
    busy: float
    together: bool  # several threads, which wait for one another

    def threads_of(self, other: "_Load") -> float:
        """How many of the other's threads are busy on the cores of this one; which cores these are is not always
        known."""
        if self.machine != other.machine:
            return 0.0
        known = self.processors and other.processors
        part = len(self.processors & other.processors) / len(other.processors) if known else 1.0
        return part * other.threads * other.busy


def contended(survey: Survey, groups: tuple[Group, ...]) -> tuple[Group, ...]:
    """The groups with the steps that they have beside each other; the same ones where they share no machine."""
    processors = {one.name: (host, one) for host in survey.hosts for one in host.devices if one.kind == "cpu"}
    loads = [_loads(survey, processors, group) for group in groups]
    if not _any_meet(loads):
        return groups
    times = [[1.0] * len(mine) for mine in loads]
    for _ in range(ROUNDS):
        busy = [_busy_beside(mine, of_mine) for mine, of_mine in zip(loads, times, strict=True)]
        times = [[_times(load, number, busy) for load in mine] for number, mine in enumerate(loads)]
    slower = [_slower(mine, of_mine) for mine, of_mine in zip(loads, times, strict=True)]
    return tuple(
        replace(group, step_s=group.step_s * by, beside=by) if by > 1 else group
        for group, by in zip(groups, slower, strict=True)
    )


def _any_meet(loads: Sequence[Sequence[_Load]]) -> bool:
    machines = [{load.machine for load in mine} for mine in loads]
    return sum(map(len, machines)) > len(set[str]().union(*machines))


def _loads(survey: Survey, processors: Mapping[str, tuple[HostSurvey, Device]], group: Group) -> list[_Load]:
    """Nothing of GPUs: where several heads are on one card, each has it to itself in turn, which is not foreseen."""
    found = []
    for share in group.shares:
        if share.device in processors:
            host, device = processors[share.device]
            found.append(_load(machine_of(host), host.facts, device.threads, _busy(group, share.time_s)))
    if group.mode == "layers" and group.output_on_head and group.head_time_s:
        here = survey.controller
        found.append(_load(here.boot, here, here.cores_physical, _busy(group, group.head_time_s)))
    return found


def _load(machine: str, facts: HostFacts, threads: int, busy: float) -> _Load:
    allowed = float(threads) if facts.cpu_quota is None else min(float(threads), facts.cpu_quota)
    return _Load(machine, frozenset(facts.processors), facts.cores_physical, allowed, busy, threads > 1)


def _busy(group: Group, seconds: float) -> float:
    return 1.0 if group.mode == "single" else min(1.0, seconds / group.token_s)


def _busy_beside(mine: Sequence[_Load], times: Sequence[float]) -> list[_Load]:
    """The parts of a step that take so many times as long fill more of it, the others less."""
    slower = _slower(mine, times)
    return [replace(load, busy=load.busy * by / slower) for load, by in zip(mine, times, strict=True)]


def _slower(mine: Sequence[_Load], times: Sequence[float]) -> float:
    """How many times as long a step takes whose parts do."""
    return 1 + sum(load.busy * (by - 1) for load, by in zip(mine, times, strict=True))


def _times(mine: _Load, number: int, busy: Sequence[Sequence[_Load]]) -> float:
    """How many times as long as alone this part of head `number` takes beside the other heads."""
    others = (load for other, theirs in enumerate(busy) if other != number for load in theirs)
    beside = sum(map(mine.threads_of, others))
    crowd = max(1.0, (mine.threads + beside) / max(mine.threads, mine.cores, 1))
    return crowd**TOGETHER if mine.together else crowd
