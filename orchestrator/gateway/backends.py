"""The heads behind the gateway, as they are now. They come and go one by one, or all at once when a cluster is brought
up anew; requests that wait in line wait on meanwhile, as long as nothing says that it is in vain."""

from collections.abc import Callable, Collection, Mapping, Sequence
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
        self.line = Line(0, limits, situation=situation)

    @property
    def serving(self) -> Serving | None:
        """None: nothing answers just now."""
        return self._serving

    def replace(self, addresses: Sequence[HeadAddress]) -> None:
        """These heads, and no others, answer from now on; whoever is first in line is let in."""
        self.take_away()
        self._serve(self._heads_at(addresses), Router(addresses))

    def add(self, addresses: Sequence[HeadAddress]) -> None:
        """These heads answer as well."""
        if self._serving is None:
            self.replace(addresses)
            return
        self._serving.router.add(addresses)
        self._serve({**self._serving.heads, **self._heads_at(addresses)}, self._serving.router)

    def remove(self, names: Collection[str]) -> None:
        """These heads answer no more; whoever was with one of them finds out by itself."""
        if self._serving is None or not self._serving.heads.keys() - names:
            self.take_away()
            return
        before = self._serving
        before.router.remove(names)
        self._serve({name: head for name, head in before.heads.items() if name not in names}, before.router)

    def take_away(self) -> None:
        """Nothing answers any more: nobody is let in until there are heads again."""
        self.line.set_slots(0)
        self._serving = None

    def give_up(self, problem: ApiError) -> None:
        """Nothing will answer for long: whoever waits is told so."""
        self.take_away()
        self.line.turn_away(problem)

    def _heads_at(self, addresses: Sequence[HeadAddress]) -> dict[str, Head]:
        return {one.name: Head(one.url, one.key, self._deadlines) for one in addresses}

    def _serve(self, heads: Mapping[str, Head], router: Router) -> None:
        self._serving = Serving(heads, router)
        self.line.set_slots(router.slots)
