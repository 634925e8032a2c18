"""`status`, `events` and `logs` from outside: what goes on without an end ends in order."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from orchestrator.folders import ClusterFolder, Folders
from orchestrator.history import HistoryEvent, add_event
from orchestrator.state import ClusterState, hold, write_state
from tests.orchestrator.cli.test_program import ROOT, meshctl
from tests.program import processes_with

AT = "2026-11-26T12:00:00+00:00"
STATE = ClusterState("demo", "inventory.yaml", 1, "ready", "answers", AT)
INVENTORY = """\
cluster: demo
model: smollm2-135m
hosts:
  - {name: a, connection: local, memory: 1GiB}
  - {name: b-2, connection: local, memory: 1GiB}
"""
DEADLINE_S = 30.0


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[ClusterFolder]:
    """Of a cluster that a supervisor holds."""
    folder = Folders(tmp_path / "cache" / "meshctl", tmp_path / "state" / "meshctl").cluster("demo")
    with hold(folder):
        write_state(folder, STATE)
        yield folder


@contextmanager
def running(folder: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    own = {"XDG_STATE_HOME": str(folder / "state"), "XDG_CACHE_HOME": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        (sys.executable, "-m", "orchestrator", *words),
        cwd=folder,
        env={**os.environ, **own},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def next_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def close_answer(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Its status and what it said."""
    _, talk = process.communicate(timeout=DEADLINE_S)
    return process.returncode, talk


def write_logs(folder: Path) -> Path:
    """A log for each host; that of the first."""
    (folder / "inventory.yaml").write_text(INVENTORY)
    logs = [folder / "cache" / "meshctl" / "logs" / "demo" / host / "head.log" for host in ("b-2", "a")]
    for log in logs:
        log.parent.mkdir(parents=True)
        log.write_text(f"of {log.parent.name}\n")
    return logs[-1]


@pytest.mark.parametrize("how", ["Ctrl-C", "stdout is closed"])
def test_logs_are_followed_with_the_names_in_front_until_somebody_ends_it(tmp_path: Path, how: str) -> None:
    log = write_logs(tmp_path)
    with running(tmp_path, "logs", "--follow") as following:
        lines = sorted(next_line(following).replace("a head   |", "a head |") for _ in range(2))
        assert lines == ["a head | of a\n", "b-2 head | of b-2\n"]
        with log.open("a") as file:
            file.write("\x1b[31mmore\n")
        assert next_line(following) == "a head   |  [31mmore\n"
        if how == "Ctrl-C":
            following.send_signal(signal.SIGINT)
        else:
            close_answer(following)
        assert ended(following) == (0, "")
    assert processes_with(str(tmp_path)) == []


def test_logs_of_one_host_or_of_all_are_shown_with_their_names(tmp_path: Path) -> None:
    log = write_logs(tmp_path)
    assert meshctl(tmp_path, "logs", "a").stdout == "==> head.log <==\nof a\n"
    everything = "==> a: head.log <==\nof a\n==> b-2: head.log <==\nof b-2\n"
    assert meshctl(tmp_path, "logs", "--since", "10m").stdout == everything
    os.utime(log, (0, 0))
    assert meshctl(tmp_path, "logs", "--since", "10m").stdout == "==> b-2: head.log <==\nof b-2\n"
    wrong = meshctl(tmp_path, "logs", "--since", "yesterday")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr == "error: --since yesterday: not a time\nhint: write it as 90s, 10m, 2h or 1d\n"


@pytest.mark.parametrize("how", ["Ctrl-C", "stdout is closed"])
def test_events_are_followed_as_lines_or_json(tmp_path: Path, folder: ClusterFolder, how: str) -> None:
    add_event(folder, HistoryEvent(AT, "ready", "answers"))
    with running(tmp_path, "events", "--follow") as text, running(tmp_path, "events", "--follow", "--json") as objects:
        assert next_line(text) == "2026-11-26 12:00:00Z  ready       answers\n"
        next_line(objects)
        add_event(folder, HistoryEvent(AT, "recovering", "its worker ended", "fault", "a"))
        assert next_line(text) == "2026-11-26 12:00:00Z  fault       a: its worker ended\n"
        fault = {"at": AT, "phase": "recovering", "message": "its worker ended", "kind": "fault", "host": "a"}
        assert json.loads(next_line(objects)) == {**fault, "seconds": None}
        for following in (text, objects):
            if how == "Ctrl-C":
                following.send_signal(signal.SIGINT)
            else:
                close_answer(following)
            assert ended(following) == (0, "")


def test_a_status_that_is_watched_through_a_pipe_is_printed_whenever_it_changes(
    tmp_path: Path, folder: ClusterFolder
) -> None:
    with running(tmp_path, "status", "--watch") as watching:
        assert next_line(watching).startswith("demo  ready for ")
        write_state(folder, ClusterState("demo", "inventory.yaml", 1, "recovering", "a worker ended", AT))
        while not (line := next_line(watching)).startswith("demo"):
            assert line
        assert line.startswith("demo  recovering for ")
        watching.send_signal(signal.SIGINT)
        assert ended(watching) == (0, "")


@pytest.mark.parametrize("command", ["status", "events"])
def test_a_cluster_is_also_named_by_its_inventory(tmp_path: Path, folder: ClusterFolder, command: str) -> None:
    """Beside another one that runs: without a name it is not known which is meant."""
    (tmp_path / "inventory.yaml").write_text(INVENTORY)
    add_event(folder, HistoryEvent(AT, "ready", "answers"))
    other = Folders(tmp_path / "cache" / "meshctl", tmp_path / "state" / "meshctl").cluster("other")
    with hold(other):
        write_state(other, STATE)
        assert "name one: --cluster NAME" in meshctl(tmp_path, command).stderr
        shown = meshctl(tmp_path, command, "inventory.yaml")
        assert (shown.returncode, "answers" in shown.stdout) == (0, True)
        refused = meshctl(tmp_path, command, "inventory.yaml", "--cluster", "other")
    assert refused.returncode == 2
    assert refused.stderr.splitlines() == [
        "error: inventory.yaml is of the cluster demo, not other",
        "hint: name the cluster in one way only",
    ]
