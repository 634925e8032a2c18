"""The dynamic programme against brute force, and what must hold for any input."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations, pairwise, permutations
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.plan.costs import decode_s, needed_bytes, share_bytes
from orchestrator.plan.layers import Rules, Stage, place_layers, stages_s
from orchestrator.plan.noise import LEAST_NOISE, MOST_NOISE, even_rates
from orchestrator.plan.pools import Candidate
from orchestrator.plan.values import ModelMemory
from orchestrator.survey.values import Link
from tests.orchestrator.plan.examples import make_device, make_memory
from workers.budget import MIB


def make_candidates(*devices: tuple[int, float, float]) -> tuple[Candidate, ...]:
    """Candidates fastest first from (budget in MiB, GiB/s, link round trip in ms), named d0, d1, ..."""
    made = [
        make_device(f"d{k}/cpu", budget, gib_per_s=speed, link=Link("tunnel", trip / 1e3, 50 * MIB, 50 * MIB))
        for k, (budget, speed, trip) in enumerate(devices)
    ]
    made.sort(key=lambda device: (-device.speed.decode_bytes_per_s, device.name))
    return tuple(Candidate(device, device.host, 1 << 40, device.budget.usable_bytes) for device in made)


def ranges(stages: Sequence[Stage] | None) -> list[tuple[str, int, int, bool]]:
    """Stages as (device, first layer, layers, output)."""
    return [(one.candidate.device.name, one.first_layer, one.layers, one.output) for one in stages or ()]


def brute_force_s(memory: ModelMemory, candidates: Sequence[Candidate], *, output_on_head: bool) -> float:
    """The least time over every subset, order and cut that fits, or infinity."""
    times = []
    for count in range(1, len(candidates) + 1):
        for order in permutations(candidates, count):
            for cut in cuts(len(memory.layer_weights_bytes), count):
                time_s = fixed_s(memory, order, cut, output_on_head=output_on_head)
                times.append(time_s)
    return min(times, default=inf)


def cuts(layers: int, stages: int) -> Iterator[tuple[int, ...]]:
    """Every way to cut `layers` into `stages` ranges that are not empty, as their borders."""
    for inner in combinations(range(1, layers), stages - 1):
        yield (0, *inner, layers)


def time_or_infinity(memory: ModelMemory, stages: Sequence[Stage] | None) -> float:
    """The time of a placement that was found, or infinity."""
    return inf if stages is None else stages_s(memory, stages)


def fixed_s(memory: ModelMemory, order: Sequence[Candidate], cut: tuple[int, ...], *, output_on_head: bool) -> float:
    """The time of one given placement, infinity when it does not fit."""
    total_s = 0.0
    for k, one in enumerate(order):
        output = k == len(order) - 1 and not output_on_head
        first, layers = cut[k], cut[k + 1] - cut[k]
        if needed_bytes(share_bytes(memory, first, layers, output=output).total_bytes) > one.budget_bytes:
            return inf
        total_s += decode_s(memory, one.device, first, layers, output=output)
    return total_s


devices = st.tuples(st.integers(150, 900), st.sampled_from([1.0, 2.0, 5.0, 20.0]), st.sampled_from([0.05, 1.0, 30.0]))
clusters = st.lists(devices, min_size=1, max_size=3)
calm = settings(max_examples=40, deadline=None, derandomize=True)


@calm
@given(clusters, st.integers(1, 5), st.booleans())
def test_uniform_layers_are_placed_as_well_as_any_order_can(
    cluster: list[tuple[int, float, float]], layers: int, on_head: bool
) -> None:
    candidates, memory = make_candidates(*cluster), make_memory(layers)
    stages = place_layers(memory, candidates, Rules(on_head))
    best_s = brute_force_s(memory, candidates, output_on_head=on_head)
    assert time_or_infinity(memory, stages) == pytest.approx(best_s, rel=1e-5)


@calm
@given(clusters, st.lists(st.integers(20, 250), min_size=1, max_size=5), st.booleans())
def test_uneven_layers_are_placed_as_well_as_any_cut_of_the_orders_tried(
    cluster: list[tuple[int, float, float]], sizes: list[int], on_head: bool
) -> None:
    candidates, memory = make_candidates(*cluster), make_memory(sizes)
    stages = place_layers(memory, candidates, Rules(on_head))
    tried = [
        fixed_s(memory, (*others, last), cut, output_on_head=on_head)
        for last in candidates
        for count in range(len(candidates))
        for others in combinations([one for one in candidates if one is not last], count)
        for cut in cuts(len(sizes), count + 1)
    ]
    assert time_or_infinity(memory, stages) == pytest.approx(min(tried, default=inf), rel=1e-5)


@calm
@given(st.lists(devices, min_size=1, max_size=8), st.lists(st.integers(5, 120), min_size=1, max_size=30), st.booleans())
def test_every_layer_is_placed_once_in_order_within_every_budget(
    cluster: list[tuple[int, float, float]], sizes: list[int], on_head: bool
) -> None:
    memory = make_memory(sizes)
    stages = place_layers(memory, make_candidates(*cluster), Rules(on_head))
    if stages is None:
        return
    placed = [layer for one in stages for layer in range(one.first_layer, one.first_layer + one.layers)]
    names = [one.candidate.device.name for one in stages]
    assert placed == list(range(len(sizes)))
    assert len(set(names)) == len(names)
    assert all(one.layers >= 1 for one in stages)
    assert [one.output for one in stages] == [False] * (len(stages) - 1) + [not on_head]
    for one in stages:
        held = share_bytes(memory, one.first_layer, one.layers, output=one.output)
        assert needed_bytes(held.total_bytes) <= one.candidate.budget_bytes


@calm
@given(st.lists(devices, min_size=1, max_size=6), st.integers(1, 20), st.data())
def test_more_budget_is_never_a_worse_placement(
    cluster: list[tuple[int, float, float]], layers: int, data: st.DataObject
) -> None:
    memory, candidates = make_memory(layers), make_candidates(*cluster)
    more = [replace(one, budget_bytes=one.budget_bytes + data.draw(st.integers(0, 400)) * MIB) for one in candidates]
    before = place_layers(memory, candidates, Rules(output_on_head=False))
    after = place_layers(memory, more, Rules(output_on_head=False))
    if before is not None:
        assert after is not None
        assert stages_s(memory, after) <= stages_s(memory, before) * (1 + 1e-5)


like = st.tuples(st.integers(150, 900), st.floats(4.0, 12.0), st.sampled_from([0.05, 1.0, 30.0]))
spreads = st.sampled_from([0.0, 0.05, 0.3, 2.0])


@calm
@given(st.lists(st.tuples(like, spreads), min_size=1, max_size=3), st.integers(1, 5), st.booleans())
def test_a_placement_is_the_best_for_even_speeds_and_costs_at_most_the_noise_for_the_measured_ones(
    cluster: list[tuple[tuple[int, float, float], float]], layers: int, on_head: bool
) -> None:
    memory = make_memory(layers)
    measured = [
        with_speed(one, spread=cluster[int(one.device.host[1:])][1])
        for one in make_candidates(*(device for device, _ in cluster))
    ]
    stages = place_layers(memory, measured, Rules(on_head))
    noise = min(MOST_NOISE, max(LEAST_NOISE, *(one.device.speed.spread for one in measured)))
    best_s = brute_force_s(memory, measured, output_on_head=on_head)
    assert time_or_infinity(memory, stages) <= best_s * (1 + noise) * (1 + 1e-5)
    rates = even_rates([one.device for one in measured])
    even = {
        name: with_speed(one, decode_bytes_per_s=rates[name].decode_bytes_per_s)
        for one in measured
        for name in [one.device.name]
    }
    even_stages = stages and tuple(replace(one, candidate=even[one.candidate.device.name]) for one in stages)
    best_even_s = brute_force_s(memory, list(even.values()), output_on_head=on_head)
    assert time_or_infinity(memory, even_stages) == pytest.approx(best_even_s, rel=1e-5)


@calm
@given(st.lists(st.tuples(st.integers(150, 1500), st.floats(10.0, 10.9)), min_size=1, max_size=3), st.integers(1, 7))
def test_devices_of_one_speed_share_layers_as_evenly_as_any_placement_on_so_few_can(
    cluster: list[tuple[int, float]], layers: int
) -> None:
    memory, candidates = make_memory(layers), make_candidates(*((budget, speed, 0.1) for budget, speed in cluster))
    stages = place_layers(memory, candidates, Rules(output_on_head=True))
    unevenness = [
        (count, sum((end - begin) ** 2 for begin, end in pairwise(cut)))
        for count in range(1, len(candidates) + 1)
        for order in permutations(candidates, count)
        for cut in cuts(layers, count)
        if fixed_s(memory, order, cut, output_on_head=True) < inf
    ]
    found = [(len(stages), sum(one.layers**2 for one in stages))] if stages else []
    assert found == sorted(unevenness)[:1]


def with_speed(candidate: Candidate, **changes: float) -> Candidate:
    """The candidate with other figures in its device's speed."""
    device = candidate.device
    return replace(candidate, device=replace(device, speed=replace(device.speed, **changes)))


def test_devices_of_one_decode_speed_share_layers_by_how_fast_they_read() -> None:
    other, reader = make_candidates((1000, 10.0, 0.1), (1000, 10.5, 0.1))
    reader = with_speed(reader, prefill_bytes_per_s=other.device.speed.prefill_bytes_per_s * 7 / 3)
    assert ranges(place_layers(make_memory(10), [other, reader], Rules(output_on_head=True))) == [
        ("d1/cpu", 0, 3, False),
        ("d0/cpu", 3, 7, False),
    ]


def test_of_devices_of_one_speed_and_link_the_faster_ones_are_used() -> None:
    candidates = make_candidates((1000, 10.0, 0.1), (1000, 10.4, 0.1), (1000, 10.2, 0.1))
    assert ranges(place_layers(make_memory(10), candidates, Rules(output_on_head=True))) == [
        ("d1/cpu", 0, 5, False),
        ("d2/cpu", 5, 5, False),
    ]
    assert ranges(place_layers(make_memory(8), candidates, Rules(output_on_head=True))) == [("d1/cpu", 0, 8, False)]


def test_even_stages_do_not_count_the_output_layer_which_a_prompt_hardly_needs() -> None:
    candidates = make_candidates((1500, 10.0, 0.1), (1500, 10.3, 0.1))
    stages = place_layers(make_memory(12, output_mib=400), candidates, Rules(output_on_head=False))
    assert ranges(stages) == [("d0/cpu", 0, 6, False), ("d1/cpu", 6, 6, True)]


def test_equal_devices_get_even_stages() -> None:
    candidates = make_candidates((900, 5.0, 0.1), (900, 5.0, 0.1))
    assert ranges(place_layers(make_memory(10), candidates, Rules(output_on_head=True))) == [
        ("d0/cpu", 0, 5, False),
        ("d1/cpu", 5, 5, False),
    ]


def test_the_faster_device_is_filled_first() -> None:
    candidates = make_candidates((900, 5.0, 0.1), (900, 10.0, 0.1))
    assert ranges(place_layers(make_memory(10), candidates, Rules(output_on_head=True))) == [
        ("d1/cpu", 0, 7, False),
        ("d0/cpu", 7, 3, False),
    ]


def test_a_fast_device_with_a_slow_link_is_left_out_when_the_others_suffice() -> None:
    candidates = make_candidates((2000, 5.0, 0.1), (2000, 20.0, 500.0))
    assert ranges(place_layers(make_memory(10), candidates, Rules(output_on_head=False))) == [("d0/cpu", 0, 10, True)]


def test_the_output_layer_goes_where_its_logits_cost_least() -> None:
    slow, fast = make_candidates((700, 5.0, 0.1), (800, 5.0, 0.1))
    slow = replace(slow, device=replace(slow.device, link=Link("tunnel", 0.0001, 50 * MIB, MIB)))
    stages = place_layers(make_memory(10), [slow, fast], Rules(output_on_head=False))
    assert ranges(stages)[-1] == ("d1/cpu", 5, 5, True)


def test_a_required_device_is_used_and_a_given_last_one_is_last() -> None:
    candidates = make_candidates((2000, 5.0, 0.1), (2000, 1.0, 0.1))
    required = place_layers(make_memory(10), candidates, Rules(output_on_head=True, required="d1/cpu"))
    last = place_layers(make_memory(10), candidates, Rules(output_on_head=False, last="d1/cpu"))
    assert ranges(required) == [("d0/cpu", 0, 9, False), ("d1/cpu", 9, 1, False)]
    assert ranges(last) == [("d0/cpu", 0, 9, False), ("d1/cpu", 9, 1, True)]


def test_what_does_not_fit_is_said() -> None:
    candidates = make_candidates((500, 5.0, 0.1), (500, 5.0, 0.1))
    assert place_layers(make_memory(10), candidates, Rules(output_on_head=True)) is None
    assert place_layers(make_memory(10), (), Rules(output_on_head=True)) is None
