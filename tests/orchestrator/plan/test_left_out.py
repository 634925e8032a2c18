"""Why a device is not used: the numbers are those of the goal, and compare what was predicted alike."""

from dataclasses import replace
from itertools import product

import pytest

from orchestrator.plan.asked import Asked
from orchestrator.plan.choose import rank_plans
from orchestrator.plan.cut import cut_bytes, whole_parts
from orchestrator.plan.experience import Experience, Measured, Record, record_of
from orchestrator.plan.left_out import _least_part, left_out_of
from orchestrator.plan.values import Plan
from orchestrator.survey.values import Link, Survey
from tests.orchestrator.plan.examples import LOOPBACK, make_device, make_gpu, make_memory, make_survey

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
        "it would take 5 of 10 layers in the place of b/cpu and save 392 µs per token, its link and stage cost 500 ms"
    )


def test_for_throughput_a_step_of_all_conversations_is_compared() -> None:
    """Eight hidden states instead of one cross the link."""
    assert reason(TWO_AND_FAR, Asked("throughput"), "far/cpu", parallel=8) == (
        "it would take 5 of 10 layers in the place of b/cpu and save 1.39 ms per step of 8 conversations, its link and "
        "stage cost 501 ms"
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
    assert reason(survey, asked, "b/cpu", parallel=8) == "alone 3.7 tokens per second, a/cpu 37.2"


def test_what_was_measured_of_a_device_alone_is_what_is_told() -> None:
    """It was predicted to be the faster one, and was not."""
    survey = make_survey([make_device("a/cpu", 2000, gib_per_s=12), make_device("b/cpu", 2000)], tensor_refused="no")
    (group,) = chosen(survey, Asked("latency")).groups
    slower = Experience((record_of(group, Measured(1.6 * group.token_s, 1.6 * group.step_s, group.prefill_s)),))
    assert group.shares[0].device == "a/cpu"
    assert reason(survey, Asked("latency", mode="single"), "a/cpu", slower) == (
        "alone 143 ms per token as measured, b/cpu 107 ms as predicted"
    )


def test_a_device_that_is_as_fast_and_reads_prompts_slower_is_told_so() -> None:
    survey = make_survey([make_device("a/cpu", 2000), make_device("b/cpu", 2000)], tensor_refused="no")
    memory, asked = make_memory(kv_mib=1), Asked("latency", mode="single")
    groups = [plan.groups[0] for plan in rank_plans(survey, (memory,), asked).plans]
    took = {"a/cpu": Measured(0.1, 0.1, 1.0), "b/cpu": Measured(0.0995, 0.0995, 1.25)}
    ran = Experience(tuple(record_of(group, took[group.shares[0].device]) for group in groups))
    assert reason(survey, asked, "b/cpu", ran) == (
        "alone 99.5 ms per token as measured, a/cpu 100 ms as measured, which is as much; "
        "a/cpu reads prompts 25% faster"
    )


def test_a_device_too_small_for_a_copy_is_told_what_it_lacks_and_what_a_split_would_bring() -> None:
    survey = make_survey([make_device("a/cpu", 2000, gib_per_s=12), make_device("b/cpu", 700)], tensor_refused="no")
    assert reason(survey, Asked("latency"), "b/cpu").startswith(
        "alone it needs 1.2 GiB and has 700 MiB; the best plan with it (layers over 2 devices) "
    )
    assert reason(survey, Asked("latency", mode="single"), "b/cpu") == "alone it needs 1.2 GiB and has 700 MiB"


EITHER = make_survey(
    [make_device("a/cpu", 2000, gib_per_s=15, fixed_s=0.1), make_device("b/cpu", 2000, fixed_s=0.1)],
    tensor_refused="no",
)


def test_two_workers_that_could_each_have_all_layers_are_compared_by_their_times() -> None:
    """Neither adds to the other: one takes the other's place."""
    assert reason(EITHER, Asked("latency", mode="layers"), "b/cpu") == "alone 209 ms per token, a/cpu 174 ms"


@pytest.mark.parametrize(
    ("devices", "told"),
    [
        ("b/cpu", "a plan of it alone (layers over 1 device)"),
        ("a/cpu b/cpu", "a plan with it (layers over 2 devices)"),
    ],
)
def test_a_worker_that_would_take_the_place_of_the_only_one_is_no_company_of_it(devices: str, told: str) -> None:
    """Also where something with it was measured: its own link comes instead of the other's."""
    plan = chosen(EITHER, Asked("latency", mode="layers"))
    other = chosen(EITHER, Asked("latency", split=dict.fromkeys(devices.split(), 10 // len(devices.split()))))
    measured = replace(other, groups=(replace(other.groups[0], known="measured", token_s=0.3),))
    (left,) = left_out_of(EITHER, make_memory(kv_mib=1), plan, [measured], None)
    assert left.reason == (
        f"alone 209 ms per token, a/cpu 174 ms by the survey alone; {told} 300 ms per token as measured, "
        "this 174 ms per token as predicted"
    )


def test_a_worker_that_would_do_alone_what_several_do_is_compared_with_all_of_them() -> None:
    """They stand before it as a winner of `tune` does."""
    slow = [make_device(f"{name}/cpu", 700, fixed_s=0.1) for name in "ab"]
    survey = make_survey([*slow, make_device("c/cpu", 2000)], tensor_refused="no")
    pair = chosen(survey, Asked("latency", devices=frozenset({"a/cpu", "b/cpu"}), mode="layers"))
    (left,) = left_out_of(survey, make_memory(kv_mib=1), pair, [], None)
    assert left.reason == "alone 98.0 ms per token, a/cpu+b/cpu 298 ms"


def test_in_mode_tensor_a_device_that_holds_no_part_says_so() -> None:
    near = [make_device(f"{name}/cpu", 800, link=LOOPBACK) for name in "ab"]
    survey = make_survey([*near, make_device("tiny/cpu", 150, link=LOOPBACK)])
    assert reason(survey, Asked("latency", mode="tensor"), "tiny/cpu") == (
        "budget 150 MiB holds no part: one of 8 needs 215 MiB"
    )


@pytest.mark.parametrize("kv_heads", [2, 3, 5, 8])
@pytest.mark.parametrize("group", [(128, 32), (64, 256), (96, 256), (192, 32)])
@pytest.mark.parametrize("layers", [5, 10])
def test_in_mode_tensor_no_device_gets_less_than_the_least_part(
    kv_heads: int, group: tuple[int, int], layers: int
) -> None:
    """Also where the engine cannot cut layers into equal parts, and one device has nothing of some of them."""
    memory = make_memory(layers, kv_heads=kv_heads, kv_mib=40)
    memory = replace(memory, head_groups=(group,), attention_bytes=sum(memory.layer_weights_bytes) // 3)
    whole = whole_parts(memory, 2) or kv_heads
    cuts = [parts for count in (2, 3) for parts in product(range(1, whole), repeat=count) if sum(parts) == whole]
    taken = [size.total_bytes for parts in cuts for size in cut_bytes(memory, parts)]
    assert _least_part(memory, whole) <= min(taken)
    if whole_parts(memory, 2):
        assert _least_part(memory, whole) == pytest.approx(min(taken), rel=0.01)


def test_in_mode_tensor_its_exchanges_are_told() -> None:
    near = [make_device("a/cpu", 700, gib_per_s=0.1), make_device("b/cpu", 800, gib_per_s=0.1)]
    survey = make_survey([*near, replace(make_device("far/cpu", 900, gib_per_s=0.1), link=FAR)])
    text = reason(survey, Asked("throughput", mode="tensor"), "far/cpu", parallel=8)
    assert text.startswith("it would take part in 20 exchanges per step of 8 conversations, 10.0 s through its link; ")


def test_a_device_beside_a_gpu_of_the_heads_own_is_compared_with_that_very_plan() -> None:
    """At the GPU's native speed, which only its head has."""
    card = make_gpu("here/cuda0", 700, gib_per_s=5.0, native_gib_per_s=40.0, link=LOOPBACK)
    devices = [card, make_device("there/cpu", 700), make_device("far/cpu", 900, link=FAR)]
    survey = make_survey(devices, local=["here"], tensor_refused="not implemented")
    (group,) = chosen(survey, Asked("latency")).groups
    assert [share.gpu for share in group.shares if share.native] == ["CUDA0"]
    told = reason(survey, Asked("latency"), "far/cpu")
    assert told == (
        "it would take 4 of 10 layers in the place of there/cpu and save 392 µs per token, its link and stage cost "
        "500 ms"
    )


THREE = make_survey(
    [make_device("a/cpu", 700), make_device("b/cpu", 700), make_device("c/cpu", 400, gib_per_s=20)],
    tensor_refused="not implemented",
)


def ran(plan: Plan, token_s: float) -> Record:
    """One measurement of its only group."""
    (group,) = plan.groups
    return record_of(group, Measured(token_s, token_s, group.prefill_s))


def left_out_behind(first: Asked, *measured_s: float) -> str:
    """Why c/cpu is not in the best of what is asked for `first`, which stands before all others as a winner of `tune`
    does. The times are those of a run of it, and of the best of all."""
    pair, all_three = chosen(THREE, first), chosen(THREE, Asked("latency"))
    records = (ran(plan, token_s) for plan, token_s in zip((pair, all_three), measured_s, strict=False))
    experience = Experience(tuple(records))
    ranking = rank_plans(THREE, (make_memory(kv_mib=1),), Asked("latency"), experience)
    winner = chosen(THREE, first, experience)
    (told,) = left_out_of(THREE, make_memory(kv_mib=1), winner, ranking.plans, None)
    return told.reason


PAIR = Asked("latency", devices=frozenset({"a/cpu", "b/cpu"}), mode="layers")


def test_a_device_that_would_help_and_was_measured_not_to_is_left_out_for_that() -> None:
    assert left_out_behind(PAIR, 0.110, 0.200) == (
        "it would take 3 of 10 layers and save 14.3 ms per token by the survey alone; a plan with it (layers over 3 "
        "devices) 200 ms per token as measured, this 110 ms per token as measured"
    )


def test_a_device_that_would_help_a_plan_that_was_measured_to_be_good_is_told_both_figures() -> None:
    assert left_out_behind(PAIR, 0.090) == (
        "it would take 3 of 10 layers and save 14.3 ms per token by the survey alone; a plan with it (layers over 3 "
        "devices) 93.9 ms per token as predicted, this 90.0 ms per token as measured"
    )


def test_what_was_measured_of_a_device_that_would_not_help_is_told_too() -> None:
    (group,) = chosen(TWO_AND_FAR, Asked("latency", devices=frozenset({"a/cpu", "far/cpu"}), mode="layers")).groups
    with_far = replace(chosen(TWO_AND_FAR, Asked("latency")), groups=(replace(group, known="measured", token_s=0.7),))
    plan = chosen(TWO_AND_FAR, Asked("latency"))
    (told,) = left_out_of(TWO_AND_FAR, make_memory(kv_mib=1), plan, [with_far], None)
    assert told.reason == (
        "it would take 5 of 10 layers in the place of b/cpu and save 392 µs per token, its link and stage cost 500 ms; "
        "a plan with it (layers over 2 devices) 700 ms per token as measured, this 108 ms per token as predicted"
    )


def test_where_no_split_with_a_device_fits_the_needs_and_budgets_are_told() -> None:
    """It holds the middle layer only, and the other one would have those before and behind it."""
    survey = make_survey([make_device("a/cpu", 2000), make_device("c/cpu", 90)], tensor_refused="no")
    plan = rank_plans(survey, (make_memory([200, 20, 200]),), Asked("latency", mode="layers")).chosen
    assert [(one.device, one.reason) for one in plan.left_out] == [
        (
            "c/cpu",
            "no split with it fits the budgets: whole layers of 450 MiB in sum, and on each device 56.0 MiB or more "
            "for buffers and margin; they are 2.0 GiB (a/cpu 2.0, c/cpu 0.1)",
        )
    ]


def test_beside_copies_a_device_is_told_what_one_conversation_would_bring() -> None:
    """It does not hold all eight; with one it would do less than the others lose by having one less."""
    survey = make_survey(
        [make_device("a/cpu", 2000), make_device("b/cpu", 2000), make_device("c/cpu", 1290, gib_per_s=0.2)],
        tensor_refused="no",
        controller_mib=100,
    )
    plan = rank_plans(survey, (make_memory(parallel=8),), Asked("throughput", mode="replicas")).chosen
    assert [one.reason for one in plan.left_out] == [
        "with one conversation it does 0.19 tok/s, a/cpu 26.1 tok/s with 4, b/cpu 26.1 tok/s with 4"
    ]


def test_hosts_that_share_a_machine_are_told_what_the_others_leave() -> None:
    """Each holds a copy alone, two of them do not."""
    devices = [make_device("a/cpu", 2000), make_device("b/cpu", 2000, gib_per_s=5), make_device("far/cpu", 2000)]
    survey = make_survey(devices, local=["a", "b"], controller_mib=2500, tensor_refused="no")
    plan = rank_plans(survey, (make_memory(parallel=2),), Asked("throughput", mode="replicas")).chosen
    assert {share.device for share in plan.shares} == {"a/cpu", "far/cpu"}
    (told,) = plan.left_out
    assert told.reason.startswith("beside the others on its machine it needs 1.3 GiB and has 1.2 GiB; ")


def test_in_mode_tensor_a_device_without_a_kv_head_is_told_how_many_there_are() -> None:
    survey = make_survey([make_device(f"{name}/cpu", 2000, link=LOOPBACK) for name in "abc"])
    plan = rank_plans(survey, (make_memory(kv_heads=2),), Asked("latency", mode="tensor")).chosen
    assert [one.reason for one in plan.left_out] == ["each of the 2 others has one of the 2 KV heads"]
