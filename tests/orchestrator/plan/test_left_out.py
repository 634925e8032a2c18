"""Why a device is not used: the numbers are those of the goal, and compare what was predicted alike."""

from dataclasses import replace

import pytest

from orchestrator.plan.asked import Asked
from orchestrator.plan.choose import rank_plans
from orchestrator.plan.experience import Experience, Measured, record_of
from orchestrator.plan.values import Plan
from orchestrator.survey.values import Link, Survey
from tests.orchestrator.plan.examples import make_device, make_memory, make_survey

FAR = Link("tunnel", round_trip_s=0.5, up_bytes_per_s=100e6, down_bytes_per_s=100e6)
"""A quarter of the time that a whole token takes."""

TWO_AND_FAR = make_survey(
    [make_device("a/cpu", 700), make_device("b/cpu", 800), make_device("far/cpu", 900, link=FAR)],
    tensor_refused="not implemented",
)


def reason(survey: Survey, asked: Asked, device: str, experience: Experience | None = None, parallel: int = 1) -> str:
    plan = chosen(survey, asked, experience, parallel)
    return next(one.reason for one in plan.left_out if one.device == device)


def chosen(survey: Survey, asked: Asked, experience: Experience | None = None, parallel: int = 1) -> Plan:
    memory = make_memory(parallel=parallel, kv_mib=1)
    return rank_plans(survey, (memory,), asked, experience or Experience()).chosen


def test_a_split_says_what_the_device_would_do_and_cost() -> None:
    assert reason(TWO_AND_FAR, Asked("latency"), "far/cpu") == (
        "it would take 5 of 10 layers and save 392 µs per token, its link and stage cost 500 ms"
    )


def test_for_throughput_a_step_of_all_conversations_is_compared() -> None:
    """Eight hidden states instead of one cross the link."""
    assert reason(TWO_AND_FAR, Asked("throughput"), "far/cpu", parallel=8) == (
        "it would take 5 of 10 layers and save 1.39 ms per step of 8 conversations, its link and stage cost 501 ms"
    )


def test_what_earlier_runs_corrected_does_not_shift_the_comparison() -> None:
    """Every split turned out half slower than predicted; with the device that would be no different."""
    (group,) = chosen(TWO_AND_FAR, Asked("latency")).groups
    slower = Experience((record_of(group, Measured(1.5 * group.token_s, 1.5 * group.step_s, group.prefill_s)),))
    corrected = chosen(TWO_AND_FAR, Asked("latency"), slower)
    assert corrected.groups[0].token_s == pytest.approx(1.5 * group.token_s)
    assert reason(TWO_AND_FAR, Asked("latency"), "far/cpu", slower) == reason(TWO_AND_FAR, Asked("latency"), "far/cpu")


def test_a_device_that_holds_a_copy_is_compared_by_its_own_speed() -> None:
    survey = make_survey(
        [make_device("a/cpu", 2000), make_device("b/cpu", 2000, gib_per_s=1, link=FAR)], tensor_refused="no"
    )
    assert reason(survey, Asked("latency"), "b/cpu") == "alone 1.1 s per token, a/cpu 107 ms"
    asked = Asked("throughput", mode="single")
    assert reason(survey, asked, "b/cpu", parallel=8) == (
        "alone 3.7 tokens per second with 8 conversations; in the plan a/cpu 37.2"
    )


def test_in_mode_tensor_its_exchanges_are_told() -> None:
    near = [make_device("a/cpu", 700, gib_per_s=0.1), make_device("b/cpu", 800, gib_per_s=0.1)]
    survey = make_survey([*near, replace(make_device("far/cpu", 900, gib_per_s=0.1), link=FAR)])
    text = reason(survey, Asked("throughput", mode="tensor"), "far/cpu", parallel=8)
    assert text.startswith("it would take part in 20 exchanges per step of 8 conversations, 10.0 s through its link; ")
