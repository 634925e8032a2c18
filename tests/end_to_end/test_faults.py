"""Faults under load, on the real engine and model: nothing is lost, and each is noticed within its bound."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from lab_folder import LabHost
from lab_hosts import Lab
from lab_running import RunningHost
from tests.end_to_end.crowd import crowd
from tests.end_to_end.fault_table import Cluster, Row, calm_row_of, end_row_of, kill, parent_of, row_of
from tests.end_to_end.inventories import free_port, write_local
from tests.end_to_end.refusals import error_of, wait_idle
from tests.end_to_end.test_lab import ssh, ssh_words
from tests.lab_fixture import MakeLab
from tests.program import Meshctl, left_after, processes_with

pytestmark = pytest.mark.engine

MIB = 1024 * 1024
ROOMY = "400MiB"
"""Each of the two hosts can hold the model alone."""

HALVES = "{0}/cpu=15,{1}/cpu=15"
HOST_BYTES = 420 * MIB
HOG_STEPS, HOG_STEP_BYTES, LAST_STEP_BYTES = 35, 6 * MIB, 2 * MIB
"""What somebody else's program takes every half second: so many steps of the larger size, then small ones, since a host
that is busy with other tests speaks late, and its kernel would end that program before."""

DISK_BYTES = 700 * MIB
SLOW = "20mbit"
RETRANSMITTED_S = 130.0
"""sshd learns that nobody is there any more when it sends again, which it does after twice as long each time that
nothing carries it, up to TCP_RTO_MAX, two minutes (linux/include/net/tcp.h): seen after a link that was black-holed."""

AT_ONCE_S, HANG_S, PATH_S, HOG_S = 5.0, 30.0, 20.0, 90.0
"""Bounds within which a fault is to be told: the end of a process, with the last lines of its log, which are waited for
3 s at most; a hang; a path that carries nothing; and memory that somebody takes little by little."""

TIPPED = 1
"""So many of the streams may go on with other words than a fresh request is given: they are computed with others beside
them, that one alone, and what is nearly a tie may tip. A seam in the wrong place shows in all of them."""

Strike = Callable[[Cluster], Callable[[], None]]


def signalled(name: str, number: int) -> Strike:
    """To a process on this machine."""
    return lambda cluster: kill(cluster.pid(name), number)


def leash_signalled(name: str, number: int) -> Strike:
    return lambda cluster: kill(parent_of(cluster.pid(name)), number)


LOCAL: Mapping[str, tuple[Strike, float]] = {
    "worker killed": (signalled("worker", signal.SIGKILL), AT_ONCE_S),
    "head killed": (signalled("head", signal.SIGKILL), AT_ONCE_S),
    "agent of a worker killed": (leash_signalled("worker", signal.SIGKILL), AT_ONCE_S),
    "head stopped": (signalled("head", signal.SIGSTOP), HANG_S),
}
MORE_LOCAL: Mapping[str, tuple[Strike, float]] = {
    "worker stopped": (signalled("worker", signal.SIGSTOP), HANG_S),
    "agent of a worker stopped": (leash_signalled("worker", signal.SIGSTOP), PATH_S),
}
"""On another cluster: a host on which something fails three times is set aside."""


@pytest.fixture
def local(meshctl: Meshctl) -> Cluster:
    """Both of two local hosts are used: the head computes the first half of the layers, a worker the second."""
    inventory = str(write_local(meshctl.folder / "inventory.yaml", memory=ROOMY, context=512, parallel=5))
    meshctl.ok("up", inventory, "--detach", "--split", HALVES.format("part1", "part2"))
    return Cluster(meshctl)


def see_through(
    rows: list[Row],
    cluster: Cluster,
    fault: str,
    strike: Callable[[], None],
    bound_s: float,
    *,
    after: Callable[[], None] | None = None,
) -> None:
    row = row_of(cluster, fault, strike, after=after)
    rows.append(row)
    assert row.noticed_s is not None
    assert row.noticed_s < bound_s, row
    assert row.outcomes["failed"] == 0, row
    assert row.compared - row.equal <= TIPPED, row


def see_all_through(rows: list[Row], cluster: Cluster, faults: Mapping[str, tuple[Strike, float]]) -> None:
    """One after the other on one cluster, which is whole again each time."""
    for name, (strike, bound_s) in faults.items():
        see_through(rows, cluster, f"local: {name}", strike(cluster), bound_s)


def test_local_processes_that_end_or_stop(local: Cluster, fault_rows: list[Row]) -> None:
    see_all_through(fault_rows, local, LOCAL)
    assert re.search(r"head-\w+ on \w+ is stopped: head on \w+ hangs", said(local))
    local.meshctl.ok("down")
    assert processes_with(str(local.meshctl.folder)) == []


def test_whatever_happens_beside_a_cluster_and_to_its_supervisor(local: Cluster, fault_rows: list[Row]) -> None:
    """On one cluster, since most of it disturbs nobody. At the end its supervisor is killed."""
    see_all_through(fault_rows, local, MORE_LOCAL)
    assert re.search(r"worker-cpu-\d+ on part\d is stopped: head on \w+ hangs", said(local))
    at_the_gateway(local, fault_rows)
    two_supervisors(local, fault_rows)
    a_supervisor_that_stopped(local, fault_rows)
    a_supervisor_that_was_killed(local, fault_rows)


def said(cluster: Cluster) -> str:
    """Everything that has happened to the cluster."""
    return cluster.meshctl.ok("events", "--json").stdout


def at_the_gateway(cluster: Cluster, rows: list[Row]) -> None:
    """With the four streams they are 64."""
    key = cluster.meshctl.key()
    fault = "64 clients: slow readers, half a header, half a body, oversized, malformed"
    rows.append(calm_row_of(cluster, fault, lambda: crowd(cluster.url, key)))


def two_supervisors(cluster: Cluster, rows: list[Row]) -> None:
    """Two more of the same controller, which refuse, and one of another controller, which works beside the first."""
    first = cluster.meshctl
    folder = first.folder / "other"
    folder.mkdir()
    other = replace(first, folder=folder, environment={**first.environment, "XDG_STATE_HOME": f"{folder}/state"})
    inventory = str(first.folder / "inventory.yaml")
    others = str(write_local(folder / "inventory.yaml", hosts=1, memory=ROOMY, context=512, parallel=5))

    def start_them() -> None:
        for how in ((), ("--detach",)):
            up = first.ok("up", inventory, *how)
            assert up.stderr == f"test is up already at {first.state()['gateway']}; see `meshctl status`\n"
        assert error_of(first.run("supervise", inventory)) == (
            "cluster test is already running\nhint: see it with `meshctl status`, stop it with `meshctl down`"
        )
        other.ok("up", others, "--detach")
        other.ok("down")

    try:
        rows.append(calm_row_of(cluster, "second supervisors, here and on the same hosts", start_them))
    finally:
        assert other.end_all() == []


def a_supervisor_that_stopped(local: Cluster, rows: list[Row]) -> None:
    """Meanwhile every program of the cluster ends for want of heartbeats. The supervisor holds the gateway: streams
    stand still as long as it does, and go on when it does."""
    pid = local.meshctl.state()["pid"]

    pids = [one["pid"] for one in local.meshctl.state()["processes"]]

    def stop_and_go_on() -> None:
        os.kill(pid, signal.SIGSTOP)
        try:
            end = time.monotonic() + 20
            while left := [one for one in pids if Path(f"/proc/{one}").exists()]:
                assert time.monotonic() < end, left
                time.sleep(0.05)
        finally:
            os.kill(pid, signal.SIGCONT)

    see_through(rows, local, "supervisor stopped until all had ended, then continued", stop_and_go_on, 30.0)


def a_supervisor_that_was_killed(local: Cluster, rows: list[Row]) -> None:
    """Nobody is there to tell the clients; what they see is a connection that breaks, and not an answer that ends."""
    rows.append(end_row_of(local, "supervisor killed", kill(local.meshctl.state()["pid"], signal.SIGKILL)))
    assert left_after(str(local.meshctl.folder), 15) == []


def worker_on(host: RunningHost) -> int:
    """The worker's process on that host, by its number here; its leash and that one's bridge have its words, too."""
    (pid,) = (one.pid for one in host.processes() if one.command.split()[0].endswith("/ggml-rpc-server"))
    return pid


def in_lab(lab: Lab, meshctl: Meshctl) -> Cluster:
    inventory = str(lab.inventory(context=512, parallel=5, memory="80%", gateway_port=free_port()))
    meshctl.ok("trust", inventory, "--yes")
    meshctl.ok("up", inventory, "--detach", "--split", HALVES.format("host1", "host2"))
    return Cluster(meshctl)


@contextmanager
def hog(lab: Lab, host: RunningHost) -> Iterator[Callable[[], None]]:
    """A program of somebody else there that takes more and more memory, from the call of the function on."""
    code = (
        "import sys, time; sys.stdin.readline(); held = []\n"
        f"while len(held) < {HOG_STEPS}: held.append(bytearray(b'x') * {HOG_STEP_BYTES}); time.sleep(0.5)\n"
        f"while True: held.append(bytearray(b'x') * {LAST_STEP_BYTES}); time.sleep(0.5)"
    )
    words = ssh_words(lab, host, f'python3 -c "{code}"')
    with subprocess.Popen(words, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as program:
        assert program.stdin is not None

        def grow() -> None:
            assert program.stdin is not None
            program.stdin.write(b"go\n")
            program.stdin.flush()

        try:
            yield grow
        finally:
            for pid in [one.pid for one in host.processes() if "held" in one.command]:
                os.kill(pid, signal.SIGKILL)
            program.stdin.close()


@pytest.mark.lab
def test_hosts_reached_by_ssh(make_lab: MakeLab, meshctl: Meshctl, fault_rows: list[Row]) -> None:
    """The same over real OpenSSH servers: processes at both ends, the path between them, and a host's memory."""
    lab = make_lab(*(LabHost(name, memory_bytes=HOST_BYTES, rate="1gbit") for name in ("host1", "host2")))
    cluster, host = in_lab(lab, meshctl), lab.hosts[0]

    def see(fault: str, strike: Callable[[], None], bound_s: float, after: Callable[[], None] | None = None) -> None:
        see_through(fault_rows, cluster, f"SSH: {fault}", strike, bound_s, after=after)

    see("worker killed", kill(worker_on(host), signal.SIGKILL), AT_ONCE_S)
    see("agent of a worker killed", kill(parent_of(worker_on(host)), signal.SIGKILL), AT_ONCE_S)
    with hog(lab, lab.hosts[1]) as grow:
        see("memory of a host taken by another program", grow, HOG_S)
    see("tunnel killed", kill(cluster.pid("link"), signal.SIGKILL), AT_ONCE_S)
    see("tunnel stopped", kill(cluster.pid("link"), signal.SIGSTOP), HANG_S)
    assert re.search(r"link-host\d-\d+ on controller is stopped: head on \w+ hangs", said(cluster))
    meshctl.ok("down")
    for one in lab.hosts:
        wait_idle(one, deadline_s=15)


@pytest.mark.lab
def test_paths_and_keys_of_hosts_reached_by_ssh(make_lab: MakeLab, meshctl: Meshctl, fault_rows: list[Row]) -> None:
    lab = make_lab(*(LabHost(name, memory_bytes=HOST_BYTES, rate="1gbit") for name in ("host1", "host2")))
    cluster, host = in_lab(lab, meshctl), lab.hosts[0]

    def see(fault: str, strike: Callable[[], None], bound_s: float, after: Callable[[], None] | None = None) -> None:
        see_through(fault_rows, cluster, f"SSH: {fault}", strike, bound_s, after=after)

    slow = f"SSH: link slowed down to {SLOW}"
    fault_rows.append(calm_row_of(cluster, slow, lambda: host.slow_link(SLOW)))
    host.slow_link("1gbit")
    see("link cut, restored when that was noticed", host.cut_link, PATH_S, host.restore_link)
    see("sshd restarted, its sessions ended", lab.hosts[1].restart_sshd, AT_ONCE_S)
    see("link black-holed, not restored", host.black_hole_link, PATH_S)
    assert "host1 is missing" in meshctl.state()["message"]
    host.restore_link()
    lab.hosts[1].new_host_key()
    see("its key changed, and its program killed", kill(_program(lab.hosts[1]), signal.SIGKILL), AT_ONCE_S)
    assert meshctl.state()["phase"] == "degraded"
    assert "host2 is missing" in meshctl.state()["message"]
    assert "THE HOST KEY OF" in meshctl.state()["message"]
    meshctl.ok("down")
    for one in lab.hosts:
        wait_idle(one, deadline_s=RETRANSMITTED_S)
    assert processes_with(str(meshctl.folder / "state")) == []


@pytest.mark.lab
def test_damage_to_the_cache_of_a_host(make_lab: MakeLab, meshctl: Meshctl, fault_rows: list[Row]) -> None:
    """Of one with a head of its own, which holds its copy of the model and loads it again after each fault."""
    lab = make_lab(LabHost("host1", disk_bytes=DISK_BYTES, rate="1gbit"))
    (host,) = lab.hosts
    inventory = str(lab.inventory(context=512, parallel=5, gateway_port=free_port()))
    meshctl.ok("trust", inventory, "--yes")
    meshctl.ok("up", inventory, "--detach", "--mode", "single")
    cluster = Cluster(meshctl)
    root = Path(f"/proc/{host.processes()[0].pid}/root/root/.cache/meshctl")
    (copy,) = root.glob("models/*/*.gguf")
    whole = copy.read_bytes()
    assert list(root.rglob("head*.key*")) == [], "a head reads its key when it starts"
    cleaned = meshctl.ok("cache", "clean", "--dry-run", inventory).stdout
    assert f"models/{copy.parent.name}" not in cleaned

    def see(fault: str, harm: Callable[[], None], after: Callable[[], None] | None = None) -> None:
        """The head ends by what was done to its file, or else by us."""

        def strike() -> None:
            program = _program(host)
            harm()
            with suppress(ProcessLookupError):
                os.kill(program, signal.SIGKILL)

        see_through(fault_rows, cluster, f"SSH: {fault}, head killed", strike, AT_ONCE_S, after=after)
        assert copy.read_bytes() == whole

    def make_room_when_told() -> None:
        until_told(meshctl, "are needed in /root/.cache/meshctl, 0 B are free")
        assert ssh(lab, host, "rm ~/filler").returncode == 0

    see("copy of the model truncated", lambda: os.truncate(copy, len(whole) // 2))
    see("bit of the copy flipped", lambda: flip(copy))
    assert b"No space left" in ssh(lab, host, f"head -c {DISK_BYTES} /dev/zero > ~/filler").stderr
    see("disk full, copy truncated", lambda: os.truncate(copy, len(whole) - 1), make_room_when_told)
    meshctl.ok("cache", "check", "--hashes", inventory)
    meshctl.ok("down")
    wait_idle(host, deadline_s=15)
    assert processes_with(str(meshctl.folder / "state")) == []


def until_told(meshctl: Meshctl, text: str) -> None:
    end = time.monotonic() + 60
    while text not in (message := meshctl.state()["message"]):
        assert time.monotonic() < end, message
        time.sleep(0.05)


def flip(path: Path) -> None:
    """The lowest bit of the byte in the middle, in place."""
    middle = path.stat().st_size // 2
    with path.open("r+b") as file:
        file.seek(middle)
        byte = file.read(1)[0]
        file.seek(middle)
        file.write(bytes([byte ^ 1]))


def _program(host: RunningHost) -> int:
    """A worker or head there: the program itself, not the leash, whose command line names it, too."""
    names = ("ggml-rpc-server", "llama-server")
    return next(one.pid for one in host.processes() if one.command.split(" ")[0].endswith(names))
