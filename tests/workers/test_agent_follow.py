"""Logs that are followed, as a host's agent does it: the real program, and a real leash that writes them."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.workers.test_agent import run_agent
from workers import agent

PYTHON = os.environ.get("AGENT_PYTHON", sys.executable)
DEADLINE_S = 20.0


class Following:
    """The agent's verb at work; what it says comes line by line."""

    def __init__(self, folder: Path, *options: str) -> None:
        words = (PYTHON, "-I", "-S", agent.__file__, "follow", str(folder), *options)
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def until_following(self) -> list[tuple[str, str]]:
        """What it says of the lines that are there already."""
        found = list[tuple[str, str]]()
        while (event := self._event())["event"] != "following":
            found += [(str(event["log"]), line) for line in event["lines"]]  # type: ignore[attr-defined] # a list
        return found

    def lines(self, count: int) -> list[tuple[str, str]]:
        """So many lines that come, each with its log."""
        found = list[tuple[str, str]]()
        while len(found) < count:
            event = self._event()
            found += [(str(event["log"]), line) for line in event["lines"]]  # type: ignore[attr-defined] # a list
        return found

    def beat(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()

    def ends(self) -> int:
        return self.process.wait(timeout=DEADLINE_S)

    def _event(self) -> dict[str, object]:
        assert self.process.stdout is not None
        event: dict[str, object] = json.loads(self.process.stdout.readline())
        return event


@contextmanager
def following(folder: Path, *options: str) -> Iterator[Following]:
    one = Following(folder, *options)
    try:
        yield one
    finally:
        one.process.kill()
        one.process.communicate()


def leashed(log: Path, script: str, *options: str) -> None:
    """Run a shell script to its end under a leash that writes its log."""
    words = (PYTHON, "-I", "-S", agent.__file__, "leash", "--name", "test", "--log", str(log), *options)
    with subprocess.Popen((*words, "--", "sh", "-c", script), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as leash:
        assert leash.stdout is not None
        for line in leash.stdout:
            if json.loads(line)["event"] == "exit":
                return


def test_lines_come_as_they_are_written_after_the_last_ones_that_were_there(tmp_path: Path) -> None:
    log = tmp_path / "head.log"
    log.write_text("one\ntwo\nthree\n")
    with following(tmp_path, "--lines", "2") as logs:
        assert logs.until_following() == [("head.log", "two"), ("head.log", "three")]
        with log.open("a") as file:
            file.write("four\nfi")
            file.flush()
            assert logs.lines(1) == [("head.log", "four")]
            file.write("ve\n")
        assert logs.lines(1) == [("head.log", "five")]
        (tmp_path / "worker-cpu.log").write_text("new\n")
        assert logs.lines(1) == [("worker-cpu.log", "new")]


def test_a_new_run_and_a_rotation_are_followed_without_a_gap(tmp_path: Path) -> None:
    """The log of the run before goes to `.old`, a full one to `.1`: what was unread there is read first."""
    log = tmp_path / "worker-cpu.log"
    leashed(log, "echo first; printf unfinished")
    with following(tmp_path, "--lines", "5", "--heartbeat-s", "60") as logs:
        assert logs.until_following() == [("worker-cpu.log", "first")]
        numbers = "i=0; while [ $i -lt 600 ]; do echo line $i; sleep 0.002; i=$((i+1)); done"
        leashed(log, numbers, "--log-bytes", "12288")
        assert (tmp_path / "worker-cpu.log.1").exists()
        expected = ["unfinished", *(f"line {number}" for number in range(600))]
        assert [text for _, text in logs.lines(len(expected))] == expected


def test_it_ends_when_its_input_does_and_when_nobody_asks_any_more(tmp_path: Path) -> None:
    with following(tmp_path, "--heartbeat-s", "60") as logs:
        logs.until_following()
        assert logs.process.stdin is not None
        logs.process.stdin.close()
        logs.process.stdin = None
        assert logs.ends() == 0
    with following(tmp_path, "--heartbeat-s", "0.5") as logs:
        logs.until_following()
        logs.beat()
        assert logs.ends() == 0


def test_it_ends_when_nobody_reads_any_more(tmp_path: Path) -> None:
    log = tmp_path / "head.log"
    log.touch()
    with following(tmp_path, "--heartbeat-s", "60") as logs:
        logs.until_following()
        assert logs.process.stdout is not None
        logs.process.stdout.close()
        logs.process.stdout = None
        log.write_text("said to nobody\n")
        assert logs.ends() == 0


def test_a_reader_that_takes_nothing_fills_no_memory_and_loses_nothing(tmp_path: Path) -> None:
    log = tmp_path / "head.log"
    log.touch()
    with following(tmp_path, "--heartbeat-s", "60") as logs:
        logs.until_following()
        lines = [f"{number} {'x' * 1000}" for number in range(20_000)]
        log.write_text("\n".join(lines) + "\n")
        time.sleep(2)  # several looks, of which each could read on
        assert agent.running_processes()[logs.process.pid].rss_bytes < 60 * 1024**2
        assert [text for _, text in logs.lines(len(lines))] == lines


@pytest.mark.parametrize(("since_s", "expected"), [("2.0", ["late"]), ("60", ["early", "late"])])
def test_what_was_written_since_a_moment_is_known_though_lines_have_no_times(
    tmp_path: Path, since_s: str, expected: list[str]
) -> None:
    log = tmp_path / "head.log"
    leashed(log, "echo early; sleep 4; echo late")
    assert run_agent("tail", str(log), "--lines", "9", "--since-s", since_s) == {"text": "\n".join(expected)}
    with following(tmp_path, "--lines", "9", "--since-s", since_s) as logs:
        assert [text for _, text in logs.until_following()] == expected


def test_of_a_log_without_times_all_is_as_old_as_its_last_change(tmp_path: Path) -> None:
    log = tmp_path / "head.log"
    log.write_text("something\n")
    assert run_agent("tail", str(log), "--since-s", "60") == {"text": "something"}
    os.utime(log, (time.time() - 600, time.time() - 600))
    assert run_agent("tail", str(log), "--since-s", "60") == {"text": ""}
