"""The formulas, with round numbers."""

from dataclasses import replace

import numpy as np
import pytest

from orchestrator.plan.costs import (
    ShareBytes,
    context_seconds,
    head_share_bytes,
    layers_s,
    layers_seconds,
    margin_bytes,
    needed_bytes,
    output_seconds,
    pipeline_s,
    prefill_bytes,
    prefill_stage_s,
    share_bytes,
    stage_link_s,
    stage_s,
)
from orchestrator.survey.values import Link, PassTime, Speed
from tests.orchestrator.plan.examples import GIB, make_device, make_memory
from workers.budget import MIB

LINK = Link("tunnel", round_trip_s=0.001, up_bytes_per_s=8192_000, down_bytes_per_s=4096_000)
DEVICE = make_device("a/cpu", 1000, gib_per_s=1.0, fixed_s=0.0005, link=LINK)
MEMORY = make_memory(10, logits_bytes=409_600)
CURVE = Speed((PassTime(1, 1.0, (2, 4), (2.0, 6.0)), PassTime(5, 5.0, (2, 4), (6.0, 10.0))))


def test_a_prompt_takes_longer_for_the_context_before_its_micro_batches() -> None:
    """1,024 tokens by 64 have 480 before a micro-batch on the average.

    By 1,024, of which only 512 were timed, it is 256: of the tokens in a pass 512 come before one on the average, and
    256 of these were in the timed pass.
    """
    speed = replace(DEVICE.speed, context_s=1e-9)
    assert context_seconds(speed, 5, 64, MEMORY) == pytest.approx(1e-9 * 5 * 64 * 480)
    assert context_seconds(speed, 5, 512, replace(MEMORY, micro_batch=512)) == pytest.approx(1e-9 * 5 * 512 * 256)
    assert context_seconds(speed, 5, 1024, replace(MEMORY, micro_batch=1024)) == pytest.approx(1e-9 * 5 * 1024 * 256)
    short = replace(MEMORY, micro_batch=512, context=300)
    assert context_seconds(speed, 5, 300, short) == 0.0


def test_a_share_counts_weights_kv_and_the_buffers_of_its_place() -> None:
    assert share_bytes(MEMORY, 2, 3, output=False) == ShareBytes(300 * MIB, 30 * MIB, 40 * MIB)
    assert share_bytes(MEMORY, 7, 3, output=True) == ShareBytes(400 * MIB, 30 * MIB, 60 * MIB)


def test_the_head_holds_the_input_and_the_output_layer_only_when_asked() -> None:
    assert head_share_bytes(MEMORY, output=False) == ShareBytes(50 * MIB, 0, 20 * MIB)
    assert head_share_bytes(MEMORY, output=True) == ShareBytes(150 * MIB, 0, 20 * MIB)


@pytest.mark.parametrize(
    ("predicted", "margin"),
    [(0, 16 * MIB), (400 * MIB, 16 * MIB), (500 * MIB, 20 * MIB), (400 * MIB + 1, 16 * MIB + 1)],
)
def test_the_margin_is_16_mib_or_4_percent_rounded_up(predicted: int, margin: int) -> None:
    assert margin_bytes(predicted) == margin
    assert needed_bytes(predicted) == predicted + margin


def test_layers_are_linear_between_the_slices_and_go_on_with_the_last_slope() -> None:
    assert layers_s(CURVE, np.array([0, 1, 2, 3, 4, 6]), 1) == pytest.approx([0.0, 1.5, 2.0, 4.0, 6.0, 10.0])


def test_one_value_is_as_an_array_of_it() -> None:
    for tokens in (1, 3, 5, 10):
        array = layers_s(CURVE, np.arange(8), tokens)
        assert [layers_seconds(CURVE, size, tokens) for size in range(8)] == pytest.approx(array)


def test_passes_between_those_timed_are_linear_in_the_tokens_and_longer_ones_in_proportion() -> None:
    assert [layers_seconds(CURVE, 2, tokens) for tokens in (1, 3, 5, 10)] == pytest.approx([2.0, 4.0, 6.0, 12.0])


def test_the_output_layer_is_scaled_by_its_bytes_and_by_what_more_rows_cost_the_layers() -> None:
    assert output_seconds(DEVICE.speed, GIB // 4) == pytest.approx(0.25)
    assert output_seconds(make_device("a/cpu", 1, gib_per_s=1.0).speed, GIB, 8) == pytest.approx(2.0)


def test_a_link_costs_a_round_trip_and_the_hidden_states_both_ways_or_the_logits_down() -> None:
    assert stage_link_s(MEMORY, DEVICE, 1) == pytest.approx(0.001 + 0.001 + 0.002)
    assert stage_link_s(MEMORY, DEVICE, 4, output_rows=4) == pytest.approx(0.001 + 4 * (0.001 + 0.1))


def test_a_stage_costs_its_fixed_time_its_weights_and_its_link() -> None:
    assert stage_s(MEMORY, DEVICE, 0, 5, output=False) == pytest.approx(0.0005 + 500 * MIB / GIB + 0.004)
    output_s = 100 * MIB / GIB + 0.1 - 0.002
    assert stage_s(MEMORY, DEVICE, 0, 5, output=True) == pytest.approx(0.0005 + 500 * MIB / GIB + 0.004 + output_s)


def test_the_last_block_counts_three_tenths_when_a_prompt_is_read() -> None:
    assert prefill_bytes(MEMORY, 0, 5) == 500 * MIB
    assert prefill_bytes(MEMORY, 5, 5) == pytest.approx(430 * MIB)
    assert prefill_bytes(MEMORY, 10, 0) == 0


def test_a_prompt_stage_sends_its_hidden_states_both_ways_but_the_last_one_row_only() -> None:
    """The engine goes on with the rows alone whose logits are wanted: hidden states, or logits, of one come back."""
    inner_s = 0.0005 + 6.4 * 500 * MIB / GIB
    assert prefill_stage_s(MEMORY, DEVICE, 0, 5, 64, output=False) == pytest.approx(inner_s + 0.001 + 64 * 0.003)
    read_s = 0.0005 + 6.4 * 430 * MIB / GIB
    assert prefill_stage_s(MEMORY, DEVICE, 5, 5, 64, output=False) == pytest.approx(read_s + 0.001 + 64 * 0.001 + 0.002)
    assert prefill_stage_s(MEMORY, DEVICE, 5, 5, 64, output=True) == pytest.approx(read_s + 0.001 + 64 * 0.001 + 0.1)


def test_with_overlap_every_further_micro_batch_costs_the_slowest_stage_only() -> None:
    assert pipeline_s((1.0, 3.0), 256, 64, overlap=True) == pytest.approx(4.0 + 3 * 3.0)
    assert pipeline_s((1.0, 3.0), 256, 64, overlap=False) == pytest.approx(4 * 4.0)
    assert pipeline_s((1.0, 3.0), 32, 64, overlap=True) == pytest.approx(2.0)
