"""What measurements say of the groups that ran, and of others like them."""

from dataclasses import replace

import pytest

from orchestrator.plan.experience import (
    NO_EXPERIENCE,
    Experience,
    Measured,
    Record,
    as_predicted,
    record_of,
    uncorrected,
)
from orchestrator.plan.values import Group, GroupMode
from tests.orchestrator.groups import make_group, make_share

TWO = make_group(make_share("a/cpu"), make_share("b/cpu"), parallel=2)  # 0.1 s, 0.2 s, 2.0 s


def measured(group: Group, token: float = 1.0, step: float = 1.0, prefill: float = 1.0) -> Record:
    """A measurement that took so many times as long as predicted."""
    real = Measured(group.token_s * token, group.step_s * step, group.prefill_s * prefill)
    return record_of(group, real)


def test_without_experience_a_group_stays_as_predicted() -> None:
    assert NO_EXPERIENCE.correct(TWO) == TWO


def test_a_group_that_ran_has_its_own_figures() -> None:
    corrected = Experience((measured(TWO, 3.0, 1.5, 0.5),)).correct(TWO)
    assert [corrected.token_s, corrected.step_s, corrected.prefill_s] == pytest.approx([0.3, 0.3, 1.0])
    assert corrected.known == "measured"


def test_a_group_that_ran_often_has_the_median_of_its_figures() -> None:
    records = tuple(measured(TWO, token) for token in (1.1, 9.0, 1.2))
    assert Experience(records).correct(TWO).token_s == pytest.approx(0.12)


def test_the_devices_parts_of_the_time_follow_the_whole() -> None:
    corrected = Experience((measured(TWO, 1.5),)).correct(TWO)
    assert [share.time_s for share in corrected.shares] == [pytest.approx(0.15)] * 2
    assert corrected.head_time_s == pytest.approx(0.015)


def test_a_measurement_from_other_circumstances_only_corrects() -> None:
    """The link has become slower since: the group is predicted at twice the time, so the old time is not it."""
    now = replace(TWO, token_s=0.2, step_s=0.4, prefill_s=4.0)
    corrected = Experience((measured(TWO, 1.1, 1.1, 1.1),)).correct(now)
    assert corrected.known == "corrected"
    assert corrected.token_s == pytest.approx(0.22)


def test_another_split_of_the_same_devices_is_scaled_by_the_median() -> None:
    other = replace(TWO, shares=(make_share("b/cpu", 5), make_share("a/cpu", 15)))
    records = tuple(
        measured(replace(TWO, micro_batch=size), ratio) for size, ratio in ((64, 1.2), (128, 1.4), (256, 1))
    )
    corrected = Experience(records).correct(other)
    assert corrected.known == "corrected"
    assert corrected.token_s == pytest.approx(0.12)


def test_devices_that_only_overlap_say_nothing() -> None:
    """A split over three that was twice as fast as predicted does not make one of them alone twice as fast."""
    three = make_group(make_share("a/cpu"), make_share("b/cpu"), make_share("c/cpu"))
    other = replace(TWO, micro_batch=512)
    assert Experience((measured(three, 0.5), measured(TWO, 1.1))).correct(other).token_s == pytest.approx(0.11)
    assert Experience((measured(three, 0.5),)).correct(other) == other


TWINS = {"a/cpu": "x", "b/cpu": "x", "c/cpu": "x", "d/cpu": "y"}


def test_what_ran_on_one_device_corrects_those_that_are_like_it() -> None:
    """Else a plan that ran slower than predicted gives way to the same one on the device beside, which is as slow."""
    ran, beside, unlike = (make_group(make_share(f"{name}/cpu")) for name in ("a", "b", "d"))
    learnt = Experience((measured(ran, 1.5, 1.4, 1.3),), kinds=TWINS)
    known = learnt.correct(beside)
    assert known.known == "corrected"
    assert [known.token_s, known.prefill_s] == pytest.approx([0.15, 2.6])
    assert learnt.correct(ran).known == "measured"
    assert learnt.correct(unlike) == unlike
    assert Experience((measured(ran, 1.5),)).correct(beside) == beside


def test_what_ran_on_several_devices_corrects_as_many_that_are_like_them() -> None:
    learnt = Experience((measured(TWO, 1.5),), kinds=TWINS)
    three = [make_group(*(make_share(f"{name}/cpu") for name in names)) for names in ("ac", "cb", "ad", "abc", "a")]
    assert [learnt.correct(group).known for group in three] == [*["corrected"] * 2, *["predicted"] * 3]


ALONE = make_group(make_share("a/cpu", 30, native=True), mode="single", parallel=2)
MOSTLY = make_group(
    *(replace(make_share("a/cpu", 29, native=True), time_s=0.08), replace(make_share("b/cpu", 1), time_s=0.01)),
    parallel=2,
)
AS_WORKERS = replace(MOSTLY, shares=tuple(replace(share, native=False) for share in MOSTLY.shares))


def test_a_split_is_off_by_what_its_devices_were_off_by_alone_each_for_its_part_of_the_time() -> None:
    """Else 29 of 30 layers on a device that was slower than predicted come before all 30 on it, until they ran."""
    learnt = Experience((measured(ALONE, 1.5, 1.25, 2.0),))
    known = learnt.correct(MOSTLY)
    assert known.known == "corrected"
    assert known.corrected_by == pytest.approx((1 + 0.8 * 0.5, 1 + 0.8 * 0.25, (2 * 0.08 + 0.01) / 0.09))
    other = measured(make_group(make_share("b/cpu")), 3.0)
    assert Experience((*learnt.records, other)).correct(MOSTLY).token_s == pytest.approx(0.1 * (1 + 0.4 + 0.1))
    assert learnt.of_another().correct(MOSTLY) == known


def test_a_prompt_waits_for_the_slowest_of_stages_that_overlap() -> None:
    """16 micro-batches through two equal stages, of which one takes twice as long as predicted."""
    split = make_group(*(replace(make_share(f"{name}/cpu", 15), time_s=0.04) for name in "ab"))
    alone = measured(make_group(make_share("a/cpu", 30)), 1.0, 1.0, 2.0)
    assert Experience((alone,)).correct(split).prefill_s == pytest.approx(2.0 * (3 + 15 * 2) / (2 + 15 * 1))


def test_what_a_device_alone_was_off_by_counts_for_it_only_as_it_ran() -> None:
    """Natively and through RPC are timed apart; and devices that meet in every layer are another thing."""
    learnt = Experience((measured(ALONE, 1.5),))
    assert learnt.correct(AS_WORKERS) == AS_WORKERS
    worker = Experience((measured(make_group(make_share("a/cpu", 30)), 1.5),))
    assert worker.correct(AS_WORKERS).token_s == pytest.approx(0.14)
    assert worker.correct(MOSTLY) == MOSTLY
    together = replace(AS_WORKERS, mode="tensor")
    assert worker.correct(together) == together


def test_what_the_devices_of_a_split_were_off_by_together_counts_before_what_each_was_alone() -> None:
    ran = measured(replace(MOSTLY, micro_batch=64), 1.1)
    assert Experience((measured(ALONE, 1.9), ran)).correct(MOSTLY).token_s == pytest.approx(0.11)


def test_what_a_like_device_was_off_by_alone_counts_where_this_one_never_ran() -> None:
    kinds = {"a/cpu": "x", "c/cpu": "x"}
    there = replace(MOSTLY, shares=(replace(MOSTLY.shares[0], device="c/cpu"), MOSTLY.shares[1]))
    assert Experience((measured(ALONE, 1.5),), kinds=kinds).correct(there).token_s == pytest.approx(0.14)
    assert Experience((measured(ALONE, 1.5),)).correct(there) == there


def test_a_devices_own_runs_count_before_those_of_like_devices() -> None:
    ran, beside = (make_group(make_share(f"{name}/cpu")) for name in "ab")
    learnt = Experience((measured(ran, 1.5), measured(replace(beside, micro_batch=64), 1.1)), kinds=TWINS)
    assert learnt.correct(replace(beside, micro_batch=128)).token_s == pytest.approx(0.11)


def test_what_the_very_same_took_on_a_like_device_counts_before_all_else() -> None:
    """Else the median over other micro-batches could make it faster there than where it was measured."""
    ran, beside = (make_group(make_share(f"{name}/cpu")) for name in "ab")
    others = [measured(replace(one, micro_batch=size), 1.0) for one in (ran, beside) for size in (128, 256)]
    learnt = Experience((measured(ran, 1.3), *others), kinds=TWINS)
    assert learnt.correct(beside).token_s == pytest.approx(learnt.correct(ran).token_s)
    split = Experience((measured(TWO, 1.3), measured(replace(TWO, micro_batch=128), 1.0)), kinds=TWINS)
    there = make_group(make_share("c/cpu"), make_share("b/cpu"), parallel=2)
    assert split.correct(there).token_s == pytest.approx(0.13)


def test_another_quantisation_is_corrected_on_like_devices_too() -> None:
    ran, beside = (make_group(make_share(f"{name}/cpu")) for name in "ab")
    assert Experience((measured(ran, 1.5),), kinds=TWINS).of_another().correct(beside).known == "corrected"


@pytest.mark.parametrize(
    ("mode", "on_head", "known"),
    [("layers", True, "measured"), ("layers", False, "corrected"), ("tensor", False, "measured")],
)
def test_the_order_of_the_devices_does_not_make_another_group(mode: GroupMode, on_head: bool, known: str) -> None:
    """But for the last one, where it makes the logits."""
    there = replace(TWO, mode=mode, output_on_head=on_head)
    turned = replace(there, shares=there.shares[::-1])
    assert Experience((measured(there, 1.5),)).correct(turned).known == known


def test_one_conversation_alone_has_one_speed() -> None:
    alone = replace(TWO, parallel=1, step_s=TWO.token_s)
    for micro_batch in (64, 512):
        corrected = Experience((measured(alone, 1.5, 1.1),)).correct(replace(alone, micro_batch=micro_batch))
        assert corrected.step_s == corrected.token_s == pytest.approx(0.15)


def test_one_conversation_beside_those_of_other_heads_has_a_step_of_its_own() -> None:
    crowded = replace(TWO, parallel=1, step_s=4 * TWO.token_s, beside=4.0)
    known = Experience((measured(crowded, 1.1, 1.2),)).correct(crowded)
    assert [known.token_s, known.step_s] == pytest.approx([0.11, 0.48])
    other = Experience((measured(replace(crowded, micro_batch=256), 1.1, 1.2),)).correct(crowded)
    assert [other.token_s, other.step_s] == pytest.approx([0.11, 0.48])


@pytest.mark.parametrize(("ratio", "limited"), [(7.0, 2.0), (0.1, 0.5)])
def test_others_are_not_scaled_beyond_reason(ratio: float, limited: float) -> None:
    corrected = Experience((measured(TWO, ratio),)).correct(replace(TWO, micro_batch=512))
    assert corrected.token_s == pytest.approx(0.1 * limited)


def test_other_modes_and_other_devices_say_nothing() -> None:
    elsewhere = make_group(make_share("c/cpu"), make_share("d/cpu"))
    tensor = replace(TWO, mode="tensor")
    assert Experience((measured(elsewhere, 2), measured(tensor, 2))).correct(TWO) == TWO


def test_a_prompt_of_another_length_is_another_measurement() -> None:
    assert Experience((measured(TWO, 1.5),)).correct(replace(TWO, prompt_tokens=512)).known == "corrected"


@pytest.mark.parametrize("micro_batch", [64, 512], ids=["measured", "corrected"])
def test_the_prediction_behind_a_correction_comes_back(micro_batch: int) -> None:
    experience = Experience((measured(TWO, 1.5, 0.7, 1.2),))
    group = replace(TWO, micro_batch=micro_batch)
    again = uncorrected(experience.correct(group))
    assert again.known == "predicted"
    assert [again.token_s, again.step_s, again.prefill_s] == pytest.approx([0.1, 0.2, 2.0])


def test_a_measurement_is_compared_with_the_prediction_whatever_was_measured_before() -> None:
    before = Experience((measured(TWO, 1.5, 0.7, 1.2),))
    own, others = before.correct(TWO), before.correct(replace(TWO, micro_batch=512))
    assert [own.known, others.known] == ["measured", "corrected"]
    assert as_predicted(TWO) == TWO
    assert as_predicted(own).token_s == pytest.approx(TWO.token_s)
    assert as_predicted(others) == others


def test_a_record_from_other_circumstances_does_not_become_the_prediction() -> None:
    """The newest record is of a link that was twice as fast: it corrects nothing, and must not be taken back either."""
    experience = Experience((measured(TWO, 1.5), measured(replace(TWO, token_s=0.05), 1.0)))
    shown = experience.correct(TWO)
    assert shown.known == "measured"
    assert uncorrected(shown).token_s == pytest.approx(0.1)
    assert record_of(shown, Measured(0.2, 0.4, 4.0)).predicted.token_s == pytest.approx(0.1)


def test_correcting_twice_is_correcting_once() -> None:
    experience = Experience((measured(TWO, 1.5),))
    once = experience.correct(TWO)
    assert experience.correct(once) == once


def test_learning_from_corrected_groups_does_not_unlearn() -> None:
    """Ten times the same machine that is 1.5 times slower than predicted, each time planned with what was learnt."""
    experience = NO_EXPERIENCE
    for size in range(10):
        group = experience.correct(replace(TWO, micro_batch=32 + size))
        record = record_of(group, Measured(0.15, 0.3, 3.0))
        experience = Experience((*experience.records, record))
    assert experience.correct(replace(TWO, micro_batch=512)).token_s == pytest.approx(0.15)
