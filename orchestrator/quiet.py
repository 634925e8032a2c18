"""Work for moments at which nothing else is to be done: it shall delay nobody, nor be slowed down itself."""

import asyncio
from collections.abc import Callable, Coroutine
from time import monotonic
from typing import Any, TypeVar

LOOK_S = 0.1

T = TypeVar("T")


async def in_quiet(is_busy: Callable[[], bool], work: Callable[[], Coroutine[Any, Any, T]], after_s: float) -> T:
    """What the work gives, begun when it has been quiet for so long.

    Whatever comes before it is done ends it at once; it is begun anew when it then has been quiet for twice as long.
    """
    while True:
        await _until_quiet(is_busy, after_s)
        doing = asyncio.create_task(work())
        try:
            while not doing.done() and not is_busy():
                await asyncio.wait((doing,), timeout=LOOK_S)
            if doing.done():
                return doing.result()
        finally:
            doing.cancel()
            await asyncio.wait((doing,))
        after_s *= 2


async def _until_quiet(is_busy: Callable[[], bool], for_s: float) -> None:
    since_s = monotonic()
    while monotonic() - since_s < for_s:
        await asyncio.sleep(min(LOOK_S, for_s))
        if is_busy():
            since_s = monotonic()
