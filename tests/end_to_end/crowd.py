"""Clients that do not do what they should, many at once: each gets the error that tells it so, or a whole answer."""

import asyncio
from collections.abc import Awaitable, Callable

from tests.orchestrator.gateway.wire import HELLO, Wire, request_bytes, wire

OF_EACH = 12
"""Of five kinds: with the four streams beside them they are 64."""

SLOW_TOKENS = 16
SIP_BYTES, SIP_S = 256, 0.05


def crowd(url: str, key: str) -> None:
    """Returns when all have ended as they should."""
    asyncio.run(_all(url, (("authorization", f"Bearer {key}"),)))


async def _all(url: str, key: tuple[tuple[str, str], ...]) -> None:
    whole = request_bytes(body={"messages": HELLO, "stream": True, "max_tokens": SLOW_TOKENS}, more=key)
    oversized = request_bytes(more=(*key, ("content-length", "1000000000")))
    malformed = whole.replace(b'"messages": ', b'"messages", ')
    kinds: tuple[Callable[[Wire], Awaitable[None]], ...] = (
        lambda one: _refused(one, whole[:30], (408, "request_timeout")),
        lambda one: one.send(whole[:-10]),  # and hangs up
        lambda one: _refused(one, oversized, (413, "request_too_large")),
        lambda one: _refused(one, malformed, (400, None)),
        lambda one: _sip(one, whole),
    )
    async with asyncio.TaskGroup() as clients:
        for kind in kinds:
            for _ in range(OF_EACH):
                clients.create_task(_each(url, kind))


async def _each(url: str, kind: Callable[[Wire], Awaitable[None]]) -> None:
    async with wire(url, deadline_s=60) as one:
        await kind(one)


async def _refused(one: Wire, sent: bytes, code: tuple[int, object]) -> None:
    await one.send(sent)
    assert await one.code() == code


async def _sip(one: Wire, request: bytes) -> None:
    """Take an answer in small draughts, to its end."""
    await one.send(request)
    taken = b""
    while b"data: [DONE]" not in taken:
        part = await one.reader.read(SIP_BYTES)
        assert part, taken
        taken += part
        await asyncio.sleep(SIP_S)
