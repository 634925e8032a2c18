"""The dynamic programme against brute force over every subset, order and cut; and what it does with like devices."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations, permutations
from math import inf
from random import Random

import pytest

from orchestrator.plan.layers import EVERY_ORDER, LayerSearch, Rules
from orchestrator.plan.pools import CONTROLLER, Candidate, find_candidates
from orchestrator.plan.stage_tables import StageTables
from orchestrator.plan.stages import Stage, stage_needs_bytes, stage_prefill_s, stage_time_s, stages_s
from orchestrator.plan.values import ModelMemory
from orchestrator.survey.values import Link
from tests.orchestrator.plan.examples import make_device, make_memory, make_speed, make_survey
from workers.budget import MIB

INSTANCES = range(500)

EXACT = 2e-5
"""The tie-breaks between equal plans are this much smaller than what they decide about."""

SPEEDS = (1.0, 2.0, 5.0, 20.0)
"""GiB/s, further apart than noise: what is placed by is what was measured."""


@dataclass(frozen=True)
class Instance:
    """A small case."""

    memory: ModelMemory
    candidates: tuple[Candidate, ...]
    rules: Rules
    tokens: int


def make_candidates(*devices: tuple[int, float, float]) -> tuple[Candidate, ...]:
    """Candidates fastest first from (budget in MiB, GiB/s, link round trip in ms), named d0, d1, ..."""
    made = [
        make_device(f"d{k}/cpu", budget, gib_per_s=speed, link=Link("tunnel", trip / 1e3, 50 * MIB, 50 * MIB))
        for k, (budget, speed, trip) in enumerate(devices)
    ]
    return find_candidates(make_survey(made), None)


def an_instance(seed: int, *, native: bool, most_devices: int = 4) -> Instance:
    random = Random(seed)
    devices = [
        (random.randint(120, 700), random.choice(SPEEDS), random.choice([0.05, 1.0, 30.0]))
        for _ in range(random.randint(1, most_devices))
    ]
    candidates = tuple(with_native(random, one) for one in make_candidates(*devices))
    sizes = [random.randint(20, 150) for _ in range(random.randint(1, 6))]
    memory = make_memory(
        sizes if random.random() < 0.7 else len(sizes), parallel=random.choice([1, 4, 8]), kv_mib=random.randint(0, 20)
    )
    rules = Rules(random.random() < 0.5, random.choice(candidates).device.name if native else None)
    return Instance(memory, candidates, rules, random.choice([1, memory.parallel]))


def with_native(random: Random, one: Candidate) -> Candidate:
    device = replace(one.device, native=make_speed(random.choice([1.5, 3.0, 12.0])))
    return replace(one, machine=CONTROLLER, device=device)


def every_placement(case: Instance) -> Iterator[tuple[Stage, ...]]:
    """Every subset, order and cut that fits; a native device is first, and never alone."""
    fits = cache(lambda one: fits_budget(case, one))
    for count in range(1, len(case.candidates) + 1):
        for order in permutations(case.candidates, count):
            native = [case.rules.native == one.device.name for one in order]
            if case.rules.native is not None and (not native[0] or count == 1):
                continue
            for cut in cuts(case.memory.blocks, count):
                stages = given(case, order, cut)
                if all(fits(one) for one in stages):
                    yield stages


def fits_budget(case: Instance, stage: Stage) -> bool:
    needed = stage_needs_bytes(case.memory, stage, output_on_head=case.rules.output_on_head)
    return needed <= stage.candidate.budget_bytes


def given(case: Instance, order: Sequence[Candidate], cut: Sequence[int]) -> tuple[Stage, ...]:
    last = len(order) - 1
    return tuple(
        Stage(
            one,
            cut[k],
            cut[k + 1] - cut[k],
            output=k == last and not case.rules.output_on_head,
            native=one.device.name == case.rules.native,
        )
        for k, one in enumerate(order)
    )


def cuts(layers: int, stages: int) -> Iterator[tuple[int, ...]]:
    """Every way to cut `layers` into `stages` ranges that are not empty, as their borders."""
    for inner in combinations(range(1, layers), stages - 1):
        yield (0, *inner, layers)


def token_s(case: Instance) -> Callable[[Sequence[Stage] | None], float]:
    one_s = cache(lambda stage: stage_time_s(case.memory, stage, case.tokens))
    return lambda stages: inf if stages is None else sum(one_s(one) for one in stages)


def slowest_s(case: Instance) -> Callable[[Sequence[Stage] | None], float]:
    one_s = cache(lambda stage: stage_prefill_s(case.memory, stage, case.memory.micro_batch))
    return lambda stages: inf if stages is None else max(one_s(one) for one in stages)


@pytest.mark.parametrize("native", [False, True])
def test_no_placement_at_all_takes_less_time_per_token(native: bool) -> None:
    feasible = 0
    for seed in INSTANCES:
        case = an_instance(seed, native=native)
        stages = LayerSearch(StageTables(case.memory, case.candidates, case.tokens)).fastest(
            case.candidates, case.rules
        )
        time_s = token_s(case)
        best_s = min((time_s(one) for one in every_placement(case)), default=inf)
        assert time_s(stages) == pytest.approx(best_s, rel=EXACT), seed
        assert stages is None or all(fits_budget(case, one) for one in stages), seed
        feasible += stages is not None
    assert feasible > len(INSTANCES) / 8


@pytest.mark.parametrize("native", [False, True])
def test_no_placement_at_all_has_a_faster_slowest_stage_and_of_the_like_none_a_faster_token(native: bool) -> None:
    for seed in INSTANCES:
        case = an_instance(seed, native=native)
        tables = StageTables(case.memory, case.candidates, case.tokens)
        stages = LayerSearch(tables).most_even(case.candidates, case.rules)
        slow_s, time_s = slowest_s(case), token_s(case)
        every = [(slow_s(one), time_s(one)) for one in every_placement(case)]
        least_s = min((slow for slow, _ in every), default=inf)
        assert LayerSearch(tables).least_slowest_s(case.candidates, case.rules) == pytest.approx(least_s), seed
        assert slow_s(stages) == pytest.approx(least_s), seed
        best_s = min((time for slow, time in every if slow <= least_s * (1 + 1e-9)), default=inf)
        assert time_s(stages) == pytest.approx(best_s, rel=EXACT), seed


def test_blocks_of_one_size_are_placed_as_well_as_any_order_can_also_on_more_devices() -> None:
    for seed in range(40):
        case = an_instance(seed, native=False, most_devices=EVERY_ORDER + 1)
        case = replace(case, memory=make_memory(5, layer_mib=60), tokens=1)
        stages = LayerSearch(StageTables(case.memory, case.candidates)).fastest(case.candidates, case.rules)
        time_s = token_s(case)
        best_s = min((time_s(one) for one in every_placement(case)), default=inf)
        assert time_s(stages) == pytest.approx(best_s, rel=EXACT), seed


@pytest.mark.parametrize(
    ("last", "order"),
    [(0, "345120"), (1, "345021"), (2, "345012"), (3, "012453"), (4, "012354"), (5, "012345")],
)
def test_six_devices_and_uneven_blocks_are_tried_in_one_order_for_each_last_one(last: int, order: str) -> None:
    """Each device holds one block, and only the last one the largest, which is the last block."""
    devices = [(240 if k == last else 190, 20.0 - 3 * k, 0.1) for k in range(6)]
    memory = make_memory([100, 101, 102, 103, 104, 150])
    placed = ranges(memory, make_candidates(*devices), Rules(output_on_head=True))
    assert placed == [(f"d{k}/cpu", place, 1, False) for place, k in enumerate(order)]


def test_every_layer_is_placed_once_in_order_within_every_budget() -> None:
    for seed in range(200):
        random = Random(seed)
        candidates = make_candidates(
            *((random.randint(150, 900), random.uniform(1, 20), random.uniform(0.05, 5)) for _ in range(9))
        )
        memory = make_memory([random.randint(5, 120) for _ in range(random.randint(1, 30))])
        case = Instance(memory, candidates, Rules(random.random() < 0.5), 1)
        stages = LayerSearch(StageTables(memory, candidates)).fastest(candidates, case.rules)
        if stages is None:
            continue
        placed = [layer for one in stages for layer in range(one.first_layer, one.first_layer + one.layers)]
        assert placed == list(range(memory.blocks))
        assert len({one.candidate.device.name for one in stages}) == len(stages)
        assert [one.output for one in stages] == [False] * (len(stages) - 1) + [not case.rules.output_on_head]
        assert all(one.layers >= 1 and fits_budget(case, one) for one in stages)


def test_more_budget_is_never_a_worse_placement() -> None:
    for seed in range(200):
        random, case = Random(seed), an_instance(seed, native=False)
        richer = [replace(one, budget_bytes=one.budget_bytes + random.randint(0, 400) * MIB) for one in case.candidates]
        tables = StageTables(case.memory, case.candidates)
        before, after = (LayerSearch(tables).fastest(each, case.rules) for each in (case.candidates, richer))
        if before is not None:
            assert after is not None
            assert stages_s(case.memory, after) <= stages_s(case.memory, before) * (1 + EXACT)


def ranges(
    memory: ModelMemory, candidates: Sequence[Candidate], rules: Rules
) -> list[tuple[str, int, int, bool]] | None:
    """The stages placed, as (device, first layer, layers, output)."""
    stages = LayerSearch(StageTables(memory, candidates)).fastest(candidates, rules)
    if stages is None:
        return None
    return [(one.candidate.device.name, one.first_layer, one.layers, one.output) for one in stages]


def test_of_devices_of_one_speed_and_link_the_faster_ones_are_used() -> None:
    candidates = make_candidates((1000, 10.0, 0.1), (1000, 10.4, 0.1), (1000, 10.2, 0.1))
    assert ranges(make_memory(10), candidates, Rules(output_on_head=True)) == [
        ("d1/cpu", 0, 5, False),
        ("d2/cpu", 5, 5, False),
    ]
    assert ranges(make_memory(8), candidates, Rules(output_on_head=True)) == [("d1/cpu", 0, 8, False)]


def test_even_stages_do_not_count_the_output_layer_which_a_prompt_hardly_needs() -> None:
    candidates = make_candidates((1500, 10.0, 0.1), (1500, 10.3, 0.1))
    assert ranges(make_memory(12, output_mib=400), candidates, Rules(output_on_head=False)) == [
        ("d1/cpu", 0, 6, False),
        ("d0/cpu", 6, 6, True),
    ]


def test_equal_devices_get_even_stages_the_last_one_the_odd_layer_which_it_reads_only_in_part() -> None:
    candidates = make_candidates((900, 5.0, 0.1), (900, 5.0, 0.1))
    rules = Rules(output_on_head=True)
    assert ranges(make_memory(10), candidates, rules) == [("d0/cpu", 0, 5, False), ("d1/cpu", 5, 5, False)]
    assert ranges(make_memory(9), candidates, rules) == [("d0/cpu", 0, 4, False), ("d1/cpu", 4, 5, False)]


def test_devices_of_one_decode_speed_share_layers_by_how_fast_they_read() -> None:
    reader, other = make_candidates((1000, 10.0, 0.1), (1000, 10.0, 0.1))
    reader = replace(reader, device=replace(reader.device, speed=make_speed(10.0, prefill=7 / 3)))
    assert ranges(make_memory(10), [reader, other], Rules(output_on_head=True)) == [
        ("d1/cpu", 0, 3, False),
        ("d0/cpu", 3, 7, False),
    ]


def test_the_faster_device_is_filled_and_last_where_the_last_block_is_hardly_read() -> None:
    candidates = make_candidates((900, 5.0, 0.1), (900, 10.0, 0.1))
    assert ranges(make_memory(10), candidates, Rules(output_on_head=True)) == [
        ("d0/cpu", 0, 3, False),
        ("d1/cpu", 3, 7, False),
    ]


def test_a_fast_device_with_a_slow_link_is_left_out_when_the_others_suffice() -> None:
    candidates = make_candidates((2000, 5.0, 0.1), (2000, 20.0, 500.0))
    assert ranges(make_memory(10), candidates, Rules(output_on_head=False)) == [("d0/cpu", 0, 10, True)]


def test_a_required_device_is_used() -> None:
    candidates, memory = make_candidates((2000, 5.0, 0.1), (2000, 1.0, 0.1)), make_memory(10)
    assert ranges(memory, candidates, Rules(output_on_head=True, required="d1/cpu")) == [
        ("d1/cpu", 0, 1, False),
        ("d0/cpu", 1, 9, False),
    ]


def test_what_does_not_fit_is_said() -> None:
    candidates = make_candidates((500, 5.0, 0.1), (500, 5.0, 0.1))
    assert ranges(make_memory(10), candidates, Rules(output_on_head=True)) is None
    assert ranges(make_memory(10), (), Rules(output_on_head=True)) is None
