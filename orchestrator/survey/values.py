"""A survey: what was measured on every host, frozen, and its JSON form (`meshctl survey --json`, `plan --survey`)."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from types import MappingProxyType

from pydantic import TypeAdapter, ValidationError

from orchestrator.errors import UsageError
from orchestrator.view.sizes import bytes_text
from workers.budget import Budget, MemoryCap, budget, reserve_of
from workers.devices import KINDS
from workers.engine_commands import CacheType, FlashAttention
from workers.facts import HostFacts

LONG_PROMPT = 256
"""Tokens of the longest pass that every device is timed with."""


@dataclass(frozen=True)
class Link:
    """The way from the head to a device, measured through the very kind of link that carries the tensors.

    `round_trip_s`: 16 KiB there and back, median, in seconds. `up_bytes_per_s` / `down_bytes_per_s`: bulk, towards
    and from the host. `kind` is "loopback", "tunnel" or "direct". `medium` is "wired" or "wireless" where the host
    tells through which interface it is reached, else "".
    """

    kind: str
    round_trip_s: float
    up_bytes_per_s: float
    down_bytes_per_s: float
    medium: str = ""


@dataclass(frozen=True)
class PassTime:
    """How long one pass of `tokens` tokens takes in the layers of a device; output layer and link are not in it.

    `layers_s[i]` is the time of layers whose weights are `layers_bytes[i]` (ascending), `fixed_s` that of no layer at
    all (the cost of one more stage). Between them time is linear in the bytes; beyond the last, its slope goes on.
    `spread` is (slowest - fastest) / median of the repetitions, of the slice with the larger one: what is worked out
    from this pass, the fixed cost and the output layer too, is no better known than that.
    """

    tokens: int
    fixed_s: float
    layers_bytes: tuple[int, ...]
    layers_s: tuple[float, ...]
    spread: float = 0.0


@dataclass(frozen=True)
class KernelRate:
    """How fast a device computes with weights of these types on one path. `of`: the types of the layers and of the
    output layer, as `rate_name` has them.

    `weight_s[i]` is the time of a pass of `tokens[i]` tokens (ascending) per weight, all that is done beside
    multiplying included, the link's own time not. Good for comparing types with one another only.
    """

    of: str
    tokens: tuple[int, ...]
    weight_s: tuple[float, ...]


def rate_name(mixture: str, output_type: str) -> str:
    """What a `KernelRate` is of: layers of this mixture of types by its name, and an output layer of this type; "Q4_0"
    or "Q4_K+Q6_K-1f0a93bc, output Q8_0"."""
    return mixture if mixture == output_type else f"{mixture}, output {output_type}"


@dataclass(frozen=True)
class Speed:
    """How fast a device computes on one path, natively or through RPC, timed on slices of the model itself.

    `passes` by ascending number of tokens; the first has one token and is decoding, those of 64 and more are prefill,
    those between are decode steps of as many conversations at once. Empty: not measured. `output_s` is the output layer
    for one row of logits, whose weights are `output_bytes`. `source` says what was timed: "slice" of the model, the
    whole "model" (too small for its slices to leave the processor's cache), a slice with weights "made up" (where only
    the model's header is here) or a "synthetic" one of like shapes. `layers` are the depths of the two slices; empty
    where none were timed (what-ifs). `context_s`: what one token of a prompt takes longer in one layer for each token
    that stands before its pass, since attention reads them all. `rates`: what the same model would take with its
    weights in other types, where that was measured (`survey.rates`).
    """

    passes: tuple[PassTime, ...] = ()
    output_s: float = 0.0
    output_bytes: int = 0
    source: str = ""
    layers: tuple[int, ...] = ()
    context_s: float = 0.0
    rates: tuple[KernelRate, ...] = ()

    @property
    def measured(self) -> bool:
        return bool(self.passes)


NOT_MEASURED = Speed()

DEVICE_KINDS = ("cpu", *KINDS.values())
MOST_BYTES, MOST_S = 1e18, 1e9
"""More than any device has, and longer than any pass takes: beyond these nothing can be worked out."""

MAIN_MEMORY_KINDS = ("cpu", "metal")
"""Kinds of devices that always work in their machine's main memory."""


@dataclass(frozen=True)
class DeviceSpec:
    """What a worker is told of the device it serves: our name for it ("HOST/cpu"), the engine's, and for a CPU the
    threads. `environment`: variables without which the engine does not see the device."""

    name: str
    threads: int
    engine_name: str = "CPU"
    environment: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Device:
    """One thing that computes on a host: its CPU or one GPU. `name` is "HOST/cpu" or "HOST/cuda0".

    `speed` is as a worker, through RPC (its link taken off), `native` as a head on the host itself; the latter is
    measured where the whole model may fit, and on the controller. `note` says why a device was not measured.
    `engine_name` is what the engine calls it, `environment` what programs need to see it; `shares_memory`: a GPU
    without memory of its own.
    """

    name: str
    host: str
    kind: str  # one of `DEVICE_KINDS`
    description: str
    threads: int
    budget: Budget
    link: Link
    speed: Speed
    native: Speed = NOT_MEASURED
    note: str = ""
    engine_name: str = "CPU"
    environment: tuple[tuple[str, str], ...] = ()
    shares_memory: bool = False

    @property
    def spec(self) -> DeviceSpec:
        return DeviceSpec(self.name, self.threads, self.engine_name, self.environment)

    @property
    def in_main_memory(self) -> bool:
        return self.kind in MAIN_MEMORY_KINDS or self.shares_memory


@dataclass(frozen=True)
class TensorTime:
    """Layers cut across these very devices, timed on slices over the real links, which are therefore in it.

    `devices` in the order of `parts` (the integers of `--tensor-split`). The passes and `output_s` are those of the
    whole group.
    """

    devices: tuple[str, ...]
    parts: tuple[int, ...]
    passes: tuple[PassTime, ...]
    output_s: float


@dataclass(frozen=True)
class FormulaOff:
    """By what a group of so many devices in mode `tensor`, timed and no longer whole, was off its formula: a token, a
    step of all conversations and a prompt, timed, divided by those of the formula (`plan.tensor`)."""

    devices: int
    token: float
    step: float
    prefill: float


@dataclass(frozen=True)
class HostSurvey:
    """One host: its facts and devices. `local` is true when it is the controller itself."""

    name: str
    local: bool
    facts: HostFacts
    devices: tuple[Device, ...]


@dataclass(frozen=True)
class Survey:
    """Everything a plan is made from; `controller` are the facts of the machine where heads of splits run.

    `model` names what speeds were timed on, `shape` tells it by its tensors' names, types and shapes (`quant.slice`;
    "": not known), with keys and values kept as `cache_type` and `flash_attention` as it was asked for.
    `controller_speed` is the controller's CPU natively (the head computes there what is not placed on devices).
    `tensor` holds the groups timed in mode `tensor`; `tensor_refused` is the engine's reason when it cannot cut this
    model's layers at all, `tensor_failed` the sets of devices with which that failed when it was tried. `formula_off`:
    what is known by groups of hosts that are supposed to be gone (what-ifs).
    """

    cluster: str
    taken_at: str  # ISO 8601, UTC
    engine: str  # engine id
    controller: HostFacts
    hosts: tuple[HostSurvey, ...]
    model: str = ""
    controller_speed: Speed = NOT_MEASURED
    tensor: tuple[TensorTime, ...] = ()
    tensor_refused: str = ""
    tensor_failed: tuple[tuple[str, ...], ...] = ()
    formula_off: tuple[FormulaOff, ...] = ()
    shape: str = ""
    cache_type: CacheType = "f16"
    flash_attention: FlashAttention = "auto"

    @property
    def devices(self) -> tuple[Device, ...]:
        """All devices in the order of the inventory."""
        return tuple(device for host in self.hosts for device in host.devices)

    def with_devices(self, change: Callable[[Device], Device]) -> "Survey":
        """The same with every device changed."""
        hosts = tuple(replace(host, devices=tuple(map(change, host.devices))) for host in self.hosts)
        return replace(self, hosts=hosts)

    @property
    def made_up(self) -> bool:
        """Whether what was timed had weights at random, since only the model's header was here."""
        return any(device.speed.source == "made up" for device in self.devices)


def kept_as(cache_type: CacheType, flash_attention: FlashAttention) -> tuple[str, ...]:
    """A part of what measurements are kept under, which those with f16, and with whatever attention the devices have,
    do without: they have always been so."""
    kept = () if cache_type == "f16" else (f"cache {cache_type}",)
    return kept if flash_attention == "auto" else (*kept, f"flash attention {flash_attention}")


def doubts(
    survey: Survey,
    path: str,
    cache_types: Iterable[CacheType],
    flash_attention: FlashAttention,
    engine: str,
    *,
    hosts: Iterable[str] | None = None,
    parallel: int = 1,
    caps: Mapping[str, MemoryCap] = MappingProxyType({}),
) -> Iterator[str]:
    """What is to be said of planning from this saved survey, for these cache types and attention on this engine, hosts
    of these names (None: whichever) and so many conversations at once. `caps`: of a host's memory, as it is now."""
    measured = sorted(host.name for host in survey.hosts)
    if hosts is not None and (asked := sorted(hosts)) != measured:
        yield f"{path} was measured on {', '.join(measured)}: these are planned for, not {', '.join(asked)}"
    for device in survey.devices:
        cap = caps.get(device.host)
        reserve = reserve_of(in_main_memory=device.in_main_memory)
        now = None if cap is None else budget(cap, device.budget.free_bytes, reserve).usable_bytes
        if now is not None and now != device.budget.usable_bytes:
            there = bytes_text(device.budget.usable_bytes)
            would = f"by the inventory's `memory: {cap}` it would be {bytes_text(now)}"
            yield f"{path} has a budget of {there} for {device.name}, {would}: the file counts"
    timed = {one.tokens for device in survey.devices for one in device.speed.passes}
    if parallel > 1 and parallel not in timed:
        yield f"{path} was not measured with {parallel} conversations at once: their speed is worked out between others"
    others = [kind for kind in cache_types if kind != survey.cache_type]
    if others:
        yield (
            f"{path} was measured with keys and values as {survey.cache_type}, this is for {', '.join(others)}: "
            "prompts may be read at another speed"
        )
    if survey.flash_attention != flash_attention:
        yield (
            f"{path} was measured with flash attention {survey.flash_attention}, this is for {flash_attention}: "
            "prompts may be read at another speed"
        )
    if survey.engine != engine:
        yield f"{path} was measured with engine {survey.engine}, the one here is {engine}"


_SURVEY = TypeAdapter(Survey)


def survey_json(survey: Survey) -> str:
    """The survey as indented JSON; `read_survey` reads it back to an equal value."""
    return _SURVEY.dump_json(survey, indent=2).decode()


def read_survey(path: Path) -> Survey:
    """Read a saved survey; UsageError names the place of the first problem."""
    again = "a survey is written by `meshctl survey INVENTORY --json > FILE`"
    try:
        survey = _SURVEY.validate_json(path.read_bytes())
    except OSError as error:
        raise UsageError(
            f"{path}: {error.strerror}", hint="write one with `meshctl survey INVENTORY --json > FILE`"
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        raise UsageError(f"{path}: {place}: {first['msg']}", hint=again) from error
    names = [host.name for host in survey.hosts]
    if not names:
        raise UsageError(f"{path}: hosts: it has none", hint=again)
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"{path}: hosts: {', '.join(twice)} is there twice", hint=again)
    for place, passes in _all_passes(survey):
        if problem := _problem(passes):
            raise UsageError(f"{path}: {place}.passes: {problem}", hint=again)
    for place, rates in _all_rates(survey):
        if problem := _rates_problem(rates):
            raise UsageError(f"{path}: {place}.rates: {problem}", hint=again)
    for place, problem in (*_wrong_devices(survey), *_other_problems(survey)):
        raise UsageError(f"{path}: {place}: {problem}", hint=again)
    return survey


def _wrong_devices(survey: Survey) -> Iterator[tuple[str, str]]:
    """Devices that are not what their names say, and budgets that no memory has."""
    for host in survey.hosts:
        for device in host.devices:
            if device.host != host.name or not device.name.startswith(f"{host.name}/"):
                yield (
                    device.name,
                    f"it is listed under {host.name}: then its host is that, its name {host.name}/KIND",
                )
            if device.kind not in DEVICE_KINDS:
                yield f"{device.name} kind", f"{device.kind} is none of {', '.join(DEVICE_KINDS)}"
            its = device.budget
            if not all(0 <= size < MOST_BYTES for size in (its.free_bytes, its.capped_bytes, its.reserve_bytes)):
                yield f"{device.name} budget", f"bytes are numbers from 0 to {MOST_BYTES:.0e}"


def _other_problems(survey: Survey) -> Iterator[tuple[str, str]]:
    """What nothing can be worked out from, and where it is."""
    for place, speed in _all_speeds(survey):
        if not (0 <= speed.output_s < inf and 0 <= speed.context_s < inf and speed.output_bytes >= 0):
            yield place, "output_s, output_bytes and context_s must be numbers of 0 or more"
    names = [device.name for device in survey.devices]
    for device in survey.devices:
        if names.count(device.name) > 1:
            yield device.name, "it is there twice"
        link = device.link
        if not (0 <= link.round_trip_s < inf and link.up_bytes_per_s < inf and link.down_bytes_per_s < inf):
            yield f"{device.name} link", "times and rates must be numbers of 0 or more"
        if device.threads < 0:
            yield f"{device.name} threads", f"{device.threads} is no number of threads"
    for number, time in enumerate(survey.tensor):
        if unknown := sorted(set(time.devices) - set(names)):
            yield f"tensor.{number}.devices", f"there is no device {unknown[0]}"
        if len(set(time.devices)) != len(time.devices):
            yield f"tensor.{number}.devices", "one of them is there twice"
        if len(time.parts) != len(time.devices) or not all(part > 0 for part in time.parts):
            yield f"tensor.{number}.parts", "one of 1 or more for each device"
        if not 0 <= time.output_s < inf:
            yield f"tensor.{number}.output_s", "must be a number of 0 or more"


def _all_passes(survey: Survey) -> Iterator[tuple[str, tuple[PassTime, ...]]]:
    """What was timed, under its place in the file; what was not measured has none."""
    yield from ((place, speed.passes) for place, speed in _all_speeds(survey) if speed.measured)
    yield from ((f"tensor.{number}", time.passes) for number, time in enumerate(survey.tensor))


def _all_speeds(survey: Survey) -> Iterator[tuple[str, Speed]]:
    yield "controller_speed", survey.controller_speed
    for device in survey.devices:
        yield f"{device.name} speed", device.speed
        yield f"{device.name} native", device.native


def _all_rates(survey: Survey) -> Iterator[tuple[str, tuple[KernelRate, ...]]]:
    yield from ((place, speed.rates) for place, speed in _all_speeds(survey))


def _rates_problem(rates: tuple[KernelRate, ...]) -> str:
    for rate in rates:
        if not rate.tokens or list(rate.tokens) != sorted(set(rate.tokens)) or len(rate.tokens) != len(rate.weight_s):
            return f"that of {rate.of} needs ascending tokens and as many weight_s"
        if not all(0 < seconds < inf for seconds in rate.weight_s):
            return f"that of {rate.of} has a time that is none"
    return ""


def _problem(passes: tuple[PassTime, ...]) -> str:
    """Why no time can be worked out from these; "" when one can."""
    tokens = [one.tokens for one in passes]
    if not tokens or tokens[0] != 1 or sorted(set(tokens)) != tokens:
        return "needs one of 1 token, and others by ascending tokens"
    for one in passes:
        sizes = list(one.layers_bytes)
        if not sizes or sizes[0] < 1 or sorted(set(sizes)) != sizes or len(sizes) != len(one.layers_s):
            return f"that of {one.tokens} tokens needs ascending layers_bytes and as many layers_s"
        if not all(0 < seconds < MOST_S for seconds in one.layers_s) or not 0 <= one.fixed_s < MOST_S:
            return f"that of {one.tokens} tokens has a time that is none"
        if not 0 <= one.spread < inf:
            return f"that of {one.tokens} tokens has a spread that is none"
    return ""
