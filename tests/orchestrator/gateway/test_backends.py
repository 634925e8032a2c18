"""The heads behind the gateway over several lives of a cluster."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from orchestrator.gateway.backends import Backends
from orchestrator.gateway.head import Deadlines
from orchestrator.gateway.routing import HeadAddress
from tests.orchestrator.gateway.heads import DONE, FakeHead, chunk, gateway_for, last_chunk

HEAD = HeadAddress("a", "http://127.0.0.1:1", "key")


@pytest.fixture
async def backends() -> AsyncIterator[Backends]:
    one = Backends(Deadlines())
    yield one
    await one.close()


async def test_heads_that_nobody_uses_are_closed_as_soon_as_they_are_taken_away(backends: Backends) -> None:
    for _ in range(100):
        backends.replace([HEAD])
    assert backends.open_lives == 1
    backends.take_away()
    assert (backends.serving, backends.open_lives) == (None, 0)


async def test_heads_of_an_earlier_life_are_closed_when_their_last_request_has_ended(backends: Backends) -> None:
    backends.replace([HEAD])
    with backends.borrowed() as first:
        with backends.borrowed() as again:
            backends.replace([HEAD])
            assert first is again is not backends.serving
        assert backends.open_lives == 2
    assert backends.open_lives == 1
    await asyncio.sleep(0)
    assert first is not None
    with pytest.raises(RuntimeError, match="closed"):
        async with first.heads["a"].ask("/", {}):
            pass


async def test_with_no_heads_there_is_nothing_to_borrow(backends: Backends) -> None:
    with backends.borrowed() as serving:
        assert serving is None


async def test_an_answer_that_has_begun_ends_with_the_heads_it_began_with() -> None:
    head = FakeHead(parts=(chunk("a"),), hang=True)
    async with gateway_for(head) as gateway:
        body = {"messages": [{"role": "user", "content": "x"}], "stream": True}
        asking = asyncio.create_task(gateway.http.post("/v1/chat/completions", json=body))
        async with asyncio.timeout(10):
            while gateway.counters.now.running == 0:
                await asyncio.sleep(0.01)
            gateway.backends.replace([HEAD])
            assert gateway.backends.open_lives == 2
            head.release((last_chunk(1), DONE))
            assert (await asking).text.endswith("data: [DONE]\n\n")
            while gateway.backends.open_lives > 1:
                await asyncio.sleep(0.01)
