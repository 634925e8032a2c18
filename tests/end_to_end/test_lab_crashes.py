"""What crashes on hosts leave: nothing that runs, no key, no half file; and a flipped bit never computes."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from lab_folder import LabHost
from lab_running import RunningHost
from tests.end_to_end.fault_table import parent_of
from tests.end_to_end.inventories import free_port
from tests.end_to_end.refusals import HALF_MARKS, files_of, wait_idle
from tests.end_to_end.test_faults import worker_on
from tests.lab_fixture import MakeLab
from tests.program import Meshctl, left_after

pytestmark = [pytest.mark.engine, pytest.mark.lab]

SPLIT = "host1/cpu=30"


def test_a_killed_leash_and_a_rebooted_host_leave_nothing_and_the_cluster_answers_again(
    make_lab: MakeLab, meshctl: Meshctl
) -> None:
    """SIGKILL of the bridge of a worker and of its leash, then the host's power; then a byte of its engine flips."""
    lab = make_lab(LabHost("host1"))
    (host,) = lab.hosts
    inventory = str(lab.inventory(context=512, memory="120MiB", gateway_port=free_port()))
    meshctl.ok("trust", inventory, "--yes")
    meshctl.ok("up", inventory, "--detach", "--split", SPLIT)
    assert head_keys(meshctl, host) == []
    for of_leash in (bridge_of, leash_of):
        worker = worker_on(host)
        os.kill(of_leash(host), signal.SIGKILL)
        began = time.monotonic()
        until(lambda worker=worker: not Path(f"/proc/{worker}").exists(), began + 15)
        serves_again(meshctl)
    lab.reboot(host)
    serves_again(meshctl)
    assert meshctl.ok("chat", "Say hello.").stdout.strip()
    meshctl.ok("down")
    wait_idle(host, deadline_s=15)
    assert [program for _, _, program in host.listening()] == ["sshd"]
    assert [name for name in files_of(host) if any(mark in name for mark in HALF_MARKS)] == []
    assert head_keys(meshctl, host) == []
    assert left_after(str(meshctl.folder), 15, but="lab_enter.sh") == []
    a_flipped_byte_is_found_named_and_mended(meshctl, inventory, host)


def a_flipped_byte_is_found_named_and_mended(meshctl: Meshctl, inventory: str, host: RunningHost) -> None:
    (library,) = root_of(host).glob("engines/*/libggml-base.so")
    whole = library.read_bytes()
    library.write_bytes(whole[:1000] + bytes([whole[1000] ^ 1]) + whole[1001:])
    place = f"engines/{library.parent.name}"
    assert meshctl.run("cache", "check", inventory).status == 0
    checked = meshctl.run("cache", "check", "--hashes", inventory)
    named = f"host1: {place}/libggml-base.so has changed: its sha256 is not the one it was put with"
    assert (checked.status, [line for line in checked.stdout.splitlines() if "has changed" in line]) == (1, [named])
    told = meshctl.ok("plan", inventory, "--split", SPLIT).stderr
    assert "host1: the engine there is damaged and is put there anew: libggml-base.so has changed" in " ".join(
        told.split()
    )
    (library,) = root_of(host).glob("engines/*/libggml-base.so")
    assert library.read_bytes() == whole
    assert meshctl.run("cache", "check", "--hashes", inventory).status == 0


def root_of(host: RunningHost) -> Path:
    """Our folder there, as a path here."""
    return host.folder / "home" / ".cache" / "meshctl"


def serves_again(meshctl: Meshctl) -> None:
    """Until it has noticed, and then until it answers."""
    until(lambda: meshctl.state()["phase"] not in ("ready", "degraded"), time.monotonic() + 45)
    meshctl.until_phase("ready", deadline_s=90)


def leash_of(host: RunningHost) -> int:
    return parent_of(worker_on(host))


def bridge_of(host: RunningHost) -> int:
    """The child of the leash that has the leash's own words."""
    leash = leash_of(host)
    forks = (one.pid for one in host.processes() if " leash " in one.command and one.pid != leash)
    (pid,) = (pid for pid in forks if parent_of(pid) == leash)
    return pid


def head_keys(meshctl: Meshctl, host: RunningHost) -> list[Path]:
    folders = (meshctl.folder / "state", root_of(host))
    return [path for folder in folders for path in folder.rglob("head*.key*")]


def until(condition: Any, deadline_s: float) -> None:
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
