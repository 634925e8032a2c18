"""What people read for bytes, rates and durations."""

import pytest

from orchestrator.view.sizes import (
    age_text,
    bytes_text,
    duration_text,
    milliseconds_text,
    of_text,
    parts_text,
    rate_text,
    tokens_text,
)

MIB = 1024**2
GIB = 1024**3


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (812, "812 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (16 * 1024, "16.0 KiB"),
        (512 * MIB, "512 MiB"),
        (1024 * MIB - 1, "1.0 GiB"),
        (int(41.2 * GIB), "41.2 GiB"),
        (3000 * 1024 * GIB, "3000 TiB"),
    ],
)
def test_bytes_show_three_figures_in_powers_of_1024(size_bytes: int, text: str) -> None:
    assert bytes_text(size_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 s"),
        (0.000_000_4, "0.4 µs"),
        (0.000_057, "57 µs"),
        (0.001_234, "1.23 ms"),
        (0.0123, "12.3 ms"),
        (0.4567, "457 ms"),
        (0.9999, "1.0 s"),
        (3.21, "3.2 s"),
        (59.99, "1 min 0 s"),
        (125.4, "2 min 5 s"),
        (3900.0, "1 h 5 min"),
    ],
)
def test_durations_choose_their_unit(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def test_parts_share_the_unit_of_their_sum() -> None:
    assert parts_text({"a": 12 * GIB, "b": 24 * GIB}) == "36.0 GiB (a 12.0, b 24.0)"
    assert parts_text({"a": 300 * MIB, "b": 100 * MIB}) == "400 MiB (a 300, b 100)"


def test_rates_and_speeds_carry_their_units() -> None:
    assert rate_text(117 * MIB) == "117 MiB/s"
    assert [tokens_text(speed) for speed in (0.5, 8.754, 53.49, 1200.4)] == [
        "0.50 tok/s",
        "8.75 tok/s",
        "53.5 tok/s",
        "1200 tok/s",
    ]


def test_milliseconds_show_three_figures() -> None:
    assert [milliseconds_text(value) for value in (0.000_06, 0.001_23, 0.0123, 0.123)] == [
        "0.06",
        "1.23",
        "12.3",
        "123",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0 s"), (59.9, "59 s"), (60, "1 min 0 s"), (3725, "1 h 2 min"), (3 * 86400 + 4 * 3600 + 59, "3 d 4 h")],
)
def test_ages_are_whole_and_have_two_units(seconds: float, text: str) -> None:
    assert age_text(seconds) == text


def test_a_part_is_shown_in_the_unit_of_the_whole() -> None:
    assert of_text(95.7 * MIB, 160 * MIB) == "95.7/160 MiB"
    assert of_text(512 * MIB, 24 * GIB) == "0.5/24.0 GiB"
