"""The whole model on one device: which devices hold it, and how fast they are natively."""

from dataclasses import replace

import pytest

from orchestrator.plan.pools import find_candidates
from orchestrator.plan.single import find_singles, why_not_alone
from orchestrator.plan.values import Group, Share
from orchestrator.survey.values import Device, Survey
from tests.orchestrator.plan.examples import make_device, make_memories, make_memory, make_speed, make_survey
from workers.budget import MIB

MODEL = make_memory(parallel=8)


def singles(*devices: Device) -> tuple[Group, ...]:
    survey = make_survey(devices)
    return find_singles(survey, (MODEL,), find_candidates(survey, None))


def why(survey: Survey) -> str:
    (candidate,) = find_candidates(survey, None)
    return why_not_alone(MODEL, candidate)


def test_a_device_alone_is_predicted_from_its_native_speed() -> None:
    """1,100 MiB of weights at 20 GiB/s; eight tokens take twice as long as one, 64 tokens 6.4 times."""
    (group,) = singles(make_device("a/cpu", 2000, gib_per_s=10, native_gib_per_s=20))
    token_s = 1100 / 20 / 1024
    share = Share("a/cpu", 0, 10, True, 1150 * MIB, 100 * MIB, 60 * MIB, 2000 * MIB, group.token_s, native=True)
    assert group == Group(
        mode="single",
        head="a",
        shares=(share,),
        parallel=8,
        micro_batch=64,
        output_on_head=False,
        head_bytes=0,
        head_compute_bytes=0,
        head_time_s=0.0,
        token_s=group.token_s,
        step_s=group.step_s,
        prefill_s=group.prefill_s,
        prompt_tokens=1024,
    )
    assert group.token_s == pytest.approx(token_s)
    assert group.step_s == pytest.approx(2 * token_s)
    assert group.prefill_s == pytest.approx(16 * 6.4 * 930 / 20 / 1024)


def test_all_devices_that_hold_it_and_were_timed_natively_are_found_fastest_first() -> None:
    found = singles(
        make_device("a/cpu", 2000, gib_per_s=10),
        make_device("b/cpu", 2000, gib_per_s=2, native_gib_per_s=30),
        make_device("c/cpu", 2000, native_gib_per_s=0),
        make_device("d/cpu", 700),
    )
    assert [group.head for group in found] == ["b", "a"]


def test_a_head_on_a_gpu_keeps_the_input_tensors_in_main_memory() -> None:
    (group,) = singles(make_device("a/cuda0", 2000, kind="cuda"))
    assert (group.shares[0].weights_bytes, group.head_bytes) == (1100 * MIB, 70 * MIB)


def test_the_micro_batch_that_reads_prompts_fastest_and_fits_is_taken() -> None:
    """Each pass costs 0.1 s before it begins: the fewer passes, the better."""
    survey = make_survey([slow_to_start(make_device("a/cpu", 1500)), slow_to_start(make_device("b/cpu", 4000))])
    found = find_singles(survey, make_memories(MODEL), find_candidates(survey, None))
    assert {group.head: group.micro_batch for group in found} == {"a": 64, "b": 512}


def slow_to_start(device: Device) -> Device:
    return replace(device, native=make_speed(10, fixed_s=0.1))


def test_every_shortfall_of_a_device_is_said() -> None:
    assert why(make_survey([make_device("a/cpu", 2000)])) == ""
    assert why(make_survey([make_device("a/cuda0", 700, kind="cuda", native_gib_per_s=0)], host_mib=50)) == (
        "needs 1.3 GiB and has 700 MiB and needs 86.0 MiB of main memory too, which has 50.0 MiB "
        "and was not timed natively"
    )
