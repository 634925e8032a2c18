"""Ask every host at once and keep each answer or its error, so that all that is wrong is reported, not the first."""

import asyncio
from collections.abc import Awaitable, Coroutine, Mapping
from typing import TypeVar

from orchestrator.errors import REPORTED, HostError, HostsError, MeshctlError, of_system
from quant.errors import QuantError
from workers.errors import WorkersError

T = TypeVar("T")
U = TypeVar("U")


async def each_host(items: Mapping[str, Awaitable[T]], *, limit: int = 8) -> dict[str, T | MeshctlError]:
    """Await every item, at most `limit` at once; the answers stand in the order of `items`.

    A reported error, or what the system refuses, is kept as that host's answer. Any other exception is a bug: it ends
    the rest and leaves here as an ExceptionGroup.
    """
    gate = asyncio.Semaphore(limit)
    try:
        async with asyncio.TaskGroup() as group:
            tasks = {name: group.create_task(_answer(name, item, gate)) for name, item in items.items()}
    finally:
        _close_unstarted(items)
    return {name: task.result() for name, task in tasks.items()}


async def both(first: Awaitable[T], second: Awaitable[U]) -> tuple[T, U]:
    """Await two things side by side. When one fails the other is cancelled, and the error is that of the first to."""
    one, other = asyncio.ensure_future(first), asyncio.ensure_future(second)
    try:
        await asyncio.gather(one, other)
    except BaseException:
        one.cancel()
        other.cancel()
        await asyncio.gather(one, other, return_exceptions=True)
        raise
    return one.result(), other.result()


def all_or_raise(answers: Mapping[str, T | MeshctlError]) -> dict[str, T]:
    """The answers when every host gave one; HostsError with every failure otherwise (the error itself if just one)."""
    errors = {name: answer for name, answer in answers.items() if isinstance(answer, MeshctlError)}
    if len(errors) == 1:
        raise next(iter(errors.values()))
    if errors:
        raise HostsError(errors)
    return {name: answer for name, answer in answers.items() if not isinstance(answer, MeshctlError)}


async def _answer(name: str, item: Awaitable[T], gate: asyncio.Semaphore) -> T | MeshctlError:
    async with gate:
        try:
            return await item
        except REPORTED as error:
            return _as_meshctl(name, error)
        except OSError as error:
            return _named(name, of_system(error), error)


def _as_meshctl(name: str, error: MeshctlError | QuantError | WorkersError) -> MeshctlError:
    return error if isinstance(error, MeshctlError) else _named(name, error, error)


def _named(name: str, error: MeshctlError | QuantError | WorkersError, cause: Exception) -> HostError:
    wrapped = HostError(name, str(error), hint=error.hint)
    wrapped.__cause__ = cause
    return wrapped


def _close_unstarted(items: Mapping[str, Awaitable[T]]) -> None:
    """A coroutine that was never awaited, because another failed first, is closed without a warning."""
    for item in items.values():
        if isinstance(item, Coroutine):
            item.close()
