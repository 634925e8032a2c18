"""What the supervisor and the gateway tell each other: whether a head can answer, and what has been answered."""

from dataclasses import dataclass
from typing import Literal

from prometheus_client import Histogram


@dataclass(frozen=True)
class Situation:
    """Whether requests can be answered; `message` says what is going on, `fraction` (0 to 1) how far that is."""

    state: Literal["starting", "ready", "recovering", "failed", "stopping"]
    message: str = ""
    fraction: float | None = None


class GatewayState:
    """The present situation. The supervisor calls `become`, the gateway reads `now` at each request."""

    def __init__(self, situation: Situation) -> None:
        self._now = situation

    @property
    def now(self) -> Situation:
        return self._now

    def become(self, situation: Situation) -> None:
        self._now = situation


READY = Situation("ready")


BUCKETS_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)


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


class Counters:
    """Counts as they grow; the supervisor reads `now`.

    `first_token_s`: from a request's arrival to the first text of its answer, of streams; `request_s`: to its end, of
    those that finished.
    """

    def __init__(self) -> None:
        self.first_token_s = Histogram(
            "meshctl_first_token_seconds",
            "From a request's arrival to its answer's first text.",
            buckets=BUCKETS_S,
            registry=None,
        )
        self.request_s = Histogram(
            "meshctl_request_seconds",
            "From a request's arrival to the end of its answer.",
            buckets=BUCKETS_S,
            registry=None,
        )
        self._running = 0
        self._waiting = 0
        self._ended = {"finished": 0, "failed": 0, "cancelled": 0}
        self._prompt_tokens = 0
        self._tokens = 0

    @property
    def now(self) -> Counts:
        return Counts(
            self._running, self._waiting, **self._ended, prompt_tokens=self._prompt_tokens, tokens=self._tokens
        )

    def arrive(self) -> None:
        """A request waits."""
        self._waiting += 1

    def begin(self) -> None:
        """It is with a head now."""
        self._waiting -= 1
        self._running += 1

    def wait_again(self) -> None:
        """Its head is gone, and it waits for another one."""
        self._running -= 1
        self._waiting += 1

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
