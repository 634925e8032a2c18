"""What the agent does for engines: locks, tools, making a folder of a build, and ending what nobody holds."""

import argparse
import ctypes
import glob
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from ctypes.util import find_library
from pathlib import Path
from typing import Any

import pytest

from tests.workers.held import AGENT, PYTHON, wait_until
from tests.workers.test_agent import run_agent
from workers import agent


def hold(path: Path) -> "subprocess.Popen[bytes]":
    words = (PYTHON, "-I", "-S", str(AGENT), "hold", str(path))
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def said(process: "subprocess.Popen[bytes]") -> dict[str, Any]:
    assert process.stdout is not None
    answer: dict[str, Any] = json.loads(process.stdout.readline())
    return answer


def end(process: "subprocess.Popen[bytes]") -> None:
    with process:
        process.kill()


def test_a_digest(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"bytes")
    assert run_agent("digest", str(tmp_path / "file")) == {"sha256": hashlib.sha256(b"bytes").hexdigest()}


def test_a_lock_is_held_by_one_and_goes_to_the_next_when_that_one_ends(tmp_path: Path) -> None:
    first = hold(tmp_path / "new" / "a.lock")
    assert said(first) == {"held": True}
    second = hold(tmp_path / "new" / "a.lock")
    assert said(second) == {"held": False}
    assert first.stdin is not None
    first.stdin.close()
    assert first.wait(10) == 0
    assert said(second) == {"held": True}
    third = hold(tmp_path / "new" / "a.lock")
    assert said(third) == {"held": False}
    second.kill()
    assert said(third) == {"held": True}
    for process in (first, second, third):
        if process.stdin is not None and not process.stdin.closed:
            process.stdin.close()
        end(process)


def test_unfinished_files_of_transfers_that_can_go_on_are_kept_for_a_day(tmp_path: Path) -> None:
    hour, day = time.time() - 3600, time.time() - 25 * 3600
    for name, changed_s in ((".a.part", hour), (f".b.0f{agent.RESUMED}", hour), (f".c.0f{agent.RESUMED}", day)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (changed_s, changed_s))
    assert run_agent("tidy", "--root", str(tmp_path)) == {"removed": [".a.part", f".c.0f{agent.RESUMED}"]}


def tools_on(path: Path) -> dict[str, Any]:
    words = (PYTHON, "-I", "-S", str(AGENT), "tools")
    answer = subprocess.run(words, env={"PATH": str(path)}, capture_output=True, timeout=60, check=True).stdout
    tools: dict[str, Any] = json.loads(answer)
    return tools


def but_for_gpus(tools: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in tools.items() if name not in GPU_TOOLS}


GPU_TOOLS = (
    "nvcc",
    "nvcc_version",
    "nvcc_knows",
    "cublas",
    "glslc",
    "vulkan_headers",
    "vulkan_loader",
    "spirv_headers",
)


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_a_host_without_tools_has_none(tmp_path: Path) -> None:
    script(tmp_path / "apk", "exit 0")
    assert but_for_gpus(tools_on(tmp_path)) == {
        **dict.fromkeys(("cmake", "cmake_version", "ninja", "make", "c_compiler", "cxx_compiler"), ""),
        **dict.fromkeys(("compiler_kind", "compiler_version"), ""),
        "package_manager": "apk",
    }


def test_tools_are_found_with_their_versions(tmp_path: Path) -> None:
    cmake = script(tmp_path / "cmake", "echo 'cmake version 3.18.4'; echo; echo 'CMake suite'")
    ninja = script(tmp_path / "ninja-build", "exit 0")
    c_compiler = script(tmp_path / "gcc", "exit 0")
    cxx = script(tmp_path / "g++", "echo '#define __GNUC_MINOR__ 2'; echo '#define __GNUC__ 10'")
    assert but_for_gpus(tools_on(tmp_path)) == {
        "cmake": cmake,
        "cmake_version": "3.18.4",
        "ninja": ninja,
        "make": "",
        "c_compiler": c_compiler,
        "cxx_compiler": cxx,
        "compiler_kind": "gcc",
        "compiler_version": "10",
        "package_manager": "",
    }


def test_a_compiler_that_does_not_work_is_none(tmp_path: Path) -> None:
    script(tmp_path / "c++", "echo 'cannot execute cc1plus' >&2; exit 1")
    assert tools_on(tmp_path)["cxx_compiler"] == ""


def test_clang_is_told_from_the_gcc_that_it_claims_to_be() -> None:
    assert agent.read_compiler("#define __GNUC__ 4\n#define __clang_major__ 14\n") == ("clang", "14")
    assert agent.read_compiler("") == ("", "")


def test_a_build_becomes_an_engine_folder_whole(tmp_path: Path) -> None:
    binaries, folder = tmp_path / "bin", tmp_path / "engines" / "cpu-x"
    binaries.mkdir()
    folder.mkdir(parents=True)
    (folder / "old").touch()
    script(binaries / "server", "# asks for GLIBC_2.17 and GLIBC_2.31")
    (binaries / "libggml.so").write_bytes(b"GLIBC_2.4")
    (binaries / "notes.txt").touch()
    known = json.dumps({"engine": "cpu-x", "built_on_host": True})
    assert run_agent("collect", str(binaries), str(folder), known, "server") == {"folder": str(folder)}
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["engine"], manifest["built_on_host"]) == ("cpu-x", True)
    assert manifest["libc"] == agent.oldest_libc([str(binaries / "server"), *agent.openmp_runtime()])
    names = {"libggml.so", "server", *map(os.path.basename, agent.openmp_runtime())}
    assert {file["path"] for file in manifest["files"]} == names
    assert os.access(folder / "server", os.X_OK)
    assert run_agent("check", str(folder)) == {"ok": True}
    assert sorted(path.name for path in folder.parent.iterdir()) == ["cpu-x", "cpu-x.lock"]


def test_a_build_that_lacks_a_program_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    folder = tmp_path / "cpu-x"
    folder.mkdir()
    answer = run_agent("collect", str(tmp_path / "bin"), str(folder), "{}", "server", "bench")
    assert answer == {"error": "the build made no server, bench"}
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("cpu")] == ["cpu-x"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_what_serves_from_another_engine_and_has_lost_its_holder_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A worker whose leash was killed, beside one that is held, one of this build and one started by hand."""
    variable = {**os.environ, "GGML_NO_BACKTRACE": "1"}
    left = abandoned(tmp_path / "engines" / "cpu-old", variable)
    same = abandoned(tmp_path / "engines" / "cpu-new", variable)
    by_hand = abandoned(tmp_path / "engines" / "cpu-older", dict(os.environ))
    held = subprocess.Popen((server(tmp_path / "engines" / "cpu-held"), "99"), env=variable)
    adopters = {agent.running_processes()[left].parent, 1}
    monkeypatch.setattr(agent, "is_init", lambda pid: pid in adopters)
    try:
        agent.answer_orphans(argparse.Namespace(root=str(tmp_path), keep="cpu-new"), [])
        assert json.loads(capsys.readouterr().out) == {
            "ended": [{"pid": left, "program": "ggml-rpc-server", "engine": "cpu-old"}]
        }
        assert {left, same, by_hand, held.pid} & set(agent.running_processes()) == {same, by_hand, held.pid}
    finally:
        for pid in (same, by_hand, held.pid):
            os.kill(pid, 9)
        held.wait()


def test_only_the_first_process_and_a_sessions_systemd_adopt(tmp_path: Path) -> None:
    assert agent.is_init(1)
    assert not agent.is_init(os.getpid())


def server(engine: Path) -> str:
    """A program that waits, under the name of a worker."""
    engine.mkdir(parents=True)
    waiting = shutil.which("sleep")
    assert waiting is not None
    return str(shutil.copy(waiting, str(engine / "ggml-rpc-server")))


def abandoned(engine: Path, environment: dict[str, str]) -> int:
    """The number of a worker whose parent has ended."""
    words = ("sh", "-c", '"$0" 99 >/dev/null 2>&1 & echo $!', server(engine))
    pid = int(subprocess.run(words, env=environment, capture_output=True, timeout=10, check=True).stdout)
    wait_until(lambda: agent.program_of(pid).endswith("ggml-rpc-server"))
    return pid


def test_the_newest_glibc_that_is_asked_for_is_the_oldest_that_will_do(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\0GLIBC_2.4\0GLIBC_2.31\0")
    (tmp_path / "b").write_bytes(b"\0GLIBC_2.9\0")
    assert agent.oldest_libc([str(tmp_path / "a"), str(tmp_path / "b")]) == "glibc 2.31"
    assert agent.oldest_libc([]) == ""


def test_what_gpus_need_is_found_where_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sdk, cuda = tmp_path / "sdk", tmp_path / "cuda"
    for place in (
        *("sdk/bin/glslc", "sdk/include/vulkan/vulkan.hpp", "sdk/lib/x86_64-linux-gnu/libvulkan.so"),
        *("sdk/share/cmake/SPIRV-Headers/SPIRV-HeadersConfig.cmake", "cuda/lib64/libcublas.so.13"),
    ):
        path = tmp_path / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (cuda / "bin").mkdir()
    nvcc = script(
        cuda / "bin" / "nvcc",
        f"""case $1 in
--version) echo 'Cuda compilation tools, release 13.0, V13.0.88' ;;
--list-gpu-arch) echo compute_86; echo compute_120 ;;
*) echo '#$ TOP={cuda}/bin/..' >&2 ;;
esac""",
    )
    monkeypatch.setenv("VULKAN_SDK", str(sdk))
    monkeypatch.setenv("PATH", str(cuda / "bin"))
    assert agent.gpu_tools() == {
        "nvcc": nvcc,
        "nvcc_version": "13.0",
        "nvcc_knows": "8.6 12.0",
        "cublas": f"{cuda}/lib64/libcublas.so.13",
        "glslc": f"{sdk}/bin/glslc",
        "vulkan_headers": f"{sdk}/include/vulkan/vulkan.hpp",
        "vulkan_loader": f"{sdk}/lib/x86_64-linux-gnu/libvulkan.so",
        "spirv_headers": f"{sdk}/share/cmake/SPIRV-Headers/SPIRV-HeadersConfig.cmake",
    }


@pytest.mark.skipif(not find_library("vulkan"), reason="no Vulkan on this machine")
def test_real_drivers_are_asked_for_their_devices() -> None:
    """Mesa's software driver is the one that every machine can have; as a GPU it does not count."""
    vulkan = ctypes.CDLL("libvulkan.so.1")
    every = agent.ask_vulkan(vulkan, (0, 1, 2, 3, 4))
    assert all(one["kind"] == "vulkan" and one["name"] and one["memory_total_bytes"] > 2**20 for one in every)
    assert [one["index"] for one in every] == list(range(len(every)))
    in_software = [one for one in every if one["name"].startswith("llvmpipe")]
    assert in_software or not glob.glob("/usr/share/vulkan/icd.d/lvp_icd*")
    assert not [one for one in agent.ask_vulkan(vulkan, agent.VULKAN_GPUS) if one["name"].startswith("llvmpipe")]
