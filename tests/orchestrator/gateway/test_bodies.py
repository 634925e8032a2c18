"""Bodies on their way in: each is bounded, and so are all of them together."""

import asyncio
import json

import pytest
from starlette.requests import Request
from starlette.types import Message

from orchestrator.gateway.api_error import ApiError
from orchestrator.gateway.bodies import TOGETHER, Bodies


class Sender:
    """Sends what it is given, then waits; `end` lets it finish."""

    def __init__(self, *parts: bytes, length: str = "") -> None:
        self.ends = asyncio.Event()
        self._parts = list(parts)
        headers = [(b"content-length", length.encode())] if length else []
        self.request = Request({"type": "http", "method": "POST", "headers": headers}, self._receive)

    async def _receive(self) -> Message:
        if self._parts:
            return {"type": "http.request", "body": self._parts.pop(0), "more_body": True}
        await self.ends.wait()
        return {"type": "http.request", "body": b"", "more_body": False}


async def refusal(bodies: Bodies, sender: Sender) -> tuple[int, str | None]:
    with pytest.raises(ApiError) as caught:
        await bodies.receive(sender.request)
    return caught.value.status, caught.value.code


async def test_a_body_is_taken_whole() -> None:
    sender = Sender(b"ab", b"c")
    sender.ends.set()
    assert await Bodies(3).receive(sender.request) == b"abc"


@pytest.mark.parametrize("length", ["", "4", "4000000000000000000000"])
async def test_one_that_is_too_large_is_refused_as_soon_as_that_is_known(length: str) -> None:
    assert await refusal(Bodies(3), Sender(b"abcd", length=length)) == (413, "request_too_large")


async def test_one_that_does_not_come_is_given_up() -> None:
    assert await refusal(Bodies(3, deadline_s=0.05), Sender(b"a")) == (408, "request_timeout")


async def test_too_many_large_ones_at_once_are_turned_away_and_room_comes_back() -> None:
    bodies = Bodies(3)
    senders = [Sender(b"abc") for _ in range(TOGETHER)]
    coming = [asyncio.create_task(bodies.receive(sender.request)) for sender in senders]
    await asyncio.sleep(0)
    assert await refusal(bodies, Sender(b"a")) == (429, "queue_full")
    coming[0].cancel()
    for sender in senders[1:]:
        sender.ends.set()
    assert await asyncio.gather(*coming[1:]) == [b"abc"] * (TOGETHER - 1)
    later = Sender(json.dumps(1).encode())
    later.ends.set()
    assert await bodies.receive(later.request) == b"1"
