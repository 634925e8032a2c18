import os
import shutil
import subprocess
from pathlib import Path

import pytest

INSTALL = Path(__file__).parents[2] / "scripts" / "install"


def install(*arguments: str, path: Path) -> "subprocess.CompletedProcess[str]":
    """Run the script with only the programs in `path`."""
    words = ("/bin/sh", str(INSTALL), *arguments)
    environment = {"PATH": str(path), "HOME": str(path)}
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder of programs without any Python."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("dirname", "cat", "cksum", "sed"):
        found = shutil.which(name)
        assert found is not None
        (folder / name).symlink_to(found)
    return folder


def write_program(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_without_a_new_enough_python_the_error_names_the_packages(programs: Path, tmp_path: Path) -> None:
    write_program(programs / "python3", "exit 1")
    ended = install("--venv", str(tmp_path / "venv"), path=programs)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith(
        "error: Python 3.11 or later is missing\nhint: Debian 12 and later: apt install python3 python3-venv;"
    )
    assert not (tmp_path / "venv").exists()


def test_a_python_without_venv_names_the_package(programs: Path, tmp_path: Path) -> None:
    write_program(programs / "python3", 'case "$*" in *ensurepip*) exit 1 ;; esac')
    ended = install("--venv", str(tmp_path / "venv"), path=programs)
    assert ended.returncode == 1
    assert ended.stderr.splitlines() == [
        f"error: {programs}/python3 cannot make virtual environments",
        "hint: Debian and Ubuntu: apt install python3-venv",
    ]


def test_wrong_words_show_the_usage_and_end_with_2(programs: Path) -> None:
    ended = install("--everything", path=programs)
    assert ended.returncode == 2
    assert ended.stderr.startswith("usage: scripts/install [--venv FOLDER] [--dev]")


def test_a_second_run_finds_everything_done_and_touches_nothing(programs: Path, tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    log = tmp_path / "log"
    write_program(venv / "bin" / "python", f'echo "$*" >>{log}')
    write_program(venv / "bin" / "meshctl", "exit 0")

    first, second = (install("--venv", str(venv), path=programs) for _ in range(2))

    assert (first.returncode, second.returncode) == (0, 0)
    assert second.stderr == f"meshctl is installed in {venv} already\nRun it as {venv}/bin/meshctl\n"
    installs = [line for line in log.read_text().splitlines() if " install " in line]
    assert [line.split("--disable-pip-version-check ")[1] for line in installs] == [
        "--no-cache-dir --no-deps llama-cpp-python==0.3.36",
        f"--editable {INSTALL.parents[1]}",
    ]
    assert os.access(INSTALL, os.X_OK)
