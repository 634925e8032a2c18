"""Speeds from two depths of a model: exact where times are exact, sane where they are noise."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from orchestrator.hosts import OpenHost
from orchestrator.inventory import Host
from orchestrator.plan.costs import LAST_BLOCK_PREFILL, layers_seconds
from orchestrator.survey.plausible import last_block
from orchestrator.survey.slices import Slice, Slices
from orchestrator.survey.speeds import (
    calmer,
    context_cost,
    likely_context_cost,
    native_speed,
    noisy_passes,
    passes_for,
    repetitions_for,
    rising,
    rpc_speed,
    short_passes,
    speed_key,
    turns_for,
    with_guessed_passes,
    with_long_passes,
)
from orchestrator.survey.values import NOT_MEASURED, Link
from tests.orchestrator.plan.examples import FACTS
from workers.engine_commands import CACHE_TYPES, CacheType, FlashAttention
from workers.facts import HostFacts
from workers.pass_bench import REPETITIONS, Timed

LAYER, OUTPUT, HIDDEN, LOGITS = 1000, 500, 40, 400
SLICES = Slices(
    shallow=Slice(Path("2.gguf"), 2, (LAYER,) * 2, "slice"),
    deep=Slice(Path("4.gguf"), 4, (LAYER,) * 4, "slice"),
    output_bytes=OUTPUT,
    output_tied=False,
    hidden_bytes=HIDDEN,
    logits_bytes=LOGITS,
    digest="digest",
)
LINK = Link("tunnel", round_trip_s=0.001, up_bytes_per_s=1e5, down_bytes_per_s=1e5)
DECODE_S, PREFILL_S, OUTPUT_S, FIXED_S = 1e-5, 4e-5, 0.006, 0.002
"""Per byte of layers, per byte of layers for 64 tokens, for the output layer, for one more stage."""


def natively(one: Slice) -> dict[int, Timed]:
    """The last block's feed-forward takes as long as decoding, whatever the number of tokens."""
    last_s = LAYER * (LAST_BLOCK_PREFILL * PREFILL_S + (1 - LAST_BLOCK_PREFILL) * DECODE_S)
    return {
        1: Timed(one.layers * LAYER * DECODE_S + OUTPUT_S, 0.01),
        64: Timed((one.layers - 1) * LAYER * PREFILL_S + last_s + OUTPUT_S, 0.5),
    }


def through_rpc(one: Slice) -> dict[int, Timed]:
    def link_s(tokens: int) -> float:
        return LINK.round_trip_s + HIDDEN * tokens / LINK.up_bytes_per_s + LOGITS / LINK.down_bytes_per_s

    return {
        tokens: Timed(timed.seconds + FIXED_S + link_s(tokens), timed.spread) for tokens, timed in natively(one).items()
    }


def test_of_the_last_block_of_a_prompt_the_feed_forward_costs_what_decoding_costs() -> None:
    shallow, deep = natively(SLICES.shallow), natively(SLICES.deep)
    part = last_block(shallow, deep, 64)
    assert part == pytest.approx(LAST_BLOCK_PREFILL + (1 - LAST_BLOCK_PREFILL) * DECODE_S / PREFILL_S)
    assert last_block(shallow, deep, 1) == 1.0
    assert SLICES.shallow.pass_bytes(0.25) == LAYER + LAYER // 4
    assert SLICES.shallow.pass_bytes() == 2 * LAYER


def test_the_last_block_of_timings_that_are_noise_counts_as_in_long_prompts() -> None:
    falling = {1: Timed(0.02, 0.0), 64: Timed(0.02, 0.0)}, {1: Timed(0.01, 0.0), 64: Timed(0.05, 0.0)}
    assert last_block(*falling, 64) == LAST_BLOCK_PREFILL


def test_natively_the_line_through_both_depths_is_found_and_the_rest_is_the_output_layer() -> None:
    speed = native_speed(SLICES, natively(SLICES.shallow), natively(SLICES.deep))
    assert speed.output_s == pytest.approx(OUTPUT_S)
    assert layers_seconds(speed, 16 * LAYER, 1) == pytest.approx(16 * LAYER * DECODE_S)
    assert layers_seconds(speed, 16 * LAYER, 64) == pytest.approx(16 * LAYER * PREFILL_S)
    assert [one.spread for one in speed.passes] == [0.01, 0.5]
    assert (speed.source, speed.output_bytes) == ("slice", OUTPUT)


def test_where_the_cache_holds_the_shallow_slice_the_output_layer_costs_its_part_of_the_deep_one() -> None:
    """All weights at 10 us per byte, but for the two layers that are in the cache."""
    deep_s = (4 * LAYER + OUTPUT) * DECODE_S
    shallow, deep = ({**natively(one), 1: Timed(s, 0.0)} for one, s in ((SLICES.shallow, 0.012), (SLICES.deep, deep_s)))
    speed = native_speed(SLICES, shallow, deep)
    assert speed.output_s == pytest.approx(OUTPUT * DECODE_S)
    assert layers_seconds(speed, 4 * LAYER, 1) == pytest.approx(4 * LAYER * DECODE_S)


def test_the_spread_of_a_pass_is_that_of_the_slice_that_was_disturbed_more() -> None:
    shallow, deep = natively(SLICES.shallow), natively(SLICES.deep)
    deep = {1: replace(deep[1], spread=0.2), 64: replace(deep[64], spread=0.1)}
    assert [one.spread for one in native_speed(SLICES, shallow, deep).passes] == [0.2, 0.5]


def test_through_rpc_link_fixed_cost_and_output_layer_are_told_apart() -> None:
    """The head computes the output layer in 5 ms, the worker in 6; the link carries logits or hidden states."""
    head = replace(native_speed(SLICES, natively(SLICES.shallow), natively(SLICES.deep)), output_s=0.005)
    on_head_s = 2 * LAYER * DECODE_S + 0.005 + FIXED_S + LINK.round_trip_s + 2 * HIDDEN / 1e5
    shallow, deep = through_rpc(SLICES.shallow), through_rpc(SLICES.deep)
    speed = rpc_speed(SLICES, shallow, deep, Timed(on_head_s, 0.0), head, LINK)
    assert speed.output_s == pytest.approx(OUTPUT_S)
    assert speed.passes[0].fixed_s == pytest.approx(FIXED_S)
    assert layers_seconds(speed, 16 * LAYER, 1) == pytest.approx(16 * LAYER * DECODE_S + FIXED_S)
    assert layers_seconds(speed, 16 * LAYER, 64) == pytest.approx(16 * LAYER * PREFILL_S + FIXED_S)


@pytest.mark.parametrize("deep_s", [0.001, 0.02, 0.0261])
def test_noise_that_turns_the_line_over_never_gives_a_negative_or_falling_time(deep_s: float) -> None:
    shallow = {1: Timed(0.026, 0.0), 64: Timed(0.03, 0.0)}
    deep = {1: Timed(deep_s, 0.0), 64: Timed(0.02, 0.0)}
    speed = native_speed(SLICES, shallow, deep)
    for one in speed.passes:
        times = [layers_seconds(speed, count * LAYER, one.tokens) for count in range(1, 40)]
        assert times[0] > 0
        assert times == sorted(times)
    assert speed.output_s > 0


def test_long_passes_are_timed_on_the_shallow_slice_alone() -> None:
    shallow, deep = natively(SLICES.shallow) | {256: Timed(1.0, 0.1)}, natively(SLICES.deep)
    whole = with_long_passes(deep, shallow)
    assert whole.keys() == shallow.keys()
    assert whole[64] == deep[64]
    assert whole[256] == Timed(deep[64].seconds / shallow[64].seconds, 0.1)
    assert short_passes((1, 8, 64, 256)) == (1, 8, 64)


def test_what_was_disturbed_is_timed_again_and_the_calmer_timing_of_each_pass_counts() -> None:
    calm, disturbed = {1: Timed(1.0, 0.05), 64: Timed(2.0, 0.1)}, {1: Timed(1.5, 0.3), 64: Timed(2.1, 0.02)}
    assert noisy_passes(calm) == ()
    assert noisy_passes({**disturbed, 8: Timed(1.0, 0.2)}) == (1, 8)
    assert calmer(disturbed, calm) == {1: calm[1], 64: disturbed[64]}
    assert calmer(disturbed, {1: Timed(1.2, 0.4)}) == disturbed


def test_more_tokens_never_take_less_time() -> None:
    """Four and eight changed places: both take what they took together on the average."""
    timed = {1: Timed(0.02, 0.0), 4: Timed(0.083, 0.1), 8: Timed(0.077, 0.2), 64: Timed(0.3, 0.0)}
    even = rising(timed)
    assert even[4].seconds == even[8].seconds == pytest.approx(0.08)
    assert (even[1], even[64], even[8].spread) == (timed[1], timed[64], 0.2)
    falling = {tokens: Timed(1.0 / tokens, 0.0) for tokens in (1, 2, 4)}
    assert [timed.seconds for timed in rising(falling).values()] == [pytest.approx(1.75 / 3)] * 3


def test_slow_devices_are_timed_with_few_repetitions() -> None:
    assert repetitions_for({64: Timed(0.29, 0.0)}) == REPETITIONS
    assert repetitions_for({64: Timed(0.31, 0.0)}) < REPETITIONS


def test_decoding_of_a_fast_device_is_timed_in_more_turns() -> None:
    """The deep slice takes 1.8 times what the shallow one does: of 64 tokens 4.6 s, or 9.2 s."""
    assert [turns_for(SLICES, {1: Timed(one_s, 0.0)}, 4) for one_s in (0.001, 0.04, 0.08, 1.0)] == [3, 2, 1, 1]


def test_what_a_context_costs_is_told_for_one_token_in_one_layer_and_never_less_than_nothing() -> None:
    """Two layers, 64 tokens after 1,024: 131,072 times."""
    alone = {64: Timed(0.1, 0.0)}
    assert context_cost(SLICES, alone, {64: Timed(0.1131072, 0.0)}) == pytest.approx(1e-7)
    assert context_cost(SLICES, alone, {64: Timed(0.09, 0.0)}) == 0.0


def test_passes_are_decoding_steps_of_all_and_half_of_the_conversations_and_prompts() -> None:
    assert passes_for(1) == (1, 64, 256)
    assert passes_for(8) == (1, 4, 8, 64, 256)
    assert passes_for(2) == (1, 2, 64, 256)


def test_of_a_very_slow_device_the_long_passes_are_guessed() -> None:
    timed = {1: Timed(0.4, 0.0), 64: Timed(8.0, 0.1)}
    assert with_guessed_passes(timed, (1, 64, 256)) == {**timed, 256: Timed(32.0, 0.1)}


def test_what_a_context_costs_a_very_slow_device_is_by_its_short_prompt_against_the_controllers() -> None:
    head = native_speed(SLICES, natively(SLICES.shallow), natively(SLICES.deep))
    slower = replace(head, passes=tuple(replace(one, layers_s=(1.0, 3 * one.layers_s[-1])) for one in head.passes))
    assert likely_context_cost(slower, replace(head, context_s=1e-7)) == pytest.approx(3e-7)
    assert likely_context_cost(slower, NOT_MEASURED) == 0.0


HOST = Host("a", "local")


def key(
    *,
    facts: HostFacts = FACTS,
    host: Host = HOST,
    threads: int = 4,
    path: str = "native",
    engine: str = "engine",
    slices: Slices = SLICES,
    gpu: Sequence[str] = (),
    cache_type: CacheType = "f16",
    flash_attention: FlashAttention = "auto",
) -> str:
    there = cast(OpenHost, SimpleNamespace(facts=facts, host=host))
    facts_of = (there, threads, path, engine, slices, gpu)
    return speed_key(*facts_of, cache_type=cache_type, flash_attention=flash_attention)


@pytest.mark.parametrize(
    "other",
    [
        {"facts": replace(FACTS, hostname="other")},
        {"facts": replace(FACTS, cpu_name="another processor")},
        {"facts": replace(FACTS, cores_logical=4)},
        {"facts": replace(FACTS, cpu_quota=0.5)},
        {"host": replace(HOST, run_with=("numactl",))},
        {"threads": 2},
        {"path": "rpc tunnel"},
        {"engine": "another build"},
        {"slices": replace(SLICES, digest="another model")},
        {"slices": replace(SLICES, deep=replace(SLICES.deep, layers=6))},
        {"slices": replace(SLICES, shallow=replace(SLICES.shallow, source="synthetic"))},
        {"slices": replace(SLICES, output_fits=False)},
        {"gpu": ("CUDA0", "a card")},
        {"cache_type": "q8_0"},
        {"flash_attention": "off"},
    ],
    ids=lambda other: " ".join(other),
)
def test_a_speed_is_of_one_processor_or_gpu_its_limits_path_engine_and_model(other: dict[str, Any]) -> None:
    assert key() == key()
    assert key(**other) != key()


def test_speeds_of_another_cache_type_are_other_ones_and_those_of_f16_stay_known() -> None:
    """The key of f16 is as before there were others."""
    keys = {kind: key(cache_type=kind) for kind in CACHE_TYPES}
    assert keys["f16"] == "87ad68989f07a75849281ec2"
    assert len(set(keys.values())) == 3
