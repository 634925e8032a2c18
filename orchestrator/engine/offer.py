"""What hosts are offered of one backend: this machine's own build, or the source that they build it from. Values."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from orchestrator.engine.store import Engine
from workers.engine import SOURCE, Recipe, engine_id


@dataclass(frozen=True)
class Offer:
    """One recipe: this machine's own build (None: there is none, for the reason `absence`, and `hint` is how to get
    one), and who gives the archive of the source when it is needed. `make` builds it here, where that can be done, and
    gives the offer as it is then. Without `may_build` no GPU's engine is built on a host either: somebody waits."""

    recipe: Recipe
    pack: Callable[[], Awaitable[Path]]
    engine: Engine | None = None
    absence: str = ""
    hint: str = ""
    make: Callable[[], Awaitable["Offer"]] | None = None
    may_build: bool = True

    @property
    def commit(self) -> str:
        return SOURCE.commit if self.engine is None else self.engine.manifest.commit

    async def made(self) -> "Offer":
        """With this machine's own build, if there can be one."""
        return self if self.make is None else await self.make()

    def name_on(self, platform: str) -> str:
        """What the engine is called on a host of that platform: by source, recipe and platform, whoever built it."""
        if self.engine is not None and self.engine.manifest.platform == platform:
            return self.engine.manifest.engine
        return engine_id(self.recipe, platform)
