"""One question and its answer, over a socket."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from time import monotonic

import h11
import pytest

from orchestrator.gateway.exchange import Exchange, exchange

HEADER = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[None, None, None]]


@asynccontextmanager
async def asked(script: Script) -> AsyncIterator[tuple[int, Exchange]]:
    """The status and the exchange with a peer that does this after it has got the request."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\nhello")
        try:
            await script(reader, writer)
        except ConnectionError:  # that it was left is what some of them wait for
            pass
        finally:
            writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with asyncio.timeout(10), exchange(f"http://127.0.0.1:{port}", within_s=5) as one:
            yield await one.ask("/x", {"host": "there"}, b"hello", within_s=5), one


async def test_what_came_together_is_one_part_and_the_end_is_known_without_the_connections() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEADER + b"1\r\na\r\n2\r\nbc\r\n")
        await asyncio.sleep(0.05)
        writer.write(b"1\r\nd\r\n0\r\n\r\n")
        await reader.read()

    async with asked(script) as (status, one):
        assert (status, [part async for part in one.parts()]) == (200, [b"abc", b"d"])


async def test_an_answer_cut_short_is_an_error() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEADER + b"5\r\nabc")

    async with asked(script) as (_, one):
        assert await one.part() == b"abc"
        with pytest.raises(h11.RemoteProtocolError):
            await one.part()


@pytest.mark.parametrize("header", [b"", b"HTTP/1.1 2", HEADER[:-2], b"no HTTP at all\r\n\r\n"])
async def test_a_peer_that_leaves_before_its_header_is_complete_is_an_error(header: bytes) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(header)

    with pytest.raises(h11.RemoteProtocolError):
        async with asked(script):
            pass


async def test_leaving_closes_the_connection() -> None:
    left = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEADER)
        assert await reader.read() == b""
        left.set()

    async with asked(script):
        assert not left.is_set()
    async with asyncio.timeout(5):
        await left.wait()


async def test_silence_counts_only_while_something_is_waited_for() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEADER + b"1\r\na\r\n")
        await asyncio.sleep(0.3)
        writer.write(b"1\r\nb\r\n")
        await reader.read()

    async with asked(script) as (_, one):
        with one.given_up_after(0.2):
            assert await one.part() == b"a"
            await asyncio.sleep(0.5)
            began_s = monotonic()
            assert await one.part() == b"b"
            with pytest.raises(h11.RemoteProtocolError):
                await one.part()
            assert 0.2 <= monotonic() - began_s < 2
