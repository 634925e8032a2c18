"""Connections that do not do what they should: each ends in time, and is told why where that can be told."""

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from orchestrator.gateway.connections import ConnectionLimits
from orchestrator.gateway.head import Deadlines
from tests.orchestrator.certificate_files import write_pair
from tests.orchestrator.gateway.heads import FakeHead, Gateway, gateway_for, json_answer
from tests.orchestrator.gateway.wire import Wire, request_bytes, wire

QUICK = ConnectionLimits(connections=4, header_s=0.3, reader_s=0.3)
BODY = b"GET /health HTTP/1.1\r\nhost: x\r\ncontent-length: 99\r\n\r\n"


@pytest.fixture
def tls(tmp_path: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*write_pair(tmp_path))
    return context


@pytest.fixture(params=["http", "https"])
async def gateway(request: pytest.FixtureRequest, tls: ssl.SSLContext) -> AsyncIterator[Gateway]:
    head = FakeHead(whole=json_answer({"choices": []}))
    served = tls if request.param == "https" else None
    async with gateway_for(head, connections=QUICK, deadlines=Deadlines(body_s=0.5), tls=served) as one:
        yield one


async def test_a_header_that_does_not_arrive_is_a_408_however_slowly_it_drips(gateway: Gateway) -> None:
    async with wire(gateway.url) as one:
        for letter in b"GET /health":
            await one.send(bytes([letter]))
            await asyncio.sleep(0.02)
        assert await one.code() == (408, "request_timeout")
        assert await one.rest() == b""


async def test_a_connection_without_a_request_is_closed_without_a_word(gateway: Gateway) -> None:
    async with wire(gateway.url) as one:
        assert await one.rest() == b""


async def test_a_second_header_that_does_not_arrive_is_a_408_too(gateway: Gateway) -> None:
    async with wire(gateway.url) as one:
        await one.send(request_bytes())
        assert (await one.answer())[0] == 200
        await one.send(b"GET /health")
        assert await one.code() == (408, "request_timeout")


async def test_a_body_that_drips_on_after_its_answer_keeps_no_connection(gateway: Gateway) -> None:
    async with wire(gateway.url) as one:
        await one.send(BODY)
        assert (await one.answer())[0] == 200
        dripping = asyncio.create_task(drip(one))
        assert await one.rest() == b""
        dripping.cancel()


async def test_a_request_may_take_longer_than_its_header(gateway: Gateway) -> None:
    """The deadline is the header's, not the answer's."""
    body = request_bytes()
    async with wire(gateway.url) as one:
        await one.send(body[:-5])
        await asyncio.sleep(0.4)
        await one.send(body[-5:])
        assert (await one.answer())[0] == 200


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nhost: x\r\n" + b"".join(b"x%d: 1\r\n" % number for number in range(101)) + b"\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\nx: " + b"x" * 40_000 + b"\r\n\r\n",
        b"GET /" + b"x" * 40_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nx: " + b"x" * 200_000,
    ],
    ids=["many fields", "a large field", "a long path", "without an end"],
)
async def test_a_header_that_is_too_large_is_a_431(gateway: Gateway, sent: bytes) -> None:
    async with wire(gateway.url) as one:
        await one.send(sent)
        assert await one.code() == (431, "header_too_large")


@pytest.mark.parametrize(
    "sent",
    [
        b"hello\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\r\n" * 2,
        b"GET /\x00 HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\na\x00b: c\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
    ],
    ids=["words", "tls", "nul in path", "nul in field", "no host", "two lengths", "negative length"],
)
async def test_what_is_not_http_is_a_400_in_the_form_of_every_error(gateway: Gateway, sent: bytes) -> None:
    async with wire(gateway.url) as one:
        await one.send(sent)
        assert await one.code() == (400, "bad_http")
        assert await one.rest() == b""


async def test_an_unknown_transfer_coding_is_said_to_be_that(gateway: Gateway) -> None:
    async with wire(gateway.url) as one:
        await one.send(b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip\r\n\r\n")
        assert (await one.code())[1] == "bad_http"


async def test_a_chunk_that_is_none_ends_the_request_and_leaves_no_trace(
    gateway: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    header = request_bytes(more=[("transfer-encoding", "chunked")]).partition(b"\r\n\r\n")[0]
    header = b"\r\n".join(line for line in header.split(b"\r\n") if not line.startswith(b"content-length"))
    async with wire(gateway.url) as one:
        await one.send(header + b"\r\n\r\nzz\r\n")
        assert await one.code() == (400, "bad_http")
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_a_chunk_that_is_none_after_the_answer_leaves_no_trace(
    gateway: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    async with wire(gateway.url) as one:
        await one.send(b"GET /health HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
        assert (await one.answer())[0] == 200
        await one.send(b"zz\r\n")
        assert await one.rest() == b""
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_beyond_the_limit_a_connection_is_told_so_and_closed(gateway: Gateway) -> None:
    url = gateway.url
    async with wire(url), wire(url), wire(url), wire(url), wire(url) as fifth:
        assert await fifth.code() == (503, "too_many_connections")
        await fifth.send(request_bytes())
        assert await fifth.rest() == b""
    await until_gone(gateway)


async def test_a_handshake_that_does_not_end_is_given_up(tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch) -> None:
    """By asyncio, after its own deadline."""
    monkeypatch.setattr("asyncio.constants.SSL_HANDSHAKE_TIMEOUT", 0.3)
    async with gateway_for(FakeHead(), tls=tls) as gateway, wire(gateway.url.replace("https", "http")) as one:
        await one.send(b"\x16\x03\x01")
        assert await one.rest() == b""


async def test_pipelined_requests_that_nobody_reads_the_answers_of_end(gateway: Gateway) -> None:
    async with wire(gateway.url) as one:
        one.writer.transport.pause_reading()  # type: ignore[attr-defined] # it is a socket's
        await one.send(b"GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n" * 2000)
        await until_gone(gateway)


async def until_gone(gateway: Gateway) -> None:
    """Until as many as may be open are taken again."""
    status = 0
    async with asyncio.timeout(10):
        while status != 200:
            async with wire(gateway.url), wire(gateway.url), wire(gateway.url), wire(gateway.url) as last:
                await last.send(request_bytes())
                status, _ = await last.answer()
            await asyncio.sleep(0.05)


async def drip(one: Wire) -> None:
    while True:
        await one.send(b"x")
        await asyncio.sleep(0.02)
