"""Opening the hosts of an inventory."""

import os
import time
from pathlib import Path

import pytest

from orchestrator.errors import ConnectError, TransferError
from orchestrator.folders import Folders
from orchestrator.host_cache import ask_cache
from orchestrator.host_door import ensure_agent
from orchestrator.hosts import OpenHost, open_hosts
from orchestrator.inventory import Host
from orchestrator.inventory_file import load_inventory
from orchestrator.report import Event, Remark, Report, silent
from orchestrator.shell.local import LocalShell
from tests.orchestrator.plan.examples import FACTS

ROOT = Path(__file__).parents[2]


async def test_what_an_old_transfer_left_unfinished_is_removed(tmp_path: Path) -> None:
    """It may be as large as a model; a fresh one may still be running."""
    folders = Folders(tmp_path / "cache", tmp_path / "state")
    old, fresh = (folders.cache / "models" / f".{name}.gguf.0f.part" for name in ("old", "fresh"))
    state = folders.state / "clusters" / "demo" / ".state.json.12.part"
    for path in (old, fresh, state):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    for path in (old, state):
        os.utime(path, (time.time() - 3600,) * 2)
    async with open_hosts(load_inventory(ROOT / "inventory.yaml"), folders, silent()) as hosts:
        assert list(hosts.by_name) == ["left", "right"]
    assert [old.exists(), fresh.exists(), state.exists()] == [False, True, False]


@pytest.fixture
async def far(tmp_path: Path) -> tuple[OpenHost, list[str]]:
    """A host with a folder of its own on this machine, and what is told of it."""
    shell = LocalShell("nuc", tmp_path / "root", tmp_path)
    told: list[str] = []

    def listen(event: Event) -> None:
        if isinstance(event, Remark):
            told.append(event.text)

    agent = await ensure_agent(shell)
    return OpenHost(Host("nuc", "local"), shell, agent, FACTS, Report(listen)), told


@pytest.mark.parametrize("there", [b"012345678", b"01234567890"])
async def test_a_copy_of_another_size_is_put_again_and_told(
    far: tuple[OpenHost, list[str]], tmp_path: Path, there: bytes
) -> None:
    host, told = far
    source = tmp_path / "a.gguf"
    source.write_bytes(b"0123456789")
    item = f"{host.shell.root}/models/0f12"
    await host.put_once(item, {"a.gguf": source})
    copy = Path(item, "a.gguf")
    copy.write_bytes(there)
    await host.put_once(item, {"a.gguf": source})
    assert copy.read_bytes() == source.read_bytes()
    assert told == [f"nuc: a.gguf there has {len(there)} bytes, not 10: it is put there again"]
    number = copy.stat().st_ino
    await host.put_once(item, {"a.gguf": source})
    assert copy.stat().st_ino == number


async def test_a_copy_that_somebody_has_changed_is_read_and_put_again_if_it_is_another_one(
    far: tuple[OpenHost, list[str]], tmp_path: Path
) -> None:
    host, told = far
    source = tmp_path / "a.gguf"
    source.write_bytes(b"0123456789")
    item = f"{host.shell.root}/models/0f12"
    await host.put_once(item, {"a.gguf": source})
    copy = Path(item, "a.gguf")
    for content, said in ((b"0123456789", []), (b"0123x56789", ["nuc: a.gguf there has changed (by its sha256)"])):
        times = copy.stat()
        copy.write_bytes(content)
        os.utime(copy, ns=(times.st_atime_ns, times.st_mtime_ns))  # as a copying program does
        await host.put_once(item, {"a.gguf": source})
        assert copy.read_bytes() == source.read_bytes()
        assert told == [f"{text}: it is put there again" for text in said]


async def test_a_flipped_bit_in_a_copy_is_found_by_its_digest(far: tuple[OpenHost, list[str]], tmp_path: Path) -> None:
    """Also in one that an older version has put there, of which nothing is recorded."""
    host, told = far
    source = tmp_path / "a.gguf"
    source.write_bytes(b"0123456789")
    copy = Path(host.shell.root, "slices", "10-a.gguf")
    copy.parent.mkdir()
    copy.write_bytes(b"0123x56789")
    await host.put_once(str(copy), {"": source})
    assert told == ["nuc: a.gguf there has changed (by its sha256): it is put there again"]
    assert copy.read_bytes() == source.read_bytes()
    copy.write_bytes(b"0123x56789")
    by_size = await ask_cache(host.shell, host.agent, "sizes")
    assert [item.problems for item in by_size.items if item.kind == "slices"] == [()]
    by_hash = await ask_cache(host.shell, host.agent, "hashes")
    (found,) = [item for item in by_hash.items if item.problems]
    assert (found.place, found.problems[0].why) == (
        "slices/10-a.gguf",
        "has changed: its sha256 is not the one it was put with",
    )


async def test_a_model_that_does_not_fit_is_refused_before_its_first_part_is_put(
    far: tuple[OpenHost, list[str]], tmp_path: Path
) -> None:
    host, _ = far
    parts = {}
    for number, size in ((1, 10), (2, 2**43)):  # a sparse file of 8 TiB
        parts[f"{number}.gguf"] = tmp_path / f"{number}.gguf"
        with (tmp_path / f"{number}.gguf").open("wb") as file:
            file.truncate(size)
    with pytest.raises(TransferError, match=r"^nuc: 8\.0 TiB are needed in "):
        await host.put_once(f"{host.shell.root}/models/0f12", parts)
    assert not Path(host.shell.root, "models").exists()


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
