"""Turns to log in: no sshd is met by more logins at once than it takes, whichever hosts they are for."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager

AT_ONCE = 8
"""sshd turns some away when more than ten are at it that have not logged in yet (MaxStartups, sshd_config(5))."""

Place = tuple[str, int]
"""The address and the port of an sshd, as `ssh` resolves them."""


class Turns:
    """Of the hosts that are reached by one `SshFiles`: jump hosts, and machines with several names, are met by many."""

    def __init__(self) -> None:
        self._gates: dict[Place, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(AT_ONCE))
        self._ways: dict[str, tuple[Place, ...]] = {}

    @asynccontextmanager
    async def first(self, host: str, way: Iterable[Place]) -> AsyncIterator[None]:
        """While somebody logs in to that host by this way, on which the host itself is the last place."""
        self._ways[host] = tuple(sorted(set(way)))  # in one order for all, so that none waits for one who waits for it
        async with self.again(host):
            yield

    @asynccontextmanager
    async def again(self, host: str) -> AsyncIterator[None]:
        """The same by the way that was known before; at once where none was."""
        async with AsyncExitStack() as taken:
            for place in self._ways.get(host, ()):
                await taken.enter_async_context(self._gates[place])
            yield
