"""A survey as it would be with other machines: without some of its hosts, with some that do not exist yet. Pure.

A hypothetical machine computes as one that was measured does, only faster or slower by a factor: a figure from a data
sheet says nothing about the model at hand, a scaled measurement of it does.
"""

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from orchestrator.errors import UsageError
from orchestrator.inventory_fields import host_name
from orchestrator.plan.costs import layers_seconds, output_seconds
from orchestrator.plan.tensor import formula_errors
from orchestrator.plan.values import ModelMemory
from orchestrator.sizes import parse_memory, shown
from orchestrator.survey.values import Device, FormulaOff, HostSurvey, Link, PassTime, Speed, Survey
from workers.budget import Budget
from workers.facts import HostFacts

T = TypeVar("T")

ADD_EXAMPLE = "new=16GiB,desktop*0.5,1Gbit/s@0.5ms"

LINKS = {
    "wifi": Link("tunnel", round_trip_s=0.004, up_bytes_per_s=25e6, down_bytes_per_s=25e6, medium="wireless"),
    "gigabit": Link("tunnel", round_trip_s=0.0005, up_bytes_per_s=117e6, down_bytes_per_s=117e6, medium="wired"),
    "10gigabit": Link("tunnel", round_trip_s=0.0003, up_bytes_per_s=500e6, down_bytes_per_s=500e6, medium="wired"),
}
"""Links by a word, to and from the host alike. "gigabit" is what TCP leaves of 1 Gbit/s (94 %); "wifi" is 200 Mbit/s in
the same room; "10gigabit" is held back by what one processor core enciphers for SSH. Assumed, not measured: the plan
that comes out is as good as they are."""

SPEED_FORM = "a speed is HOST*FACTOR, or the tokens per second at which this model decodes there (12t/s)"
LINK_FORM = f"a link is RATE@ROUND-TRIP, or one of {', '.join(LINKS)}"

_BYTES_PER_S = {"kbit/s": 1e3 / 8, "mbit/s": 1e6 / 8, "gbit/s": 1e9 / 8, "mb/s": 1e6, "gb/s": 1e9, "mib/s": 2.0**20}
_SECONDS = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0}
_NUMBER = r"([0-9]{1,9}(?:\.[0-9]{1,9})?)"
_LINK = re.compile(rf"{_NUMBER}\s*([A-Za-z]+/s)\s*@\s*{_NUMBER}\s*([a-zµ]+)")
_RATE = re.compile(rf"{_NUMBER}\s*(?:t|tok|tokens)/s")
_FACTOR = re.compile(rf"([^\s*]+?)(?:\s*\*\s*{_NUMBER})?")


@dataclass(frozen=True)
class Addition:
    """A machine that does not exist, as the user describes it.

    Its one device is as fast as `like` (a host or a device of the survey) times `factor`; or, where `like` is "", runs
    this very model natively at `decode_tokens_per_s`. `description` is what the user wrote of its speed.
    """

    name: str
    memory_bytes: int
    link: Link
    like: str
    factor: float
    decode_tokens_per_s: float
    description: str


def parse_addition(text: str) -> Addition:
    """`NAME=memory,speed,link`, such as "new=16GiB,desktop*0.5,1Gbit/s@0.5ms"; UsageError says which part is wrong."""
    name, _, described = text.partition("=")
    parts = [part.strip() for part in described.split(",")]
    if len(parts) != 3 or not name.strip():
        raise _refusal(text, "needs a name, a memory, a speed and a link")
    called = _part(text, "", host_name, name.strip())
    memory_bytes = _part(text, "", parse_memory, parts[0])
    like, factor, decode = _part(text, SPEED_FORM, _parse_speed, parts[1])
    return Addition(called, memory_bytes, _part(text, LINK_FORM, _parse_link, parts[2]), like, factor, decode, parts[1])


def what_if(survey: Survey, memory: ModelMemory, without: Collection[str], adds: Sequence[Addition]) -> Survey:
    """The survey without these hosts and with these machines; `memory` is the model that speeds in tokens are about.

    A machine may be added in the place of one that is taken away, and may be like it. Groups that were timed in mode
    `tensor`, or failed in it, remain where all of their devices do; of the others it remains how far the formula was
    off for them. UsageError: hosts that are not there, or names
    given twice.
    """
    hosts = {host.name: host for host in survey.hosts}
    check_names(hosts, without, adds)
    kept = tuple(host for host in survey.hosts if host.name not in without)
    added = tuple(_added_host(survey, memory, one) for one in adds)
    there = {device.name for host in kept for device in host.devices}
    tensor = tuple(timed for timed in survey.tensor if there.issuperset(timed.devices))
    gone = tuple(timed for timed in survey.tensor if timed not in tensor)
    off = tuple(
        FormulaOff(devices, *by)
        for devices, its in formula_errors(replace(survey, tensor=gone), (memory,)).items()
        for by in its
    )
    failed = tuple(devices for devices in survey.tensor_failed if there.issuperset(devices))
    return replace(survey, hosts=(*kept, *added), tensor=tensor, tensor_failed=failed, formula_off=off)


def check_names(hosts: Collection[str], without: Collection[str], adds: Sequence[Addition]) -> None:
    """UsageError unless hosts taken away exist, those added do not, and those that speeds refer to do."""
    there = ", ".join(hosts) or "none at all"
    for name in without:
        if name not in hosts:
            raise UsageError(f"--without {name}: no such host", hint=f"name one of {there}")
    names = [name for name in hosts if name not in without]
    if not names and not adds:
        raise UsageError("--without leaves no host at all", hint=f"keep one of {there}, or --add one")
    for one in adds:
        if one.name in names:
            real = one.name in hosts
            raise UsageError(
                f"--add {one.name}: this host is {'there already' if real else 'added twice'}",
                hint=f"choose another name{f', or take the real one away: --without {one.name}' if real else ''}",
            )
        names.append(one.name)
        if one.like and one.like.split("/")[0] not in hosts:
            raise UsageError(
                f"--add {one.name}: its speed is that of {one.like}, and there is no such host",
                hint=f"name one of {there}, or say how fast it decodes this model, such as 12t/s",
            )


def _refusal(text: str, problem: str, form: str = "") -> UsageError:
    whole = f"write NAME=memory,speed,link, such as {ADD_EXAMPLE}"
    return UsageError(f"--add {shown(text, 80)}: {problem}", hint=f"{form}; {whole}" if form else whole)


def _part(text: str, form: str, parse: Callable[[str], T], part: str) -> T:
    """What this part of an addition says; UsageError with the form that it should have."""
    try:
        return parse(part)
    except ValueError as error:
        raise _refusal(text, str(error).replace("; ", ": "), form) from error


def _parse_speed(text: str) -> tuple[str, float, float]:
    """Like which device, times what; or nothing, 0 and the tokens per second."""
    if rate := _RATE.fullmatch(text):
        return "", 0.0, _above_zero(text, float(rate[1]))
    factor = _FACTOR.fullmatch(text)
    if factor is None or (factor[1][0].isdigit() and factor[2] is None):
        raise ValueError(f"{shown(text)} is not a speed")
    return factor[1], _above_zero(text, float(factor[2] or 1)), 0.0


def _parse_link(text: str) -> Link:
    if text.lower() in LINKS:
        return LINKS[text.lower()]
    match = _LINK.fullmatch(text)
    if match is None or match[2].lower() not in _BYTES_PER_S or match[4] not in _SECONDS:
        raise ValueError(f"{shown(text)} is not a link")
    bytes_per_s = _above_zero(text, float(match[1])) * _BYTES_PER_S[match[2].lower()]
    return Link("tunnel", float(match[3]) * _SECONDS[match[4]], bytes_per_s, bytes_per_s)


def _above_zero(text: str, value: float) -> float:
    if value <= 0:
        raise ValueError(f"{shown(text)} is not more than 0")
    return value


def _added_host(survey: Survey, memory: ModelMemory, one: Addition) -> HostSurvey:
    like = _device_like(survey, one) if one.like else _fastest(survey, memory, one)
    factor = one.factor if one.like else one.decode_tokens_per_s * _native_token_s(like, memory)
    native = like.native if like.native.measured else like.speed
    kind = like.name.split("/")[1]
    device = replace(
        like,
        name=f"{one.name}/{kind}",
        host=one.name,
        description=f"hypothetical: {one.description}",
        budget=Budget(free_bytes=one.memory_bytes, capped_bytes=one.memory_bytes, reserve_bytes=0),
        link=one.link,
        speed=_faster(like.speed, factor),
        native=_faster(native, factor),
    )
    return HostSurvey(one.name, False, _facts(survey, like, one), (device,))


def _facts(survey: Survey, like: Device, one: Addition) -> HostFacts:
    """Those of the host it is like; the memory is its own, and never less than its device may use."""
    facts = next(host.facts for host in survey.hosts if host.name == like.host)
    return replace(
        facts,
        hostname=one.name,
        memory_available_bytes=one.memory_bytes,
        memory_total_bytes=one.memory_bytes,
        memory_limited_by="",
        boot="",
    )


def _device_like(survey: Survey, one: Addition) -> Device:
    name = one.like if "/" in one.like else f"{one.like}/cpu"
    for device in survey.devices:
        if device.name == name and device.speed.measured:
            return device
    measured = ", ".join(device.name for device in survey.devices if device.speed.measured)
    raise UsageError(
        f"--add {one.name}: its speed is that of {name}, which was not measured",
        hint=f"name one that was: {measured or 'there is none'}",
    )


def _fastest(survey: Survey, memory: ModelMemory, one: Addition) -> Device:
    measured = [device for device in survey.devices if device.speed.measured]
    if not measured:
        raise UsageError(
            f"--add {one.name}: no device of the survey has a measured speed to scale",
            hint="run `meshctl survey` to see why none could be measured",
        )
    return min(measured, key=lambda device: (_native_token_s(device, memory), device.name))


def _native_token_s(device: Device, memory: ModelMemory) -> float:
    """Seconds per token of the whole model on this device alone; through RPC where natively was not measured."""
    speed = device.native if device.native.measured else device.speed
    layers_s = layers_seconds(speed, sum(memory.layer_weights_bytes), 1)
    return layers_s + output_seconds(speed, memory.output_bytes)


def _faster(speed: Speed, factor: float) -> Speed:
    """Every time of this speed divided by the factor."""
    return replace(
        speed,
        passes=tuple(_faster_pass(one, factor) for one in speed.passes),
        output_s=speed.output_s / factor,
        context_s=speed.context_s / factor,
    )


def _faster_pass(one: PassTime, factor: float) -> PassTime:
    return replace(one, fixed_s=one.fixed_s / factor, layers_s=tuple(seconds / factor for seconds in one.layers_s))
