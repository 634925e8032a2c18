"""Which speeds count as one."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.plan.noise import LEAST_NOISE, MOST_NOISE, Rates, decode_groups, even_rates
from orchestrator.survey.values import Device
from tests.orchestrator.plan.examples import GIB, make_device


def groups(*speeds: tuple[float, float]) -> list[list[float]]:
    """The groups of devices with these GiB/s and spreads, as GiB/s."""
    devices = [
        make_device(f"d{k}/cpu", 900, gib_per_s=speed, spread=spread) for k, (speed, spread) in enumerate(speeds)
    ]
    return [[one.speed.decode_bytes_per_s / GIB for one in group] for group in decode_groups(devices)]


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
    one, other = make_device("a/cpu", 900, gib_per_s=10), make_device("b/cpu", 900, gib_per_s=10.5)
    reader = replace(one, speed=replace(one.speed, prefill_bytes_per_s=300.0 * GIB))
    assert even_rates([one, other]) == {"a/cpu": Rates(10.5 * GIB, 105 * GIB), "b/cpu": Rates(10.5 * GIB, 105 * GIB)}
    assert even_rates([reader, other]) == {
        "a/cpu": Rates(10.5 * GIB, 300 * GIB),
        "b/cpu": Rates(10.5 * GIB, 105 * GIB),
    }


devices = st.lists(st.tuples(st.floats(1, 4), st.floats(0, 1)), max_size=12).map(
    lambda speeds: [make_device(f"d{k:02}/cpu", 900, gib_per_s=one, spread=two) for k, (one, two) in enumerate(speeds)]
)


@settings(deadline=None, derandomize=True)
@given(devices)
def test_even_rates_are_bounded_keep_the_order_of_speeds_and_do_not_depend_on_that_of_devices(
    found: list[Device],
) -> None:
    rates = even_rates(found)
    assert even_rates(found[::-1]) == rates
    fastest_first = sorted(found, key=lambda one: -one.speed.decode_bytes_per_s)
    even = [rates[one.name].decode_bytes_per_s for one in fastest_first]
    assert even == sorted(even, reverse=True)
    limit = min(MOST_NOISE, max([LEAST_NOISE, *(one.speed.spread for one in found)]))
    for device in found:
        own, taken = device.speed.decode_bytes_per_s, rates[device.name].decode_bytes_per_s
        assert own <= taken <= own * (1 + limit) * (1 + 1e-9)
