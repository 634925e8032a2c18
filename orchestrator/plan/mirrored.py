"""Plans that do the same as another one, on devices that are alike. Pure.

Two hosts that are one machine, or two cards of one kind in it, are as good as each other: what one of them alone takes
is known once the other was measured. Hosts on machines of their own never are, however alike these look.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from orchestrator.plan.company import machine_of
from orchestrator.plan.noise import LEAST_NOISE, difference
from orchestrator.plan.values import Group, Plan, alike_key, group_key
from orchestrator.survey.values import Survey


def without_mirrored(survey: Survey, plans: Iterable[Plan]) -> Iterator[Plan]:
    """Of plans that do the same on devices that are alike, and are predicted to be as fast but for noise, the first."""
    kinds, kept = _kinds(survey), defaultdict[str, list[Plan]](list)
    for plan in plans:
        alike = kept[" + ".join(sorted(alike_key(group_key(group)) for group in _of_kinds(plan, kinds).groups))]
        if not any(_as_fast(plan, one) for one in alike):
            alike.append(plan)
            yield plan


def of_kinds(survey: Survey, plans: Iterable[Plan]) -> list[Plan]:
    """The plans with what each device is for its name."""
    kinds = _kinds(survey)
    return [_of_kinds(plan, kinds) for plan in plans]


def _kinds(survey: Survey) -> dict[str, str]:
    """What each device is, by its name: the same for those of one machine with the same limits."""
    found = {}
    for host in survey.hosts:
        limits = (machine_of(host), host.local, host.facts.cpu_quota, host.facts.processors)
        for device in host.devices:
            what = (*limits, device.kind, device.description, device.threads, device.link.kind)
            found[device.name] = repr(what).replace(" ", "_")
    return found


def _as_fast(one: Plan, other: Plan) -> bool:
    pairs = zip(_speeds(one), _speeds(other), strict=True)
    return all(difference(max(pair), min(pair)) <= LEAST_NOISE for pair in pairs)


def _speeds(plan: Plan) -> tuple[float, float, float]:
    return plan.decode_tokens_per_s, plan.prefill_tokens_per_s, plan.aggregate_tokens_per_s


def _of_kinds(plan: Plan, kinds: Mapping[str, str]) -> Plan:
    return replace(plan, groups=tuple(_group_of_kinds(group, kinds) for group in plan.groups))


def _group_of_kinds(group: Group, kinds: Mapping[str, str]) -> Group:
    shares = (replace(share, device=kinds.get(share.device, share.device)) for share in group.shares)
    return replace(group, shares=tuple(shares))
