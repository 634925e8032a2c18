"""Who waits for a free slot of the heads, in which order, and who is turned away.

A head takes as many conversations at once as it has slots. What comes beyond waits here and not inside the engine, so
that it can be counted, bounded and shared out fairly: one client after the other gets a turn, each with its oldest
request, whatever many requests another one has brought. Nobody is overtaken for ever: while the next in turn needs
more slots than are free, the others wait with it.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from time import monotonic

from orchestrator.gateway.api_error import ApiError, unavailable

MIB = 2**20
LEARNING = 0.2
"""How much the time of one turn counts against all before."""

MOST_RETRY_S = 600
_AGAIN = "\0again"
"""Stands for the clients of requests that had their turn already; no key or address is like it."""


@dataclass(frozen=True)
class LineLimits:
    """How many requests, and bytes of their bodies, may wait; of one client half as many. `wait_s`: how long."""

    requests: int = 128
    body_bytes: int = 64 * MIB
    wait_s: float = 600.0

    @property
    def of_one_client(self) -> int:
        return max(1, self.requests // 2)


@dataclass(eq=False)
class _Place:
    """A request that waits or has its turn: `slots` it wants, `taken` those it has."""

    client: str
    slots: int
    body_bytes: int
    taken: int = 0
    admitted: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Line:
    """The line before heads with so many slots in all; with none, everybody waits."""

    def __init__(
        self,
        slots: int,
        limits: LineLimits | None = None,
        *,
        usual_s: float = 10.0,
        clock: Callable[[], float] = monotonic,
        situation: Callable[[], Mapping[str, object]] = dict,
    ) -> None:
        """`usual_s`: how long an answer is taken to need before any has been timed; `situation`: of the cluster, for
        those who are turned away."""
        self._slots = slots
        self._free = slots
        self._limits = limits or LineLimits()
        self._usual_s = usual_s
        self._clock = clock
        self._situation = situation
        self._waiting: dict[str, deque[_Place]] = {}  # by client, the next one in turn first
        self._body_bytes = 0

    @property
    def waiting(self) -> int:
        """Requests that wait now."""
        return sum(map(len, self._waiting.values()))

    @asynccontextmanager
    async def turn(
        self, client: str, *, slots: int = 1, body_bytes: int = 0, again: bool = False
    ) -> AsyncIterator[None]:
        """Wait for so many slots and have them until the block ends.

        `again`: for a request that had its turn and lost it through no fault of its own; such ones go before all
        others, and are never turned away because too many wait. ApiError: 429 at once where too many wait already, 503
        after `wait_s`.
        """
        place = _Place(_AGAIN if again else client, slots, body_bytes)
        self._join(place)
        try:
            await self._wait(place)
            begun = self._clock()
            try:
                yield
            finally:
                self._usual_s += LEARNING * (self._clock() - begun - self._usual_s)
        finally:
            self._leave(place)

    def turn_away(self, problem: ApiError) -> None:
        """Everybody who waits is told this."""
        waiting = [place for places in self._waiting.values() for place in places]
        for place in waiting:
            self._remove(place)
            if not place.admitted.done():
                place.admitted.set_exception(problem)

    def expected_s(self) -> float:
        """Seconds until a request that comes now would have its turn."""
        ahead = sum(place.slots for places in self._waiting.values() for place in places) + 1 - self._free
        return max(0.0, ahead * self._usual_s / max(1, self._slots))

    def set_slots(self, slots: int) -> None:
        """From now on there are so many; those that are taken stay so until their turns end."""
        self._free += slots - self._slots
        self._slots = slots
        self._admit()

    def _join(self, place: _Place) -> None:
        if place.client == _AGAIN:
            self._join_again(place)
            return
        if not self._waiting and self._fits(place):
            self._let_in(place)
            return
        if len(self._waiting.get(place.client, ())) >= self._limits.of_one_client:
            raise self._full("too many of your requests wait already", "too_many_requests")
        too_large = self._body_bytes + place.body_bytes > self._limits.body_bytes and self._waiting
        if self.waiting >= self._limits.requests or too_large:
            raise self._full("too many requests wait already", "queue_full")
        self._waiting.setdefault(place.client, deque()).append(place)
        self._body_bytes += place.body_bytes

    def _join_again(self, place: _Place) -> None:
        before = self._waiting.pop(_AGAIN, deque())
        if not before and self._fits(place):
            self._let_in(place)
            return
        before.append(place)
        self._waiting = {_AGAIN: before, **self._waiting}
        self._body_bytes += place.body_bytes

    async def _wait(self, place: _Place) -> None:
        try:
            async with asyncio.timeout(self._limits.wait_s):
                await place.admitted
        except TimeoutError as error:
            message = f"no slot was free within {self._limits.wait_s:.0f} s; ask again later"
            raise unavailable(
                message, code="wait_timeout", more=self._figures(), retry_after_s=self._retry_after_s()
            ) from error

    def _leave(self, place: _Place) -> None:
        """At the end of a turn, or of waiting for one."""
        if place.admitted.done() and not place.admitted.cancelled():
            self._free += place.taken
        elif place in self._waiting.get(place.client, ()):
            self._remove(place)
        self._admit()

    def _admit(self) -> None:
        """Whoever is next, as long as there are slots; then that client is the last in turn."""
        while self._waiting:
            client, places = next(iter(self._waiting.items()))
            place = places[0]
            if place.admitted.cancelled():  # its client has left, and it is about to notice
                self._remove(place)
                continue
            if not self._fits(place):
                return
            self._remove(place)
            if client in self._waiting and client != _AGAIN:
                self._waiting[client] = self._waiting.pop(client)
            self._let_in(place)

    def _fits(self, place: _Place) -> bool:
        """One that wants more slots than there are gets all of them."""
        return self._slots > 0 and min(place.slots, self._slots) <= self._free

    def _let_in(self, place: _Place) -> None:
        place.taken = min(place.slots, self._slots)
        self._free -= place.taken
        place.admitted.set_result(None)

    def _remove(self, place: _Place) -> None:
        places = self._waiting[place.client]
        places.remove(place)
        if not places:
            del self._waiting[place.client]
        self._body_bytes -= place.body_bytes

    def _full(self, message: str, code: str) -> ApiError:
        return ApiError(
            429,
            f"{message} ({self.waiting}); ask again in {self._retry_after_s()} s",
            kind="rate_limit_error",
            code=code,
            more=self._figures(),
            retry_after_s=self._retry_after_s(),
        )

    def _figures(self) -> dict[str, object]:
        return {**self._situation(), "waiting": self.waiting, "expected_s": round(self.expected_s(), 1)}

    def _retry_after_s(self) -> int:
        return min(MOST_RETRY_S, max(1, round(self.expected_s())))
