"""Which devices may be used and how much memory each has, also where several share one machine's memory.

Two local hosts are the same machine, and so are a Mac's CPU and its GPU: their budgets together, and on the
controller the head too, must fit what that machine has available. Pure; nothing here places layers.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from orchestrator.plan.noise import decode_bytes_per_s
from orchestrator.survey.values import Device, HostSurvey, Survey
from orchestrator.view.sizes import bytes_text

CONTROLLER = ""
"""The controller's name as a machine, also in `Group.head`."""


@dataclass(frozen=True)
class Candidate:
    """A device that a plan may use. `machine` is its host, or `CONTROLLER` for every local host."""

    device: Device
    machine: str
    machine_bytes: int  # available main memory of the machine
    budget_bytes: int

    @property
    def in_main_memory(self) -> bool:
        return self.device.in_main_memory


@dataclass(frozen=True)
class Pooled:
    """Candidates whose budgets fit their machines together, and a sentence for each machine where they were cut."""

    candidates: tuple[Candidate, ...]
    reasons: tuple[str, ...]


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
    candidates: Sequence[Candidate], *, controller_bytes: int, head_bytes: int, fastest_keep: bool = False
) -> Pooled | None:
    """Cut budgets, each by the same part, on machines whose available memory is less than their sum.

    A host's CPU and its GPUs without memory of their own have the largest of their budgets together, each the same part
    of its own; with `fastest_keep` (candidates come fastest first) the slower ones have what the faster leave.
    The head takes `head_bytes` (margin included) of the controller's `controller_bytes`; None when they do not hold it.
    """
    if head_bytes > controller_bytes:
        return None
    limits = {CONTROLLER: controller_bytes - head_bytes}
    reasons = []
    for machine in dict.fromkeys(one.machine for one in candidates):
        candidates, told = _cut_hosts(candidates, machine, fastest_keep=fastest_keep)
        reasons += told
        members = [one for one in candidates if one.machine == machine and one.in_main_memory]
        limit = limits.setdefault(machine, max((one.machine_bytes for one in members), default=0))
        wanted = sum(one.budget_bytes for one in members)
        if wanted > limit:
            candidates = [_cut(one, limit, wanted) if one in members else one for one in candidates]
            reasons.append(_cut_reason(members, wanted, limit, head_bytes if machine == CONTROLLER else 0))
        candidates, told = _cut_cards(candidates, machine)
        reasons += told
    return Pooled(tuple(candidates), tuple(reasons))


def _cut_hosts(
    candidates: Sequence[Candidate], machine: str, *, fastest_keep: bool
) -> tuple[Sequence[Candidate], list[str]]:
    """A host's share of its machine's memory is there once, whatever of it computes."""
    reasons = []
    for host in dict.fromkeys(one.device.host for one in candidates if one.machine == machine):
        members = [one for one in candidates if one.device.host == host and one.in_main_memory]
        wanted = sum(one.budget_bytes for one in members)
        limit = max((one.device.budget.usable_bytes for one in members), default=0)  # what is cut already stays so
        if wanted <= limit:
            continue
        cut = _in_turn(members, limit) if fastest_keep else [_cut(one, limit, wanted) for one in members]
        by_name = {one.device.name: one for one in cut}
        candidates = [by_name.get(one.device.name, one) for one in candidates]
        reasons.append(_cut_reason(members, wanted, limit, 0, whose="they share"))
    return candidates, reasons


def _in_turn(members: Iterable[Candidate], limit: int) -> list[Candidate]:
    cut = []
    for one in members:
        cut.append(replace(one, budget_bytes=min(one.budget_bytes, limit)))
        limit -= cut[-1].budget_bytes
    return cut


def pools(candidates: Sequence[Candidate], *, controller_bytes: int, head_bytes: int) -> tuple[Pooled, ...]:
    """Every way to share out memory that is worth trying for a plan that may leave devices out; none where the
    controller does not hold the head.

    By equal parts alone, a GPU would have half of its memory also where its host's CPU, which has the other half, gets
    nothing to do.
    """
    found = (
        pool_budgets(candidates, controller_bytes=controller_bytes, head_bytes=head_bytes, fastest_keep=keep)
        for keep in (False, True)
    )
    by_budgets = {
        tuple(one.budget_bytes for one in pooled.candidates): pooled for pooled in found if pooled is not None
    }
    return tuple(by_budgets.values())


def _cut_cards(candidates: Sequence[Candidate], machine: str) -> tuple[Sequence[Candidate], list[str]]:
    """Two local hosts may have the same card, and its memory is there once."""
    cards: dict[str, list[Candidate]] = {}
    for one in candidates:
        if one.machine == machine and not one.in_main_memory:
            cards.setdefault(one.device.engine_name, []).append(one)
    reasons = []
    for members in cards.values():
        limit, wanted = max(one.device.budget.free_bytes for one in members), sum(one.budget_bytes for one in members)
        if len(members) > 1 and wanted > limit:
            candidates = [_cut(one, limit, wanted) if one in members else one for one in candidates]
            reasons.append(_cut_reason(members, wanted, limit, 0))
    return candidates, reasons


def _candidate(survey: Survey, host: HostSurvey, device: Device) -> Candidate:
    facts = survey.controller if host.local else host.facts
    machine = CONTROLLER if host.local else host.name
    return Candidate(device, machine, facts.memory_available_bytes, device.budget.usable_bytes)


def _cut(candidate: Candidate, limit: int, wanted: int) -> Candidate:
    return replace(candidate, budget_bytes=candidate.budget_bytes * limit // wanted)


def _cut_reason(
    members: Iterable[Candidate], wanted: int, limit: int, head_bytes: int, *, whose: str = "their machine has"
) -> str:
    names = " and ".join(sorted(one.device.name for one in members))
    beside = f" beside the head's {bytes_text(head_bytes)}" if head_bytes else ""
    return (
        f"budgets of {names} cut to {limit / wanted:.0%}: {whose} {bytes_text(limit)}{beside}, "
        f"they add up to {bytes_text(wanted)}"
    )
