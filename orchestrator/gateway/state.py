"""What the supervisor and the gateway tell each other: whether a head can answer, and what has been answered."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from time import monotonic
from typing import Literal

from prometheus_client import Histogram

from orchestrator.gateway.rates import TokenRate

SituationState = Literal["starting", "ready", "degraded", "recovering", "failed", "stopping"]


@dataclass(frozen=True)
class Situation:
    """Whether requests can be answered; `message` says what is going on.

    `step` is the stage of a bring-up that is under way (`report.Stage`), `fraction` (0 to 1) how far that stage is.
    """

    state: SituationState
    message: str = ""
    step: str = ""
    fraction: float | None = None

    @property
    def serves(self) -> bool:
        """Whether a head can answer now."""
        return self.state in ("ready", "degraded")


class GatewayState:
    """The present situation. The supervisor calls `become` and `reach`, the gateway reads `now` at each request."""

    def __init__(self, situation: Situation) -> None:
        self._now = situation

    @property
    def now(self) -> Situation:
        return self._now

    def become(self, situation: Situation) -> None:
        self._now = situation

    def reach(self, step: str, fraction: float | None) -> None:
        """The bring-up is at this stage; while heads answer nothing is told of that."""
        if not self._now.serves:
            self._now = replace(self._now, step=step, fraction=fraction)

    def told(self) -> dict[str, object]:
        """What errors say beside their message."""
        now = self._now
        return {"state": now.state} if now.serves else {"state": now.state, "step": now.step, "fraction": now.fraction}


READY = Situation("ready")


BUCKETS_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)

RecoveryOutcome = Literal["ready", "degraded", "failed"]


@dataclass(frozen=True)
class Counts:
    """What the gateway has done since it started.

    `running` requests are with a head now, `waiting` ones wait for a slot. Each ended one is either finished, failed
    (the head refused it or was lost, or it was turned away) or cancelled (its client left or took nothing any more, or
    the gateway stopped). `prompt_tokens` were read by the head (those found in its cache not counted), `tokens` were
    generated.
    """

    running: int = 0
    waiting: int = 0
    finished: int = 0
    failed: int = 0
    cancelled: int = 0
    prompt_tokens: int = 0
    tokens: int = 0


@dataclass(frozen=True)
class HeadCounts:
    """What one head does now: requests that it works on, and tokens per second of the last ten seconds."""

    running: int = 0
    tokens_per_s: float = 0.0


class Counters:
    """Counts as they grow; the supervisor reads `now`.

    `first_token_s`: from a request's arrival to the first text of its answer, of streams; `request_s`: to its end, of
    those that finished. `recovery_s`: from the loss of what served to when it serves again. When a head is lost,
    `resumed` streams go on with another one, and `replayed` requests are asked again: each time counts.
    """

    def __init__(self) -> None:
        self.first_token_s = _histogram("first_token", "From a request's arrival to its answer's first text.")
        self.request_s = _histogram("request", "From a request's arrival to the end of its answer.")
        self.recovery_s = _histogram("recovery", "From a loss until the cluster answers again.")
        self.recoveries: dict[RecoveryOutcome, int] = {"ready": 0, "degraded": 0, "failed": 0}
        self._running = 0
        self._waiting = 0
        self._ended = {"finished": 0, "failed": 0, "cancelled": 0}
        self._prompt_tokens = 0
        self._tokens = 0
        self.resumed = 0
        self.replayed = 0
        self._at_head: dict[str, int] = {}
        self._rates: dict[str, TokenRate] = {}

    @property
    def now(self) -> Counts:
        return Counts(
            self._running, self._waiting, **self._ended, prompt_tokens=self._prompt_tokens, tokens=self._tokens
        )

    def of_head(self, name: str) -> HeadCounts:
        """What the head of this name does now."""
        rate = self._rates.get(name)
        return HeadCounts(self._at_head.get(name, 0), 0.0 if rate is None else rate.per_s(monotonic()))

    def arrive(self) -> None:
        """A request waits."""
        self._waiting += 1

    def begin(self) -> None:
        """It is with a head now."""
        self._waiting -= 1
        self._running += 1

    @contextmanager
    def at_head(self, name: str) -> Iterator[None]:
        """The head of this name works on it."""
        self._at_head[name] = self._at_head.get(name, 0) + 1
        try:
            yield
        finally:
            self._at_head[name] -= 1

    def generate(self, name: str, tokens: int, over_s: float = 0.0) -> None:
        """That head has generated so many tokens, just now or within the last `over_s` seconds."""
        if tokens > 0:
            self._rates.setdefault(name, TokenRate()).add(tokens, monotonic(), over_s)

    def wait_again(self) -> None:
        """Its head is gone, and it waits for another one."""
        self._running -= 1
        self._waiting += 1

    def resume(self) -> None:
        """A stream goes on with another head than the one that was lost."""
        self.resumed += 1

    def replay(self) -> None:
        """A request of whose answer nothing had been passed on is asked again."""
        self.replayed += 1

    def recover(self, outcome: RecoveryOutcome, seconds: float | None = None) -> None:
        """A recovery has come to this, after so long if the cluster serves again."""
        self.recoveries[outcome] += 1
        if seconds is not None:
            self.recovery_s.observe(seconds)

    def end(
        self, how: Literal["finished", "failed", "cancelled"], prompt_tokens: int, tokens: int, *, begun: bool
    ) -> None:
        """It is over; `begun`: it was with a head, and did not only wait."""
        self._running -= begun
        self._waiting -= not begun
        self._ended[how] += 1
        self._prompt_tokens += prompt_tokens
        self._tokens += tokens


def _histogram(what: str, text: str) -> Histogram:
    return Histogram(f"meshctl_{what}_seconds", text, buckets=BUCKETS_S, registry=None)
