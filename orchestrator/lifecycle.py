"""What a cluster is, and what becomes of it when something happens: pure transitions; the supervisor carries them out.

    starting ──Up──▶ ready or degraded ──Lost──▶ recovering ──Up──▶ ready or degraded
                                                 recovering ──CannotStart──▶ recovering, after a while
                                                 recovering ──NothingFits──▶ failed, which tries again by itself
                     ready or degraded ──Moving──▶ recovering

`degraded` serves as `ready` does, with fewer hosts than the inventory has, or with some of its heads lost: while others
still serve, what happens to one of them never makes it worse than that. A first start that does not succeed is an error
of the command, not a state to recover from. A host that is lost again and again is set aside for a while: each loss
interrupts answers.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from orchestrator.inventory import CONTROLLER

State = Literal["starting", "ready", "degraded", "recovering", "failed"]

STEADY_S = 60.0
"""A cluster that has served for this long is taken to be in order: what fails then is a first failure again."""

FIRST_WAIT_S, MOST_WAIT_S = 1.0, 60.0
"""Between attempts: none before the first, then these, twice as long each time up to the most."""

JITTER = 0.25
NOTHING_FITS_WAIT_S = 20.0

FAULTS, WITHIN_S = 3, 600.0
"""So many faults of one host within this time set it aside."""

ASIDE_S = 300.0
"""For how long; twice as long each further time."""

MOST_ASIDE_S = 3600.0


@dataclass(frozen=True)
class Fault:
    """Something on a host ended that should not have, or the host could not be used."""

    host: str
    at_s: float
    what: str = ""


@dataclass(frozen=True)
class Aside:
    """A host that is not used for now, and why."""

    until_s: float
    reason: str
    times: int


@dataclass(frozen=True)
class Up:
    """The cluster answers; `missing` are hosts of the inventory that could not be used, with the reasons.

    Those in `use` are not, also where they should be left out for a while: nothing else held the model.
    """

    missing: Mapping[str, str] = field(default_factory=dict)
    use: Collection[str] = ()


@dataclass(frozen=True)
class Lost:
    """Something of a cluster that answered is gone: on which host, and what; `others` heads still serve."""

    host: str
    what: str
    others: bool = False


@dataclass(frozen=True)
class CannotStart:
    """An attempt to bring it up again has failed; `hosts` are those that are to blame, if that is known."""

    why: str
    hosts: tuple[str, ...] = ()
    others: bool = False


@dataclass(frozen=True)
class NothingFits:
    """The hosts that are left, or not in use, cannot hold the model, with every shortfall."""

    why: str
    others: bool = False


@dataclass(frozen=True)
class Moving:
    """It was stopped on purpose, to be brought up by another plan."""

    why: str


Event = Up | Lost | CannotStart | NothingFits | Moving


@dataclass(frozen=True)
class Lifecycle:
    """Where a cluster stands. `attempts` have failed since it last was steady, the last one because nothing fits if
    not `fits`; times are of a monotonic clock."""

    state: State = "starting"
    reason: str = ""
    attempts: int = 0
    fits: bool = True
    up_at_s: float | None = None
    faults: tuple[Fault, ...] = ()
    aside: Mapping[str, Aside] = field(default_factory=dict)
    last_faults: Mapping[str, Fault] = field(default_factory=dict)
    """Of each host the last one, however long ago; `faults` are those that still count."""

    @property
    def serves(self) -> bool:
        return self.state in ("ready", "degraded")

    @property
    def wants_more(self) -> bool:
        """Whether something that is lost has not been replaced yet."""
        return self.up_at_s is None

    def after(self, event: Event, now_s: float) -> "Lifecycle":
        """What it is after the event. The controller is never set aside: without it there is no cluster."""
        match event:
            case Up(missing, use):
                aside = {host: why for host, why in self.without(now_s).items() if host not in use}
                return self._up({**missing, **aside}, now_s)
            case Lost(host, what, others):
                steady = self.up_at_s is not None and now_s - self.up_at_s >= STEADY_S
                attempts = 0 if steady else self.attempts
                state: State = "degraded" if others else "recovering"
                lost = replace(self, state=state, reason=what, attempts=attempts, fits=True, up_at_s=None)
                return lost._blame((host,), now_s, what)
            case CannotStart(why, hosts, others):
                state = "degraded" if others else "recovering"
                again = replace(self, state=state, reason=why, attempts=self.attempts + 1, fits=True)
                return again._blame(hosts, now_s, why)
            case NothingFits(why, others):
                state = "degraded" if others else "failed"
                return replace(self, state=state, reason=why, attempts=self.attempts + 1, fits=False)
            case Moving(why):
                return replace(self, state="recovering", reason=why, attempts=0, fits=True, up_at_s=None)

    def wait_s(self, random: float) -> float:
        """Seconds before the next attempt; `random` in [0, 1) spreads them, so that not all try at the same moment."""
        if not self.fits:
            usual_s = NOTHING_FITS_WAIT_S
        elif self.attempts == 0:
            return 0.0
        else:
            usual_s = min(MOST_WAIT_S, FIRST_WAIT_S * 2 ** min(self.attempts - 1, 30))
        return usual_s * (1 - JITTER + 2 * JITTER * random)

    def without(self, now_s: float) -> Mapping[str, str]:
        """The hosts that are set aside now, with the reasons."""
        return {host: one.reason for host, one in self.aside.items() if now_s < one.until_s}

    def _up(self, absent: Mapping[str, str], now_s: float) -> "Lifecycle":
        reason = "; ".join(f"{host} is missing: {why}" for host, why in absent.items())
        return replace(
            self,
            state="degraded" if absent else "ready",
            reason=reason or "answers",
            attempts=self.attempts + 1 if self.state != "starting" else 0,
            fits=True,
            up_at_s=now_s,
        )

    def _blame(self, hosts: tuple[str, ...], now_s: float, what: str) -> "Lifecycle":
        recent = tuple(fault for fault in self.faults if now_s - fault.at_s < WITHIN_S)
        new = {host: Fault(host, now_s, what) for host in hosts}
        faults = (*recent, *(new[host] for host in hosts))
        aside = dict(self.aside)
        for host in dict.fromkeys(hosts):
            count = sum(fault.host == host for fault in faults)
            if count >= FAULTS and host != CONTROLLER:
                times = aside[host].times + 1 if host in aside else 1
                seconds = min(MOST_ASIDE_S, ASIDE_S * 2 ** min(times - 1, 30))
                reason = f"it failed {count} times within {WITHIN_S / 60:.0f} minutes; set aside for {seconds / 60:.0f}"
                aside[host] = Aside(now_s + seconds, reason, times)
                faults = tuple(fault for fault in faults if fault.host != host)
        return replace(self, faults=faults, aside=aside, last_faults={**self.last_faults, **new})
