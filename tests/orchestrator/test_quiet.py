"""Work for quiet moments waits for one, makes way at once, and is begun again."""

import asyncio

import pytest

from orchestrator.quiet import in_quiet

SHORT_S = 0.02


class Place:
    """Where somebody is at work for the first `looks` looks, and whenever `asked`."""

    def __init__(self, looks: int = 0) -> None:
        self.looks = looks
        self.asked = False
        self.begun = 0
        self.ended = 0

    def is_busy(self) -> bool:
        self.looks -= 1
        return self.asked or self.looks >= 0

    async def work(self, forever: int = 0) -> str:
        """The first `forever` times it is asked for something in between, and would never come to an end."""
        assert self.looks < 0, "it was not quiet"
        self.begun += 1
        try:
            if self.begun <= forever:
                self.asked = True
                await asyncio.Event().wait()
            return "done"
        finally:
            self.asked = False
            self.ended += 1


async def test_it_is_begun_when_it_has_been_quiet_for_a_while() -> None:
    place = Place(looks=3)
    assert await in_quiet(place.is_busy, place.work, SHORT_S) == "done"
    assert (place.begun, place.ended) == (1, 1)


async def test_whatever_comes_in_between_ends_it_and_it_is_begun_anew() -> None:
    place = Place()
    assert await in_quiet(place.is_busy, lambda: place.work(forever=2), SHORT_S) == "done"
    assert (place.begun, place.ended) == (3, 3)


async def test_cancelled_it_leaves_nothing_at_work() -> None:
    place = Place()
    waiting = asyncio.create_task(in_quiet(place.is_busy, lambda: place.work(forever=1), 0.0))
    while not place.begun:
        await asyncio.sleep(0)
    place.asked = False
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert place.ended == 1


async def test_a_failure_is_the_works_own() -> None:
    async def fails() -> None:
        raise OSError("no head")

    with pytest.raises(OSError, match="no head"):
        await in_quiet(lambda: False, fails, 0.0)
