"""`meshctl pull` as a user runs it, with a local server in place of the hub."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from quant.catalogue import CATALOGUE
from quant.synthetic import Shape, write_random_model
from tests.program import Meshctl
from tests.quant.web_server import COMMIT, WebServer, serving

SHAPE = Shape(layers=1, embedding=256, feed_forward=256, heads=4, kv_heads=4, vocabulary=512)
NAME = "hf:owner/tiny-GGUF"
FILE = f"hf/hub/models--owner--tiny-GGUF/snapshots/{COMMIT}/tiny-Q8_0.gguf"
ROOT = Path(__file__).parent.parent.parent.parent


@pytest.fixture
def web(tmp_path: Path) -> Iterator[WebServer]:
    """A hub with one repository of one quantisation, and one of two."""
    write_random_model(tmp_path / "tiny.gguf", SHAPE, "Q8_0")
    data = (tmp_path / "tiny.gguf").read_bytes()
    with serving() as server:
        server.repositories["owner/tiny-GGUF"] = {"tiny-Q8_0.gguf": data, "tiny-F16.gguf": b"larger" * len(data)}
        server.files["tiny.gguf"] = data
        yield server


@pytest.fixture
def program(web: WebServer, tmp_path: Path) -> Meshctl:
    """meshctl in an environment of its own, where the hub is that server."""
    own = {
        "HF_ENDPOINT": web.url,
        "HF_HOME": str(tmp_path / "hf"),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "XDG_STATE_HOME": str(tmp_path / "state"),
    }
    others = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return Meshctl(tmp_path, {**others, **own})


def test_a_model_of_the_hub_is_pulled_and_its_path_printed(program: Meshctl, web: WebServer, tmp_path: Path) -> None:
    done = program.ok("pull", NAME)
    assert done.stdout == f"{tmp_path / FILE}\n"
    assert "taking Q8_0 (752 KiB) of 2: Q8_0 (752 KiB), F16 (4.4 MiB)" in done.stderr
    assert (tmp_path / FILE).read_bytes() == web.files["tiny.gguf"]
    assert list((tmp_path / "cache").rglob("*.gguf")) == []


def test_offline_it_is_there_still(program: Meshctl, web: WebServer, tmp_path: Path) -> None:
    program.ok("pull", NAME)
    web.api.clear()
    web.asked.clear()
    offline = Meshctl(program.folder, {**program.environment, "HF_HUB_OFFLINE": "1"})
    for name in (NAME, f"{NAME}:Q8_0"):
        assert offline.ok("pull", name, "--json").json == {"name": name, "path": str(tmp_path / FILE)}
    missing = offline.run("pull", f"{NAME}:F16")
    assert (missing.status, missing.stdout) == (1, "")
    assert "error: hf:owner/tiny-GGUF:F16 is not on this machine, and HF_HUB_OFFLINE is set\n" in missing.stderr
    assert (web.api, web.asked) == ([], [])


def test_the_token_of_the_environment_opens_a_gated_repository(program: Meshctl, web: WebServer) -> None:
    web.refusals["owner/tiny-GGUF"] = (403, "GatedRepo")
    web.tokens.add("Bearer hf_mine")
    refused = program.run("pull", NAME)
    assert refused.status == 1
    assert "error: hf:owner/tiny-GGUF: its owner wants to be asked first (a gated repository)\n" in refused.stderr
    Meshctl(program.folder, {**program.environment, "HF_TOKEN": "hf_mine"}).ok("pull", NAME)


def test_an_interrupted_pull_goes_on_where_it_stopped(program: Meshctl, web: WebServer, tmp_path: Path) -> None:
    web.hangs = True
    with started(program, "pull", NAME) as process:
        part = _part_with_bytes(tmp_path, process)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=30)
    assert (process.returncode, stdout) == (130, "")
    assert stderr.endswith("interrupted\n")
    have = part.stat().st_size
    web.hangs = False
    web.asked.clear()
    program.ok("pull", NAME)
    last = len(web.files["tiny.gguf"]) - 1
    assert web.ranges_of("/lfs/owner/tiny-GGUF/tiny-Q8_0.gguf") == [f"bytes={have}-{last}"]
    assert (tmp_path / FILE).read_bytes() == web.files["tiny.gguf"]


def test_a_hub_that_says_nothing_can_be_interrupted(program: Meshctl, web: WebServer) -> None:
    web.silent = True
    with started(program, "pull", NAME) as process:
        _until(process, lambda: bool(web.api))
        process.send_signal(signal.SIGINT)
        stdout, _ = process.communicate(timeout=5)
    assert (process.returncode, stdout) == (130, "")


@contextmanager
def started(program: Meshctl, *words: str) -> "Iterator[subprocess.Popen[str]]":
    """The program, running; ended with the block."""
    process = subprocess.Popen(
        (sys.executable, "-m", "orchestrator", *words),
        cwd=program.folder,
        env={**program.environment, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def _part_with_bytes(folder: Path, process: "subprocess.Popen[str]") -> Path:
    """The unfinished file, once something of it has been written."""

    def parts() -> list[Path]:
        return [path for path in folder.rglob("*.resumed.part") if path.stat().st_size]

    _until(process, lambda: bool(parts()))
    return parts()[0]


def _until(process: "subprocess.Popen[str]", happened: Callable[[], bool]) -> None:
    never = threading.Event()
    for _ in range(600):
        if happened():
            return
        assert process.poll() is None, process.communicate()
        never.wait(0.05)
    raise AssertionError("it did not happen")


def test_a_link_and_a_path_are_pulled_like_a_name(program: Meshctl, web: WebServer, tmp_path: Path) -> None:
    done = program.ok("pull", f"{web.url}/files/tiny.gguf")
    path = Path(done.stdout.strip())
    assert path.parent == tmp_path / "cache" / "meshctl" / "models"
    assert path.read_bytes() == web.files["tiny.gguf"]
    assert program.ok("pull", "tiny.gguf").stdout == f"{tmp_path / 'tiny.gguf'}\n"


def test_a_model_that_is_not_here_is_shown_by_its_header(program: Meshctl, web: WebServer, tmp_path: Path) -> None:
    for name in (f"{NAME}:Q8_0", f"{web.url}/files/tiny.gguf"):
        shown = program.ok("model", "show", name)
        assert "files          752 KiB, not on this machine: meshctl pull fetches it" in shown.stdout
        assert " is not on this machine: " in shown.stderr
        told = program.ok("model", "show", name, "--json").json
        assert (told["is_here"], told["path"], told["file_bytes"]) == (False, None, len(web.files["tiny.gguf"]))
    program.ok("pull", f"{NAME}:Q8_0")
    told = program.ok("model", "show", f"{NAME}:Q8_0", "--json").json
    assert (told["is_here"], told["path"]) == (True, str(tmp_path / FILE))
    refused = program.run("model", "split", f"{web.url}/files/tiny.gguf", "--max-size", "1MiB")
    assert (refused.status, "has not been fetched yet\nhint: run: meshctl pull" in refused.stderr) == (1, True)


def test_again_says_that_a_link_has_not_changed(program: Meshctl, web: WebServer) -> None:
    path = program.ok("pull", f"{web.url}/files/tiny.gguf").stdout
    again = program.ok("pull", f"{web.url}/files/tiny.gguf", "--again")
    assert again.stdout == path
    assert "  tiny.gguf has not changed\n" in again.stderr


def test_without_a_name_the_catalogue_is_shown(program: Meshctl) -> None:
    table = program.ok("pull").stdout
    rows, _, others = table.partition("Others: ")
    assert [line.split()[0] for line in rows.splitlines()[1:] if not line.startswith(" ")] == list(CATALOGUE)
    assert others.startswith("meshctl pull hf:OWNER/REPOSITORY[:QUANTISATION]")
    told = program.ok("pull", "--json").json
    assert [one["name"] for one in told] == list(CATALOGUE)
    assert told[1]["source"] == CATALOGUE["qwen2.5-0.5b"].source.text
    assert json.dumps(told)


def test_an_unknown_name_tells_the_choices(program: Meshctl) -> None:
    done = program.run("pull", "llama")
    assert (done.status, done.stdout) == (1, "")
    assert done.stderr.endswith(
        f"error: there is no model llama\nhint: choose one of {', '.join(CATALOGUE)}, "
        "or name a path to a .gguf file, a link to one, or hf:OWNER/REPOSITORY\n"
    )
