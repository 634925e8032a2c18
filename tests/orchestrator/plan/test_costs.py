"""The formulas, with round numbers."""

import pytest

from orchestrator.plan.costs import (
    ShareBytes,
    decode_s,
    head_share_bytes,
    margin_bytes,
    needed_bytes,
    prefill_bytes,
    prefill_s,
    share_bytes,
    stage_s,
)
from orchestrator.survey.values import Link
from tests.orchestrator.plan.examples import GIB, make_device, make_memory
from workers.budget import MIB

LINK = Link("tunnel", round_trip_s=0.001, up_bytes_per_s=8192_000, down_bytes_per_s=4096_000)
DEVICE = make_device("a/cpu", 1000, gib_per_s=1.0, fixed_s=0.0005, link=LINK)
MEMORY = make_memory(10, logits_bytes=409_600)


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


def test_a_stage_costs_its_fixed_time_a_round_trip_and_the_hidden_state_both_ways() -> None:
    assert stage_s(MEMORY, DEVICE, output=False) == pytest.approx(0.0005 + 0.001 + 0.001 + 0.002)


def test_the_last_stage_sends_logits_down_instead_of_the_hidden_state() -> None:
    assert stage_s(MEMORY, DEVICE, output=True) == pytest.approx(0.0005 + 0.001 + 0.001 + 0.1)


def test_decoding_adds_weights_over_speed() -> None:
    assert decode_s(MEMORY, DEVICE, 0, 5, output=False) == pytest.approx(500 * MIB / GIB + 0.0045)


def test_the_last_block_counts_three_tenths_when_a_prompt_is_read() -> None:
    assert prefill_bytes(MEMORY, 0, 5) == 500 * MIB
    assert prefill_bytes(MEMORY, 5, 5) == pytest.approx(430 * MIB)
    assert prefill_bytes(MEMORY, 10, 0) == 0


def test_prefill_divides_the_round_trip_by_the_micro_batch() -> None:
    expected = 500 * MIB / (10 * GIB) + 0.001 + 0.002 + (0.0005 + 0.001) / 512
    assert prefill_s(MEMORY, DEVICE, 0, 5) == pytest.approx(expected)
