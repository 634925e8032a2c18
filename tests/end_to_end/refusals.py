"""What a refused command says and leaves: its error text, and every trace on lab hosts and here."""

import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import yaml

from lab_hosts import Lab, RunningHost
from tests.program import Meshctl, Outcome, left_after

HALF_MARKS = (".part", ".partial", ".tar.gz", ".tmp-", ".old-", ".sock")
"""Parts of the names of files and folders that are not, or not yet, what they are for."""

IDLE_PROCESSES = 1
"""An idle lab host runs its sshd listener."""


def error_of(outcome: Outcome) -> str:
    """Everything from `error: ` on, of a command that must have failed with exit status 1 and printed no answer."""
    assert (outcome.status, outcome.stdout) == (1, ""), outcome
    _, mark, text = outcome.stderr.partition("error: ")
    assert mark, outcome.stderr
    assert "error: " not in text
    return text.rstrip("\n")


def failed_checks(outcome: Outcome) -> dict[str, list[tuple[str, str, str]]]:
    """(title, text, fix) of every failed check by host, from `doctor --json`."""
    return {
        one["host"]: [(check["title"], check["text"], check["fix"]) for check in one["checks"] if not check["well"]]
        for one in outcome.json
    }


def change(path: Path, changes: Mapping[str, Mapping[str, object]], *, only: Iterable[str] = ()) -> str:
    """Rewrite an inventory: keys of hosts by name, and if given `only` these hosts; its path as a word."""
    inventory = yaml.safe_load(path.read_text())
    names = tuple(only)
    inventory["hosts"] = [
        {**host, **changes.get(host["name"], {})} for host in inventory["hosts"] if not names or host["name"] in names
    ]
    path.write_text(yaml.safe_dump(inventory, sort_keys=False))
    return str(path)


def assert_nothing_left(meshctl: Meshctl, lab: Lab | None = None) -> None:
    """No process and no listener on any host, no half file there; here no process, and every cluster has failed."""
    for host in lab.hosts if lab else ():
        wait_idle(host, deadline_s=20)
        assert [program for _, _, program in host.listening()] == ["sshd"]
        half = [name for name in files_of(host) if any(mark in name for mark in HALF_MARKS)]
        assert half == [], half
    assert {state["phase"] for state in meshctl.states()} <= {"failed"}
    assert left_after(str(meshctl.folder), 10, but="lab_enter.sh") == []  # a supervisor ends just after it has told why


def files_of(host: RunningHost) -> list[str]:
    """What lies in our folder on a lab host, relative to it, as the host's own processes see it."""
    wait_idle(host, deadline_s=20)
    root = Path(f"/proc/{host.processes()[0].pid}/root/root/.cache/meshctl")
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


def wait_idle(host: RunningHost, *, deadline_s: float) -> None:
    """Until nothing but the listener runs there."""
    end = time.monotonic() + deadline_s
    while len(processes := host.processes()) > IDLE_PROCESSES:
        assert time.monotonic() < end, processes
        time.sleep(0.1)
