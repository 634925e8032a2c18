"""Weights of workers, brought to a host over a real SSH connection: what is there, what is missing, what is damaged."""

import asyncio
import hashlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import HostError, TransferError
from orchestrator.host_agent import ensure_agent
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
from quant.gguf_file import read_model
from quant.model import Model, Tensor, device_tensors
from quant.pack import engine_name, pack_name, read_tensor
from quant.synthetic import Shape, write_random_model
from tests.orchestrator.plan.examples import FACTS
from tests.orchestrator.shell.ssh_server import Server, host_of
from workers.budget import MemoryCap
from workers.engine import HASHED_ABOVE_BYTES

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
        return await bring_packs(self.model, {"desk": tensors}, self.hosts, every_byte=every_byte)

    def there(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (self.folder / "rpc").iterdir()}

    def should_be(self, tensors: Sequence[Tensor]) -> dict[str, bytes]:
        """The larger ones, under the names by which the engine asks."""
        larger = [one for one in tensors if one.size_bytes > HASHED_ABOVE_BYTES]
        return {engine_name(data): data for data in (read_tensor(self.model, one) for one in larger)}


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
    data = read_tensor(desk.model, next(one for one in tensors if one.name == "blk.1.ffn_up.weight"))
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


async def test_a_host_without_room_is_left_out_and_told(desk: Desk) -> None:
    small = replace(desk.host.host, cache=MemoryCap(limit_bytes=1024**2))
    desk.hosts = replace(desk.hosts, by_name={"desk": replace(desk.host, host=small)})
    assert await desk.bring(device_tensors(desk.model, *FIRST)) == {}
    (said,) = desk.told
    assert said.startswith(
        "desk: no room to keep weights, they cross the network at every start: its cache would hold "
    )
    assert desk.there() == {}


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


async def test_two_controllers_at_once_do_no_harm(
    desk: Desk, trusted: SshFiles, server: Server, login: Path, tmp_path: Path
) -> None:
    shell = await connect(host_of(server, login), trusted)
    other_here = LocalShell(CONTROLLER, tmp_path / "there", tmp_path)
    controller = OpenHost(Host(CONTROLLER, "local"), other_here, await ensure_agent(other_here), FACTS)
    far = OpenHost(Host("desk", "ssh"), shell, desk.host.agent, FACTS)
    others = replace(desk.hosts, controller=controller, by_name={"desk": far})
    tensors = device_tensors(desk.model, 0, 4, output=True)
    await asyncio.gather(desk.bring(tensors), bring_packs(desk.model, {"desk": tensors}, others))
    assert desk.there() == desk.should_be(tensors)
    assert list((desk.folder / "coming").iterdir()) == []
    await shell.close()
