"""The heads of a running cluster on this machine, asked past the gateway: which of them answers is then certain."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any

from orchestrator.head_client import SOCKET
from tests.program import Meshctl


@contextmanager
def head_keys(meshctl: Meshctl) -> Iterator[dict[str, str]]:
    """The keys, by name, of heads that are started here meanwhile: their files are there until the model is loaded."""
    folder, seen, done = meshctl.folder / "state/meshctl/clusters", dict[str, str](), Event()

    def look() -> None:
        while not done.wait(0.01):
            for path in folder.glob("*/head*.key"):
                with suppress(FileNotFoundError):
                    if key := path.read_text().strip():
                        seen[path.name.partition("-")[0]] = key

    looking = Thread(target=look, daemon=True)
    looking.start()
    try:
        yield seen
    finally:
        done.set()
        looking.join()


def head_url(process: dict[str, Any]) -> str:
    """Of a head on this machine, by the socket on its command line."""
    words = Path(f"/proc/{process['pid']}/cmdline").read_text().split("\0")
    return f"{SOCKET}{words[words.index('--host') + 1]}"


def heads_of(state: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """By name, those among the processes that `meshctl status --json` tells, without the digits of this start."""
    named = ((one["name"].partition("-")[0], one) for one in state["processes"])
    return {name: one for name, one in named if name.startswith("head")}
