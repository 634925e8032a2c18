"""Heads that come and go, one by one and all at once, while requests are under way."""

import asyncio
from dataclasses import replace

from orchestrator.gateway.backends import Backends
from orchestrator.gateway.head import Deadlines
from orchestrator.gateway.routing import HeadAddress
from orchestrator.gateway.server import serve
from tests.orchestrator.gateway.heads import (
    DONE,
    HEAD_KEY,
    FakeHead,
    Gateway,
    chunk,
    gateway_at,
    gateway_for,
    last_chunk,
)

CHAT = "/v1/chat/completions"
STREAMED = {"messages": [{"role": "user", "content": "hi"}], "stream": True}
HEAD = HeadAddress("a", "http://127.0.0.1:1", "key")


async def test_of_several_heads_some_may_go_and_others_come() -> None:
    backends = Backends(Deadlines())
    backends.replace([HEAD, replace(HEAD, name="b")])
    backends.add([replace(HEAD, name="c")])
    backends.remove(["a", "c"])
    assert backends.serving is not None
    assert list(backends.serving.heads) == ["b"]
    backends.remove(["b"])
    assert backends.serving is None


async def test_an_answer_that_has_begun_ends_with_the_heads_it_began_with() -> None:
    head = FakeHead(parts=(chunk("a"),), hang=True)
    async with gateway_for(head) as gateway:
        body = {"messages": [{"role": "user", "content": "x"}], "stream": True}
        asking = asyncio.create_task(gateway.http.post("/v1/chat/completions", json=body))
        async with asyncio.timeout(10):
            while gateway.counters.now.running == 0:
                await asyncio.sleep(0.01)
            gateway.backends.replace([HEAD])
            head.release((last_chunk(1), DONE))
            assert (await asking).text.endswith("data: [DONE]\n\n")


async def streamed(gateway: Gateway, began: asyncio.Event) -> tuple[str, str]:
    """All of a stream, and the head that it began with; `began` is set at its first text."""
    text = ""
    async with gateway.http.stream("POST", CHAT, json=STREAMED) as response:
        async for part in response.aiter_text():
            text += part
            if "one" in text:
                began.set()
    return text, response.headers["x-meshctl-head"]


async def test_a_head_that_goes_disturbs_none_that_stays() -> None:
    """Of two streams one loses its head: it goes on at the other head, where the other stream never stopped."""
    living = FakeHead(parts=(chunk("one "),), hang=True)
    dying = FakeHead(parts=(chunk("one "),), hang=True, tear=True)
    async with (
        serve(living.app(), "127.0.0.1", 0, drain_s=1) as stays,
        serve(dying.app(), "127.0.0.1", 0, drain_s=1) as goes,
        gateway_at(stays.url) as gateway,
    ):
        first, second = asyncio.Event(), asyncio.Event()
        kept = asyncio.create_task(streamed(gateway, first))
        await first.wait()
        gateway.backends.add([HeadAddress("dying", goes.url, HEAD_KEY, 1, token_s=1e-6, prefill_token_s=1e-6)])
        lost = asyncio.create_task(streamed(gateway, second))
        await second.wait()
        gateway.backends.remove(["dying"])
        assert gateway.backends.serving is not None
        assert list(gateway.backends.serving.heads) == ["head"]
        dying.release(())
        async with asyncio.timeout(10):
            while len(living.bodies) < 2:
                await asyncio.sleep(0.01)
        living.release((chunk("two "), last_chunk(2), DONE))
        (kept_text, kept_by), (lost_text, lost_by) = await asyncio.gather(kept, lost)
    assert (kept_by, lost_by) == ("head", "dying")
    assert living.bodies[1]["messages"][-1] == {"role": "assistant", "content": "one "}
    for text in (kept_text, lost_text):
        assert text.endswith("data: [DONE]\n\n")
        assert "error" not in text
        assert text.count("two ") == 1


async def test_when_the_last_head_goes_requests_wait_for_the_next() -> None:
    head = FakeHead(parts=(chunk("one "), last_chunk(1), DONE))
    async with serve(head.app(), "127.0.0.1", 0, drain_s=1) as upstream, gateway_at(upstream.url) as gateway:
        gateway.backends.remove(["head"])
        assert gateway.backends.serving is None
        asking = asyncio.create_task(streamed(gateway, asyncio.Event()))
        async with asyncio.timeout(10):
            while not gateway.backends.line.waiting:
                await asyncio.sleep(0.01)
        gateway.backends.add([HeadAddress("next", upstream.url, HEAD_KEY, 1)])
        assert (await asking)[1] == "next"
