"""The logs of one host."""

from pathlib import Path

import pytest

from orchestrator.errors import UsageError
from orchestrator.folders import Folders
from orchestrator.host_logs import host_logs
from orchestrator.inventory_file import load_inventory

INVENTORY = """\
cluster: demo
model: smollm2-135m
hosts:
  - {name: pi, connection: local, memory: 1GiB}
  - {name: pi-2, connection: local, memory: 1GiB}
"""


async def test_a_host_has_its_own_logs_and_not_those_of_one_whose_name_begins_like_its(tmp_path: Path) -> None:
    (tmp_path / "inventory.yaml").write_text(INVENTORY)
    inventory = load_inventory(tmp_path / "inventory.yaml")
    folders = Folders(tmp_path / "cache", tmp_path / "state")
    for host, text in (("pi", "one\n"), ("pi-2", "two\n")):
        log = folders.cache / "logs" / "demo" / host / "worker-cpu.log"
        log.parent.mkdir(parents=True)
        log.write_text(text)
    bench = folders.cache / "logs" / "demo.bench" / "pi" / "worker-cpu.log"
    bench.parent.mkdir(parents=True)
    bench.write_text("three\n")
    assert await host_logs(inventory, folders, "pi", 10) == {
        "worker-cpu.log": "one",
        "worker-cpu.log (bench)": "three",
    }
    with pytest.raises(UsageError, match="controller has no logs of cluster demo"):
        await host_logs(inventory, folders, "controller", 10)
