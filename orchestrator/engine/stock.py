"""This machine's own engines, one per recipe: what is built already, what can be built, or why not."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from orchestrator.engine.build import build_engine, lacking_here, local_platform, tools_hint
from orchestrator.engine.offer import Offer
from orchestrator.engine.source_archive import pack_source
from orchestrator.engine.store import FAILED, Engine, beside, engines_folder, find_built, find_wider
from orchestrator.errors import EngineError
from orchestrator.report import Report
from workers.engine import RECIPES, Recipe, engine_id


@dataclass(frozen=True)
class Stock:
    """`cache` is where engines and sources lie on this machine; `may_build`: there is time to build one."""

    cache: Path
    report: Report
    may_build: bool = True
    making: dict[str, "asyncio.Task[Engine]"] = field(default_factory=dict)

    async def offer(self, recipe: Recipe) -> Offer:
        """What hosts get of this recipe, also one for more cards where this machine has that; nothing is built yet."""
        found = find_built(self.cache, recipe, local_platform()) or find_wider(self.cache, recipe, local_platform())
        built_by = None if found is None else found.manifest.recipe
        offer = Offer(built_by or recipe, self._pack, found, may_build=self.may_build)
        if offer.engine is not None:
            return offer
        missing = await asyncio.to_thread(lacking_here, recipe)
        again = f"meshctl engine build --backend {recipe.backend}"
        if missing:
            return replace(offer, absence="; ".join(missing), hint=tools_hint(recipe))
        if unknown_cards(recipe):
            absence = "the driver does not tell the cards' compute capability"
            return replace(offer, absence=absence, hint=f"{again} --architecture, then `engine:` for that host")
        if failed := self._failed(recipe):
            return replace(offer, absence=f"building it failed: {failed}", hint=f"try again: {again}")
        if not self.may_build:
            return replace(offer, absence="it is not built yet", hint=again)
        return replace(offer, absence="it is not built yet", hint=again, make=self._maker(offer))

    async def cpu(self) -> Engine:
        """The controller's own engine, built when it is not there yet. EngineError."""
        found = find_built(self.cache, RECIPES["cpu"], local_platform())
        return found or await self._build(RECIPES["cpu"])

    def _maker(self, offer: Offer) -> Callable[[], Awaitable[Offer]]:
        async def make() -> Offer:
            """Once, for all hosts that want it."""
            name = offer.name_on(local_platform())
            if name not in self.making:
                self.making[name] = asyncio.create_task(self._build(offer.recipe))
            try:
                return replace(offer, engine=await asyncio.shield(self.making[name]), make=None)
            except EngineError as error:
                self._note(offer.recipe, error)
                return replace(offer, absence=str(error), hint=error.hint, make=None)

        return make

    async def _build(self, recipe: Recipe) -> Engine:
        what = "engine" if recipe.backend == "cpu" else f"{recipe.backend} engine"
        self.report.step(f"Building the {what} (once, several minutes)", "preparing")
        return await build_engine(self.cache, recipe, self.report.progress)

    def _note(self, recipe: Recipe, error: EngineError) -> None:
        place = self._place(recipe, FAILED)
        if not place.is_file():
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(str(error))
            self.report.warn(f"{error}: {error.hint}")

    def _failed(self, recipe: Recipe) -> str:
        place = self._place(recipe, FAILED)
        return place.read_text() if place.is_file() else ""

    def _place(self, recipe: Recipe, suffix: str) -> Path:
        return beside(engines_folder(self.cache) / engine_id(recipe, local_platform()), suffix)

    async def _pack(self) -> Path:
        return await pack_source(self.cache)


def unknown_cards(recipe: Recipe) -> bool:
    """Whether CUDA's code would be compiled for all cards that there are, which takes hours."""
    return recipe.backend == "cuda" and not recipe.capabilities
