"""Devices of one machine have its caches together: beside each other few layers take their part of what all take."""

from dataclasses import replace

import pytest

from orchestrator.plan.asked import Asked
from orchestrator.plan.choose import rank_plans
from orchestrator.plan.company import in_company
from orchestrator.plan.costs import layers_seconds
from orchestrator.survey.values import Device, HostSurvey, PassTime, Speed, Survey
from tests.orchestrator.plan.examples import make_device, make_memory, make_survey
from workers.budget import MIB

LAYERS, LAYER = 30, 2 * MIB
WHOLE = LAYERS * LAYER
CACHED = Speed((PassTime(1, 0.0, (WHOLE // 3, WHOLE), (0.001, 0.015), 0.0),), 0.001, 30 * MIB, "slice")
"""A third of the layers stays in the cache: a fifteenth of the time."""

STEADY = Speed((PassTime(1, 0.001, (WHOLE // 3, WHOLE), (0.006, 0.016), 0.0),), 0.001, 30 * MIB, "slice")
"""A fixed cost per stage, all else in proportion."""


def device(name: str, speed: Speed = CACHED, mib: int = 100) -> Device:
    return replace(make_device(name, mib), speed=speed, native=speed)


def of_one_machine(survey: Survey, *names: str, local: bool = False, boot: str = "one start") -> Survey:
    def moved(host: HostSurvey) -> HostSurvey:
        return replace(host, local=local, facts=replace(host.facts, boot=boot)) if host.name in names else host

    return replace(survey, hosts=tuple(map(moved, survey.hosts)))


def times(survey: Survey, layers_bytes: int = WHOLE, names: set[str] | None = None) -> list[float]:
    """Of half of the layers on each device, through RPC."""
    found = in_company(survey, layers_bytes, names)
    return [layers_seconds(one.speed, WHOLE // 2, 1) for one in found.devices]


def test_devices_of_machines_of_their_own_are_as_fast_as_they_were_timed() -> None:
    survey = make_survey([device("a/cpu"), device("b/cpu")])
    assert in_company(survey, WHOLE, None) is survey


@pytest.mark.parametrize(("local", "boot"), [(True, ""), (True, "one start"), (False, "one start")])
def test_on_one_machine_half_of_the_layers_takes_half_of_the_time_of_all(local: bool, boot: str) -> None:
    survey = make_survey([device("a/cpu"), device("b/cpu"), device("c/cpu")])
    alone_s = layers_seconds(CACHED, WHOLE // 2, 1)
    assert alone_s < 0.005
    together = of_one_machine(survey, "a", "b", local=local, boot=boot)
    assert times(together) == pytest.approx([0.0075, 0.0075, alone_s])
    assert in_company(in_company(together, WHOLE, None), WHOLE, None) == in_company(together, WHOLE, None)


def test_natively_it_is_the_same() -> None:
    survey = of_one_machine(make_survey([device("a/cpu"), device("b/cpu")]), "a", "b")
    one = in_company(survey, WHOLE, None).devices[0]
    assert one.native == one.speed


def test_all_layers_take_as_long_as_before_and_what_is_fixed_is_no_cache() -> None:
    survey = of_one_machine(make_survey([device("a/cpu"), device("b/cpu", STEADY)]), "a", "b")
    before, after = survey.devices, in_company(survey, WHOLE, None).devices
    assert [layers_seconds(one.speed, WHOLE, 1) for one in after] == pytest.approx([0.015, 0.016])
    assert after[1] == before[1]


def test_of_a_larger_model_the_time_beyond_the_slices_counts() -> None:
    """Twice the layers: at the last slope 0.015 + 0.021 s."""
    survey = of_one_machine(make_survey([device("a/cpu"), device("b/cpu")]), "a", "b")
    assert times(survey, 2 * WHOLE) == pytest.approx([0.036 / 4, 0.036 / 4])


def test_a_device_that_is_not_to_be_used_takes_no_cache_from_others() -> None:
    survey = of_one_machine(make_survey([device("a/cpu"), device("b/cpu")]), "a", "b")
    assert in_company(survey, WHOLE, {"a/cpu"}) is survey
    assert times(survey, names={"a/cpu", "b/cpu"}) == pytest.approx([0.0075, 0.0075])


def test_a_gpu_has_memory_and_caches_of_its_own() -> None:
    survey = make_survey([device("a/cpu"), replace(device("b/cuda0"), kind="cuda")])
    survey = of_one_machine(survey, "a", "b")
    assert in_company(survey, WHOLE, None) is survey


def test_a_plan_of_two_hosts_on_one_machine_foresees_no_cache_for_each() -> None:
    survey = make_survey([device("a/cpu", mib=130), device("b/cpu", mib=130)])
    memory = make_memory(LAYERS, layer_mib=2, kv_mib=1, output_mib=30)
    apart, together = (
        rank_plans(one, [memory], Asked("latency")).chosen.token_s for one in (survey, of_one_machine(survey, "a", "b"))
    )
    assert together - apart == pytest.approx(2 * (0.0075 - layers_seconds(CACHED, WHOLE // 2, 1)), rel=0.2)
