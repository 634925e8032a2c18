"""Faults under load, on the real engine and model: nothing is lost, and each is noticed within its bound."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lab_folder import LabHost
from lab_hosts import Lab
from lab_running import RunningHost
from tests.end_to_end.fault_table import Cluster, Row, kill, parent_of, row_of
from tests.end_to_end.inventories import free_port, write_local
from tests.end_to_end.load import PROMPTS, Asked, asking
from tests.end_to_end.refusals import wait_idle
from tests.end_to_end.test_lab import ssh_words
from tests.lab_fixture import MakeLab
from tests.program import Meshctl, left_after, processes_with

pytestmark = pytest.mark.engine

MIB = 1024 * 1024
ROOMY = "400MiB"
"""Each of the two hosts can hold the model alone."""

HALVES = "{0}/cpu=15,{1}/cpu=15"
HOST_BYTES = 420 * MIB
HOG_STEP_BYTES = 6 * MIB

AT_ONCE_S, HANG_S, PATH_S, HOG_S = 2.0, 30.0, 20.0, 90.0
"""Bounds within which a fault is to be noticed: the end of a process, a hang, a path that carries nothing, and memory
that somebody takes little by little."""

Strike = Callable[[Cluster], Callable[[], None]]


def signalled(name: str, number: int) -> Strike:
    """To a process on this machine."""
    return lambda cluster: kill(cluster.pid(name), number)


def leash_signalled(name: str, number: int) -> Strike:
    return lambda cluster: kill(parent_of(cluster.pid(name)), number)


LOCAL: list[dict[str, tuple[Strike, float]]] = [
    {
        "worker killed": (signalled("worker", signal.SIGKILL), AT_ONCE_S),
        "worker stopped": (signalled("worker", signal.SIGSTOP), HANG_S),
        "head killed": (signalled("head", signal.SIGKILL), AT_ONCE_S),
        "agent of a worker killed": (leash_signalled("worker", signal.SIGKILL), AT_ONCE_S),
    },
    {
        "head stopped": (signalled("head", signal.SIGSTOP), HANG_S),
        "agent of a worker stopped": (leash_signalled("worker", signal.SIGSTOP), PATH_S),
    },
]
"""On a cluster each: a host on which something fails three times is set aside."""


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
    assert row.equal == row.compared, row


@pytest.mark.parametrize("faults", LOCAL)
def test_local_processes_that_end_or_stop(
    local: Cluster, fault_rows: list[Row], faults: dict[str, tuple[Strike, float]]
) -> None:
    """One after the other on one cluster, which is whole again each time."""
    for name, (strike, bound_s) in faults.items():
        see_through(fault_rows, local, f"local: {name}", strike(local), bound_s)
    local.meshctl.ok("down")
    assert processes_with(str(local.meshctl.folder)) == []


def test_a_supervisor_that_was_stopped_goes_on_with_a_new_cluster(local: Cluster, fault_rows: list[Row]) -> None:
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

    see_through(fault_rows, local, "supervisor stopped until all had ended, then continued", stop_and_go_on, 30.0)
    local.meshctl.ok("down")


def test_a_killed_supervisor_breaks_connections_visibly_and_leaves_nothing(local: Cluster) -> None:
    """Nobody is there to tell the clients; what they see is a connection that breaks, and not an answer that ends."""
    requests = [Asked(prompt) for prompt in PROMPTS]
    with asking(local.url, local.meshctl.key(), requests) as wait:
        os.kill(local.meshctl.state()["pid"], signal.SIGKILL)
        wait()
    assert [one.error for one in requests] == ["connection"] * len(requests)
    assert left_after(str(local.meshctl.folder), 15) == []


def there(host: RunningHost, word: str) -> int:
    """The process of that host with this word in its command line, by its number here: the last one, since sessions
    come after the listener."""
    return [one.pid for one in host.processes() if word in one.command][-1]


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
        f"while True: held.append(bytearray(b'x') * {HOG_STEP_BYTES}); time.sleep(0.5)"
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

    see("worker killed", kill(there(host, "ggml-rpc-server"), signal.SIGKILL), AT_ONCE_S)
    see("agent of a worker killed", kill(there(host, " leash "), signal.SIGKILL), AT_ONCE_S)
    with hog(lab, lab.hosts[1]) as grow:
        see("memory of a host taken by another program", grow, HOG_S)
    see("tunnel killed", kill(cluster.pid("link"), signal.SIGKILL), AT_ONCE_S)
    see("tunnel stopped", kill(cluster.pid("link"), signal.SIGSTOP), HANG_S)
    meshctl.ok("down")
    for one in lab.hosts:
        wait_idle(one, deadline_s=15)


@pytest.mark.lab
def test_paths_and_keys_of_hosts_reached_by_ssh(make_lab: MakeLab, meshctl: Meshctl, fault_rows: list[Row]) -> None:
    lab = make_lab(*(LabHost(name, memory_bytes=HOST_BYTES, rate="1gbit") for name in ("host1", "host2")))
    cluster, host = in_lab(lab, meshctl), lab.hosts[0]

    def see(fault: str, strike: Callable[[], None], bound_s: float, after: Callable[[], None] | None = None) -> None:
        see_through(fault_rows, cluster, f"SSH: {fault}", strike, bound_s, after=after)

    see("link cut, restored when that was noticed", host.cut_link, PATH_S, host.restore_link)
    see("sessions of its sshd killed", lambda: _kill_sessions(host), AT_ONCE_S)
    lab.hosts[1].new_host_key()
    see("its key changed, and its worker killed", kill(_worker(lab.hosts[1]), signal.SIGKILL), AT_ONCE_S)
    assert meshctl.state()["phase"] == "degraded"
    assert "host2 is missing" in meshctl.state()["message"]
    assert "THE HOST KEY OF" in meshctl.state()["message"]
    meshctl.ok("down")
    for one in lab.hosts:
        wait_idle(one, deadline_s=15)
    assert processes_with(str(meshctl.folder / "state")) == []


def _worker(host: RunningHost) -> int:
    """The program itself, not the leash, whose command line names it, too."""
    return next(one.pid for one in host.processes() if "ggml-rpc-server" in one.command.split(" ")[0])


def _kill_sessions(host: RunningHost) -> None:
    """The sessions and not the listener, which is the first process."""
    for one in host.processes():
        if "sshd" in one.command and "listener" not in one.command:
            os.kill(one.pid, signal.SIGKILL)
