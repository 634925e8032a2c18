"""Speeds from two depths of the calibration model."""

from pathlib import Path

import pytest

from orchestrator.survey.speeds import CalibrationModel, keep_speed, kept_speed, speed_from
from orchestrator.survey.values import Link, Speed
from workers.bench_output import BenchRow

SHALLOW = CalibrationModel(Path("2.gguf"), 2, 200)
LINK = Link("tunnel", round_trip_s=0.001, up_bytes_per_s=1e8, down_bytes_per_s=1e8)
SECOND = 1_000_000_000


def decode(token_s: float, spread: float = 0.0) -> BenchRow:
    samples = (token_s * (1 - spread / 2), token_s, token_s * (1 + spread / 2))
    return BenchRow("", 0, 10, tuple(round(10 * sample * SECOND) for sample in samples))


def prefill(token_s: float) -> BenchRow:
    return BenchRow("", 64, 0, (round(64 * token_s * SECOND),))


def test_the_slope_is_the_layers_and_the_rest_is_the_stage_without_its_link() -> None:
    """0.1 ms per layer byte-hundred: 200 bytes take 20 ms of the shallow model's 26, 1 ms is the link, 5 are fixed."""
    speed = speed_from(prefill(0.010), decode(0.026, 0.1), prefill(0.030), decode(0.066), 400, SHALLOW, LINK)
    assert speed.decode_bytes_per_s == pytest.approx(400 / 0.040)
    assert speed.prefill_bytes_per_s == pytest.approx(400 / 0.020)
    assert speed.fixed_s == pytest.approx(0.005)
    assert speed.spread == pytest.approx(0.1)


def test_noise_that_turns_the_slope_over_gives_a_pessimistic_speed_never_a_negative_one() -> None:
    speed = speed_from(prefill(0.03), decode(0.07), prefill(0.02), decode(0.06), 400, SHALLOW, LINK)
    assert speed.decode_bytes_per_s == pytest.approx(400 / 0.06)
    assert speed.prefill_bytes_per_s == pytest.approx(400 / 0.02)
    assert speed.fixed_s >= 0


def test_a_kept_speed_comes_back_equal_and_a_damaged_one_counts_as_none(tmp_path: Path) -> None:
    speed = Speed(1e9, 2e9, 0.001, 0.05)
    assert kept_speed(tmp_path, "key") is None
    keep_speed(tmp_path, "key", speed)
    assert kept_speed(tmp_path, "key") == speed
    (tmp_path / "key.json").write_text("{")
    assert kept_speed(tmp_path, "key") is None
