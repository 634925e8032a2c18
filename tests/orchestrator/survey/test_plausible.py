"""Two depths that cannot be true together: the deep one stands, whatever the shallow one was disturbed by."""

import statistics
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from orchestrator.plan.costs import layers_seconds
from orchestrator.survey.plausible import BESIDE_S, CACHE_BYTES, LEAST_OUTPUT, MOST_OUTPUT, plausible_shallow
from orchestrator.survey.slices import Slice, Slices
from orchestrator.survey.speeds import native_speed
from workers.budget import MIB
from workers.pass_bench import Timed

LAYER, OUTPUT = 48 * MIB, 51 * MIB
SLICES = Slices(
    shallow=Slice(Path("2.gguf"), 2, (LAYER,) * 2, "slice"),
    deep=Slice(Path("6.gguf"), 6, (LAYER,) * 6, "slice"),
    output_bytes=OUTPUT,
    output_tied=False,
    hidden_bytes=8192,
    logits_bytes=128_000,
    digest="digest",
)
DECODE_S, PREFILL_S = 160e-12, 1.2e-9
"""Per byte: a quarter of a core, and what 64 tokens take."""


def timed(one: Slice, disturbed: Mapping[int, float] | None = None) -> dict[int, Timed]:
    """With an output layer like the layers; `disturbed`: the pass takes this many times as long."""
    output_s = OUTPUT * DECODE_S
    last = 0.3 + 0.7 * DECODE_S / PREFILL_S
    seconds = {1: one.pass_bytes() * DECODE_S + output_s, 64: one.pass_bytes(last) * PREFILL_S + output_s}
    return {tokens: Timed(s * (disturbed or {}).get(tokens, 1.0), 0.03) for tokens, s in seconds.items()}


def no_link(tokens: int) -> float:
    return 0.0


def seconds_of(times: Mapping[int, Timed]) -> dict[int, float]:
    return {tokens: one.seconds for tokens, one in times.items()}


def with_prompt(times: Mapping[int, Timed]) -> dict[int, Timed]:
    return {**times, 64: Timed(20 * times[1].seconds, 0.01)}


def plausible(shallow: Mapping[int, Timed], deep: Mapping[int, Timed], slices: Slices = SLICES) -> dict[int, Timed]:
    return plausible_shallow(slices, shallow, deep, no_link)


def test_what_can_be_true_stays_as_it_was_timed() -> None:
    shallow, deep = timed(SLICES.shallow), timed(SLICES.deep)
    assert seconds_of(plausible(shallow, deep)) == pytest.approx(seconds_of(shallow))


@pytest.mark.parametrize("part", [0.73, 1.35])
def test_an_output_layer_of_another_speed_moves_what_was_timed_calmly_by_little(part: float) -> None:
    output_s = part * OUTPUT * DECODE_S
    shallow, deep = ({1: Timed(one.pass_bytes() * DECODE_S + output_s, 0.01)} for one in (SLICES.shallow, SLICES.deep))
    speed = native_speed(SLICES, with_prompt(shallow), with_prompt(deep), processor=True)
    assert layers_seconds(speed, 16 * LAYER, 1) + speed.output_s == pytest.approx(
        16 * LAYER * DECODE_S + output_s, rel=0.03
    )


def test_decoding_through_all_layers_is_off_by_little_more_than_what_was_timed() -> None:
    """Both depths off by 8 %: by the line through both all layers are off by 15 %, as far as it is held to anything."""
    random, off = Random(1), dict[bool, list[float]]({True: [], False: []})
    for _ in range(400):
        shallow, deep = (timed(one, {1: random.gauss(1, 0.08)}) for one in (SLICES.shallow, SLICES.deep))
        shallow, deep = ({n: replace(one, spread=0.13) for n, one in times.items()} for times in (shallow, deep))
        for processor, found in off.items():
            speed = native_speed(SLICES, shallow, deep, processor=processor)
            found.append(layers_seconds(speed, 16 * LAYER, 1) / (16 * LAYER * DECODE_S))
    assert statistics.stdev(off[False]) > 0.14
    assert statistics.stdev(off[True]) < 0.11
    assert statistics.mean(off[True]) == pytest.approx(1, abs=0.02)


def test_a_disturbed_shallow_slice_does_not_make_all_layers_fast() -> None:
    """It took 1.4 times as long: the line through both depths says that 16 layers take 0.74 times what they take."""
    shallow, deep = timed(SLICES.shallow, {1: 1.4, 64: 1.4}), timed(SLICES.deep)
    whole_s = {tokens: 16 * LAYER * per_byte for tokens, per_byte in ((1, DECODE_S), (64, PREFILL_S))}
    raw = native_speed(SLICES, shallow, deep)
    found = native_speed(SLICES, shallow, deep, processor=True)
    assert layers_seconds(raw, 16 * LAYER, 1) < 0.78 * whole_s[1]
    assert layers_seconds(found, 16 * LAYER, 1) == pytest.approx(whole_s[1], rel=0.1)
    assert layers_seconds(raw, 16 * LAYER, 64) < 0.9 * whole_s[64]
    assert layers_seconds(found, 16 * LAYER, 64) == pytest.approx(whole_s[64], rel=0.08)


def test_a_disturbed_deep_slice_makes_all_layers_slower_by_little_more_than_that() -> None:
    """By the line 1.59 times as slow as they are."""
    shallow, deep = timed(SLICES.shallow), timed(SLICES.deep, {1: 1.4})
    raw, found = (
        layers_seconds(native_speed(SLICES, shallow, deep, processor=processor), 16 * LAYER, 1)
        for processor in (False, True)
    )
    assert raw > 1.58 * 16 * LAYER * DECODE_S
    assert found < 1.54 * 16 * LAYER * DECODE_S


def test_a_shallow_slice_that_a_cache_may_hold_is_rightly_fast() -> None:
    small = replace(
        SLICES,
        shallow=replace(SLICES.shallow, layers_bytes=(8 * MIB,) * 2),
        deep=replace(SLICES.deep, layers_bytes=(8 * MIB,) * 6),
        output_bytes=8 * MIB,
    )
    assert small.shallow.pass_bytes() + small.output_bytes < CACHE_BYTES
    shallow, deep = {1: Timed(0.001, 0.0)}, {1: Timed(0.01, 0.0)}
    assert plausible(shallow, deep, small) == shallow
    assert plausible(shallow, deep)[1].seconds > 0.003


def test_the_link_and_what_passes_cost_on_any_processor_is_no_noise() -> None:
    shallow, deep = timed(SLICES.shallow), timed(SLICES.deep)
    late_s = 0.02
    shallow, deep = (
        {n: replace(t, seconds=t.seconds + late_s + BESIDE_S) for n, t in one.items()} for one in (shallow, deep)
    )
    found = plausible_shallow(SLICES, shallow, deep, lambda tokens: late_s)
    assert seconds_of(found) == pytest.approx(seconds_of(shallow), rel=0.01)
    assert plausible(shallow, deep)[1].seconds < shallow[1].seconds


@pytest.mark.parametrize("seed", range(50))
def test_whatever_was_timed_the_deep_time_stands_and_the_output_layer_is_within_its_limits(seed: int) -> None:
    random = Random(seed)
    shallow, deep = (
        {n: Timed(t.seconds * random.uniform(0.3, 3.0), 0.1) for n, t in timed(one).items()}
        for one in (SLICES.shallow, SLICES.deep)
    )
    found = plausible(shallow, deep)
    few, many = SLICES.shallow.pass_bytes(), SLICES.deep.pass_bytes()
    slope_s = (deep[1].seconds - found[1].seconds) / (many - few)
    beside_s = deep[1].seconds - slope_s * many
    assert LEAST_OUTPUT * slope_s * OUTPUT <= beside_s * (1 + 1e-9)
    assert beside_s <= (MOST_OUTPUT * slope_s * OUTPUT + BESIDE_S) * (1 + 1e-9)
    speed = native_speed(SLICES, shallow, deep, processor=True)
    assert layers_seconds(speed, many, 1) + speed.output_s == pytest.approx(deep[1].seconds, rel=1e-6)
    assert all(one.seconds > 0 for one in found.values())


def test_an_output_layer_beside_experts_is_not_held_to_the_bytes_of_those_that_rest() -> None:
    """An eighth of each layer works for a token, all of the output layer: per byte it takes eight times as long."""
    moe = replace(SLICES, worked_part=1 / 8)
    beside_s = OUTPUT * DECODE_S

    def timed_moe(one: Slice) -> dict[int, Timed]:
        return {
            1: Timed(one.pass_bytes() / 8 * DECODE_S + beside_s, 0.03),
            64: Timed(one.pass_bytes(0.4) * PREFILL_S / 8 + beside_s, 0.03),
        }

    shallow, deep = timed_moe(SLICES.shallow), timed_moe(SLICES.deep)
    assert seconds_of(plausible(shallow, deep, moe)) == pytest.approx(seconds_of(shallow))
    assert plausible(shallow, deep, SLICES)[1].seconds < 0.9 * shallow[1].seconds
    for processor in (False, True):
        speed = native_speed(moe, shallow, deep, processor=processor)
        assert speed.output_s == pytest.approx(beside_s)
        assert speed.passes[0].fixed_s == pytest.approx(0.0, abs=1e-6)
        assert layers_seconds(speed, 16 * LAYER, 1) == pytest.approx(16 * LAYER / 8 * DECODE_S)
