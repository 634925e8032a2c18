"""Fetching that somebody ends in the middle."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from tests.quant.web_server import WebServer


async def cancelled(
    web: WebServer, fetch: Callable[[Callable[[int, int], None]], Coroutine[Any, Any, Any]], after_bytes: int
) -> None:
    """`fetch`, which gets its progress, until more has come and the server is silent; then it is cancelled."""
    web.hangs, came = True, asyncio.Event()

    def listen(done: int, total: int) -> None:
        if done > after_bytes:
            came.set()

    fetching = asyncio.create_task(fetch(listen))
    async with asyncio.timeout(30):
        await came.wait()
        fetching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fetching
    web.hangs = False
    web.asked.clear()
