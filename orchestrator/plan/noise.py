"""Which measured speeds count as one speed when layers are placed: those that differ by no more than noise.

Two equal machines never measure quite the same. Taken at its word, a difference of 3 % would fill one of them and
leave the other almost empty. Pure, and for the choice only: what a plan predicts comes from each device's own speed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from orchestrator.survey.values import Device, PassTime, Speed

LEAST_NOISE = 0.10
"""Speeds that differ by less than this part are one speed, however close together the repetitions were."""

MOST_NOISE = 0.50
"""Speeds that differ by more than this part are two, however far apart the repetitions were."""

ORDER_NOISE = 0.01
"""Plans whose predictions differ by less than this part are as fast as each other."""

PREFILL_TOKENS = 64
"""Passes of this many tokens and more are prefill (`Speed`)."""

PassOf = Callable[[Speed], PassTime]


def decode_bytes_per_s(speed: Speed) -> float:
    """Bytes of weights per second when one token passes the deepest slice that was timed."""
    return _bytes_per_s(_decode(speed))


def prefill_bytes_per_s(speed: Speed) -> float:
    """Bytes of weights times tokens per second in the longest pass through the deepest slice that was timed."""
    return _bytes_per_s(_prefill(speed))


def even_speeds(speeds: Mapping[str, Speed]) -> dict[str, Speed]:
    """By name: decode passes and output layer of the fastest of its decode group, prefill passes likewise.

    At the slices that were timed no one gets slower by it, nor faster by more than the noise: so a choice made with
    these speeds costs at most about the noise more than one made with the measured ones.
    """
    decode, prefill = _fastest(speeds, _decode), _fastest(speeds, _prefill)
    return {name: _joined(decode[name], prefill[name]) for name in speeds}


def decode_groups(devices: Sequence[Device]) -> tuple[tuple[Device, ...], ...]:
    """The devices of one decode speed each, fastest first; the order of `devices` plays no part."""
    by_name = {device.name: device for device in devices}
    groups = _groups({device.name: device.speed for device in devices}, _decode)
    return tuple(tuple(by_name[name] for name in group) for group in groups)


def noise(one: PassTime, other: PassTime) -> float:
    """By what part these two may differ and still be one: the larger spread of the two, within the limits above."""
    return min(MOST_NOISE, max(LEAST_NOISE, one.spread, other.spread))


def difference(fast: float, slow: float) -> float:
    """By what part `fast` is above `slow`, which is positive."""
    return fast / slow - 1


def _decode(speed: Speed) -> PassTime:
    return speed.passes[0]


def _prefill(speed: Speed) -> PassTime:
    return speed.passes[-1]


def _bytes_per_s(one: PassTime) -> float:
    return one.layers_bytes[-1] * one.tokens / one.layers_s[-1]


def _joined(decode: Speed, prefill: Speed) -> Speed:
    passes = [one for one in decode.passes if one.tokens < PREFILL_TOKENS]
    passes += [one for one in prefill.passes if one.tokens >= PREFILL_TOKENS]
    return replace(decode, passes=tuple(passes), context_s=prefill.context_s)


def _fastest(speeds: Mapping[str, Speed], pass_of: PassOf) -> dict[str, Speed]:
    return {name: speeds[group[0]] for group in _groups(speeds, pass_of) for name in group}


def _groups(speeds: Mapping[str, Speed], pass_of: PassOf) -> list[list[str]]:
    """Cut the names, fastest first, wherever one differs from the fastest of its group by more than noise.

    Compared with the fastest and not with the neighbour, a chain of small steps does not become one group. Cut and not
    picked, a device of wide spread does not pass a faster one that is outside the group.
    """
    passes = {name: pass_of(speed) for name, speed in speeds.items()}
    rates = {name: _bytes_per_s(one) for name, one in passes.items()}
    groups: list[list[str]] = []
    for name in sorted(passes, key=lambda one: (-rates[one], one)):
        fastest = groups[-1][0] if groups else name
        if groups and difference(rates[fastest], rates[name]) <= noise(passes[fastest], passes[name]):
            groups[-1].append(name)
        else:
            groups.append([name])
    return groups
