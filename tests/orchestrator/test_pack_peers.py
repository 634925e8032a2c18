"""Weights that one host gets from another, both reached over real SSH connections."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from orchestrator import pack_peers
from orchestrator.host_door import ensure_agent
from orchestrator.hosts import OpenHost, OpenHosts
from orchestrator.inventory import CONTROLLER, Host
from orchestrator.model_copies import model_on_host
from orchestrator.network import PrivateNetwork
from orchestrator.packs import bring_packs
from orchestrator.report import Event, Progress, Remark, Report
from orchestrator.shell.connect import connect
from orchestrator.shell.host_keys import add_lines, key_line
from orchestrator.shell.local import LocalShell
from orchestrator.shell.ssh_config import SshFiles
from quant.gguf_file import read_model
from quant.model import Model, device_tensors
from quant.pack import engine_name, pack_name, read_piece
from quant.piece import whole
from quant.synthetic import write_random_model
from tests.orchestrator.plan.examples import FACTS
from tests.orchestrator.shell.ssh_server import host_of, running_server
from tests.orchestrator.test_packs import SHAPE
from workers.source_edits import HASHED_ABOVE_BYTES

SLOW, FAST = 1000.0, 1e12
"""Bytes per second from here: anything is faster than the one, nothing than the other."""


@dataclass
class Room:
    """Two hosts, and what was told of them."""

    hosts: OpenHosts
    model: Model
    told: list[str] = field(default_factory=list)
    progress: list[Progress] = field(default_factory=list)

    async def bring(self, host: str, rate: float) -> None:
        self.told.clear()
        self.progress.clear()
        tensors = [whole(one) for one in device_tensors(self.model, 0, 4, output=True)]
        await bring_packs(self.model, {host: tensors}, self.hosts, rates={host: rate} if rate else {})
        there = {path.name: path.read_bytes() for path in (self.pack(host) / "rpc").iterdir()}
        wanted = [read_piece(self.model, one) for one in tensors if one.size_bytes > HASHED_ABOVE_BYTES]
        assert there == {engine_name(data): data for data in wanted}
        assert list((self.pack(host) / "coming").iterdir()) == []

    def pack(self, host: str) -> Path:
        return Path(self.hosts.by_name[host].shell.root, "packs", pack_name(self.model))

    def change(self, name: str, address: str) -> None:
        host = self.hosts.by_name[name]
        moved = replace(host, facts=replace(host.facts, address=address))
        self.hosts = replace(self.hosts, by_name={**self.hosts.by_name, name: moved})


@pytest.fixture
async def room(ssh: SshFiles, login: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Room]:
    monkeypatch.setattr(pack_peers, "TRIAL_BYTES", 1024 * 1024)
    write_random_model(tmp_path / "tiny.gguf", SHAPE, "Q8_0")
    room = Room(OpenHosts.__new__(OpenHosts), read_model(tmp_path / "tiny.gguf"))

    def listen(event: Event) -> None:
        if isinstance(event, Remark):
            room.told.append(event.text)
        elif isinstance(event, Progress):
            room.progress.append(event)

    here = LocalShell(CONTROLLER, tmp_path / "here", tmp_path)
    controller = OpenHost(Host(CONTROLLER, "local"), here, await ensure_agent(here), FACTS)
    by_name = {}
    async with AsyncExitStack() as stack:
        for name in ("desk", "shelf"):
            server = await stack.enter_async_context(running_server(tmp_path / name, login=login))
            add_lines(ssh.known_hosts, [key_line(server.name, key) for key in server.keys])
            host = replace(host_of(server, login), name=name)
            shell = await connect(host, ssh)
            stack.push_async_callback(shell.close)
            facts = replace(FACTS, address="127.0.0.1")
            by_name[name] = OpenHost(host, shell, await ensure_agent(shell), facts, Report(listen))
        room.hosts = OpenHosts(controller, by_name, ssh, PrivateNetwork(here, controller.agent, "none"))
        yield room


async def test_what_another_host_has_in_its_pack_comes_from_there(room: Room) -> None:
    await room.bring("desk", 0)
    await room.bring("shelf", SLOW)
    (said,) = room.told
    assert said.startswith("shelf: 10.8 MiB of weights from desk (")
    assert {one.label for one in room.progress} == {"shelf: weights from desk"}
    assert room.progress[-1].done == room.progress[-1].total


async def test_what_another_host_has_a_copy_of_comes_from_there(room: Room) -> None:
    await model_on_host(room.model, room.hosts.by_name["desk"])
    await room.bring("shelf", SLOW)
    assert [said.partition(" (")[0] for said in room.told] == ["shelf: 10.8 MiB of weights from desk"]


async def test_nothing_comes_from_another_host_where_the_way_from_here_is_fast_or_the_user_has_not_said_so(
    room: Room,
) -> None:
    await room.bring("desk", 0)
    await room.bring("shelf", FAST)
    assert [said.partition(" (")[0] for said in room.told] == ["shelf: 10.8 MiB of weights sent"]


async def test_a_way_that_turns_out_to_be_slower_is_left(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack_peers, "WORTH_S", 0.0)
    await room.bring("desk", 0)
    await room.bring("shelf", 1e9)
    first, second, third = room.told
    assert first.startswith("shelf: 1.")
    assert " of weights from desk (" in first
    assert second.startswith("shelf: weights that desk has come from this machine nevertheless: ")
    assert second.endswith("/s from there, 954 MiB/s from here")
    assert third.startswith("shelf: 9.")


async def test_a_host_that_cannot_be_reached_from_the_other_is_told_and_done_without(room: Room) -> None:
    await room.bring("desk", 0)
    room.change("shelf", "127.0.0.2")
    await room.bring("shelf", SLOW)
    told, sent = room.told
    assert told.startswith("shelf: weights that desk has come from this machine nevertheless: ")
    assert sent.startswith("shelf: 10.8 MiB of weights sent (")
    room.change("desk", "192.0.2.1")
    (room.pack("shelf") / "manifest.json").unlink()
    for path in (room.pack("shelf") / "rpc").iterdir():
        path.unlink()
    await room.bring("shelf", SLOW)
    assert "Cannot assign requested address" in room.told[0]
    assert room.told[1].startswith("shelf: 10.8 MiB of weights sent (")


async def test_what_is_damaged_there_comes_from_here(room: Room) -> None:
    await room.bring("desk", 0)
    damaged = max((room.pack("desk") / "rpc").iterdir(), key=lambda path: path.stat().st_size)
    damaged.write_bytes(b"x" + damaged.read_bytes()[1:])
    await room.bring("shelf", SLOW)
    assert [said.partition(" (")[0] for said in room.told][-1].startswith("shelf: 544 KiB of weights sent")
