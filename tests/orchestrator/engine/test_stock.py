"""What this machine can offer of an engine for GPUs, and how often it tries to build one."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.engine import stock
from orchestrator.engine.build import local_platform
from orchestrator.engine.offer import Offer
from orchestrator.engine.stock import Stock
from orchestrator.engine.store import MANIFEST, Engine, engines_folder
from orchestrator.errors import EngineError
from tests.orchestrator.engine.conftest import Heard
from tests.orchestrator.engine.fake_engine import make_engine
from workers.engine import RECIPES, Recipe, engine_id, recipe_of

VULKAN = RECIPES["vulkan"]


class Builder:
    """Stands for `build_engine`, which takes minutes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, problem: str = "") -> None:
        self.calls, self.problem = 0, problem
        monkeypatch.setattr(stock, "build_engine", self.build)
        monkeypatch.setattr(stock, "lacking_here", lambda recipe: ())

    async def build(self, cache: Path, recipe: Recipe, on_progress: object) -> Engine:
        self.calls += 1
        await asyncio.sleep(0)
        if self.problem:
            raise EngineError(self.problem, hint="see its log")
        return make_engine(engines_folder(cache) / engine_id(recipe, local_platform()), platform=local_platform())


async def test_it_is_built_once_for_all_hosts_that_want_it(
    tmp_path: Path, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    builder, store = Builder(monkeypatch), Stock(tmp_path, heard)
    offers = [await store.offer(VULKAN) for _ in range(3)]
    assert [(offer.engine, offer.absence) for offer in offers] == [(None, "it is not built yet")] * 3
    made = await asyncio.gather(*(offer.made() for offer in offers))
    assert {offer.engine.folder.name for offer in made if offer.engine} == {engine_id(VULKAN, local_platform())}
    assert builder.calls == 1
    assert (await store.offer(VULKAN)).engine is not None


async def test_a_build_that_failed_is_not_tried_at_every_start(
    tmp_path: Path, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    builder = Builder(monkeypatch, "compiling the engine failed with exit status 1")
    made = await (await Stock(tmp_path, heard).offer(VULKAN)).made()
    assert (made.engine, made.absence) == (None, "compiling the engine failed with exit status 1")
    later = await Stock(tmp_path, heard).offer(VULKAN)
    assert (later.make, later.absence) == (
        None,
        "building it failed: compiling the engine failed with exit status 1",
    )
    assert later.hint == "try again: meshctl engine build --backend vulkan"
    assert builder.calls == 1


async def test_nothing_is_built_while_somebody_waits(
    tmp_path: Path, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    builder = Builder(monkeypatch)
    offer: Offer = await (await Stock(tmp_path, heard, may_build=False).offer(VULKAN)).made()
    assert (offer.engine, offer.absence, builder.calls) == (None, "it is not built yet", 0)


async def test_cuda_is_never_compiled_for_all_cards_that_there_are(
    tmp_path: Path, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    Builder(monkeypatch)
    unknown = await Stock(tmp_path, heard).offer(recipe_of("cuda"))
    assert (unknown.make, unknown.absence) == (None, "the driver does not tell the cards' compute capability")
    assert (await Stock(tmp_path, heard).offer(recipe_of("cuda", ("8.9",)))).make is not None


async def test_an_engine_for_more_cards_is_as_good_as_one_for_these(
    tmp_path: Path, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several, that for the fewest; one of another version of meshctl, for other cards or for one of two is none."""
    Builder(monkeypatch)
    wanted = recipe_of("cuda", ("8.6", "8.9"))
    for capabilities in (("8.9",), ("8.6", "9.0"), ("8.0", "8.6", "8.9", "9.0"), ("8.6", "8.9", "12.0")):
        make_cuda(tmp_path, engine_id(recipe_of("cuda", capabilities), local_platform()), capabilities)
    make_cuda(tmp_path, f"cuda-{local_platform()}-0123", ("8.6", "8.9", "9.0"))
    offer = await Stock(tmp_path, heard).offer(wanted)
    wider = recipe_of("cuda", ("8.6", "8.9", "12.0"))
    assert (offer.recipe, offer.name_on("linux-other")) == (wider, engine_id(wider, "linux-other"))
    assert offer.engine is not None
    assert offer.engine.manifest.engine == engine_id(wider, local_platform())
    make_cuda(tmp_path, engine_id(wanted, local_platform()), ("8.6", "8.9"))
    assert (await Stock(tmp_path, heard).offer(wanted)).recipe == wanted
    assert (await Stock(tmp_path, heard).offer(recipe_of("cuda", ("7.5",)))).engine is None


def make_cuda(cache: Path, name: str, capabilities: tuple[str, ...]) -> None:
    made = make_engine(engines_folder(cache) / name, platform=local_platform())
    manifest = replace(made.manifest, backend="cuda", capabilities=capabilities)
    (made.folder / MANIFEST).write_bytes(manifest.to_json())
