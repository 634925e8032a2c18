"""The heads behind the gateway, as they are now. They come and go one by one, or all at once when a cluster is brought
up anew; requests that wait in line wait on meanwhile, as long as nothing says that it is in vain."""

import asyncio
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from orchestrator.gateway.api_error import ApiError
from orchestrator.gateway.head import Deadlines, Head
from orchestrator.gateway.line import Line, LineLimits
from orchestrator.gateway.routing import HeadAddress, Router


@dataclass(frozen=True)
class Serving:
    """The heads at one moment, by name, and the router among them."""

    heads: Mapping[str, Head]
    router: Router

    @property
    def most_choices(self) -> int:
        """The most choices that one request may have."""
        return self.router.most_slots


class Backends:
    """What the supervisor changes and every request looks at."""

    def __init__(
        self,
        deadlines: Deadlines,
        limits: LineLimits | None = None,
        situation: Callable[[], Mapping[str, object]] = dict,
    ) -> None:
        self._deadlines = deadlines
        self._serving: Serving | None = None
        self._users: dict[Head, int] = {}  # requests with each, those that are taken away included
        self._closing = set[asyncio.Task[None]]()
        self.line = Line(0, limits, situation=situation)

    @property
    def serving(self) -> Serving | None:
        """None: nothing answers just now."""
        return self._serving

    @property
    def open_heads(self) -> int:
        """Heads that are not closed yet: those that serve, and those taken away that still answer somebody."""
        return len(self._users)

    @contextmanager
    def using(self, head: Head) -> Iterator[None]:
        """It stays open until the block ends, also when it is taken away meanwhile."""
        self._users[head] += 1
        try:
            yield
        finally:
            self._users[head] -= 1
            self._close_unused([head])

    def replace(self, addresses: Sequence[HeadAddress]) -> None:
        """These heads, and no others, answer from now on; whoever is first in line is let in."""
        self.take_away()
        self._serve(self._opened(addresses), Router(addresses))

    def add(self, addresses: Sequence[HeadAddress]) -> None:
        """These heads answer as well."""
        if self._serving is None:
            self.replace(addresses)
            return
        self._serving.router.add(addresses)
        self._serve({**self._serving.heads, **self._opened(addresses)}, self._serving.router)

    def remove(self, names: Collection[str]) -> None:
        """These heads answer no more; whoever was with one of them finds out by itself."""
        if self._serving is None or not self._serving.heads.keys() - names:
            self.take_away()
            return
        before = self._serving
        before.router.remove(names)
        self._serve({name: head for name, head in before.heads.items() if name not in names}, before.router)
        self._close_unused(before.heads.values())

    def take_away(self) -> None:
        """Nothing answers any more: nobody is let in until there are heads again."""
        self.line.set_slots(0)
        taken, self._serving = self._serving, None
        if taken is not None:
            self._close_unused(taken.heads.values())

    def give_up(self, problem: ApiError) -> None:
        """Nothing will answer for long: whoever waits is told so."""
        self.take_away()
        self.line.turn_away(problem)

    async def close(self) -> None:
        """At the gateway's end, when every request has ended."""
        self.take_away()
        await asyncio.gather(*self._closing)

    def _opened(self, addresses: Sequence[HeadAddress]) -> dict[str, Head]:
        heads = {one.name: Head(one.url, one.key, self._deadlines) for one in addresses}
        self._users |= dict.fromkeys(heads.values(), 0)
        return heads

    def _serve(self, heads: Mapping[str, Head], router: Router) -> None:
        self._serving = Serving(heads, router)
        self.line.set_slots(router.slots)

    def _close_unused(self, heads: Collection[Head]) -> None:
        serving = () if self._serving is None else self._serving.heads.values()
        for head in heads:
            if head not in serving and self._users.get(head) == 0:
                del self._users[head]
                closing = asyncio.get_running_loop().create_task(head.close())
                self._closing.add(closing)
                closing.add_done_callback(self._closing.discard)
