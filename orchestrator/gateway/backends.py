"""The heads behind the gateway, as they are now. A cluster that has been brought up anew has others, and may have fewer
slots; requests that wait in line wait on meanwhile, as long as nothing says that it is in vain."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.gateway.api_error import ApiError
from orchestrator.gateway.head import Deadlines, Head
from orchestrator.gateway.line import Line, LineLimits
from orchestrator.gateway.routing import HeadAddress, Router


@dataclass(frozen=True)
class Serving:
    """The heads of one bring-up, by name, and the router among them."""

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
        self._closing: list[Head] = []
        self.line = Line(0, limits, situation=situation)

    @property
    def serving(self) -> Serving | None:
        """None: nothing answers just now."""
        return self._serving

    def replace(self, addresses: Sequence[HeadAddress]) -> None:
        """These heads answer from now on; whoever is first in line is let in."""
        self.take_away()
        heads = {one.name: Head(one.url, one.key, self._deadlines) for one in addresses}
        self._serving = Serving(heads, Router(addresses))
        self.line.set_slots(sum(one.parallel for one in addresses))

    def take_away(self) -> None:
        """Nothing answers any more: nobody is let in until there are heads again."""
        self.line.set_slots(0)
        if self._serving is not None:
            self._closing += self._serving.heads.values()
        self._serving = None

    def give_up(self, problem: ApiError) -> None:
        """Nothing will answer for long: whoever waits is told so."""
        self.take_away()
        self.line.turn_away(problem)

    async def close(self) -> None:
        self.take_away()
        for head in self._closing:
            await head.close()
        self._closing.clear()
