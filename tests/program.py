"""The `meshctl` program as a user runs it: a process with its own folders, its answer and its talk."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DEADLINE_S = 600.0
POLL_S = 0.02
LEAVE_S = 10.0


@dataclass(frozen=True)
class Outcome:
    """How one command ended."""

    status: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        return json.loads(self.stdout)


@dataclass(frozen=True)
class Meshctl:
    """Runs commands in `folder` with this environment."""

    folder: Path
    environment: dict[str, str]

    def run(self, *words: str, stdin: str = "", deadline_s: float = DEADLINE_S) -> Outcome:
        """Run to the end; what it prints must hold no traceback."""
        done = subprocess.run(
            (sys.executable, "-m", "orchestrator", *words),
            cwd=self.folder,
            env={**self.environment, "PYTHONPATH": str(Path(__file__).parent.parent), "COLUMNS": "120"},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=deadline_s,
            check=False,
        )
        assert "Traceback" not in done.stderr + done.stdout, done.stderr
        return Outcome(done.returncode, done.stdout, done.stderr)

    def ok(self, *words: str, stdin: str = "") -> Outcome:
        """Run; the status must be 0."""
        outcome = self.run(*words, stdin=stdin)
        assert outcome.status == 0, outcome.stderr
        return outcome

    def states(self) -> list[dict[str, Any]]:
        """Every state file of this user."""
        clusters = self.folder / "state" / "meshctl" / "clusters"
        return [json.loads(path.read_text()) for path in clusters.glob("*/state.json")]

    def state(self) -> dict[str, Any]:
        """The state of this test's only cluster."""
        (state,) = self.states()
        return state

    def key(self) -> str:
        """The key that opens the gateway of this test's only cluster."""
        (path,) = (self.folder / "state" / "meshctl" / "clusters").glob("*/gateway.key")
        return path.read_text().strip()

    def until_phase(self, *phases: str, deadline_s: float) -> dict[str, Any]:
        """Wait until the cluster is in one of these; its state then."""
        deadline = time.monotonic() + deadline_s
        while (state := self.state())["phase"] not in phases:
            assert time.monotonic() < deadline, state
            time.sleep(POLL_S)
        return state

    def end_all(self) -> list[str]:
        """End every supervisor that still lives, by its pid; names of the clusters that were still up.

        One that has told why it failed, or that it stopped, is just about to leave.
        """
        left = []
        for state in self.states():
            if _lives_after(state["pid"], 0 if state["supervised"] else LEAVE_S):
                left.append(state["cluster"])
                self.run("down", "--cluster", state["cluster"])
                if _lives_after(state["pid"], LEAVE_S):
                    os.kill(state["pid"], signal.SIGKILL)
        return left


def _lives_after(pid: int, wait_s: float) -> bool:
    end = time.monotonic() + wait_s
    while (lives := _is_supervisor(pid)) and time.monotonic() < end:
        time.sleep(POLL_S)
    return lives


def _is_supervisor(pid: int) -> bool:
    try:
        return b"orchestrator" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def processes_with(word: str) -> list[str]:
    """Command lines of this machine's processes that contain `word`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if word in line:
            found.append(line.strip())
    return found


def left_after(word: str, deadline_s: float, *, but: str | None = None) -> list[str]:
    """`processes_with(word)`, without those that contain `but`, once there are none or the deadline has passed."""
    end = time.monotonic() + deadline_s
    while True:
        left = [line for line in processes_with(word) if but is None or but not in line]
        if not left or time.monotonic() > end:
            return left
        time.sleep(0.1)
