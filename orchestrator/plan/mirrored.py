"""Plans that do the same as another one, on devices that are alike. Pure.

Two hosts that are one machine, or two cards of one kind in it, are as good as each other: what one of them alone takes
is known once the other was measured. Hosts on machines of their own never are, however alike these look.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from orchestrator.plan.company import machine_of
from orchestrator.plan.noise import decode_groups
from orchestrator.plan.values import Group, Plan, alike_key, group_key
from orchestrator.survey.values import Device, Survey


def without_mirrored(survey: Survey, plans: Iterable[Plan]) -> Iterator[Plan]:
    """Of plans that do the same on devices that are alike only the first."""
    kinds, seen = _kinds(survey), set[str]()
    for plan in plans:
        key = " + ".join(sorted(alike_key(group_key(_of_kinds(group, kinds))) for group in plan.groups))
        if key not in seen:
            seen.add(key)
            yield plan


def _kinds(survey: Survey) -> dict[str, str]:
    """What each device is, by its name: the same for those of one machine whose limits are the same and whose measured
    speeds, both through RPC and natively, count as one."""
    through_rpc = _paces(survey.devices)
    natively = _paces([replace(one, speed=one.native) for one in survey.devices])
    found = {}
    for host in survey.hosts:
        limits = (machine_of(host), host.local, host.facts.cpu_quota, host.facts.processors)
        for device in host.devices:
            what = (device.kind, device.description, device.threads, device.link.kind)
            found[device.name] = repr((*limits, *what, through_rpc.get(device.name), natively.get(device.name)))
    return found


def _paces(devices: Iterable[Device]) -> dict[str, int]:
    """Which speed each device has that was measured: of those that count as one the same number."""
    measured = [one for one in devices if one.speed.measured]
    return {device.name: number for number, group in enumerate(decode_groups(measured)) for device in group}


def _of_kinds(group: Group, kinds: Mapping[str, str]) -> Group:
    shares = tuple(replace(share, device=kinds[share.device].replace(" ", "_")) for share in group.shares)
    return replace(group, shares=shares)
