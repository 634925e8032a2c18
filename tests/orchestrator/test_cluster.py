"""What bringing a plan up works out before it does anything."""

import pytest

from orchestrator.cluster import load_deadline_s
from orchestrator.survey.values import Link

GB = 10**9


@pytest.mark.parametrize(
    ("weights_bytes", "up_bytes_per_s", "deadline_s"),
    [
        pytest.param(40 * GB, [2.0 * GB], 120 + 2000, id="a fast link, so the head's disk counts"),
        pytest.param(40 * GB, [2.0 * GB, 10_000_000.0], 120 + 16000, id="the slowest of the links"),
        pytest.param(40 * GB, [], 120 + 2000, id="no link"),
    ],
)
def test_a_model_gets_the_time_that_its_weights_need(
    weights_bytes: int, up_bytes_per_s: list[float], deadline_s: float
) -> None:
    links = [Link("tunnel", 0.001, up, up) for up in up_bytes_per_s]
    assert load_deadline_s(weights_bytes, links) == pytest.approx(deadline_s)
