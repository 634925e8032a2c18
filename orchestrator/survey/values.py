"""A survey: what was measured on every host, frozen, and its JSON form (`meshctl survey --json`, `plan --survey`)."""

from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from orchestrator.errors import UsageError
from workers.budget import Budget
from workers.facts import HostFacts


@dataclass(frozen=True)
class Link:
    """The way from the head to a device, measured through the very kind of link that carries the tensors.

    `round_trip_s`: 16 KiB there and back, median, in seconds. `up_bytes_per_s` / `down_bytes_per_s`: bulk, towards
    and from the host. `kind` is "loopback", "tunnel" or "direct".
    """

    kind: str
    round_trip_s: float
    up_bytes_per_s: float
    down_bytes_per_s: float


@dataclass(frozen=True)
class Speed:
    """How fast a device computes through RPC, from a calibration model of two depths (see survey/speeds.py).

    `decode_bytes_per_s`: weight bytes worked through per second when one token is decoded. `prefill_bytes_per_s`:
    weight bytes times tokens per second when a prompt is read. `fixed_s`: what one more stage costs per token beside
    its layers; the link comes on top. `spread`: relative spread (max - min) / median of the repetitions.
    """

    decode_bytes_per_s: float
    prefill_bytes_per_s: float
    fixed_s: float
    spread: float


@dataclass(frozen=True)
class Device:
    """One thing that computes on a host: its CPU or one GPU. `name` is "HOST/cpu" or "HOST/cuda0".

    `note` says why its speed, then all zeros, was not measured.
    """

    name: str
    host: str
    kind: str  # "cpu", "cuda", "metal", "vulkan"
    description: str
    threads: int
    budget: Budget
    link: Link
    speed: Speed
    note: str = ""


@dataclass(frozen=True)
class HostSurvey:
    """One host: its facts and devices. `local` is true when it is the controller itself."""

    name: str
    local: bool
    facts: HostFacts
    devices: tuple[Device, ...]


@dataclass(frozen=True)
class Survey:
    """Everything a plan is made from; `controller` are the facts of the machine where the head runs."""

    cluster: str
    taken_at: str  # ISO 8601, UTC
    engine: str  # engine id
    controller: HostFacts
    hosts: tuple[HostSurvey, ...]

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
    try:
        return _SURVEY.validate_json(path.read_bytes())
    except OSError as error:
        raise UsageError(
            f"{path}: {error.strerror}", hint="write one with `meshctl survey INVENTORY --json > FILE`"
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        raise UsageError(
            f"{path}: {place}: {first['msg']}",
            hint="a survey is written by `meshctl survey INVENTORY --json > FILE`",
        ) from error
