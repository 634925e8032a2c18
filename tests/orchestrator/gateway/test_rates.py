"""Tokens per second just now."""

import pytest

from orchestrator.gateway.rates import TokenRate


def test_a_steady_stream_shows_its_speed_from_the_beginning_to_the_end_of_the_window() -> None:
    rate = TokenRate()
    assert rate.per_s(100.0) == 0.0
    for tenth in range(300):
        rate.add(2, 100 + tenth / 10)
        if tenth >= 10:
            assert rate.per_s(100 + tenth / 10) == pytest.approx(20, rel=0.15)


def test_what_lies_behind_fades_and_is_forgotten() -> None:
    rate = TokenRate()
    rate.add(40, 100.0)
    assert rate.per_s(100.0) == 40
    assert rate.per_s(104.0) == 10
    assert rate.per_s(110.0) == 0.0


def test_a_whole_answer_is_spread_over_the_time_that_it_took() -> None:
    long, short = TokenRate(), TokenRate()
    long.add(600, 160.0, over_s=60.0)
    assert long.per_s(160.0) == pytest.approx(10, rel=0.15)
    short.add(10, 102.0, over_s=2.0)
    assert short.per_s(102.0) == pytest.approx(5)
