"""A gateway in a thread of its own, for tests that are not of its event loop."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from threading import Thread

from starlette.requests import Request
from starlette.responses import Response

from orchestrator.gateway.connections import ConnectionLimits
from orchestrator.gateway.head import Deadlines
from tests.orchestrator.gateway.heads import DONE, FakeHead, Gateway, chunk, gateway_for, json_answer, last_chunk

DEADLINES = Deadlines(silence_s=2, body_s=1, answer_s=5)
LIMITS = ConnectionLimits(header_s=0.5, reader_s=1)


class BusyHead(FakeHead):
    """Answers both kinds of requests at once, as often as it is asked."""

    async def _answer(self, request: Request) -> Response:
        body = await request.json()
        self.whole = None if body.get("stream") else json_answer({"choices": [], "model": "x"})
        self.parts = (chunk("a"), last_chunk(1), DONE)
        return await super()._answer(request)


@contextmanager
def gateway_in_a_thread() -> Iterator[Gateway]:
    """It has short deadlines. Afterwards no request of it runs or waits, and each of its slots is free."""
    ready: Future[tuple[Gateway, asyncio.AbstractEventLoop, asyncio.Event]] = Future()
    thread = Thread(target=lambda: asyncio.run(_serve(ready)), name="gateway")
    thread.start()
    gateway, loop, stop = ready.result(timeout=20)
    try:
        yield gateway
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(timeout=30)
    assert not thread.is_alive()
    assert (gateway.counters.now.running, gateway.counters.now.waiting) == (0, 0)


async def _serve(ready: "Future[tuple[Gateway, asyncio.AbstractEventLoop, asyncio.Event]]") -> None:
    stop = asyncio.Event()
    async with gateway_for(BusyHead(), parallel=4, deadlines=DEADLINES, connections=LIMITS) as gateway:
        ready.set_result((gateway, asyncio.get_running_loop(), stop))
        await stop.wait()
