"""The heads behind the gateway, as they are now. A cluster that has been brought up anew has others, and may have fewer
slots; requests that wait in line wait on meanwhile, as long as nothing says that it is in vain."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from orchestrator.gateway.api_error import ApiError
from orchestrator.gateway.head import Deadlines, Head
from orchestrator.gateway.line import Line, LineLimits
from orchestrator.gateway.routing import HeadAddress, Router


@dataclass(frozen=True, eq=False)
class Serving:
    """The heads of one bring-up, by name, and the router among them."""

    heads: Mapping[str, Head]
    router: Router

    @property
    def most_choices(self) -> int:
        """The most choices that one request may have."""
        return self.router.most_slots

    async def close(self) -> None:
        for head in self.heads.values():
            await head.close()


class Backends:
    """What the supervisor changes and every request looks at."""

    def __init__(self, deadlines: Deadlines, limits: LineLimits | None = None) -> None:
        self._deadlines = deadlines
        self._serving: Serving | None = None
        self._users: dict[Serving, int] = {}  # requests with each, those of earlier lives included
        self._closing = set[asyncio.Task[None]]()
        self.line = Line(0, limits)

    @property
    def serving(self) -> Serving | None:
        """None: nothing answers just now."""
        return self._serving

    @property
    def open_lives(self) -> int:
        """Bring-ups whose heads are not closed yet: the present one, and earlier ones that still answer somebody."""
        return len(self._users)

    @contextmanager
    def borrowed(self) -> Iterator[Serving | None]:
        """What serves now; its heads stay open until the block ends, also when they are taken away meanwhile."""
        serving = self._serving
        if serving is None:
            yield None
            return
        self._users[serving] += 1
        try:
            yield serving
        finally:
            self._users[serving] -= 1
            self._close_if_unused(serving)

    def replace(self, addresses: Sequence[HeadAddress]) -> None:
        """These heads answer from now on; whoever is first in line is let in."""
        self.take_away()
        heads = {one.name: Head(one.url, one.key, self._deadlines) for one in addresses}
        self._serving = Serving(heads, Router(addresses))
        self._users[self._serving] = 0
        self.line.set_slots(sum(one.parallel for one in addresses))

    def take_away(self) -> None:
        """Nothing answers any more: nobody is let in until there are heads again."""
        self.line.set_slots(0)
        taken, self._serving = self._serving, None
        if taken is not None:
            self._close_if_unused(taken)

    def give_up(self, problem: ApiError) -> None:
        """Nothing will answer for long: whoever waits is told so."""
        self.take_away()
        self.line.turn_away(problem)

    async def close(self) -> None:
        """At the gateway's end, when every request has ended."""
        self.take_away()
        await asyncio.gather(*self._closing)

    def _close_if_unused(self, serving: Serving) -> None:
        if serving is not self._serving and self._users.get(serving) == 0:
            del self._users[serving]
            closing = asyncio.get_running_loop().create_task(serving.close())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
