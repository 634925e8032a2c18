"""The logs of hosts: their last lines, and followed."""

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.errors import UsageError
from orchestrator.folders import Folders
from orchestrator.host_logs import LogLine, follow_logs, host_logs
from orchestrator.inventory_file import load_inventory
from tests.program import processes_with
from workers.agent import running_processes

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
    of_pi = {"worker-cpu.log": "one", "worker-cpu.log (bench)": "three"}
    assert await host_logs(inventory, folders, ("pi",), 10) == {"pi": of_pi}
    everything = {"pi": of_pi, "pi-2": {"worker-cpu.log": "two"}}
    assert await host_logs(inventory, folders, (), 10) == everything
    with pytest.raises(UsageError, match=r"^controller has no logs of cluster demo$"):
        await host_logs(inventory, folders, ("controller",), 10)
    with pytest.raises(UsageError, match=r"inventory\.yaml has no host nobody$"):
        await host_logs(inventory, folders, ("pi", "nobody"), 10)


async def test_the_logs_of_all_hosts_are_followed_together_and_nothing_is_left_when_that_ends(tmp_path: Path) -> None:
    (tmp_path / "inventory.yaml").write_text(INVENTORY)
    inventory = load_inventory(tmp_path / "inventory.yaml")
    folders = Folders(tmp_path / "cache", tmp_path / "state")
    logs = {host: folders.cache / "logs" / "demo" / host / "head.log" for host in ("pi", "pi-2")}
    for log in logs.values():
        log.parent.mkdir(parents=True)
        log.write_text("old\n")
    shown, warned = list[LogLine](), list[str]()
    following = asyncio.create_task(
        follow_logs(inventory, folders, ("pi", "pi-2"), 1, None, shown.append, warned.append)
    )
    await _until(lambda: set(shown) == {LogLine("pi", "head", "old"), LogLine("pi-2", "head", "old")})
    del shown[:]
    with logs["pi"].open("a") as file:
        file.write('{"msg": "two\\nlines\\n"}\n{"type": "table"}\nplain\n')
    await _until(lambda: len(shown) == 3)
    assert shown == [LogLine("pi", "head", text) for text in ("two", "lines", "plain")]
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    assert (processes_with(str(tmp_path)), warned) == ([], [])


async def test_a_host_whose_agent_ends_is_followed_again_from_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.host_logs.AGAIN_S", 0.1)
    (tmp_path / "inventory.yaml").write_text(INVENTORY)
    inventory = load_inventory(tmp_path / "inventory.yaml")
    folders = Folders(tmp_path / "cache", tmp_path / "state")
    log = folders.cache / "logs" / "demo" / "pi" / "head.log"
    log.parent.mkdir(parents=True)
    log.write_text("first\n")
    shown, warned = list[LogLine](), list[str]()
    following = asyncio.create_task(follow_logs(inventory, folders, ("pi",), 1, None, shown.append, warned.append))
    await _until(lambda: shown == [LogLine("pi", "head", "first")])
    (agent,) = [pid for pid in running_processes() if str(tmp_path).encode() in _command_line(pid)]
    os.kill(agent, signal.SIGKILL)
    await _until(lambda: bool(warned))
    assert warned == ["pi: the connection was lost; it is tried again"]
    with log.open("a") as file:
        file.write("second\n")
    await _until(lambda: shown[-1] == LogLine("pi", "head", "second"))
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.02)
