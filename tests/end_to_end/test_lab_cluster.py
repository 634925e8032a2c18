"""The whole main job on hosts reached by real OpenSSH servers, each with less memory than the model's own file."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from lab_folder import LabHost
from lab_hosts import Lab
from lab_running import RunningHost
from orchestrator.engine.store import Engine
from tests.end_to_end.answers import answers, plain_head
from tests.end_to_end.inventories import free_port
from tests.end_to_end.refusals import files_of, wait_idle
from tests.lab_fixture import MakeLab
from tests.program import Meshctl
from workers.agent import family_of, running_processes

pytestmark = [pytest.mark.engine, pytest.mark.lab]

MIB = 1024 * 1024
HOST_MEMORY_BYTES = 93 * MIB + MIB // 2


def three_small_hosts(make_lab: MakeLab, meshctl: Meshctl) -> tuple[Lab, str]:
    """Three hosts with a real link, none of which could hold the model; their keys trusted."""
    lab = make_lab(
        *(
            LabHost(f"host{number}", memory_bytes=HOST_MEMORY_BYTES, rate="1gbit", delay_s=0.0003)
            for number in (1, 2, 3)
        )
    )
    inventory = lab.inventory(context=512, memory="100%", gateway_port=free_port())
    meshctl.ok("trust", str(inventory), "--yes")
    return lab, str(inventory)


def test_a_model_larger_than_each_host_answers_as_on_one_machine(
    make_lab: MakeLab, meshctl: Meshctl, engine: Engine, demo_model: Path
) -> None:
    """Equal greedy text; nothing but sshd off loopback; after `down` the hosts are as idle as before."""
    assert demo_model.stat().st_size > HOST_MEMORY_BYTES
    lab, inventory = three_small_hosts(make_lab, meshctl)
    assert "does not fit" not in meshctl.ok("doctor", inventory).stdout
    meshctl.ok("up", inventory, "--detach", "--mode", "layers")
    state = meshctl.ok("status", "--json").json
    assert (state["phase"], state["plan"]["mode"]) == ("ready", "layers")
    assert len(state["plan"]["groups"][0]["shares"]) == 3
    with plain_head(engine, demo_model) as plain:
        assert answers(state["gateway"].removesuffix("/v1"), meshctl.key()) == answers(plain)
    for host in lab.hosts:
        assert {one.program for one in host.listening()} <= {"sshd", "lab_relay"}
        assert any("ggml-rpc-server" in process.command for process in host.processes())
        assert host.memory_used_bytes() <= HOST_MEMORY_BYTES
    assert ports_here(state["pid"]) == {int(state["gateway"].removesuffix("/v1").rpartition(":")[2])}
    assert "worker-cpu.log" in meshctl.ok("logs", "host1", "--inventory", inventory).stdout
    meshctl.ok("down", inventory)
    for host in lab.hosts:
        wait_idle(host, deadline_s=5)
        assert [name for name in files_of(host) if name.endswith(".sock")] == []


def test_a_killed_controller_leaves_no_process_on_any_host(make_lab: MakeLab, meshctl: Meshctl) -> None:
    """SIGKILL of the supervisor: every host is idle within 15 s, and here no link and no head is left."""
    lab, inventory = three_small_hosts(make_lab, meshctl)
    meshctl.ok("up", inventory, "--detach")
    state = meshctl.ok("status", "--json").json
    here = [process["pid"] for process in state["processes"] if process["host"] == "controller"]
    assert len(here) == 4
    os.kill(state["pid"], signal.SIGKILL)
    began = time.monotonic()
    for host in lab.hosts:
        wait_idle(host, deadline_s=began + 15 - time.monotonic())
        assert [name for name in files_of(host) if name.endswith(".sock")] == []
    while any(Path(f"/proc/{pid}").exists() for pid in here):
        assert time.monotonic() < began + 15
        time.sleep(0.1)


def test_a_host_that_is_cut_off_ends_its_worker_by_itself_and_is_taken_back(
    make_lab: MakeLab, meshctl: Meshctl
) -> None:
    """No packet arrives any more: the leash there stops for want of heartbeats. The two other hosts cannot hold the
    model; the cluster says so, and goes on by itself when the host is there again."""
    lab, inventory = three_small_hosts(make_lab, meshctl)
    meshctl.ok("up", inventory, "--detach")
    lab.hosts[0].cut_link()
    wait_for_no_worker(lab.hosts[0], deadline_s=20)
    failed = meshctl.until_phase("failed", deadline_s=150)
    assert "hold" in failed["message"]
    assert failed["supervised"]
    lab.hosts[0].restore_link()
    meshctl.until_phase("ready", deadline_s=150)
    assert meshctl.ok("chat", "Say hello.").stdout.strip()
    meshctl.ok("down")
    for host in lab.hosts:
        wait_idle(host, deadline_s=15)


def ports_here(supervisor: int) -> set[int]:
    """Where this machine's own processes of the cluster listen, the supervisor and what it started."""
    processes = running_processes()
    family = family_of(processes, supervisor, -1, set())
    rows = subprocess.run(("ss", "-Hltnp"), capture_output=True, text=True, check=True).stdout.splitlines()
    return {
        int(row.split()[3].rpartition(":")[2])
        for row in rows
        if {int(pid) for pid in re.findall(r"pid=(\d+)", row)} & {*family, supervisor}
    }


def wait_for_no_worker(host: RunningHost, *, deadline_s: float) -> None:
    """Until no engine process runs there."""
    end = time.monotonic() + deadline_s
    while any("ggml-rpc-server" in command for _, command in host.processes()):
        assert time.monotonic() < end
        time.sleep(0.1)
