"""The gateway before a head, both on real sockets: what passes, what does not, and what faults look like."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from orchestrator.gateway import relay
from orchestrator.gateway.api_error import unavailable
from orchestrator.gateway.connections import ConnectionLimits
from orchestrator.gateway.fields import BODY_LIMIT_BYTES
from orchestrator.gateway.head import Deadlines
from orchestrator.gateway.keys import KeyFile, add_key, revoke_key
from orchestrator.gateway.line import LineLimits
from orchestrator.gateway.routing import HeadAddress
from orchestrator.gateway.server import serve
from orchestrator.gateway.state import Counts, HeadCounts, Situation
from orchestrator.host_state import HostAside, HostState
from tests.orchestrator.gateway.heads import (
    DONE,
    HEAD_KEY,
    KEY,
    FakeHead,
    Gateway,
    chunk,
    gateway_at,
    gateway_for,
    json_answer,
    last_chunk,
)

CHAT = "/v1/chat/completions"
QUESTION = {"messages": [{"role": "user", "content": "hello"}], "user": "somebody"}
STREAMED = {**QUESTION, "stream": True}
LOST = {
    "message": "the model's head was lost before the answer was complete; ask again",
    "type": "server_error",
    "param": None,
    "code": "head_lost",
}


async def test_an_answer_comes_back_with_the_clusters_model_name_and_is_counted() -> None:
    whole = {"model": "head-name", "choices": [], "timings": {"prompt_n": 7, "predicted_n": 3}}
    head = FakeHead(whole=json_answer(whole))
    async with gateway_for(head) as gateway:
        response = await gateway.http.post(CHAT, json=QUESTION)
        assert (response.status_code, response.json()) == (200, {**whole, "model": "tiny"})
        await _until(lambda: gateway.counters.now == Counts(finished=1, prompt_tokens=7, tokens=3))
    assert head.bodies == [{"messages": QUESTION["messages"], "model": "tiny"}]
    assert head.keys == [f"Bearer {HEAD_KEY}"]


async def test_keys_open_and_close_while_it_serves(tmp_path: Path) -> None:
    """And nobody gets in while the file of keys cannot be read."""
    path = tmp_path / "keys.json"
    phone = {"authorization": f"Bearer {add_key(path, 'phone')}"}
    async with gateway_for(FakeHead(), keys=KeyFile(path).now) as gateway:
        assert (await gateway.http.get("/v1/models", headers=phone)).status_code == 200
        revoke_key(path, "phone", tmp_path / "own")
        assert (await gateway.http.get("/v1/models", headers=phone)).status_code == 401
        again = {"authorization": f"Bearer {add_key(path, 'phone')}"}
        assert (await gateway.http.get("/v1/models", headers=again)).status_code == 200
        path.unlink()
        refused = await gateway.http.get("/v1/models", headers=again)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "keys_unreadable")


async def test_a_stream_passes_event_by_event_up_to_done() -> None:
    head = FakeHead(parts=(b":\n\n", chunk("a"), last_chunk(1), DONE))
    async with gateway_for(head) as gateway, gateway.http.stream("POST", CHAT, json=STREAMED) as response:
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        events = [line async for line in response.aiter_lines() if line]
        assert (events[0], events[-1]) == (":", "data: [DONE]")
        assert [json.loads(event[6:])["model"] for event in events[1:-1]] == ["tiny", "tiny"]
        await _until(lambda: gateway.counters.now == Counts(finished=1, prompt_tokens=7, tokens=1))


async def test_an_answer_is_over_at_done() -> None:
    """Clients close their connection there: who has the whole answer has not left before its end."""
    head = FakeHead(parts=(chunk("a"), last_chunk(1), DONE), hang=True)
    async with gateway_for(head, deadlines=Deadlines(silence_s=30)) as gateway, asyncio.timeout(10):
        assert (await gateway.http.post(CHAT, json=STREAMED)).text.endswith("data: [DONE]\n\n")
        assert gateway.counters.now == Counts(finished=1, prompt_tokens=7, tokens=1)
        await head.left.wait()


async def test_a_token_passes_before_the_next_one_exists() -> None:
    head = FakeHead(parts=(chunk("first"),), hang=True)
    async with gateway_for(head) as gateway, gateway.http.stream("POST", CHAT, json=STREAMED) as response:
        async with asyncio.timeout(5):
            assert "first" in await anext(response.aiter_lines())
        assert gateway.counters.now == Counts(running=1)


@pytest.mark.parametrize("question", [STREAMED, QUESTION], ids=["streamed", "whole"])
async def test_a_client_that_leaves_cancels_its_request_at_the_head(question: dict[str, object]) -> None:
    head = FakeHead(parts=(chunk("first"),), hang=True)
    async with gateway_for(head) as gateway:
        asking = asyncio.create_task(_read_all(gateway, question))
        await _until(lambda: bool(head.bodies))
        asking.cancel()
        async with asyncio.timeout(5):
            await head.left.wait()
        await _until(lambda: (gateway.counters.now.running, gateway.counters.now.cancelled) == (0, 1))


@pytest.mark.parametrize("tear", [True, False], ids=["torn", "ended without [DONE]"])
async def test_a_head_lost_in_a_stream_is_an_error_event_after_what_came(tear: bool) -> None:
    head = FakeHead(parts=(chunk("half"), b'data: {"choi'), tear=tear)
    async with gateway_for(head) as gateway:
        response = await gateway.http.post(CHAT, json={**STREAMED, "logprobs": True})
        events = response.text.strip().split("\n\n")
        assert response.status_code == 200
        assert "half" in events[0]
        assert [json.loads(event[6:]) for event in events[1:]] == [{"error": LOST}]
        await _until(lambda: gateway.counters.now == Counts(failed=1, tokens=1))


ROLE = b'data: {"choices": [{"index": 0, "delta": {"role": "assistant", "content": null}}], "model": "head-name"}\n\n'


async def test_a_head_lost_before_the_first_text_is_replaced_and_nobody_notices() -> None:
    """The request waits in line until there is another head; what the first one said of the role is not said twice."""
    first = FakeHead(parts=(b":\n\n", ROLE), tear=True)
    second = FakeHead(parts=(ROLE, chunk("a"), last_chunk(1), DONE))
    async with gateway_for(first) as gateway, serve(second.app(), "127.0.0.1", 0, drain_s=1) as upstream:
        asking = asyncio.create_task(gateway.http.post(CHAT, json=STREAMED))
        await first.left.wait()
        gateway.backends.take_away()
        await _until(lambda: gateway.counters.now == Counts(waiting=1))
        await asyncio.sleep(0.6)
        assert not asking.done()
        gateway.backends.replace([HeadAddress("other", upstream.url, HEAD_KEY, 1)])
        text = (await asking).text
        assert (text.count('"role"'), text.count('"a"'), text.count("[DONE]"), text.count("error")) == (1, 1, 1, 0)
        await _until(lambda: gateway.counters.now == Counts(finished=1, prompt_tokens=7, tokens=1))
        assert (gateway.counters.replayed, gateway.counters.resumed) == (1, 0)


def numbered(head: str, text: str) -> bytes:
    """A chunk as the engine sends it, with what belongs to one request of one head."""
    return chunk(text, id=f"chatcmpl-{head}", created={"a": 1, "b": 2}[head])


ENDED = b'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}\n\n'


async def test_a_stream_that_has_begun_goes_on_with_another_head() -> None:
    """One answer: nothing is missing, nothing is there twice, and ids and usage are those of one request."""
    usage = {"prompt_tokens": 12, "completion_tokens": 2, "total_tokens": 14}
    last = b"data: " + json.dumps({"choices": [], "id": "chatcmpl-b", "created": 2, "usage": usage}).encode() + b"\n\n"
    first = FakeHead(parts=(ROLE, numbered("a", "one "), numbered("a", "two ")), tear=True)
    second = FakeHead(parts=(ROLE, numbered("b", "three "), numbered("b", "four"), last_chunk(2), last, DONE))
    async with gateway_for(first) as gateway, serve(second.app(), "127.0.0.1", 0, drain_s=1) as upstream:
        asking = asyncio.create_task(gateway.http.post(CHAT, json={**STREAMED, "max_tokens": 10}))
        await first.left.wait()
        gateway.backends.replace([HeadAddress("other", upstream.url, HEAD_KEY, 1)])
        events = [line[6:] for line in (await asking).text.splitlines() if line.startswith("data: ")]
        await _until(lambda: (gateway.counters.now.finished, gateway.counters.now.tokens) == (1, 4))
        assert (gateway.counters.replayed, gateway.counters.resumed) == (0, 1)
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    deltas = [one["choices"][0]["delta"] for one in chunks if one["choices"]]
    assert "".join(delta.get("content") or "" for delta in deltas) == "one two three four"
    assert sum("role" in delta for delta in deltas) == 1
    assert {one["id"] for one in chunks if "id" in one} == {"chatcmpl-a"}
    assert {one["created"] for one in chunks if "created" in one} == {1}
    assert chunks[-1]["usage"] == {"prompt_tokens": 10, "completion_tokens": 4, "total_tokens": 14}
    assert second.bodies[0]["messages"][-1] == {"role": "assistant", "content": "one two "}
    assert second.bodies[0]["max_tokens"] == 8


async def test_tokens_of_a_stream_that_goes_on_are_those_that_its_head_has_counted() -> None:
    """A character may be several tokens: pieces of text are fewer. The client is not told what it has not asked for."""
    counted = chunk("日", timings={"prompt_n": 7, "predicted_n": 3})
    first = FakeHead(parts=(ROLE, counted), tear=True)
    second = FakeHead(parts=(ROLE, chunk("本", timings={"prompt_n": 9, "predicted_n": 2}), last_chunk(2), DONE))
    async with gateway_for(first) as gateway, serve(second.app(), "127.0.0.1", 0, drain_s=1) as upstream:
        asking = asyncio.create_task(gateway.http.post(CHAT, json={**STREAMED, "max_tokens": 10}))
        await first.left.wait()
        gateway.backends.replace([HeadAddress("other", upstream.url, HEAD_KEY, 1)])
        text = (await asking).text
        await _until(lambda: gateway.counters.now.tokens == 5)
    assert second.bodies[0]["max_tokens"] == 7
    chunks = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    assert ["timings" in one for one in chunks] == [False] * (len(chunks) - 1) + [True]


@pytest.mark.parametrize(
    ("parts", "limit", "reasons"),
    [((chunk("all"), last_chunk(1)), 10, ["stop"]), ((chunk("all"),), 1, ["length"])],
    ids=["only [DONE] was missing", "the limit was reached"],
)
async def test_an_answer_that_was_complete_is_brought_to_its_end(
    parts: tuple[bytes, ...], limit: int, reasons: list[str]
) -> None:
    head = FakeHead(parts=parts, tear=True)
    async with gateway_for(head) as gateway:
        text = (await gateway.http.post(CHAT, json={**STREAMED, "max_tokens": limit})).text
        events = [line[6:] for line in text.splitlines() if line.startswith("data: ")]
        ends = [json.loads(event)["choices"][0]["finish_reason"] for event in events[:-1]]
        assert ([end for end in ends if end], events[-1], len(head.bodies)) == (reasons, "[DONE]", 1)


@pytest.mark.parametrize(
    ("parts", "limit", "ends"),
    [((), 3, ["length"]), ((ENDED,), 10, ["stop"])],
    ids=["the limit was reached", "only the usage was missing"],
)
async def test_usage_that_a_lost_head_owed_is_told(parts: tuple[bytes, ...], limit: int, ends: list[str]) -> None:
    """In a chunk of its own, as the engine does; what was in the head's cache is part of the prompt."""
    counted = chunk("all", id="chatcmpl-a", timings={"cache_n": 5, "prompt_n": 7, "predicted_n": 3})
    head = FakeHead(parts=(counted, *parts), tear=True)
    async with gateway_for(head) as gateway:
        asked = {**STREAMED, "max_tokens": limit, "stream_options": {"include_usage": True}}
        events = (await gateway.http.post(CHAT, json=asked)).text.strip().split("\n\n")
    chunks = [json.loads(event[6:]) for event in events[:-1]]
    assert [choice["finish_reason"] for one in chunks for choice in one["choices"] if choice["finish_reason"]] == ends
    usage = {"prompt_tokens": 12, "completion_tokens": 3, "total_tokens": 15}
    assert chunks[-1] == {"id": "chatcmpl-a", "model": "tiny", "choices": [], "usage": usage}
    assert events[-1] == "data: [DONE]"


async def test_an_answer_under_which_head_after_head_is_lost_ends_with_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(relay, "NOTICED_S", 0.01)
    head = FakeHead(parts=(chunk("more "),), tear=True)
    async with gateway_for(head) as gateway:
        text = (await gateway.http.post(CHAT, json=STREAMED)).text
        assert json.loads(text.strip().split("\n\n")[-1][6:]) == {"error": LOST}
        assert len(head.bodies) <= relay.MOST_HEADS + 1
        assert text.count("more ") == len(head.bodies)


async def test_an_answer_that_cannot_go_on_exactly_ends_with_an_error() -> None:
    head = FakeHead(parts=(chunk("half"),), tear=True)
    async with gateway_for(head) as gateway:
        text = (await gateway.http.post(CHAT, json={**STREAMED, "grammar": "root ::= [a-z]+"})).text
        assert json.loads(text.strip().split("\n\n")[-1][6:]) == {"error": LOST}
        assert len(head.bodies) == 1


async def test_of_several_choices_one_that_was_cut_off_is_no_end() -> None:
    other = b'data: {"choices": [{"index": 1, "delta": {"content": "half"}, "finish_reason": null}]}\n\n'
    head = FakeHead(parts=(chunk("whole"), other, ENDED), tear=True)
    async with gateway_for(head) as gateway:
        text = (await gateway.http.post(CHAT, json={**STREAMED, "n": 2})).text
        assert json.loads(text.strip().split("\n\n")[-1][6:]) == {"error": LOST}
        assert "[DONE]" not in text


async def test_a_head_that_was_lost_is_left_alone_while_another_is_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """It seems the best one as long as its tunnel takes connections, although nothing is behind that any more."""
    monkeypatch.setattr(relay, "NOTICED_S", 0.01)
    gone, there = FakeHead(tear=True), FakeHead(parts=(ROLE, chunk("a"), last_chunk(1), DONE))
    async with serve(there.app(), "127.0.0.1", 0, drain_s=1) as other, serve(gone.app(), "127.0.0.1", 0) as first:
        slow = HeadAddress("other", other.url, HEAD_KEY, 1, token_s=1.0)
        async with gateway_at(first.url, others=[slow]) as gateway:
            for _ in range(2):
                answer = await gateway.http.post(CHAT, json=STREAMED)
                assert (answer.headers["x-meshctl-head"], answer.text.count("[DONE]")) == ("other", 1)
    assert (len(gone.bodies), len(there.bodies)) == (1, 2)


async def test_a_request_with_many_prompts_takes_all_slots_of_a_head() -> None:
    head = FakeHead(hang=True)
    async with gateway_for(head) as gateway:
        many = {"prompt": ["one", "two", "three", "four"], "stream": True}
        asking = [asyncio.create_task(gateway.http.post("/v1/completions", json=many))]
        await _until(lambda: len(head.bodies) == 1)
        asking.append(asyncio.create_task(gateway.http.post(CHAT, json=STREAMED)))
        await _until(lambda: gateway.counters.now == Counts(running=1, waiting=1))
        head.release((DONE,))
        assert [(await one).status_code for one in asking] == [200, 200]


async def test_a_whole_answer_that_is_lost_is_asked_for_again() -> None:
    whole = {"model": "head-name", "choices": []}
    second, taken = FakeHead(whole=json_answer(whole)), asyncio.Event()

    async def die(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n{")
        await writer.drain()
        taken.set()
        await asyncio.sleep(0.1)
        writer.transport.abort()

    async with (
        await asyncio.start_server(die, "127.0.0.1", 0) as dying,
        gateway_at(f"http://127.0.0.1:{dying.sockets[0].getsockname()[1]}") as gateway,
        serve(second.app(), "127.0.0.1", 0, drain_s=1) as other,
    ):
        asking = asyncio.create_task(gateway.http.post(CHAT, json=QUESTION))
        await taken.wait()
        gateway.backends.replace([HeadAddress("other", other.url, HEAD_KEY, 1)])
        answer = await asking
    assert (answer.status_code, answer.json()) == (200, {**whole, "model": "tiny"})
    assert answer.headers["x-meshctl-head"] == "other"


async def test_heads_that_are_taken_away_as_somebody_is_let_in_are_waited_for_again() -> None:
    head = FakeHead(whole=json_answer({"choices": []}))
    async with gateway_for(head) as gateway, serve(head.app(), "127.0.0.1", 0, drain_s=1) as upstream:
        gateway.backends.take_away()
        asking = asyncio.create_task(gateway.http.post(CHAT, json=QUESTION))
        await _until(lambda: gateway.counters.now == Counts(waiting=1))
        gateway.backends.replace([HeadAddress("gone", upstream.url, HEAD_KEY, 1)])
        gateway.backends.take_away()
        await asyncio.sleep(0.1)
        gateway.backends.replace([HeadAddress("there", upstream.url, HEAD_KEY, 1)])
        answer = await asking
        assert (answer.status_code, answer.headers["x-meshctl-head"]) == (200, "there")


async def test_a_request_that_ends_every_head_it_comes_to_is_asked_twice_only() -> None:
    head = FakeHead(parts=(ROLE,), tear=True)
    async with gateway_for(head) as gateway:
        text = (await gateway.http.post(CHAT, json=STREAMED)).text
        assert json.loads(text.strip().split("\n\n")[-1][6:]) == {"error": LOST}
        assert len(head.bodies) == 2
        await _until(lambda: gateway.counters.now == Counts(failed=1))


async def test_while_the_cluster_recovers_requests_wait_and_when_it_has_failed_they_are_told_why() -> None:
    async with gateway_for(FakeHead(whole=json_answer({"choices": []}))) as gateway:
        gateway.backends.take_away()
        gateway.state.become(Situation("recovering", "a worker ended"))
        waiting = asyncio.create_task(gateway.http.post(CHAT, json=QUESTION))
        await _until(lambda: gateway.counters.now == Counts(waiting=1))
        assert (await gateway.http.get("/health")).json()["status"] == "recovering"
        gateway.state.become(Situation("failed", "3 GiB are missing"))
        gateway.backends.give_up(unavailable("3 GiB are missing", code="failed"))
        for answer in (await waiting, await gateway.http.post(CHAT, json=QUESTION)):
            assert (answer.status_code, answer.json()["error"]["message"]) == (503, "3 GiB are missing")
            assert answer.headers["retry-after"]


async def test_metrics_tell_what_was_done_to_whoever_has_a_key() -> None:
    head = FakeHead(parts=(chunk("a"), last_chunk(1), DONE))
    aside = HostAside("2026-11-26T12:00:00+00:00", "it failed 3 times")
    hosts = (HostState("nuc", 4096, 1024, 512), HostState("pi", aside=aside))
    async with gateway_for(head, hosts=lambda: hosts) as gateway:
        gateway.counters.recover("degraded", 7.0)
        await gateway.http.post(CHAT, json=STREAMED)
        await _until(lambda: gateway.counters.now.finished == 1)
        answer = await gateway.http.get("/metrics")
        assert answer.headers["content-type"].startswith("text/plain; version=")
        told = {
            (sample.name, *sample.labels.values()): sample.value
            for family in text_string_to_metric_families(answer.text)
            for sample in family.samples
        }
        assert told["meshctl_requests_total", "finished"] == 1
        assert told["meshctl_tokens_total", "prompt"] == 7
        assert told["meshctl_requests_running",] == told["meshctl_requests_waiting",] == 0
        assert told["meshctl_first_token_seconds_count",] == told["meshctl_request_seconds_count",] == 1
        assert 0 < told["meshctl_first_token_seconds_sum",] <= told["meshctl_request_seconds_sum",]
        assert (told["meshctl_state", "ready"], told["meshctl_state", "recovering"]) == (1, 0)
        assert told["meshctl_memory_budget_bytes", "nuc"] == 4096
        assert told["meshctl_memory_used_bytes", "nuc"] == 1024
        assert told["meshctl_host_available_bytes", "nuc"] == 512
        assert (told["meshctl_host_set_aside", "nuc"], told["meshctl_host_set_aside", "pi"]) == (0, 1)
        assert ("meshctl_memory_budget_bytes", "pi") not in told
        assert (told["meshctl_recoveries_total", "degraded"], told["meshctl_recoveries_total", "failed"]) == (1, 0)
        assert (told["meshctl_recovery_seconds_count",], told["meshctl_recovery_seconds_sum",]) == (1, 7)
        assert told["meshctl_streams_resumed_total",] == told["meshctl_requests_replayed_total",] == 0
        assert told["meshctl_head_requests_running", "head"] == 0
        nobody = await gateway.http.get("/metrics", headers={"authorization": "Bearer no"})
        assert nobody.status_code == 401


async def test_beyond_the_heads_slots_requests_wait_and_beyond_the_line_they_are_turned_away() -> None:
    head = FakeHead(parts=(chunk("first"),), hang=True)
    async with gateway_for(head, parallel=1, limits=LineLimits(requests=2)) as gateway:
        first = asyncio.create_task(_read_all(gateway, STREAMED))
        await _until(lambda: gateway.counters.now == Counts(running=1))
        second = asyncio.create_task(_read_all(gateway, STREAMED))
        await _until(lambda: gateway.counters.now == Counts(running=1, waiting=1))
        third = await gateway.http.post(CHAT, json=STREAMED)
        assert (third.status_code, third.headers["retry-after"]) == (429, "20")
        error = third.json()["error"]
        assert (error["type"], error["code"], error["waiting"]) == ("rate_limit_error", "too_many_requests", 1)
        assert len(head.bodies) == 1
        head.release((last_chunk(1), DONE))
        await asyncio.gather(first, second)
        await _until(lambda: gateway.counters.now.finished == 2)
        assert (gateway.counters.now.running, gateway.counters.now.waiting, gateway.counters.now.failed) == (0, 0, 1)


async def test_who_leaves_while_waiting_is_not_asked_for_at_the_head() -> None:
    head = FakeHead(parts=(chunk("first"),), hang=True)
    async with gateway_for(head, parallel=1) as gateway:
        first = asyncio.create_task(_read_all(gateway, STREAMED))
        await _until(lambda: gateway.counters.now == Counts(running=1))
        second = asyncio.create_task(_read_all(gateway, STREAMED))
        await _until(lambda: gateway.counters.now.waiting == 1)
        second.cancel()
        await _until(lambda: gateway.counters.now == Counts(running=1, cancelled=1))
        head.release((last_chunk(1), DONE))
        await first
        assert len(head.bodies) == 1


async def test_a_client_that_takes_nothing_keeps_no_slot_and_no_memory() -> None:
    """32 MiB are on their way to it; far less may lie in buffers, and after a while its answer is given up."""
    part = chunk("x" * 2**16)
    head = FakeHead(parts=(part,) * 512)
    async with gateway_for(head, parallel=1, connections=ConnectionLimits(reader_s=0.5)) as gateway:
        url = httpx.URL(gateway.url)
        body = json.dumps(STREAMED).encode()
        _, lazy = await asyncio.open_connection(url.host, url.port, limit=1024)
        lazy.write(
            f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\n\r\n".encode()
            + body
        )
        await _until(lambda: gateway.counters.now.running == 1)
        await _until(lambda: gateway.counters.now.cancelled == 1)
        assert gateway.counters.now.tokens < 512
        await head.left.wait()
        lazy.transport.abort()


async def test_a_head_silent_in_a_stream_is_given_up() -> None:
    head = FakeHead(parts=(chunk("half"),), hang=True)
    async with gateway_for(head, deadlines=Deadlines(silence_s=0.2)) as gateway:
        response = await gateway.http.post(CHAT, json={**STREAMED, "logprobs": True})
        assert json.loads(response.text.strip().split("\n\n")[-1][6:]) == {"error": LOST}
        await asyncio.wait_for(head.left.wait(), 5)


async def test_an_answer_that_does_not_come_in_time_is_a_504() -> None:
    async with gateway_for(FakeHead(), deadlines=Deadlines(answer_s=0.2)) as gateway:
        response = await gateway.http.post(CHAT, json=QUESTION)
    assert (response.status_code, response.json()["error"]["code"]) == (504, "deadline_exceeded")


async def test_a_head_that_cannot_be_reached_is_a_503_that_says_when_to_ask_again(closed_port: int) -> None:
    async with gateway_at(f"http://127.0.0.1:{closed_port}") as gateway:
        response = await gateway.http.post(CHAT, json=QUESTION)
    assert (response.status_code, response.headers["retry-after"]) == (503, "5")
    assert response.json()["error"]["code"] == "head_down"


async def test_a_head_that_hangs_up_without_an_answer_is_a_502() -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.close()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with gateway_at(f"http://127.0.0.1:{port}") as gateway:
            response = await gateway.http.post(CHAT, json=QUESTION)
    assert (response.status_code, response.json()) == (502, {"error": LOST})


async def test_a_full_context_is_told_as_openai_does_with_the_numbers_and_the_fix() -> None:
    error = {"code": 400, "message": "m", "type": "exceed_context_size_error", "n_prompt_tokens": 5001, "n_ctx": 2048}
    async with gateway_for(FakeHead(whole=json_answer({"error": error}, 400))) as gateway:
        response = await gateway.http.post(CHAT, json=STREAMED)
    assert (response.status_code, response.json()["error"]) == (
        400,
        {
            "message": "the request has 5001 tokens, but a conversation may hold 2048; "
            "shorten it, or raise `context` in the inventory and start the cluster again",
            "type": "invalid_request_error",
            "param": "messages",
            "code": "context_length_exceeded",
            "n_prompt_tokens": 5001,
            "n_ctx": 2048,
        },
    )


@pytest.mark.parametrize(
    ("status", "error", "expected"),
    [
        (400, {"message": "bad grammar", "type": "invalid_request_error"}, (400, "bad grammar", None)),
        (500, {"message": "oh", "type": "server_error"}, (502, "oh", "head_error")),
        (
            503,
            {"message": "Loading", "type": "unavailable_error"},
            (503, "the head is not ready: Loading", "head_not_ready"),
        ),
        (
            401,
            {"message": "Invalid API Key", "type": "authentication_error"},
            (502, "the head refuses the gateway's own key", "head_error"),
        ),
        (418, "tea", (502, "the head answered with status 418 and no reason", "head_error")),
    ],
)
async def test_the_heads_own_errors_are_passed_in_openais_shape(
    status: int, error: object, expected: tuple[int, str, str | None]
) -> None:
    async with gateway_for(FakeHead(whole=json_answer({"error": error}, status))) as gateway:
        response = await gateway.http.post(CHAT, json=QUESTION)
    told = response.json()["error"]
    assert (response.status_code, told["message"], told["code"]) == expected


@pytest.mark.parametrize(("method", "path"), [("POST", CHAT), ("POST", "/v1/completions"), ("GET", "/v1/models")])
async def test_without_the_key_nothing_is_answered(method: str, path: str) -> None:
    head = FakeHead()
    async with gateway_for(head) as gateway:
        for authorization in ("", "Bearer", "Bearer wrong", "Basic mesh-test", "mesh-test", "Bearer \u00e4"):
            headers = {b"authorization": authorization.encode()}
            response = await gateway.http.request(method, path, headers=headers)
            assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")
            assert response.json()["error"]["code"] == "invalid_api_key"
    assert head.bodies == []


@pytest.mark.parametrize("content", [b"x" * (BODY_LIMIT_BYTES + 1), None], ids=["announced", "chunked"])
async def test_a_body_above_the_limit_is_a_413(content: bytes | None) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(9):
            yield b"x" * 2**20

    async with gateway_for(FakeHead()) as gateway:
        response = await gateway.http.post(CHAT, content=chunks() if content is None else content)
    assert (response.status_code, response.json()["error"]["message"]) == (413, "the body is larger than 8 MiB")


async def test_a_body_that_does_not_arrive_is_a_408() -> None:
    async with gateway_for(FakeHead(), deadlines=Deadlines(body_s=0.2)) as gateway:
        reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(gateway.url).port)
        writer.write(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer mesh-test\r\n".encode())
        writer.write(b"Content-Length: 10\r\n\r\n{")
        status = await asyncio.wait_for(reader.readline(), 5)
        writer.close()
        await writer.wait_closed()
    assert status == b"HTTP/1.1 408 Request Timeout\r\n"


@pytest.mark.parametrize(
    ("content", "status", "param"),
    [
        (b"not json", 400, None),
        (b"[]", 400, None),
        (b'{"messages": [{"role": "user", "content": "x"}], "chat_parser": "x"}', 400, "chat_parser"),
        (b'{"messages": [{"role": "user", "content": "x"}], "n": 3}', 400, "n"),
        (b'{"messages": [{"role": "user", "content": "x"}], "model": "gpt"}', 404, "model"),
    ],
)
async def test_a_bad_request_never_reaches_the_head(content: bytes, status: int, param: str | None) -> None:
    head = FakeHead()
    async with gateway_for(head) as gateway:
        response = await gateway.http.post(CHAT, content=content)
    assert (response.status_code, response.json()["error"]["param"]) == (status, param)
    assert head.bodies == []


async def test_while_the_cluster_starts_requests_are_told_what_is_going_on() -> None:
    async with gateway_for(FakeHead()) as gateway:
        gateway.state.become(Situation("starting", "a moment"))
        gateway.state.reach("loading", 0.1)
        response = await gateway.http.post(CHAT, json=QUESTION)
        health = await gateway.http.get("/health", headers={"authorization": ""})
    assert (response.status_code, response.headers["retry-after"]) == (503, "5")
    assert response.json()["error"] == {
        "message": "a moment",
        "type": "service_unavailable",
        "param": None,
        "code": "starting",
        "state": "starting",
        "step": "loading",
        "fraction": 0.1,
    }
    assert (health.status_code, health.json()) == (503, {"status": "starting", "step": "loading", "fraction": 0.1})


async def test_with_fewer_hosts_it_serves_and_says_so_in_its_metrics() -> None:
    async with gateway_for(FakeHead(whole=json_answer({"choices": []}))) as gateway:
        gateway.state.become(Situation("degraded"))
        gateway.state.reach("loading", 0.5)
        health = await gateway.http.get("/health")
        assert (health.status_code, health.json()) == (200, {"status": "ok"})
        assert (await gateway.http.post(CHAT, json=QUESTION)).status_code == 200
        assert 'meshctl_state{state="degraded"} 1.0' in (await gateway.http.get("/metrics")).text
        assert gateway.state.told() == {"state": "degraded"}


async def test_what_a_head_generates_now_is_known_while_its_answer_is_under_way() -> None:
    head = FakeHead(parts=tuple(chunk(str(number)) for number in range(5)), hang=True)
    async with gateway_for(head) as gateway:
        asking = asyncio.create_task(_read_all(gateway, STREAMED))
        await _until(lambda: gateway.counters.of_head("head").tokens_per_s > 2)  # five, within a second or across two
        assert gateway.counters.of_head("head").running == 1
        assert 'meshctl_head_requests_running{head="head"} 1.0' in (await gateway.http.get("/metrics")).text
        head.release((last_chunk(5), DONE))
        await asking
        await _until(lambda: gateway.counters.of_head("head").running == 0)
        assert gateway.counters.of_head("other") == HeadCounts()


async def test_a_whole_answer_counts_for_the_time_that_it_took() -> None:
    timings = {"prompt_n": 7, "predicted_n": 12}
    async with gateway_for(FakeHead(whole=json_answer({"choices": [], "timings": timings}))) as gateway:
        await gateway.http.post(CHAT, json=QUESTION)
        assert 6 <= gateway.counters.of_head("head").tokens_per_s <= 12


async def test_health_is_open_and_models_are_listed_with_their_context() -> None:
    entry: dict[str, object] = {"id": "tiny", "object": "model", "created": 1700000000, "owned_by": "meshctl"}
    entry["context_length"] = 4096
    async with gateway_for(FakeHead()) as gateway:
        health = await gateway.http.get("/health", headers={"authorization": ""})
        models = await gateway.http.get("/v1/models")
        one = await gateway.http.get("/v1/models/tiny")
        other = await gateway.http.get("/v1/models/other")
        gateway.backends.replace([HeadAddress("small", "http://127.0.0.1:1", HEAD_KEY, 1, context=1024)])
        smaller = await gateway.http.get("/v1/models/tiny")
    assert (health.status_code, health.json()) == (200, {"status": "ok"})
    assert models.json() == {"object": "list", "data": [entry]}
    assert one.json() == entry
    assert smaller.json() == {**entry, "context_length": 1024}
    assert (other.status_code, other.json()["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/", 404), ("POST", "/slots/0", 404), ("GET", CHAT, 405)]
)
async def test_there_is_nothing_else(method: str, path: str, status: int) -> None:
    async with gateway_for(FakeHead()) as gateway:
        response = await gateway.http.request(method, path)
    assert (response.status_code, response.json()["error"]["type"]) == (status, "invalid_request_error")


PREFLIGHT = {
    "authorization": "",
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type,x-stainless-lang",
}


async def test_web_pages_may_ask_only_from_origins_that_are_named() -> None:
    named, other = "https://chat.example", "https://evil.example"
    async with gateway_for(FakeHead(whole=json_answer({"choices": []})), allowed_origins=(named,)) as gateway:
        allowed = await gateway.http.options(CHAT, headers={**PREFLIGHT, "origin": named})
        refused = await gateway.http.options(CHAT, headers={**PREFLIGHT, "origin": other})
        answers = [await gateway.http.post(CHAT, json=QUESTION, headers={"origin": one}) for one in (named, other)]
        nobody = await gateway.http.post(CHAT, headers={"authorization": "", "origin": named})
    assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, named)
    assert "authorization" in allowed.headers["access-control-allow-headers"]
    assert "access-control-allow-credentials" not in allowed.headers
    assert (refused.status_code, refused.headers.get("access-control-allow-origin")) == (400, None)
    assert [one.headers.get("access-control-allow-origin") for one in answers] == [named, None]
    assert (nobody.status_code, nobody.headers["access-control-allow-origin"]) == (401, named)


async def test_without_named_origins_no_web_page_may_ask() -> None:
    async with gateway_for(FakeHead()) as gateway:
        answer = await gateway.http.options(CHAT, headers={**PREFLIGHT, "origin": "https://chat.example"})
    assert answer.status_code == 405
    assert not [name for name in answer.headers if name.startswith("access-control")]


async def test_a_stream_that_takes_too_long_ends_with_the_reason() -> None:
    head = FakeHead(parts=(chunk("half"),), hang=True)
    async with gateway_for(head, parallel=1, deadlines=Deadlines(answer_s=0.3)) as gateway:
        text = (await gateway.http.post(CHAT, json=STREAMED)).text
        assert "half" in text
        assert json.loads(text.strip().split("\n\n")[-1][6:])["error"]["code"] == "deadline_exceeded"
        await asyncio.wait_for(head.left.wait(), 5)
        await _until(lambda: gateway.counters.now == Counts(failed=1, tokens=1))


async def test_who_waits_too_long_in_line_is_told_so_at_the_deadline() -> None:
    head = FakeHead(parts=(chunk("first"),), hang=True)
    async with gateway_for(head, parallel=1, deadlines=Deadlines(answer_s=0.5)) as gateway:
        first = asyncio.create_task(_read_all(gateway, STREAMED))
        await _until(lambda: gateway.counters.now.running == 1)
        second = await gateway.http.post(CHAT, json=QUESTION)
        assert (second.status_code, second.json()["error"]["code"]) == (504, "deadline_exceeded")
        await first
        await _until(lambda: gateway.counters.now == Counts(failed=2, tokens=1))


async def test_paths_with_a_slash_too_many_lead_nowhere_else() -> None:
    """A redirect would be made of the header `host`, which is the client's word."""
    async with gateway_for(FakeHead()) as gateway:
        assert (await gateway.http.get("/health/")).status_code == 404


async def _read_all(gateway: Gateway, question: dict[str, object]) -> None:
    async with gateway.http.stream("POST", CHAT, json=question) as response:
        async for _ in response.aiter_lines():
            pass


async def _until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not holds():
            await asyncio.sleep(0.01)
