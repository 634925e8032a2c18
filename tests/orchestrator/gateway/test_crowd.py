"""Many clients at once, most of which do not do what they should: all of it ends in time, and nothing is lost by it."""

import asyncio
import json
import resource
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import pytest

from orchestrator.gateway.connections import ConnectionLimits
from orchestrator.gateway.head import Deadlines
from orchestrator.gateway.line import LineLimits
from tests.orchestrator.gateway.heads import DONE, FakeHead, Gateway, chunk, gateway_for, last_chunk
from tests.orchestrator.gateway.wire import HELLO, Wire, request_bytes, wire

MIB = 2**20
SLOTS = 4
OF_EACH = 16
DEADLINES = Deadlines(silence_s=5, body_s=1, answer_s=8)
CONNECTIONS = ConnectionLimits(connections=128, header_s=1, reader_s=1)
LONGEST_S = 15.0
"""The header's, the body's and the answer's deadline, one after the other, with some room."""

STREAMED = request_bytes(body={"messages": HELLO, "stream": True})
PART = chunk("x" * 2**16)
ANSWER = (*([PART] * 256), last_chunk(256), DONE)
"""16 MiB: far more than what buffers of a connection hold."""


@dataclass(frozen=True)
class Crowd:
    gateway: Gateway
    ended: Counter[str]

    async def each(self, kind: str, client: Callable[[Wire], Coroutine[None, None, None]]) -> None:
        async with wire(self.gateway.url) as one:
            await client(one)
        self.ended[kind] += 1


@asynccontextmanager
async def crowd() -> AsyncIterator[Crowd]:
    head = FakeHead(parts=ANSWER)
    limits = LineLimits(requests=128, wait_s=6)
    async with gateway_for(
        head, parallel=SLOTS, deadlines=DEADLINES, limits=limits, connections=CONNECTIONS
    ) as gateway:
        yield Crowd(gateway, Counter())


async def half_a_header(one: Wire) -> None:
    await one.send(STREAMED[:30])
    assert await one.code() == (408, "request_timeout")
    assert await one.rest() == b""


async def half_a_body(one: Wire) -> None:
    await one.send(STREAMED[:-10])
    assert await one.code() == (408, "request_timeout")


async def reads_nothing(one: Wire) -> None:
    """Until the gateway gives it up; what it has not read by then is lost to it."""
    await one.send(STREAMED)
    one.writer.transport.pause_reading()  # type: ignore[attr-defined] # it is a socket's
    await asyncio.sleep(CONNECTIONS.reader_s)


async def reads_all(one: Wire) -> None:
    """The whole answer, or the reason why there is none: nobody is left without an end."""
    await one.send(STREAMED)
    status = (await one.reader.readline()).split()[1]
    end = (await asyncio.create_task(tail(one))).replace(b"\r\n", b"\n")
    assert status in (b"200", b"429", b"503", b"504")
    assert b"data: [DONE]" in end or b'"error"' in end


async def tail(one: Wire) -> bytes:
    """The last part of an answer, of which everything is read; the end is that of its last chunk or its length."""
    kept = b""
    while not (kept.endswith(b"0\r\n\r\n") or b'"code"' in kept):
        part = await one.reader.read(MIB)
        if not part:
            break
        kept = (kept + part)[-4096:]
    return kept


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_a_crowd_of_64_ends_in_time_loses_no_slot_and_takes_no_memory() -> None:
    kinds = (half_a_header, half_a_body, reads_nothing, reads_all)
    async with crowd() as there:
        before, began_s = resident_bytes(), monotonic()
        async with asyncio.timeout(LONGEST_S), asyncio.TaskGroup() as clients:
            for _ in range(OF_EACH):
                for kind in kinds:
                    clients.create_task(there.each(kind.__name__, kind))
        assert there.ended == {kind.__name__: OF_EACH for kind in kinds}
        await until_quiet(there.gateway, began_s + LONGEST_S)
        assert resident_bytes() - before < 128 * MIB, "the answers together have 512 MiB"
        await every_slot_is_free(there.gateway)


async def until_quiet(gateway: Gateway, deadline_s: float) -> None:
    """Nothing runs or waits any more."""
    while gateway.counters.now.running or gateway.counters.now.waiting:
        assert monotonic() < deadline_s, gateway.counters.now
        await asyncio.sleep(0.05)


async def every_slot_is_free(gateway: Gateway) -> None:
    """So many are let in at once, and one more is not."""
    line = gateway.backends.line
    assert line.waiting == 0
    async with asyncio.timeout(2):
        async with line.turn("a", slots=SLOTS):
            late = asyncio.create_task(take(gateway))
            await asyncio.sleep(0.05)
            assert line.waiting == 1
        await late


async def take(gateway: Gateway) -> None:
    async with gateway.backends.line.turn("b"):
        pass


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def test_what_the_crowd_asks_for_is_a_stream() -> None:
    assert json.loads(STREAMED.partition(b"\r\n\r\n")[2])["stream"] is True
