"""Serving an application inside the supervisor's event loop."""

import asyncio
import json
import signal
import socket
from time import monotonic

import httpx
import pytest

from orchestrator.errors import BringUpError
from orchestrator.gateway.server import check_address, serve
from orchestrator.gateway.state import Counters, Counts
from tests.orchestrator.gateway.heads import DONE, FakeHead, chunk, gateway_at, last_chunk

CHAT = "/v1/chat/completions"
STREAMED = {"messages": [{"role": "user", "content": "hello"}], "stream": True}


async def test_signal_handlers_stay_as_they_were() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    async with serve(FakeHead().app(), "127.0.0.1", 0):
        assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


async def test_after_the_block_nothing_listens_and_the_port_is_free_at_once() -> None:
    async with serve(FakeHead().app(), "127.0.0.1", 0) as first:
        pass
    async with serve(FakeHead().app(), "127.0.0.1", first.port) as second:
        assert second == first


async def test_a_taken_port_is_named_with_its_key_in_the_inventory() -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        with pytest.raises(BringUpError) as caught:
            async with serve(FakeHead().app(), "127.0.0.1", port):
                pass
    assert str(caught.value) == f"port {port} on 127.0.0.1 is taken: the gateway cannot listen there"
    assert "`gateway.port` in the inventory" in caught.value.hint


async def test_an_address_of_another_machine_is_refused_with_its_key_in_the_inventory() -> None:
    with pytest.raises(BringUpError, match=r"cannot listen on 192\.0\.2\.1 port") as caught:
        async with serve(FakeHead().app(), "192.0.2.1", 0):
            pass
    assert "`gateway.host` in the inventory" in caught.value.hint


async def test_small_pieces_are_sent_at_once() -> None:
    """An answer is its header and its body: held back for the acknowledgement of the first, it would take 40 ms."""
    async with serve(FakeHead().app(), "127.0.0.1", 0) as listening, httpx.AsyncClient(trust_env=False) as http:
        began_s = monotonic()
        for _ in range(50):
            await http.get(listening.url)
        assert monotonic() - began_s < 50 * 0.04 / 2


async def test_an_ipv6_address_is_served() -> None:
    async with serve(FakeHead().app(), "::1", 0) as listening, httpx.AsyncClient(trust_env=False) as http:
        assert (await http.get(listening.url)).status_code == 404


async def test_a_running_answer_may_finish_while_the_gateway_stops() -> None:
    head = FakeHead(parts=(chunk("a"),), hang=True)
    async with serve(head.app(), "127.0.0.1", 0, drain_s=1) as upstream:
        async with asyncio.timeout(10), gateway_at(upstream.url, drain_s=8) as gateway:
            whole = asyncio.create_task(_lines(gateway.url))
            await _until_running(gateway.counters)
            head.release((last_chunk(1), DONE))
        assert (await whole)[-1] == "data: [DONE]"
        assert gateway.counters.now == Counts(finished=1, prompt_tokens=7, tokens=1)


async def test_an_answer_that_outlasts_the_drain_is_ended_with_an_error_event() -> None:
    head = FakeHead(parts=(chunk("a"),), hang=True)
    async with serve(head.app(), "127.0.0.1", 0, drain_s=1) as upstream:
        async with asyncio.timeout(10), gateway_at(upstream.url, drain_s=1) as gateway:
            whole = asyncio.create_task(_lines(gateway.url))
            await _until_running(gateway.counters)
        lines = await asyncio.wait_for(whole, 5)
        assert json.loads(lines[-1][6:])["error"]["code"] == "stopping"
        assert gateway.counters.now == Counts(cancelled=1, tokens=1)
        await asyncio.wait_for(head.left.wait(), 5)


async def _lines(url: str) -> list[str]:
    headers = {"authorization": "Bearer mesh-test"}
    async with httpx.AsyncClient(base_url=url, headers=headers, trust_env=False, timeout=20) as http:
        response = await http.post(CHAT, json=STREAMED)
        return [line for line in response.text.splitlines() if line]


async def _until_running(counters: Counters) -> None:
    async with asyncio.timeout(5):
        while counters.now.running == 0:
            await asyncio.sleep(0.01)


def test_an_address_that_is_taken_is_known_before_anything_is_started() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(BringUpError, match=f"port {port} on 127.0.0.1 is taken"):
            check_address("127.0.0.1", port)
    check_address("127.0.0.1", port)
