"""Weights on hosts reached by real OpenSSH servers: they cross the network once, and never in a wrong state."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lab_folder import LabHost
from lab_hosts import Lab
from lab_running import RunningHost
from orchestrator.engine.store import Engine
from quant.gguf_file import read_model
from quant.model import device_tensors
from quant.pack import engine_name, read_piece
from quant.piece import whole
from tests.end_to_end.answers import answers, plain_head
from tests.end_to_end.inventories import free_port
from tests.end_to_end.test_tensor_pieces import foreseen
from tests.lab_fixture import MakeLab
from tests.program import Meshctl
from workers.source_edits import HASHED_ABOVE_BYTES

pytestmark = [pytest.mark.engine, pytest.mark.lab]

SPLIT = "host1/cpu=15,host2/cpu=15"
TIMES = 10


def two_hosts(make_lab: MakeLab, meshctl: Meshctl, rate: str) -> tuple[Lab, str]:
    lab = make_lab(LabHost("host1", rate=rate), LabHost("host2", rate=rate))
    inventory = str(lab.inventory(context=512, gateway_port=free_port()))
    meshctl.ok("trust", inventory, "--yes")
    return lab, inventory


def weights_on(host: RunningHost) -> dict[str, bytes]:
    """The files that its worker would load, by their names."""
    (folder,) = host.folder.rglob("packs/*/rpc")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def wanted_on(demo_model: Path, first: int, *, output: bool) -> dict[str, bytes]:
    """`output`: whether it computes the output layer, too: the planner's choice, wherever that is faster."""
    model = read_model(demo_model)
    tensors = device_tensors(model, first, 15, output=output)
    larger = [read_piece(model, whole(one)) for one in tensors if one.size_bytes > HASHED_ABOVE_BYTES]
    return {engine_name(data): data for data in larger}


def most_on(host: RunningHost, demo_model: Path) -> dict[str, bytes]:
    """What plans of this split may give it: the last device may compute the output layer."""
    return wanted_on(demo_model, 15, output=True) if host.name == "host2" else wanted_on(demo_model, 0, output=False)


def size_of(files: dict[str, bytes]) -> int:
    return sum(map(len, files.values()))


def outputs(meshctl: Meshctl) -> dict[str, bool]:
    """Of each host that works in the running cluster, whether it computes the output layer."""
    (group,) = meshctl.ok("status", "--json").json["plan"]["groups"]
    return {share["device"].removesuffix("/cpu"): share["output"] for share in group["shares"]}


def test_weights_cross_the_network_once(make_lab: MakeLab, meshctl: Meshctl, engine: Engine, demo_model: Path) -> None:
    """A second start carries next to none of them, on any host; what it answers is what one machine alone does.

    Both also carry what links are measured with: on links as slow as these 8 MB at most, of 33 MB of weights. Each is
    planned anew: where the second has the output layer elsewhere, that crosses, too, and what the first left stays.
    """
    lab, inventory = two_hosts(make_lab, meshctl, "100mbit")
    meshctl.ok("plan", inventory, "--split", SPLIT)
    wanted: list[dict[str, bytes]] = [{}, {}]
    carried, new = [], []
    for _ in range(2):
        before = [host.carried_bytes() for host in lab.hosts]
        meshctl.ok("up", inventory, "--detach", "--split", SPLIT)
        carried.append([host.carried_bytes() - then for host, then in zip(lab.hosts, before, strict=True)])
        state = meshctl.ok("status", "--json").json
        assert "Bringing weights to the workers" in [step["title"] for step in state["took"]]
        with plain_head(engine, demo_model) as plain:
            assert answers(state["gateway"].removesuffix("/v1"), meshctl.key()) == answers(plain)
        output = outputs(meshctl)
        meshctl.ok("down")
        before_bytes = [size_of(files) for files in wanted]
        for number, host in enumerate(lab.hosts):
            wanted[number] |= wanted_on(demo_model, 15 * number, output=output[host.name])
            assert weights_on(host) == wanted[number]
        new.append([size_of(files) - size for files, size in zip(wanted, before_bytes, strict=True)])
    for first, again, first_new, again_new in zip(*carried, *new, strict=True):
        assert first > first_new
        assert first - (again - again_new) > 0.75 * first_new


def test_in_mode_tensor_workers_get_the_pieces_that_they_are_asked_for(
    make_lab: MakeLab, meshctl: Meshctl, demo_model: Path
) -> None:
    lab, inventory = two_hosts(make_lab, meshctl, "1gbit")
    meshctl.ok("up", inventory, "--detach", "--mode", "tensor")
    (group,) = meshctl.ok("status", "--json").json["plan"]["groups"]
    shares = group["shares"]
    by_name = {host.name: host for host in lab.hosts}
    assert {share["device"] for share in shares} == {f"{name}/cpu" for name in by_name}
    for number, share in enumerate(shares):
        there = weights_on(by_name[share["device"].removesuffix("/cpu")])
        assert there == foreseen(read_model(demo_model), [share["part"] for share in shares], number)
        assert size_of(there) > 10 * 1024 * 1024
    meshctl.ok("down")


def test_weights_come_from_a_host_that_has_them_where_the_controllers_own_link_is_slow(
    make_lab: MakeLab, meshctl: Meshctl, demo_model: Path
) -> None:
    """The hosts' links are fast: only what the controller itself sends goes slowly.

    Besides weights it sends 10 to 13 MB, most of them in the ten seconds in which the speed is measured.
    """
    lab, inventory = two_hosts(make_lab, meshctl, "1gbit")
    with Path(inventory).open("a") as file:
        file.write("weights_from: nearest\n")
    meshctl.ok("plan", inventory, "--split", SPLIT)
    meshctl.ok("up", inventory, "--detach", "--split", "host1/cpu=30")
    meshctl.ok("down")
    listening = [host.listening() for host in lab.hosts]
    bridge = lab.hosts[0].names.bridge
    tbf = ("tbf", "rate", "10mbit", "burst", "32kb", "latency", "100ms")
    subprocess.run(("tc", "qdisc", "replace", "dev", bridge, "root", *tbf), check=True)
    carried, sent = lab.hosts[1].carried_bytes(), sent_bytes(bridge)
    said = meshctl.ok("up", inventory, "--detach", "--split", SPLIT).stderr
    there = weights_on(lab.hosts[1])
    assert there == wanted_on(demo_model, 15, output=outputs(meshctl)["host2"])
    size = size_of(there)
    only_here = sum(len(there[name]) for name in there.keys() - weights_on(lab.hosts[0]).keys())
    assert " of weights from host1 (" in said
    assert lab.hosts[1].carried_bytes() - carried > size
    assert sent_bytes(bridge) - sent < only_here + 2 * (size - only_here) / 3
    meshctl.ok("down")
    assert [host.listening() for host in lab.hosts] == listening


def sent_bytes(bridge: str) -> int:
    """What this machine itself has sent into the lab's network."""
    return int(Path(f"/sys/class/net/{bridge}/statistics/tx_bytes").read_text())


def test_damage_is_found_before_a_start_and_only_that_is_sent_again(
    make_lab: MakeLab, meshctl: Meshctl, demo_model: Path
) -> None:
    lab, inventory = two_hosts(make_lab, meshctl, "1gbit")
    meshctl.ok("up", inventory, "--detach", "--split", SPLIT)
    meshctl.ok("down")
    (folder,) = lab.hosts[0].folder.rglob("packs/*/rpc")
    truncated, flipped, longer = sorted(folder.iterdir())[:3]
    truncated.write_bytes(truncated.read_bytes()[:-1])
    flipped.write_bytes(bytes([flipped.read_bytes()[0] ^ 1]) + flipped.read_bytes()[1:])
    longer.write_bytes(longer.read_bytes() + b"x")
    (folder / ("0" * 16)).write_bytes(b"whatever")
    said = meshctl.ok("up", inventory, "--detach", "--split", SPLIT).stderr
    assert "host1: weights there were damaged and are put there again: blk." in said
    assert weights_on(lab.hosts[0]) == wanted_on(demo_model, 0, output=False)
    meshctl.ok("down")


def test_a_start_that_is_killed_at_any_moment_leaves_no_wrong_file(
    make_lab: MakeLab, meshctl: Meshctl, demo_model: Path
) -> None:
    """Ten times, while weights travel; each goes on where the one before was ended.

    Each is planned anew: the output layer, which only earlier ones may have given the last host, may lie there, too.
    """
    lab, inventory = two_hosts(make_lab, meshctl, "100mbit")
    meshctl.ok("plan", inventory, "--split", SPLIT)
    chance = random.Random(5)
    arrived = []
    for _ in range(TIMES):
        kill_while_weights_travel(meshctl, inventory, chance.uniform(0.0, 0.5))
        arrived.append(sum(check_whole(host, demo_model) for host in lab.hosts))
    assert arrived == sorted(arrived)
    assert arrived[-1] > 0
    meshctl.ok("up", inventory, "--detach", "--split", SPLIT)
    output = outputs(meshctl)
    for number, host in enumerate(lab.hosts):
        needed = wanted_on(demo_model, 15 * number, output=output[host.name])
        assert needed.items() <= weights_on(host).items() <= most_on(host, demo_model).items()
        coming = next(host.folder.rglob("packs/*/coming")).iterdir()
        assert [path for path in coming if path.name.partition(".")[0] in needed] == []
    meshctl.ok("down")


def kill_while_weights_travel(meshctl: Meshctl, inventory: str, after_s: float) -> None:
    """SIGKILL for `up` so many seconds after weights have begun to travel."""
    words = (sys.executable, "-m", "orchestrator", "up", inventory, "--split", SPLIT)
    environment = {**meshctl.environment, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        words, cwd=meshctl.folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        seen = any("Bringing weights to the workers" in line for line in process.stderr)
        assert seen
        time.sleep(after_s)
        os.kill(process.pid, signal.SIGKILL)


def check_whole(host: RunningHost, demo_model: Path) -> int:
    """How many weights are there; each is what its name says."""
    wanted = {name: hashlib.sha256(data).digest() for name, data in most_on(host, demo_model).items()}
    folders = list(host.folder.rglob("packs/*/rpc"))
    there = [path for folder in folders for path in folder.iterdir()]
    assert all(hashlib.sha256(path.read_bytes()).digest() == wanted[path.name] for path in there)
    return len(there)
