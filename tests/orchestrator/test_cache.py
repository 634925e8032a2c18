"""`meshctl cache` on this machine's own folder: what is damaged, what goes, and what never does."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.cache import Checked, Cleaned, InUse, check_caches, clean_caches, in_use, list_caches, may_be_cleaned
from orchestrator.engine.build import local_platform
from orchestrator.errors import ConnectError
from orchestrator.folders import Folders
from orchestrator.host_cache import Item
from orchestrator.inventory import Inventory
from orchestrator.inventory_file import load_inventory
from orchestrator.state import ClusterState, hold, write_state
from quant.gguf_file import read_model
from quant.slice import shape_digest
from quant.synthetic import Shape, write_random_model
from workers.agent import Recorded, hold_item, write_record
from workers.engine import RECIPES, engine_id, recipe_of

INVENTORY = """\
cluster: demo
model: MODEL
hosts:
  - {name: here, connection: local}
  - {name: there, connection: ssh, address: 127.0.0.1, port: PORT, user: nobody}
"""
SHAPE = Shape(layers=2, embedding=64, feed_forward=128, heads=2, kv_heads=1, vocabulary=32)


def ignore(text: str) -> None:
    """Nobody listens."""


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return Folders(tmp_path / "cache", tmp_path / "state")


@pytest.fixture
def inventory(tmp_path: Path, closed_port: int) -> Inventory:
    write_random_model(tmp_path / "model.gguf", SHAPE, "Q4_0")
    path = tmp_path / "inventory.yaml"
    path.write_text(INVENTORY.replace("PORT", str(closed_port)).replace("MODEL", str(tmp_path / "model.gguf")))
    return load_inventory(path)


def put(folders: Folders, place: str, content: str = "12345") -> Path:
    path = folders.cache / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def recorded(folders: Folders, place: str, content: str = "12345") -> Path:
    path = put(folders, place, content)
    write_record(str(path), Recorded("", len(content), hashlib.sha256(content.encode()).hexdigest()))
    return path


async def test_a_host_that_cannot_be_asked_does_not_hide_the_others(inventory: Inventory, folders: Folders) -> None:
    put(folders, "slices/a.gguf")
    listed = await list_caches(inventory, folders, ignore)
    assert list(listed) == ["controller", "there"]
    assert isinstance(listed["there"], ConnectError)
    here = listed["controller"]
    assert not isinstance(here, Exception)
    assert [item.place for item in here.cache.items if item.kind == "slices"] == ["slices/a.gguf"]
    assert here.folder == str(folders.cache)


async def test_damage_is_found_by_hash_and_removed_for_the_next_start(inventory: Inventory, folders: Folders) -> None:
    good, flipped, used = (recorded(folders, f"slices/{name}.gguf") for name in ("good", "flipped", "used"))
    for path in (flipped, used):
        path.write_text("1x345")
    by_size = (await check_caches(inventory, folders, ignore, hashes=False, repair=False))["controller"]
    assert isinstance(by_size, Checked)
    assert (by_size.well, by_size.items) == (True, 3)
    held = hold_item(str(used))
    checked = (await check_caches(inventory, folders, ignore, hashes=True, repair=True))["controller"]
    assert isinstance(checked, Checked)
    assert [item.place for item in checked.damaged] == ["slices/flipped.gguf", "slices/used.gguf"]
    assert [item.place for item in checked.removed] == ["slices/flipped.gguf"]
    assert [path.exists() for path in (good, flipped, used)] == [True, False, True]
    assert held > 0


async def test_of_damaged_weights_only_those_are_removed(inventory: Inventory, folders: Folders) -> None:
    pack = folders.cache / "packs" / "a-0f12"
    for name, content in (("0" * 16, b"right"), ("1" * 16, b"wrong")):
        put(folders, f"packs/a-0f12/rpc/{name}")
        (pack / "coming").mkdir(exist_ok=True)
        (pack / "rpc" / name).write_bytes(content)
        write_record(str(pack), Recorded(f"rpc/{name}", 5, hashlib.blake2b(b"right").hexdigest()))
    checked = (await check_caches(inventory, folders, ignore, hashes=True, repair=True))["controller"]
    assert isinstance(checked, Checked)
    assert (checked.well, [item.place for item in checked.removed]) == (True, ["packs/a-0f12"])
    assert [path.name for path in (pack / "rpc").iterdir()] == ["0" * 16]


async def test_only_what_can_be_had_again_quickly_is_cleaned(inventory: Inventory, folders: Folders) -> None:
    kept = [f"engines/{engine_id(recipe, local_platform())}/manifest.json" for recipe in RECIPES.values()]
    kept += ["models/fetched.gguf", "calibration/a.json"]
    going = [
        "engines/older/manifest.json",
        "models/0f12/a.gguf",
        "slices/a.gguf",
        "bench-plan/a",
        "logs/demo/a/head.log",
    ]
    for place in (*kept, *going):
        put(folders, place)
    shown = (await clean_caches(inventory, folders, ignore, dry_run=True, everything=False))["controller"]
    assert isinstance(shown, Cleaned)
    assert all((folders.cache / place).exists() for place in (*kept, *going))
    done = (await clean_caches(inventory, folders, ignore, dry_run=False, everything=False))["controller"]
    assert isinstance(done, Cleaned)
    names = ["bench-plan", "engines/older", "logs/demo", "models/0f12", "slices/a.gguf"]
    assert [item.place for item in shown.removed] == [item.place for item in done.removed] == names
    assert [(folders.cache / place).exists() for place in going] == [False] * 5
    assert all((folders.cache / place).exists() for place in kept)
    await clean_caches(inventory, folders, ignore, dry_run=False, everything=True)
    left = sorted(path.name for path in folders.cache.rglob("*") if path.is_file())
    assert [(name[:6], name[-5:]) for name in left] == [("agent-", left[0][-5:]), ("agent-", ".code")]
    assert left[1] == f"{left[0]}.code"


async def test_an_engine_for_whatever_cards_is_kept_while_it_is_of_this_version(
    inventory: Inventory, folders: Folders
) -> None:
    """Which cards it is for, its manifest tells, and its name whether that is so."""
    of_now = engine_id(recipe_of("cuda", ("8.6", "12.0")), "linux-aarch64")
    put(folders, f"engines/{of_now}/manifest.json", '{"capabilities": ["8.6", "12.0"]}')
    for name, manifest in (("cuda-linux-x86_64-0123", '{"capabilities": ["8.6"]}'), ("cuda-x", "[1]"), ("hip-x", "{")):
        put(folders, f"engines/{name}/manifest.json", manifest)
    done = (await clean_caches(inventory, folders, ignore, dry_run=False, everything=False))["controller"]
    assert isinstance(done, Cleaned)
    assert [item.name for item in done.removed] == ["cuda-linux-x86_64-0123", "cuda-x", "hip-x"]
    (engine,) = [item for item in done.left if item.kind == "engines"]
    assert (engine.name, engine.capabilities) == (of_now, ("8.6", "12.0"))
    assert not may_be_cleaned(engine, InUse(frozenset(), frozenset(), engines=True), everything=True)
    assert may_be_cleaned(engine, InUse(frozenset(), frozenset()), everything=True)


async def test_what_a_cluster_that_runs_uses_is_known_by_its_inventory(inventory: Inventory, folders: Folders) -> None:
    """Between two lives of a cluster no process of it holds anything."""
    assert in_use(folders) == InUse(frozenset(), frozenset())
    folder = folders.cluster("demo")
    shape = shape_digest(read_model(Path(inventory.model)))
    with hold(folder):
        write_state(folder, ClusterState("demo", str(inventory.path), 1, "recovering", "", ""))
        used = in_use(folders)
    assert used == replace(used, shapes=frozenset({shape}), engines=True)
    places = used.places - {inventory.model}
    assert len(places) == len(used.places) - 1
    assert {place.partition("/")[0] for place in places} == {"logs", "models", "packs"}
    (copy,) = [place for place in used.places if place.startswith("models/") and not place.endswith(".gguf")]

    def may_go(place: str) -> bool:
        kind, _, name = place.partition("/")
        return may_be_cleaned(Item(kind, name, 1, 0.0, False, True, True), used, everything=True)

    assert [may_go(place) for place in (copy, f"slices/123-{shape}-2.gguf", "logs/demo")] == [False] * 3
    assert [may_go(place) for place in ("models/0f12", "slices/1-other-2.gguf", "logs/other")] == [True] * 3
