"""A survey: what was measured on every host, frozen, and its JSON form (`meshctl survey --json`, `plan --survey`)."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from orchestrator.errors import UsageError
from workers.budget import Budget
from workers.facts import HostFacts


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
    """

    tokens: int
    fixed_s: float
    layers_bytes: tuple[int, ...]
    layers_s: tuple[float, ...]


@dataclass(frozen=True)
class Speed:
    """How fast a device computes on one path, natively or through RPC, timed on slices of the model itself.

    `passes` by ascending number of tokens; the first has one token and is decoding, those of 64 and more are prefill,
    those between are decode steps of as many conversations at once. Empty: not measured. `output_s` is the output layer
    for one row of logits, whose weights are `output_bytes`. `spread` is (slowest - fastest) / median of the repetitions
    of decoding, of the slice with the larger one. `source` says what was timed: "slice" of the model, the whole "model"
    (too small for its slices to leave the processor's cache) or a "synthetic" one of like shapes. `layers` are the
    depths of the two slices; empty where none were timed (what-ifs). `context_s`: what one token of a prompt takes
    longer in one layer for each token that stands before its pass, since attention reads them all.
    """

    passes: tuple[PassTime, ...] = ()
    output_s: float = 0.0
    output_bytes: int = 0
    spread: float = 0.0
    source: str = ""
    layers: tuple[int, ...] = ()
    context_s: float = 0.0

    @property
    def measured(self) -> bool:
        return bool(self.passes)


NOT_MEASURED = Speed()


@dataclass(frozen=True)
class Device:
    """One thing that computes on a host: its CPU or one GPU. `name` is "HOST/cpu" or "HOST/cuda0".

    `speed` is as a worker, through RPC (its link taken off), `native` as a head on the host itself; the latter is
    measured where the whole model may fit. `note` says why a device was not measured.
    """

    name: str
    host: str
    kind: str  # "cpu", "cuda", "metal", "vulkan"
    description: str
    threads: int
    budget: Budget
    link: Link
    speed: Speed
    native: Speed = NOT_MEASURED
    note: str = ""


@dataclass(frozen=True)
class TensorTime:
    """Layers cut across these very devices, timed on slices over the real links, which are therefore in it.

    `devices` in the order of `parts` (the integers of `--tensor-split`). The passes and `output_s` are those of the
    whole group. The bytes that each token sends again grow with the square of the layers: `quadratic_s` times that
    square comes on top of the passes.
    """

    devices: tuple[str, ...]
    parts: tuple[int, ...]
    passes: tuple[PassTime, ...]
    output_s: float
    spread: float
    quadratic_s: float = 0.0


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
    "": not known). `controller_speed` is the controller's CPU natively (the head computes there what is not placed on
    devices). `tensor` holds the groups timed in mode `tensor`; `tensor_refused` is the engine's reason when it cannot
    cut this model's layers at all, `tensor_failed` the sets of devices with which that failed when it was tried.
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
    shape: str = ""

    @property
    def devices(self) -> tuple[Device, ...]:
        """All devices in the order of the inventory."""
        return tuple(device for host in self.hosts for device in host.devices)


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
    return survey


def _all_passes(survey: Survey) -> Iterator[tuple[str, tuple[PassTime, ...]]]:
    """What was timed, under its place in the file; what was not measured has none."""
    named = [("controller_speed", survey.controller_speed)]
    for device in survey.devices:
        named += [(f"{device.name} speed", device.speed), (f"{device.name} native", device.native)]
    yield from ((place, speed.passes) for place, speed in named if speed.measured)
    yield from ((f"tensor.{number}", time.passes) for number, time in enumerate(survey.tensor))


def _problem(passes: tuple[PassTime, ...]) -> str:
    """Why no time can be worked out from these; "" when one can."""
    tokens = [one.tokens for one in passes]
    if not tokens or tokens[0] != 1 or sorted(set(tokens)) != tokens:
        return "needs one of 1 token, and others by ascending tokens"
    for one in passes:
        sizes = list(one.layers_bytes)
        if not sizes or sizes[0] < 1 or sorted(set(sizes)) != sizes or len(sizes) != len(one.layers_s):
            return f"that of {one.tokens} tokens needs ascending layers_bytes and as many layers_s"
        if not all(0 < seconds < inf for seconds in one.layers_s) or not 0 <= one.fixed_s < inf:
            return f"that of {one.tokens} tokens has a time that is none"
    return ""
