"""Opening the hosts of an inventory."""

import os
import time
from pathlib import Path

from orchestrator.folders import Folders
from orchestrator.hosts import open_hosts
from orchestrator.inventory_file import load_inventory
from orchestrator.report import silent

ROOT = Path(__file__).parents[2]


async def test_what_an_old_transfer_left_unfinished_is_removed(tmp_path: Path) -> None:
    """It may be as large as a model; a fresh one may still be running."""
    folders = Folders(tmp_path / "cache", tmp_path / "state")
    old, fresh = (folders.cache / "models" / f".{name}.gguf.0f.part" for name in ("old", "fresh"))
    old.parent.mkdir(parents=True)
    old.touch()
    fresh.touch()
    os.utime(old, (time.time() - 2 * 24 * 3600,) * 2)
    async with open_hosts(load_inventory(ROOT / "inventory.yaml"), folders, silent()) as hosts:
        assert list(hosts.by_name) == ["left", "right"]
    assert [old.exists(), fresh.exists()] == [False, True]
