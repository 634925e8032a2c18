"""Which devices may be used and how much memory each has, also where several share one machine's memory.

Two local hosts are the same machine, and so are a Mac's CPU and its GPU: their budgets together, and on the
controller the head too, must fit what that machine has available. Pure; nothing here places layers.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from orchestrator.plan.noise import decode_bytes_per_s
from orchestrator.survey.values import Device, HostSurvey, Survey
from orchestrator.view.sizes import bytes_text

MAIN_MEMORY_KINDS = ("cpu", "metal")
"""Kinds of devices that work in their machine's main memory."""

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
        return self.device.kind in MAIN_MEMORY_KINDS


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
    return tuple(sorted(found, key=lambda one: (-decode_bytes_per_s(one.device.speed), one.device.name)))


def why_unusable(device: Device) -> str:
    """What keeps a device out of every plan, or ""."""
    if not device.speed.measured:
        return device.note or "its speed was not measured"
    if min(device.link.up_bytes_per_s, device.link.down_bytes_per_s) <= 0:
        return "the throughput of its link was not measured"
    if device.budget.usable_bytes <= 0:
        return "it has no budget"
    return ""


def pool_budgets(candidates: Sequence[Candidate], *, controller_bytes: int, head_bytes: int) -> Pooled | None:
    """Cut budgets, each by the same part, on machines whose available memory is less than their sum.

    The head takes `head_bytes` (margin included) of the controller's `controller_bytes`; None when they do not hold it.
    """
    if head_bytes > controller_bytes:
        return None
    limits = {CONTROLLER: controller_bytes - head_bytes}
    reasons = []
    for machine in dict.fromkeys(one.machine for one in candidates):
        members = [one for one in candidates if one.machine == machine and one.in_main_memory]
        limit = limits.setdefault(machine, max((one.machine_bytes for one in members), default=0))
        wanted = sum(one.budget_bytes for one in members)
        if wanted > limit:
            candidates = [_cut(one, limit, wanted) if one in members else one for one in candidates]
            reasons.append(_cut_reason(members, wanted, limit, head_bytes if machine == CONTROLLER else 0))
    return Pooled(tuple(candidates), tuple(reasons))


def _candidate(survey: Survey, host: HostSurvey, device: Device) -> Candidate:
    facts = survey.controller if host.local else host.facts
    machine = CONTROLLER if host.local else host.name
    return Candidate(device, machine, facts.memory_available_bytes, device.budget.usable_bytes)


def _cut(candidate: Candidate, limit: int, wanted: int) -> Candidate:
    return replace(candidate, budget_bytes=candidate.budget_bytes * limit // wanted)


def _cut_reason(members: Iterable[Candidate], wanted: int, limit: int, head_bytes: int) -> str:
    names = " and ".join(sorted(one.device.name for one in members))
    beside = f" beside the head's {bytes_text(head_bytes)}" if head_bytes else ""
    return (
        f"budgets of {names} cut to {limit / wanted:.0%}: their machine has {bytes_text(limit)}{beside}, "
        f"they add up to {bytes_text(wanted)}"
    )
