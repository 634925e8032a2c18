"""Layers cut across devices: the parts, the predicted time, memory, and which groups are worth timing."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations, product
from random import Random

import numpy as np
import pytest

from orchestrator.plan.costs import needed_bytes
from orchestrator.plan.cut import whole_parts
from orchestrator.plan.pools import find_candidates
from orchestrator.plan.tensor import (
    BY_OTHERS,
    NOT_EQUAL,
    NOT_TIMED,
    TensorSet,
    best_parts,
    far_off,
    finalists,
    find_tensors,
    tensor_group,
)
from orchestrator.plan.values import Group, ModelMemory, Traffic
from orchestrator.survey.values import Link, Survey, TensorTime
from orchestrator.what_if import what_if
from tests.orchestrator.plan.examples import LOOPBACK, make_device, make_memory, make_survey, make_tensor_time
from workers.budget import MIB

ROUND = Link("tunnel", round_trip_s=0.001, up_bytes_per_s=100e6, down_bytes_per_s=100e6)
MODEL = make_memory(parallel=8, logits_bytes=200_000)


def tensors(survey: Survey, memory: ModelMemory = MODEL) -> tuple[Group, ...]:
    return find_tensors(survey, (memory,), find_candidates(survey, None))


def parts(group: Group) -> dict[str, int]:
    return {share.device: share.part for share in group.shares}


def test_a_group_that_was_not_timed_is_predicted_by_the_formula() -> None:
    """10 layers and the output layer, 1,100 MiB: half of it at 10 GiB/s; 20 exchanges of 1 ms with both at once."""
    devices = [make_device(f"{name}/cpu", 1000, link=ROUND) for name in "ab"]
    (group,) = tensors(make_survey(devices))
    exchanges_s = 20 * (0.001 + 2 * (2 * 8192 + 655) / 100e6)
    assert group.token_s == pytest.approx(550 / 10 / 1024 + exchanges_s + 200_000 / 100e6)
    assert parts(group) == {"a/cpu": 4, "b/cpu": 4}
    assert group.tensor_split == (4, 4)
    assert group.traffic == Traffic(
        hops=1, synchronisations=20, up_bytes=40 * (8192 + 655), down_bytes=40 * 8192 + 200_000
    )
    assert group.notes == (NOT_EQUAL, NOT_TIMED)


def test_a_group_that_was_timed_is_predicted_from_that() -> None:
    """1,000 MiB of layers at 18 GiB/s; its output layer was timed as a whole."""
    survey = make_survey(
        [make_device("a/cpu", 1000), make_device("b/cpu", 1000)],
        tensor=[make_tensor_time(("b/cpu", "a/cpu"), (5, 3), 18)],
    )
    (group,) = tensors(survey)
    assert parts(group) == {"b/cpu": 5, "a/cpu": 3}
    assert group.token_s == pytest.approx(1000 / 1024 / 18 + 1 / 18)
    assert group.step_s == pytest.approx(2 * (1000 / 1024 / 18 + 1 / 18))
    assert group.prefill_s == pytest.approx(16 * (6.4 * 930 / 1024 / 18))
    assert group.notes == (NOT_EQUAL,)


def test_a_group_that_was_not_timed_is_off_the_formula_by_as_much_as_those_that_were() -> None:
    devices = [make_device(f"{name}/cpu", 1000, link=ROUND) for name in "abc"]
    timed_pair = make_tensor_time(("a/cpu", "b/cpu"), (4, 4), 1)

    def three(survey: Survey) -> Group:
        return next(group for group in tensors(survey) if len(group.shares) == 3)

    pairs = [group for group in tensors(make_survey(devices, tensor=[timed_pair])) if len(group.shares) == 2]
    timed = next(group for group in pairs if NOT_TIMED not in group.notes)
    formula = next(group for group in tensors(make_survey(devices[:2])))
    assert timed.token_s > 2 * formula.token_s
    assert [group.token_s for group in pairs] == [pytest.approx(timed.token_s)] * len(pairs)
    slower = three(make_survey(devices, tensor=[timed_pair]))
    assert slower.token_s / three(make_survey(devices)).token_s == pytest.approx(timed.token_s / formula.token_s)
    assert slower.shares[0].time_s == pytest.approx(slower.token_s)


def test_what_is_known_of_a_timed_group_counts_for_others_also_when_it_is_not_asked_for_or_no_longer_there() -> None:
    devices = [make_device(f"{name}/cpu", 1000, link=ROUND) for name in "abc"]
    survey = make_survey(devices, tensor=[make_tensor_time(("a/cpu", "b/cpu"), (4, 4), 1)])
    timed = next(group for group in tensors(survey) if NOT_TIMED not in group.notes)
    (asked,) = find_tensors(survey, (MODEL,), find_candidates(survey, ["b/cpu", "c/cpu"]))
    (left,) = tensors(what_if(survey, MODEL, ["a"], []))
    assert asked == left
    assert (left.token_s, left.step_s, left.prefill_s) == pytest.approx((timed.token_s, timed.step_s, timed.prefill_s))
    assert left.notes == (NOT_EQUAL, NOT_TIMED, BY_OTHERS)


def test_of_micro_batches_that_read_as_fast_the_largest_is_taken() -> None:
    """Every pass exchanges graphs, which the proportion to the longest timed pass leaves out."""
    devices = [make_device(f"{name}/cpu", 1000) for name in "ab"]
    survey = make_survey(devices, tensor=[make_tensor_time(("b/cpu", "a/cpu"), (5, 3), 18)])
    memories = [replace(MODEL, micro_batch=tokens) for tokens in (64, 128, 256, 512)]
    (group,) = find_tensors(survey, memories, find_candidates(survey, None))
    (smallest,) = tensors(survey, memories[0])
    assert group.micro_batch == 512
    assert group.prefill_s == pytest.approx(smallest.prefill_s)


def test_a_context_adds_the_slowest_part_of_its_attention_to_a_prompt() -> None:
    """1,024 tokens in passes of 64: 480 before each on the average, in each of 10 layers."""
    devices = [make_device(f"{name}/cpu", 1000, link=ROUND) for name in "ab"]
    reading = [replace(one, speed=replace(one.speed, context_s=1e-9)) for one in devices]
    (plain,), (group,) = tensors(make_survey(devices)), tensors(make_survey(reading))
    assert group.context_s == pytest.approx(1e-9 * 1024 * 480 * 10 * 4 / 8)
    assert group.prefill_s == pytest.approx(plain.prefill_s + group.context_s)


def test_memory_goes_by_part_but_for_the_buffers() -> None:
    survey = make_survey([make_device("a/cpu", 1010, gib_per_s=30), make_device("b/cpu", 1000)])
    (group,) = tensors(survey)
    assert parts(group) == {"a/cpu": 6, "b/cpu": 2}
    assert [(one.weights_bytes, one.kv_bytes, one.compute_bytes) for one in group.shares] == [
        (825 * MIB, 75 * MIB, 60 * MIB + 64 * 1024 * 10),
        (275 * MIB, 25 * MIB, 60 * MIB + 64 * 1024 * 10),
    ]


def test_a_small_budget_moves_parts_to_the_others() -> None:
    survey = make_survey([make_device("a/cpu", 500), make_device("b/cpu", 1200)])
    assert parts(tensors(survey)[0]) == {"a/cpu": 2, "b/cpu": 6}


def test_no_device_has_less_than_a_kv_head() -> None:
    survey = make_survey([make_device(f"{name}/cpu", 2000) for name in "abcd"])
    assert {len(group.shares) for group in tensors(survey, make_memory(kv_heads=3))} == {2, 3}
    assert tensors(survey, make_memory(kv_heads=1)) == ()


def test_nothing_is_found_where_the_engine_refuses_or_memory_is_short() -> None:
    devices = [make_device("a/cpu", 1000), make_device("b/cpu", 1000)]
    assert tensors(make_survey(devices, tensor_refused="not implemented for this architecture")) == ()
    assert tensors(make_survey([make_device("a/cpu", 400), make_device("b/cpu", 400)])) == ()
    assert tensors(make_survey(devices, controller_mib=64)) == ()


def test_few_devices_are_timed_as_the_two_fastest_the_three_fastest_and_so_on() -> None:
    survey = make_survey(
        [
            make_device(f"{name}/cpu", 2000, gib_per_s=speed, link=LOOPBACK)
            for name, speed in (("a", 9), ("b", 20), ("c", 4))
        ]
    )
    found = finalists(survey, (MODEL,), find_candidates(survey, None))
    assert found == (TensorSet(("b/cpu", "a/cpu"), (6, 2)), TensorSet(("b/cpu", "a/cpu", "c/cpu"), (5, 2, 1)))


def test_devices_with_which_it_failed_are_in_no_group_of_their_own() -> None:
    devices = [make_device(f"{name}/cpu", 1000, link=LOOPBACK) for name in "abc"]
    survey = replace(make_survey(devices), tensor_failed=(("b/cpu", "a/cpu"),))
    found = {frozenset(share.device for share in group.shares) for group in tensors(survey)}
    assert {"a/cpu", "b/cpu"} not in found
    assert found


def test_a_group_says_whether_groups_that_were_timed_corrected_it() -> None:
    devices = [make_device(f"{name}/cpu", 1000, link=LOOPBACK) for name in "abc"]
    timed = make_tensor_time(("a/cpu", "b/cpu"), (4, 4), 18)
    assert all(group.notes == (NOT_EQUAL, NOT_TIMED) for group in tensors(make_survey(devices)))
    notes = {group.notes for group in tensors(make_survey(devices, tensor=[timed]))}
    assert notes == {(NOT_EQUAL,), (NOT_EQUAL, NOT_TIMED, BY_OTHERS)}


def test_of_many_devices_three_groups_are_timed_if_they_may_be_worth_it() -> None:
    near = make_survey([make_device(f"h{k}/cpu", 2000, gib_per_s=1, link=LOOPBACK) for k in range(8)])
    far = make_survey([make_device(f"h{k}/cpu", 2000, gib_per_s=1000, link=ROUND) for k in range(8)])
    assert len(finalists(near, (MODEL,), find_candidates(near, None))) == 3
    assert finalists(far, (MODEL,), find_candidates(far, None)) == ()


def test_few_devices_are_timed_if_they_may_be_worth_it_or_if_the_mode_is_asked_for() -> None:
    far = make_survey([make_device(f"{name}/cpu", 2000, gib_per_s=1000, link=ROUND) for name in "abc"])
    candidates = find_candidates(far, None)
    assert finalists(far, (MODEL,), candidates) == ()
    asked_for = finalists(far, (MODEL,), candidates, asked_for=True)
    assert [one.devices for one in asked_for] == [("a/cpu", "b/cpu"), ("a/cpu", "b/cpu", "c/cpu")]


def brute_force(paces: np.ndarray, per_part_s: list[float], most: list[int]) -> float:
    total = paces.shape[1] - 1
    return min(
        (
            max(paces[d, p] for d, p in enumerate(ways)) + sum(s * p for s, p in zip(per_part_s, ways, strict=True))
            for ways in product(*(range(1, limit + 1) for limit in most))
            if sum(ways) == total
        ),
        default=float("inf"),
    )


@pytest.mark.parametrize("seed", range(600))
def test_parts_are_the_best_of_all_ways(seed: int) -> None:
    random = Random(seed)
    devices, total = random.randint(1, 4), random.randint(1, 9)
    paces = np.array(
        [np.cumsum([0.0] + [random.choice([0.0, 1.0, random.random()]) for _ in range(total)]) for _ in range(devices)]
    )
    per_part_s = [random.choice([0.0, 0.1, random.random()]) for _ in range(devices)]
    most = [random.randint(0, total) for _ in range(devices)]
    found, least_s = best_parts(paces, per_part_s, most), brute_force(paces, per_part_s, most)
    if found is None:
        assert least_s == float("inf")
        return
    assert sum(found) == total
    assert all(1 <= part <= limit for part, limit in zip(found, most, strict=True))
    total_s = max(paces[d, p] for d, p in enumerate(found)) + float(np.dot(per_part_s, found))
    assert total_s == pytest.approx(least_s)


def every_way(memory: ModelMemory, devices: int) -> Iterator[tuple[int, ...]]:
    """All parts for so many devices: equal ones, or whole KV heads and one each where there are no equal ones."""
    total = whole_parts(memory, devices)
    if not total:
        total = memory.kv_heads
        yield (1,) * devices
    for ends in combinations(range(1, total), devices - 1):
        yield tuple(end - begin for begin, end in zip((0, *ends), (*ends, total), strict=True))


def test_the_best_group_is_the_best_of_all_sets_of_devices_and_all_their_parts() -> None:
    """Brute force over 500 surveys: models that are cut into equal parts and others, machines that share memory."""
    for seed in range(500):
        random = Random(seed)
        devices = [
            make_device(
                f"h{k}/cpu",
                random.randint(200, 1500),
                gib_per_s=random.choice([2.0, 10.0, random.uniform(1, 20)]),
                fixed_s=random.choice([0.0, random.uniform(0, 0.01)]),
                link=random.choice([LOOPBACK, ROUND]),
            )
            for k in range(random.randint(2, 4))
        ]
        here = [one.host for one in devices if random.random() < 0.3]
        survey = make_survey(devices, local=here, controller_mib=random.randint(300, 4000))
        memory = make_memory(random.randint(1, 12), parallel=4, kv_heads=random.choice([1, 2, 3, 4, 6, 7]))
        memory = replace(memory, head_groups=random.choice([(), ((128, 32),), ((64, 256),)]))
        candidates = find_candidates(survey, None)
        ways = [
            tensor_group(survey, (memory,), members, parts)
            for count in range(2, min(len(candidates), memory.kv_heads) + 1)
            for members in combinations(candidates, count)
            for parts in every_way(memory, count)
        ]
        least_s = min((group.token_s for group in ways if group), default=None)
        found = tensors(survey, memory)
        assert bool(found) == (least_s is not None), seed
        if found:
            assert found[0].token_s == pytest.approx(least_s), seed


def test_no_group_exceeds_a_budget() -> None:
    random = Random(0)
    for _ in range(100):
        devices = [
            make_device(f"h{k}/cpu", random.randint(100, 1500), gib_per_s=random.uniform(1, 20)) for k in range(4)
        ]
        for group in tensors(make_survey(devices)):
            assert sum(group.tensor_split) == 8
            assert all(needed_bytes(one.total_bytes) <= one.budget_bytes for one in group.shares)


def test_a_timed_group_that_does_not_agree_with_the_others_is_told_by_how_much() -> None:
    """Of four equal devices: two and three at the formula's ratio, all four at once a third slower than that."""
    devices = [make_device(f"{name}/cpu", 4000, gib_per_s=10) for name in "abcd"]
    memories = (make_memory(kv_heads=12),)
    survey = make_survey(devices)
    names = [device.name for device in devices]
    candidates = find_candidates(survey, None)
    by_name = {one.device.name: one for one in candidates}

    def timed(count: int, slower: float) -> TensorTime:
        """Some tokens per second, so that the whole is as many times the formula."""
        parts = (1,) * count
        group = tensor_group(survey, memories, [by_name[name] for name in names[:count]], parts)
        assert group is not None
        probe = make_tensor_time(names[:count], parts, 10)
        with_probe = tensor_group(
            replace(survey, tensor=(probe,)), memories, [by_name[n] for n in names[:count]], parts
        )
        assert with_probe is not None
        factor = slower * group.token_s / with_probe.token_s
        return make_tensor_time(names[:count], parts, 10 / factor)

    for fourth, expected in ((1.5, 1.0), (2.0, 4 / 3), (1.0, 1.5)):
        times = (timed(2, 1.5), timed(3, 1.5), timed(4, fourth))
        off = far_off(replace(survey, tensor=times), memories, candidates)
        assert off[TensorSet(tuple(names), (1,) * 4)] == pytest.approx(expected, rel=0.05), fourth
    assert far_off(replace(survey, tensor=times[:1]), memories, candidates) == {
        TensorSet(tuple(names[:2]), (1, 1)): 1.0
    }
    gone = candidates[:-1]
    assert len(far_off(replace(survey, tensor=times), memories, gone)) == 2
