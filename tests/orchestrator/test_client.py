"""The client of the gateway: typed events, and errors with the next move."""

import asyncio

import pytest

from orchestrator.client import (
    ChatEvent,
    FinishReason,
    GatewayClient,
    Message,
    PromptProgress,
    ServedModel,
    TextDelta,
    Thought,
    Timings,
    Usage,
    read_chunk,
)
from orchestrator.errors import GatewayError
from orchestrator.gateway.server import serve
from orchestrator.gateway.state import Situation
from tests.orchestrator.gateway.heads import DONE, KEY, FakeHead, chunk, gateway_for, last_chunk

HELLO = (Message("user", "hello"),)


async def test_an_answer_is_a_row_of_typed_events() -> None:
    head = FakeHead(parts=(chunk("a"), b":\n\n", chunk("é"), last_chunk(2), DONE))
    async with gateway_for(head) as gateway, GatewayClient(gateway.url, KEY) as client:
        events = [event async for event in client.chat(HELLO)]
    assert events == [TextDelta("a"), TextDelta("é"), FinishReason("stop"), Timings(7, 70.0, 2, 5.0)]


def test_every_part_of_a_chunk_is_read() -> None:
    chunk_read: list[ChatEvent] = read_chunk(
        {
            "prompt_progress": {"processed": 3, "total": 9},
            "choices": [{"delta": {"reasoning_content": "hm", "content": "yes"}, "finish_reason": "length"}],
            "usage": {"prompt_tokens": 9, "completion_tokens": 2},
        }
    )
    assert chunk_read == [PromptProgress(3, 9), Thought("hm"), TextDelta("yes"), FinishReason("length"), Usage(9, 2)]


async def test_the_served_model_is_told_with_its_context() -> None:
    async with gateway_for(FakeHead()) as gateway, GatewayClient(gateway.url, KEY) as client:
        assert await client.model() == ServedModel("tiny", 4096)


async def test_leaving_the_loop_early_cancels_the_answer() -> None:
    head = FakeHead(parts=(chunk("a"),), hang=True)
    async with gateway_for(head) as gateway, GatewayClient(gateway.url, KEY) as client:
        events = client.chat(HELLO)
        assert await anext(events) == TextDelta("a")
        await events.aclose()
        await asyncio.wait_for(head.left.wait(), 5)


async def test_nobody_there_is_said_with_the_command_that_starts_it(closed_port: int) -> None:
    url = f"http://127.0.0.1:{closed_port}"
    async with GatewayClient(url, KEY) as client:
        with pytest.raises(GatewayError) as caught:
            await client.model()
    assert str(caught.value) == f"nothing answers at {url}"
    assert "`meshctl up` starts it" in caught.value.hint


async def test_a_wrong_key_is_said_with_where_the_right_one_is() -> None:
    async with gateway_for(FakeHead()) as gateway, GatewayClient(gateway.url, "wrong") as client:
        with pytest.raises(GatewayError, match="an API key is needed") as caught:
            await client.model()
    assert "`meshctl status` shows where" in caught.value.hint


async def test_a_cluster_that_starts_says_how_far_it_is() -> None:
    async with gateway_for(FakeHead()) as gateway, GatewayClient(gateway.url, KEY) as client:
        gateway.state.become(Situation("starting", "loading the model", fraction=0.4))
        with pytest.raises(GatewayError) as caught:
            await anext(client.chat(HELLO))
    assert str(caught.value) == "loading the model (40%)"


async def test_an_answer_that_breaks_off_is_an_error() -> None:
    head = FakeHead(parts=(chunk("a"),))
    async with serve(head.app(), "127.0.0.1", 0) as upstream, GatewayClient(upstream.url, KEY) as client:
        with pytest.raises(GatewayError, match="broke off before the answer was complete"):
            _ = [event async for event in client.chat(HELLO)]


async def test_something_else_at_the_address_is_noticed() -> None:
    async with serve(FakeHead().app(), "127.0.0.1", 0) as other, GatewayClient(other.url, KEY) as client:
        with pytest.raises(GatewayError, match="answered with status 404") as caught:
            await client.model()
    assert caught.value.hint == "is this the address of a gateway?"
