"""Opening the hosts of an inventory."""

import os
import time
from pathlib import Path

import pytest

from orchestrator.errors import ConnectError
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


INVENTORY = """\
cluster: demo
model: smollm2-135m
hosts:
  - {name: here, connection: local}
  - {name: there, connection: ssh, address: 127.0.0.1, port: PORT, user: nobody}
"""


async def test_a_host_that_cannot_be_reached_is_missing_only_where_that_is_tolerated(
    tmp_path: Path, closed_port: int
) -> None:
    path = tmp_path / "inventory.yaml"
    path.write_text(INVENTORY.replace("PORT", str(closed_port)))
    inventory, folders = load_inventory(path), Folders(tmp_path / "cache", tmp_path / "state")
    async with open_hosts(inventory, folders, silent(), tolerant=True) as hosts:
        assert (list(hosts.by_name), list(hosts.missing)) == (["here"], ["there"])
        assert "refused" in hosts.missing["there"]
    with pytest.raises(ConnectError, match="there"):
        async with open_hosts(inventory, folders, silent()):
            pass
    with pytest.raises(ConnectError, match="there"):
        async with open_hosts(inventory, folders, silent(), without=["here"], tolerant=True):
            pass
    async with open_hosts(inventory, folders, silent(), without=["there"]) as hosts:
        assert (list(hosts.by_name), hosts.missing) == (["here"], {})
