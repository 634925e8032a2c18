"""Which measured speeds count as one speed when layers are placed: those that differ by no more than noise.

Two equal machines never measure quite the same. Taken at its word, a difference of 3 % would fill one of them and
leave the other almost empty. Pure, and for the choice only: what a plan predicts comes from each device's own speed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter

from orchestrator.survey.values import Device, Speed

LEAST_NOISE = 0.10
"""Speeds that differ by less than this part are one speed, however close together the repetitions were."""

MOST_NOISE = 0.50
"""Speeds that differ by more than this part are two, however far apart the repetitions were."""


@dataclass(frozen=True)
class Rates:
    """The speeds that a device is taken to have when layers are placed; bytes of weights per second."""

    decode_bytes_per_s: float
    prefill_bytes_per_s: float


def even_rates(devices: Sequence[Device]) -> dict[str, Rates]:
    """By device name: the decode and the prefill speed of the fastest device of its group.

    No rate is below the device's own, nor above it by more than the noise: so a choice made with these rates costs at
    most the noise more than one made with the measured ones.
    """
    decode = _fastest_rates(devices, attrgetter("decode_bytes_per_s"))
    prefill = _fastest_rates(devices, attrgetter("prefill_bytes_per_s"))
    return {name: Rates(decode[name], prefill[name]) for name in decode}


def decode_groups(devices: Sequence[Device]) -> tuple[tuple[Device, ...], ...]:
    """The devices of one decode speed each, fastest first; the order of `devices` plays no part."""
    return _groups(devices, attrgetter("decode_bytes_per_s"))


def noise(one: Speed, other: Speed) -> float:
    """By what part these two may differ and still be one: the larger spread of the two, within the limits above."""
    return min(MOST_NOISE, max(LEAST_NOISE, one.spread, other.spread))


def difference(fast: float, slow: float) -> float:
    """By what part `fast` is above `slow`, which is positive."""
    return fast / slow - 1


def _fastest_rates(devices: Sequence[Device], rate: Callable[[Speed], float]) -> dict[str, float]:
    return {device.name: rate(group[0].speed) for group in _groups(devices, rate) for device in group}


def _groups(devices: Sequence[Device], rate: Callable[[Speed], float]) -> tuple[tuple[Device, ...], ...]:
    """Cut the devices, fastest first, wherever one differs from the fastest of its group by more than noise.

    Compared with the fastest and not with the neighbour, a chain of small steps does not become one group. Cut and not
    picked, a device of wide spread does not pass a faster one that is outside the group.
    """
    groups: list[list[Device]] = []
    for device in sorted(devices, key=lambda one: (-rate(one.speed), one.name)):
        fastest = groups[-1][0].speed if groups else None
        if fastest and difference(rate(fastest), rate(device.speed)) <= noise(fastest, device.speed):
            groups[-1].append(device)
        else:
            groups.append([device])
    return tuple(tuple(group) for group in groups)
