"""Which plans differ in nothing but which of two like devices they use."""

from dataclasses import replace

import pytest

from orchestrator.plan.asked import Asked
from orchestrator.plan.choose import rank_plans
from orchestrator.plan.mirrored import without_mirrored
from orchestrator.plan.values import Plan, plan_key
from orchestrator.survey.values import Device, Survey
from tests.orchestrator.plan.examples import make_device, make_memory, make_survey

MEMORY = make_memory()
A, B, SLOW = (make_device(f"{name}/cpu", 3000, gib_per_s=speed) for name, speed in (("a", 10), ("b", 9.5), ("slow", 5)))


def on_one_machine(*devices: Device) -> Survey:
    """All local, as two hosts of one machine are."""
    return make_survey(devices, local=[one.host for one in devices])


def single(name: str) -> Plan:
    survey = make_survey([A, B, SLOW])
    return rank_plans(survey, (MEMORY,), Asked("latency", mode="single", devices=frozenset({name}))).chosen


def split(**counts: int) -> Plan:
    asked = Asked("latency", split={f"{name}/cpu": count for name, count in counts.items()})
    return rank_plans(make_survey([A, B, SLOW]), (MEMORY,), asked).chosen


def left(survey: Survey, *plans: Plan) -> list[str]:
    return [plan_key(one) for one in without_mirrored(survey, plans)]


def test_of_two_like_devices_of_one_machine_the_first_plan_is_left() -> None:
    survey = on_one_machine(A, B, SLOW)
    one, other, slow = (single(f"{name}/cpu") for name in ("a", "b", "slow"))
    assert left(survey, one, other, slow) == [plan_key(one), plan_key(slow)]
    assert left(survey, other, one) == [plan_key(other)]


def test_of_splits_those_are_alike_whose_like_devices_have_as_many_layers() -> None:
    survey = on_one_machine(A, B, SLOW)
    plans = [split(a=6, slow=4), split(b=6, slow=4), split(b=5, slow=5), split(a=5, b=5)]
    assert left(survey, *plans) == [plan_key(plan) for plan in (plans[0], *plans[2:])]


@pytest.mark.parametrize(
    "other",
    [
        replace(B, threads=4),
        replace(B, kind="vulkan"),
        replace(B, description="another"),
    ],
)
def test_devices_that_differ_are_not_alike(other: Device) -> None:
    plans = [single("a/cpu"), single("b/cpu")]
    assert len(left(on_one_machine(A, other), *plans)) == 2


@pytest.mark.parametrize("what", ["token_s", "step_s", "prefill_s"])
def test_plans_that_are_not_as_fast_are_not_alike(what: str) -> None:
    """Such as over links that differ."""
    one, other = single("a/cpu"), single("b/cpu")
    (group,) = other.groups
    for by, count in ((1.05, 1), (1.3, 2)):
        slower = replace(
            other, groups=(replace(one.groups[0], shares=group.shares, **{what: by * getattr(one.groups[0], what)}),)
        )
        assert len(left(on_one_machine(A, B), one, slower)) == count


def test_devices_of_machines_of_their_own_are_never_alike() -> None:
    survey = make_survey([A, B])
    hosts = tuple(replace(host, facts=replace(host.facts, boot=host.name)) for host in survey.hosts)
    assert len(left(replace(survey, hosts=hosts), single("a/cpu"), single("b/cpu"))) == 2


def test_hosts_of_one_machine_with_other_limits_are_not_alike() -> None:
    survey = on_one_machine(A, B)
    first, second = survey.hosts
    bound = replace(second, facts=replace(second.facts, processors=(1,)))
    held = replace(second, facts=replace(second.facts, cpu_quota=0.5))
    for changed in (bound, held):
        assert len(left(replace(survey, hosts=(first, changed)), single("a/cpu"), single("b/cpu"))) == 2
