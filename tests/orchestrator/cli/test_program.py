"""The program from outside: exit codes, where talk and answers go, and what wrong usage says."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent.parent


def meshctl(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run with folders of its own."""
    own = {"XDG_STATE_HOME": str(folder / "state"), "XDG_CACHE_HOME": str(folder / "cache")}
    return subprocess.run(
        (sys.executable, "-m", "orchestrator", *words),
        cwd=folder,
        env={**os.environ, **own, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (("status",), 1, "error: no cluster to show: none was ever up"),
        (("chat", "hello"), 1, "error: no cluster runs\nhint: start it with `meshctl up inventory.yaml`"),
        (("up", "none.yaml"), 1, "none.yaml: there is no such file"),
        (("bench", "--json", "--csv"), 2, "error: --json, --csv and --markdown exclude each other\nhint: choose one"),
        (("bench", "--chart", "x.pdf"), 2, "error: x.pdf: a chart is written as .png or .svg"),
        (("pull", "no-such-model"), 1, "no-such-model"),
        (("pull", "https://a.org/m.gguf#sha256=ab"), 2, "'sha256=ab' is not understood\nhint: write #sha256= and 64"),
        (("model", "show", "hf:owner"), 2, "error: hf:owner has no owner and repository\nhint: write hf:OWNER/"),
        (("chat", ""), 1, "error: no cluster runs"),
        (("plan", "--mode", "tensors"), 2, "'tensors' is not one of"),
        (("nonsense",), 2, "No such command"),
        (("down", "--cluster", "typo"), 2, "error: no cluster typo is known\nhint: known are none"),
        (("logs", "somebody"), 1, "inventory.yaml: there is no such file"),
    ],
)
def test_what_goes_wrong_is_said_on_stderr_with_the_right_status(
    tmp_path: Path, words: tuple[str, ...], status: int, message: str
) -> None:
    done = meshctl(tmp_path, *words)
    assert message in done.stderr
    assert (done.returncode, done.stdout) == (status, "")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("words", [("doctor",), ("pull", "smollm2-135m"), ("up",), ("up", "--detach")])
def test_folders_that_cannot_be_written_are_an_error_that_names_them(tmp_path: Path, words: tuple[str, ...]) -> None:
    shutil.copy(ROOT / "inventory.yaml", tmp_path)
    for name in ("state", "cache"):
        (tmp_path / name).touch()
    done = meshctl(tmp_path, *words)
    assert done.returncode == 1
    assert re.search(rf"^error: {tmp_path}/(state|cache)/\S+: Not a directory\nhint: meshctl writes", done.stderr, re.M)
    assert "Traceback" not in done.stderr


def test_down_without_a_cluster_is_no_failure(tmp_path: Path) -> None:
    done = meshctl(tmp_path, "down")
    assert (done.returncode, done.stderr) == (0, "no cluster runs\n")


@pytest.mark.parametrize(
    "command",
    [
        "up",
        "down",
        "status",
        "plan",
        "survey",
        "chat",
        "bench",
        "tune",
        "doctor",
        "trust",
        "logs",
        "events",
        "engine",
        "pull",
    ],
)
def test_every_command_has_a_help_text(tmp_path: Path, command: str) -> None:
    done = meshctl(tmp_path, command, "--help")
    assert done.returncode == 0
    assert "Usage: " in done.stdout
    assert command in meshctl(tmp_path, "--help").stdout


@pytest.mark.parametrize("command", ["up", "plan", "bench"])
@pytest.mark.parametrize(
    ("devices", "message"),
    [
        ("left/cpu,lfet/cpu", "error: --devices lfet/cpu: no such host in inventory.yaml\nhint: write HOST/cpu"),
        (",", 'error: --devices "," names no device\nhint: name some'),
    ],
)
def test_wrong_devices_are_refused_before_any_host_is_reached(
    tmp_path: Path, command: str, devices: str, message: str
) -> None:
    shutil.copy(ROOT / "inventory.yaml", tmp_path)
    done = meshctl(tmp_path, command, "--devices", devices)
    assert done.stderr.startswith(message)
    assert (done.returncode, done.stdout) == (2, "")
