"""Which speeds count as one."""

from dataclasses import replace
from random import Random

import pytest

from orchestrator.plan.noise import (
    LEAST_NOISE,
    MOST_NOISE,
    decode_bytes_per_s,
    decode_groups,
    even_speeds,
    prefill_bytes_per_s,
)
from tests.orchestrator.plan.examples import GIB, make_device, make_speed


def groups(*speeds: tuple[float, float]) -> list[list[float]]:
    """The groups of devices with these GiB/s and spreads, as GiB/s."""
    devices = [
        make_device(f"d{k}/cpu", 900, gib_per_s=speed, spread=spread) for k, (speed, spread) in enumerate(speeds)
    ]
    return [[decode_bytes_per_s(one.speed) / GIB for one in group] for group in decode_groups(devices)]


@pytest.mark.parametrize(
    ("speeds", "expected"),
    [
        pytest.param([], [], id="no devices"),
        pytest.param([(10, 0), (10.99, 0)], [[10.99, 10]], id="10 % is noise whatever the spread"),
        pytest.param([(10, 0), (11.01, 0)], [[11.01], [10]], id="more is not"),
        pytest.param([(10, 0.3), (12.9, 0)], [[12.9, 10]], id="the spread of the slower"),
        pytest.param([(10, 0), (12.9, 0.3)], [[12.9, 10]], id="the spread of the faster"),
        pytest.param([(10, 5), (15.1, 5)], [[15.1], [10]], id="never more than 50 %"),
        pytest.param([(9, 0.5), (10, 0), (12, 0)], [[12], [10, 9]], id="a wide spread does not pass a faster device"),
        pytest.param(
            [(1.09**k, 0) for k in range(8)],
            [[1.09**7, 1.09**6], [1.09**5, 1.09**4], [1.09**3, 1.09**2], [1.09, 1.0]],
            id="a chain of steps is not one group",
        ),
    ],
)
def test_groups(speeds: list[tuple[float, float]], expected: list[list[float]]) -> None:
    assert groups(*speeds) == [pytest.approx(group) for group in expected]


def test_decode_and_prefill_speeds_are_grouped_by_themselves() -> None:
    slow, fast = make_speed(10), make_speed(10.5)
    assert even_speeds({"a": slow, "b": fast}) == {"a": fast, "b": fast}
    reader = make_speed(10, prefill=3)
    even = even_speeds({"a": reader, "b": fast})
    assert even["a"].passes == (*fast.passes[:2], *reader.passes[2:])
    assert even["b"] == fast


def test_each_kind_of_pass_is_grouped_by_its_own_spread() -> None:
    """Prompts that were disturbed do not make two decoding speeds one, nor the other way round."""
    slow, fast = make_speed(10), make_speed(12)
    disturbed = tuple(replace(one, spread=0.3) if one.tokens >= 64 else one for one in slow.passes)
    even = even_speeds({"a": replace(slow, passes=disturbed), "b": fast})
    assert even["a"].passes == (*slow.passes[:2], *fast.passes[2:])
    calm = tuple(replace(one, spread=0.3) if one.tokens < 64 else one for one in slow.passes)
    even = even_speeds({"a": replace(slow, passes=calm), "b": fast})
    assert even["a"].passes == (*fast.passes[:2], *slow.passes[2:])


def test_even_speeds_are_bounded_keep_the_order_of_speeds_and_do_not_depend_on_that_of_devices() -> None:
    for seed in range(100):
        random = Random(seed)
        speeds = {
            f"d{k:02}": make_speed(random.uniform(1, 4), spread=random.uniform(0, 1), prefill=random.uniform(1, 2))
            for k in range(random.randint(0, 12))
        }
        even = even_speeds(speeds)
        assert even_speeds(dict(reversed(speeds.items()))) == even
        limit = min(MOST_NOISE, max([LEAST_NOISE, *(one.spread for speed in speeds.values() for one in speed.passes)]))
        for rate in (decode_bytes_per_s, prefill_bytes_per_s):
            fastest_first = sorted(speeds, key=lambda name: -rate(speeds[name]))
            rates = [rate(even[name]) for name in fastest_first]
            assert rates == sorted(rates, reverse=True)
            for name, taken in zip(fastest_first, rates, strict=True):
                assert rate(speeds[name]) <= taken <= rate(speeds[name]) * (1 + limit) * (1 + 1e-9)
