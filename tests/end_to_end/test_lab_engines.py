"""Engines on hosts with real OpenSSH servers: sent where the controller's own runs, and what a bare host is told."""

import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from lab_folder import LOGIN, LabHost
from lab_hosts import Lab
from lab_running import RunningHost
from orchestrator.engine.store import MANIFEST, Engine
from tests.end_to_end.refusals import change
from tests.lab_fixture import MakeLab
from tests.program import Meshctl

pytestmark = [pytest.mark.engine, pytest.mark.lab]

HAS_AT_LEAST = ("true", "python3", "env", "sh", "cat", "rm", "mkdir", "mv", "df", "uname")


def test_a_host_gets_the_engine_once_and_what_another_build_left_running_is_ended(
    make_lab: MakeLab, meshctl: Meshctl, engine: Engine
) -> None:
    lab = make_lab(LabHost("host1"))
    (host,) = lab.hosts
    inventory = str(lab.inventory())
    meshctl.ok("trust", inventory, "--yes")
    name = engine.manifest.engine
    assert f"{name} will be sent" in meshctl.ok("doctor", inventory).stdout
    left = left_over(lab)

    first = meshctl.ok("engine", "install", "-i", inventory, "--json")
    (sent,) = first.json
    assert (sent["host"], sent["how"]) == ("host1", "sent")
    assert sent["sent_bytes"] > 5_000_000
    told = f"host1: ggml-rpc-server of cpu-older (process {left}) was left over from another build: it was ended"
    assert told in " ".join(first.stderr.split())
    assert not any("ggml-rpc-server" in process.command for process in host.processes())

    assert f"{name} is there" in meshctl.ok("doctor", inventory).stdout
    again = meshctl.ok("engine", "install", "host1", "-i", inventory)
    assert "was there already" in again.stdout
    assert "ggml-rpc-server" not in again.stderr


def test_a_bare_host_that_the_engine_does_not_fit_is_told_what_to_install(
    make_lab: MakeLab, meshctl: Meshctl, engine: Engine, tmp_path: Path
) -> None:
    """As on an older Debian without a compiler: the command for its package manager, before anything is sent."""
    lab = make_lab(LabHost("host1"))
    (host,) = lab.hosts
    launcher = f"env PATH={bare_path(host)}"
    inventory = change(lab.inventory(), {"host1": {"run_with": launcher}})
    asks_for_more = Meshctl(meshctl.folder, {**meshctl.environment, "XDG_CACHE_HOME": newer_cache(tmp_path, engine)})
    asks_for_more.ok("trust", inventory, "--yes")
    wanted = "no cmake; no ninja or make; no C compiler; no C++ compiler"
    examined = asks_for_more.run("doctor", inventory)
    installed = asks_for_more.run("engine", "install", "-i", inventory, "--json")
    assert (examined.status, installed.status) == (1, 1)
    for said in (examined.stdout, json.loads(installed.stdout)[0]["error"]):
        assert "it needs glibc 99.1 or later, the host has glibc" in said
        assert wanted in said
    assert "`apt install cmake ninja-build g++`" in examined.stdout
    assert json.loads(installed.stdout)[0]["hint"] == "there: `apt install cmake ninja-build g++`"
    assert list((host.folder / "home" / ".cache" / "meshctl" / "engines").glob("cpu-*[!k]")) == []


def left_over(lab: Lab) -> int:
    """A worker of another engine there that has lost its leash; its number on the host."""
    (host,) = lab.hosts
    folder = host.folder / "home" / ".cache" / "meshctl" / "engines" / "cpu-older"
    folder.mkdir(parents=True)
    waiting = shutil.which("sleep")
    assert waiting is not None
    shutil.copy(waiting, folder / "ggml-rpc-server")
    there = f"{LOGIN.pw_dir}/.cache/meshctl/engines/cpu-older/ggml-rpc-server"
    line = f"GGML_NO_BACKTRACE=1 setsid {there} 999 >/dev/null 2>&1 </dev/null & echo $!"
    options = ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR")
    words = ("ssh", "-F", "none", "-i", str(lab.client_key), *(word for one in options for word in ("-o", one)))
    answer = subprocess.run((*words, f"{host.user}@{host.address}", line), capture_output=True, timeout=30, check=True)
    return int(answer.stdout)


def bare_path(host: RunningHost) -> str:
    """A search path on the host with next to nothing, but the package manager of a Debian."""
    folder = host.folder / "home" / "bare"
    folder.mkdir()
    for name in HAS_AT_LEAST:
        found = shutil.which(name, path="/usr/bin:/bin")
        if found is not None:
            (folder / name).symlink_to(found)
    (folder / "apt-get").symlink_to("/bin/true")
    return f"{LOGIN.pw_dir}/bare"


def newer_cache(tmp_path: Path, engine: Engine) -> str:
    """A cache with this engine, as if it asked for a C library that no host has yet."""
    copy = tmp_path / "newer" / "meshctl" / "engines" / engine.folder.name
    shutil.copytree(engine.folder, copy, copy_function=os.link if same_disk(tmp_path, engine) else shutil.copy)
    (copy / MANIFEST).unlink()
    (copy / MANIFEST).write_bytes(replace(engine.manifest, libc="glibc 99.1").to_json())
    return str(tmp_path / "newer")


def same_disk(tmp_path: Path, engine: Engine) -> bool:
    return tmp_path.stat().st_dev == engine.folder.stat().st_dev
