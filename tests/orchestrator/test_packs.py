"""Weights of workers, brought to a host over a real SSH connection: what is there, what is missing, what is damaged."""

import asyncio
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator import packs
from orchestrator.errors import HostError, TransferError
from orchestrator.host_door import ensure_agent
from orchestrator.hosts import OpenHost, OpenHosts
from orchestrator.inventory import CONTROLLER, Host
from orchestrator.model_copies import model_on_host
from orchestrator.network import PrivateNetwork
from orchestrator.packs import bring_packs
from orchestrator.report import Event, Progress, Remark, Report
from orchestrator.shell.connect import connect
from orchestrator.shell.local import LocalShell
from orchestrator.shell.protocol import Span
from orchestrator.shell.ssh import SshShell
from orchestrator.shell.ssh_config import SshFiles
from orchestrator.view.sizes import bytes_text
from quant.gguf_file import read_model
from quant.model import Model, Tensor, device_tensors
from quant.pack import engine_name, pack_name, read_piece
from quant.piece import device_pieces, whole
from quant.synthetic import Shape, write_random_model
from tests.orchestrator.plan.examples import FACTS
from tests.orchestrator.shell.ssh_server import Server, host_of
from workers.agent import read_record
from workers.budget import MemoryCap
from workers.source_edits import HASHED_ABOVE_BYTES

MIB = 1024**2
SHAPE = Shape(layers=4, embedding=512, feed_forward=1024, heads=8, kv_heads=8, vocabulary=256)


@dataclass
class Desk:
    """A host over SSH and the controller, and what was told of the host."""

    hosts: OpenHosts
    model: Model
    told: list[str] = field(default_factory=list)
    progress: list[Progress] = field(default_factory=list)

    @property
    def host(self) -> OpenHost:
        return self.hosts.by_name["desk"]

    @property
    def folder(self) -> Path:
        return Path(self.host.shell.root, "packs", pack_name(self.model))

    async def bring(self, tensors: Sequence[Tensor], *, every_byte: bool = True) -> dict[str, str]:
        return await bring_packs(self.model, {"desk": list(map(whole, tensors))}, self.hosts, every_byte=every_byte)

    def there(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (self.folder / "rpc").iterdir()}

    def should_be(self, tensors: Sequence[Tensor]) -> dict[str, bytes]:
        """The larger ones, under the names by which the engine asks."""
        larger = [one for one in tensors if one.size_bytes > HASHED_ABOVE_BYTES]
        return {engine_name(data): data for data in (read_piece(self.model, whole(one)) for one in larger)}


@pytest.fixture
async def desk(shell: SshShell, trusted: SshFiles, tmp_path: Path) -> Desk:
    write_random_model(tmp_path / "tiny.gguf", SHAPE, "Q8_0")
    desk = Desk(OpenHosts.__new__(OpenHosts), read_model(tmp_path / "tiny.gguf"))

    def listen(event: Event) -> None:
        if isinstance(event, Remark):
            desk.told.append(event.text)
        elif isinstance(event, Progress):
            desk.progress.append(event)

    here = LocalShell(CONTROLLER, tmp_path / "here", tmp_path)
    controller = OpenHost(Host(CONTROLLER, "local"), here, await ensure_agent(here), FACTS)
    far = OpenHost(Host("desk", "ssh"), shell, await ensure_agent(shell), FACTS, Report(listen))
    desk.hosts = OpenHosts(controller, {"desk": far}, trusted, PrivateNetwork(here, controller.agent, "none"))
    return desk


FIRST, SECOND = (0, 2, False), (2, 2, True)


async def test_a_host_gets_exactly_the_larger_tensors_of_its_layers(desk: Desk) -> None:
    first, second = device_tensors(desk.model, *FIRST), device_tensors(desk.model, *SECOND)
    assert await desk.bring(first) == {"desk": str(desk.folder)}
    wanted = desk.should_be(first)
    assert len(wanted) == 14
    assert desk.there() == wanted
    size = sum(map(len, wanted.values()))
    assert desk.progress[-1] == Progress("desk: weights", size, size, "bytes")
    (said,) = desk.told
    assert said.startswith("desk: 5.3 MiB of weights sent (")
    assert await desk.bring(first) == {"desk": str(desk.folder)}
    assert desk.told[1:] == ["desk: 5.3 MiB of weights there already"]
    await desk.bring(second)
    assert desk.there() == {**wanted, **desk.should_be(second)}


async def test_only_what_is_damaged_is_sent_again(desk: Desk) -> None:
    tensors = device_tensors(desk.model, *FIRST)
    await desk.bring(tensors)
    data = read_piece(desk.model, whole(next(one for one in tensors if one.name == "blk.1.ffn_up.weight")))
    damaged = desk.folder / "rpc" / engine_name(data)
    damaged.write_bytes(b"x" + data[1:])
    before = {path.name: path.stat().st_mtime_ns for path in (desk.folder / "rpc").iterdir()}
    desk.told.clear()
    await desk.bring(tensors)
    assert desk.told[0] == "desk: weights there were damaged and are put there again: blk.1.ffn_up.weight"
    assert desk.told[1].endswith("4.8 MiB there already")
    assert desk.there() == desk.should_be(tensors)
    now = {path.name: path.stat().st_mtime_ns for path in (desk.folder / "rpc").iterdir()}
    assert [name for name in now if now[name] != before[name]] == [damaged.name]


async def test_a_transfer_goes_on_where_it_was_cut_off(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = device_tensors(desk.model, *FIRST)
    appended: list[tuple[int, int]] = []
    append = SshShell.append

    async def cut_off(shell: SshShell, source: Path, span: Span, target: str, **options: Any) -> None:
        appended.append((span.size_bytes, options.get("done_bytes", 0)))
        if len(appended) == 3:
            await append(shell, source, Span(span.offset, 1000), target)
            raise TransferError("desk", "the line is cut")
        await append(shell, source, span, target, done_bytes=options.get("done_bytes", 0))

    monkeypatch.setattr(SshShell, "append", cut_off)
    with pytest.raises(HostError, match="the line is cut"):
        await desk.bring(tensors)
    assert set(desk.there().items()) < set(desk.should_be(tensors).items())
    before = len(desk.there())
    await desk.bring(tensors)
    assert (appended[2][0], 1000) in appended[3:]
    assert len(appended) == 3 + len(desk.should_be(tensors)) - before
    assert desk.there() == desk.should_be(tensors)


async def test_what_an_earlier_transfer_left_is_not_trusted(desk: Desk) -> None:
    tensors = device_tensors(desk.model, *FIRST)
    name = next(iter(desk.should_be(tensors)))
    await desk.bring(tensors[:1])
    sender = Path(desk.hosts.controller.shell.root, "digests", ".sender").read_text()
    token = f"{sender}-{hashlib.sha256(b'desk').hexdigest()[:8]}"
    (desk.folder / "rpc" / name).unlink(missing_ok=True)
    (desk.folder / "coming" / f"{name}.{token}").write_bytes(b"garbage")
    await desk.bring(tensors)
    assert desk.there() == desk.should_be(tensors)


async def test_weights_are_carved_where_the_model_is(desk: Desk) -> None:
    """None of them crosses the network a second time."""
    await model_on_host(desk.model, desk.host)
    desk.told.clear()
    tensors = device_tensors(desk.model, *SECOND)
    await desk.bring(tensors)
    (said,) = desk.told
    assert said.endswith(" taken from the copy of the model there")
    assert "sent" not in said
    assert desk.there() == desk.should_be(tensors)


async def test_what_is_carved_and_what_is_read_again_is_shown_as_it_goes_on(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packs, "TOLD_ABOVE_BYTES", 0)
    await model_on_host(desk.model, desk.host)
    tensors = device_tensors(desk.model, *FIRST)
    size = sum(map(len, desk.should_be(tensors).values()))
    for reads in ("weights of the copy there", "weights there, read again"):
        desk.progress.clear()
        assert await desk.bring(tensors) == {"desk": str(desk.folder)}
        assert desk.progress[0].done > 0
        assert desk.progress[-1] == Progress(f"desk: {reads}", size, size, "bytes")
        assert [one.done for one in desk.progress] == sorted({one.done for one in desk.progress})
    assert desk.there() == desk.should_be(tensors)
    desk.progress.clear()
    await desk.bring(tensors, every_byte=False)
    assert desk.progress == []


async def test_a_connection_that_is_lost_while_weights_are_read_again_is_an_error(
    desk: Desk, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packs, "TOLD_ABOVE_BYTES", 0)
    await desk.bring(tensors := device_tensors(desk.model, *FIRST))

    def cut(event: Event) -> None:
        for connection in server.connections:
            connection.abort()

    async def twice() -> None:
        """The first time everything may have come before the line is cut."""
        await desk.bring(tensors)
        await desk.bring(tensors)

    desk.hosts = replace(desk.hosts, by_name={"desk": replace(desk.host, report=Report(cut))})
    with pytest.raises(HostError, match="the connection was lost"):
        await twice()


async def test_a_host_without_room_is_left_out_and_told(desk: Desk) -> None:
    small = replace(desk.host.host, cache=MemoryCap(limit_bytes=1024**2))
    desk.hosts = replace(desk.hosts, by_name={"desk": replace(desk.host, host=small)})
    assert await desk.bring(device_tensors(desk.model, *FIRST)) == {}
    (said,) = desk.told
    assert said.startswith(
        "desk: no room to keep weights, they cross the network at every start: its cache would hold "
    )
    assert said.endswith("; raise `cache` of the host in inventory.yaml")
    assert desk.there() == {}


@pytest.fixture
def small_disk(desk: Desk) -> Iterator[Path]:
    """The packs of the host lie on a disk of 3 MiB."""
    if os.geteuid() != 0 or sys.platform != "linux":
        pytest.skip("only root on Linux can mount a small disk")
    packs = desk.folder.parent
    packs.mkdir()
    subprocess.run(("mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", packs), check=True)
    yield packs
    subprocess.run(("umount", packs), check=True)


def make_larger(disk: Path) -> None:
    subprocess.run(("mount", "-o", "remount,size=9m", disk), check=True)


def check_given_up(desk: Desk, tensors: Sequence[Tensor]) -> None:
    """What is there is whole, nothing else is, and one warning has the numbers."""
    whole = desk.should_be(tensors)
    there = desk.there()
    assert 2 * MIB < sum(map(len, there.values())) < 3 * MIB
    assert there.items() <= whole.items()
    assert list((desk.folder / "coming").iterdir()) == []
    needed = sum(map(len, whole.values())) - sum(one.size_bytes for one in read_record(str(desk.folder)))
    told = f"desk: weights cannot be kept there, they cross the network at this start: {bytes_text(needed)} more are "
    (said,) = desk.told
    assert said.startswith(f"{told}needed, ")
    assert "KiB are free: " in said


async def test_a_disk_that_runs_full_on_the_way_does_without(desk: Desk, small_disk: Path) -> None:
    tensors = device_tensors(desk.model, *FIRST)
    assert await desk.bring(tensors) == {}
    check_given_up(desk, tensors)
    make_larger(small_disk)
    assert await desk.bring(tensors) == {"desk": str(desk.folder)}
    assert desk.there() == desk.should_be(tensors)


async def test_a_disk_that_runs_full_while_weights_are_carved_does_without(desk: Desk, small_disk: Path) -> None:
    await model_on_host(desk.model, desk.host)
    desk.told.clear()
    tensors = device_tensors(desk.model, *FIRST)
    assert await desk.bring(tensors) == {}
    check_given_up(desk, tensors)
    assert "the disk is full" in desk.told[0]


async def test_a_host_whose_folder_takes_nothing_does_without(desk: Desk) -> None:
    desk.folder.parent.write_text("in the way")
    assert await desk.bring(device_tensors(desk.model, *FIRST)) == {}
    (said,) = desk.told
    assert said.startswith(
        "desk: weights cannot be kept there, they cross the network at this start: 5.3 MiB more are "
    )
    assert said.endswith(f" are free: {desk.folder}: Not a directory")


async def test_a_host_whose_agent_fails_does_without(desk: Desk) -> None:
    broken = replace(desk.host, agent=f"{desk.host.agent}.gone")
    desk.hosts = replace(desk.hosts, by_name={"desk": broken})
    assert await desk.bring(device_tensors(desk.model, *FIRST)) == {}
    assert desk.told == [
        "desk: weights cannot be kept there, they cross the network at this start: 5.3 MiB more are needed: "
        "the agent failed (exit status 1)"
    ]


async def test_a_connection_that_is_lost_is_an_error(desk: Desk) -> None:
    await desk.host.shell.close()
    with pytest.raises(HostError, match="the connection was lost"):
        await desk.bring(device_tensors(desk.model, *FIRST))
    assert desk.told == []


async def test_tensors_of_another_plan_make_room(desk: Desk) -> None:
    await desk.bring(device_tensors(desk.model, *FIRST))
    small = replace(desk.host.host, cache=MemoryCap(limit_bytes=8 * 1024**2))
    desk.hosts = replace(desk.hosts, by_name={"desk": replace(desk.host, host=small)})
    other = device_tensors(desk.model, 1, 2, output=False)
    make_older(desk.folder)
    assert await desk.bring(other) == {"desk": str(desk.folder)}
    assert desk.there() == desk.should_be(other)


def make_older(pack: Path) -> None:
    """As if its tensors had been put there two hours ago."""
    for path in (pack / "rpc").iterdir():
        os.utime(path, (time.time() - 7200,) * 2)


async def test_a_model_that_has_changed_since_it_was_read_is_not_sent(desk: Desk) -> None:
    """Its tensors lie elsewhere by now; what is known of the new file stays right."""
    tensors = device_tensors(desk.model, *FIRST)
    write_random_model(desk.model.path, replace(SHAPE, vocabulary=512), "Q8_0")
    with pytest.raises(HostError, match=r"tiny\.gguf has changed since it was read"):
        await desk.bring(tensors)
    desk.model = read_model(desk.model.path)
    tensors = device_tensors(desk.model, *FIRST)
    await desk.bring(tensors)
    assert desk.there() == desk.should_be(tensors)


async def test_a_worker_of_mode_tensor_gets_its_pieces(desk: Desk) -> None:
    """Sent, and carved; those in runs as one file, as the engine asks for them."""
    pieces = device_pieces(desk.model, (3, 1), 0)
    wanted = [read_piece(desk.model, one) for one in pieces if one.size_bytes > HASHED_ABOVE_BYTES]
    runs = sum(one.count > 1 for one in pieces if one.size_bytes > HASHED_ABOVE_BYTES)
    assert runs == 2 * SHAPE.layers
    files = {engine_name(data): data for data in wanted}
    for _ in ("sent", "carved"):
        await bring_packs(desk.model, {"desk": pieces}, desk.hosts)
        assert desk.there() == files
        shutil.rmtree(desk.folder)
        await model_on_host(desk.model, desk.host)
    assert "sent" in desk.told[0]
    assert "taken from the copy of the model there" in desk.told[-1]


async def test_one_machine_under_two_names_gets_its_weights_once(desk: Desk) -> None:
    bench = replace(desk.host, host=replace(desk.host.host, name="bench"))
    desk.hosts = replace(desk.hosts, by_name={"desk": desk.host, "bench": bench})
    first, second = device_tensors(desk.model, *FIRST), device_tensors(desk.model, 1, 3, output=True)
    wanted = {"desk": list(map(whole, first)), "bench": list(map(whole, second))}
    assert await bring_packs(desk.model, wanted, desk.hosts) == dict.fromkeys(wanted, str(desk.folder))
    assert desk.there() == {**desk.should_be(first), **desk.should_be(second)}
    (later,) = (said for said in desk.told if said.endswith("there already"))
    assert later.startswith(("desk: ", "bench: "))
    assert later.endswith("), 2.7 MiB there already")


async def test_two_controllers_at_once_do_no_harm(
    desk: Desk, trusted: SshFiles, server: Server, login: Path, tmp_path: Path
) -> None:
    shell = await connect(host_of(server, login), trusted)
    other_here = LocalShell(CONTROLLER, tmp_path / "there", tmp_path)
    controller = OpenHost(Host(CONTROLLER, "local"), other_here, await ensure_agent(other_here), FACTS)
    far = OpenHost(Host("desk", "ssh"), shell, desk.host.agent, FACTS)
    others = replace(desk.hosts, controller=controller, by_name={"desk": far})
    tensors = device_tensors(desk.model, 0, 4, output=True)
    await asyncio.gather(desk.bring(tensors), bring_packs(desk.model, {"desk": list(map(whole, tensors))}, others))
    assert desk.there() == desk.should_be(tensors)
    assert list((desk.folder / "coming").iterdir()) == []
    await shell.close()
