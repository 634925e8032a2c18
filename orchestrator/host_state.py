"""What the state of a running cluster says of its hosts, its heads, and a bring-up that is under way. Only values."""

from dataclasses import dataclass


@dataclass(frozen=True)
class HostFault:
    """What went wrong on a host last; `at` is ISO 8601, UTC."""

    at: str
    what: str


@dataclass(frozen=True)
class HostAside:
    """A host that is not used until then (ISO 8601, UTC), and why."""

    until: str
    reason: str


@dataclass(frozen=True)
class HostState:
    """One host as it is now; None: nothing of the cluster runs there to tell.

    `budget_bytes` is what the plan allows the cluster there of main memory, `used_bytes` what its processes take of it,
    `available_bytes` what is left on the host for everybody. Its processes keep `cores_used` of its `cores` busy.
    The requests are those of heads that this host computes for, `tokens_per_s` what these generate. `missing`: why it
    could not be used at the last bring-up.
    """

    name: str
    budget_bytes: int = 0
    used_bytes: int = 0
    available_bytes: int | None = None
    cores_used: float | None = None
    cores: float | None = None
    requests_running: int = 0
    tokens_per_s: float = 0.0
    last_fault: HostFault | None = None
    aside: HostAside | None = None
    missing: str = ""


@dataclass(frozen=True)
class HeadState:
    """One head now: its host, the hosts that compute for it, its requests, and the tokens that it generates per second
    of the last ten."""

    name: str
    host: str
    hosts: tuple[str, ...]
    requests_running: int
    tokens_per_s: float


@dataclass(frozen=True)
class StepState:
    """The step of a bring-up that is under way: its stage (a `report.Stage`, "" for none of them), its title, and how
    far it is (0 to 1) where that is known."""

    stage: str
    title: str
    fraction: float | None = None


@dataclass(frozen=True)
class StepTime:
    """How long a step of a bring-up took."""

    title: str
    seconds: float
