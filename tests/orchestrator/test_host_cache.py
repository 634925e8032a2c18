"""What a host may keep, what goes first, and that it really goes."""

import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from orchestrator.errors import TransferError
from orchestrator.host_cache import (
    FRESH_S,
    SLICE_KEPT_S,
    HostCache,
    Item,
    ask_cache,
    going,
    item_of,
    make_room,
    quota_bytes,
)
from orchestrator.host_door import ensure_agent
from orchestrator.shell.local import LocalShell
from workers.budget import MemoryCap
from workers.engine import RECIPES, engine_id

NOW_S = 10_000_000.0
MIB = 1024**2


def item(place: str, size: int, age_s: float = 2 * FRESH_S, *, in_use: bool = False, is_folder: bool = True) -> Item:
    kind, _, name = place.partition("/")
    return Item(kind, name, size, NOW_S - age_s, in_use, True, is_folder)


def places(items: tuple[Item, ...]) -> list[str]:
    return [one.place for one in items]


MANY = (
    item("models/new", 40, 2 * FRESH_S),
    item("models/old", 10, 9 * FRESH_S),
    item("slices/older.gguf", 20, 10 * FRESH_S, is_folder=False),
)


@pytest.mark.parametrize(
    ("quota", "needed", "free", "gone"),
    [
        (70, 0, 1000, []),
        (69, 0, 1000, ["slices/older.gguf"]),
        (50, 0, 1000, ["slices/older.gguf"]),
        (49, 0, 1000, ["slices/older.gguf", "models/old"]),
        (100, 35, 1000, ["slices/older.gguf"]),
        (1000, 35, 20, ["slices/older.gguf"]),
        (1000, 61, 20, ["slices/older.gguf", "models/old", "models/new"]),
        (0, 0, 1000, ["slices/older.gguf", "models/old", "models/new"]),
    ],
)
def test_what_was_used_longest_ago_goes_first_and_no_more_than_needed(
    quota: int, needed: int, free: int, gone: list[str]
) -> None:
    assert places(going(HostCache(MANY, free), quota, needed, NOW_S)) == gone


@pytest.mark.parametrize(
    "stays",
    [
        item("models/a", 10, in_use=True),
        item("models/a", 10, FRESH_S / 2),
        item("models/fetched.gguf", 10, is_folder=False),
        item("calibration", 10),
        item("engines/this", 10),
        item(f"engines/{engine_id(RECIPES['vulkan'], 'linux-riscv64')}", 10),
    ],
)
def test_what_is_used_or_dear_stays_whatever_the_quota(stays: Item) -> None:
    assert going(HostCache((stays,), 0), 0, 100, NOW_S, kept=("engines/this",)) == ()


def test_a_slice_unused_for_a_day_goes_when_something_else_comes() -> None:
    cache = HostCache((item("slices/a.gguf", 5, SLICE_KEPT_S + 1, is_folder=False),), 10**9)
    assert going(cache, 10**9, 0, NOW_S) == ()
    assert places(going(cache, 10**9, 1, NOW_S)) == ["slices/a.gguf"]


def test_a_share_is_of_what_would_be_free_without_us() -> None:
    cache = HostCache(MANY, 130)
    assert quota_bytes(None, cache) == 100
    assert quota_bytes(MemoryCap(share=0.25), cache) == 50
    assert quota_bytes(MemoryCap(limit_bytes=7), cache) == 7


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/r/engines/cpu-1/llama-server", "/r/engines/cpu-1"),
        ("/r/engines/cpu-1", "/r/engines/cpu-1"),
        ("/r/models/0f12/a-00001.gguf", "/r/models/0f12"),
        ("/r/slices/a.gguf", "/r/slices/a.gguf"),
        ("/r/calibration/a.json", None),
        ("/r/models", None),
        ("/root/models/a.gguf", None),
        ("/data/a.gguf", None),
    ],
)
def test_a_path_in_our_folder_belongs_to_an_item(path: str, found: str | None) -> None:
    assert item_of("/r", path) == found


@pytest.fixture
async def shell(tmp_path: Path) -> AsyncIterator[LocalShell]:
    one = LocalShell("desk", tmp_path / "root", tmp_path)
    yield one
    await one.close()


async def test_room_is_made_on_the_host_itself_and_told(shell: LocalShell) -> None:
    agent = await ensure_agent(shell)
    for name, age_s in (("old", 9 * FRESH_S), ("older", 10 * FRESH_S), ("fresh", 0.0)):
        path = Path(shell.root, "models", name, "a.gguf")
        path.parent.mkdir(parents=True)
        path.write_bytes(bytes(MIB))
        for one in (path, path.parent):
            os.utime(one, (time.time() - age_s,) * 2)
    told: list[str] = []
    await make_room(shell, agent, MemoryCap(limit_bytes=3 * MIB + MIB // 2), told.append, MIB)
    assert told == ["desk: 1.0 MiB that were used longest ago removed from its cache: models/older"]
    await make_room(shell, agent, MemoryCap(limit_bytes=MIB), told.append)
    assert [text.partition(":")[2] for text in told[1:]] == [
        " 1.0 MiB that were used longest ago removed from its cache: models/old",
        " its cache holds 1.1 MiB, over its quota of 1.0 MiB, but no more can go",
    ]
    assert places((await ask_cache(shell, agent)).items)[1:] == ["models/fresh"]


async def test_what_no_disk_could_hold_is_refused_with_the_sizes(shell: LocalShell) -> None:
    agent = await ensure_agent(shell)
    with pytest.raises(TransferError, match=r"^desk: 1024 TiB are needed in /.*/root, .* are free$") as caught:
        await make_room(shell, agent, None, lambda text: None, 2**50)
    assert caught.value.hint == "free some space on that host's disk and try again"


async def test_files_with_holes_take_what_they_take_of_the_disk(shell: LocalShell) -> None:
    """Headers of models that are not here are of the models' full size."""
    agent = await ensure_agent(shell)
    header, old = Path(shell.root, "headers", "c0ffee", "a.gguf"), Path(shell.root, "models", "old", "a.gguf")
    for path in (header, old):
        path.parent.mkdir(parents=True)
        path.write_bytes(b"GGUF" * 1024)
    os.truncate(header, 10**12)
    for one in (old, old.parent):
        os.utime(one, (time.time() - 9 * FRESH_S,) * 2)
    told: list[str] = []
    await make_room(shell, agent, MemoryCap(limit_bytes=3 * MIB), told.append)
    sizes = {one.place: one.size_bytes for one in (await ask_cache(shell, agent)).items}
    assert told == []
    assert sizes["models/old"] == 4096
    assert sizes["headers"] <= 64 * 1024
