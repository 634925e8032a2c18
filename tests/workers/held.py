"""A leash of the agent with a real program, as tests hold it."""

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from workers import agent

AGENT = Path(agent.__file__)
PYTHON = os.environ.get("AGENT_PYTHON", sys.executable)  # the agent under another interpreter than the tests
HEARTBEAT_S = 1.0


class Held:
    """One leash, its events read by a thread, so that every wait has a deadline."""

    def __init__(self, log: Path, words: tuple[str, ...], *options: str) -> None:
        leash = (PYTHON, "-I", "-S", str(AGENT), "leash", "--name", "test", "--log", str(log), *options)
        self.process = subprocess.Popen((*leash, "--", *words), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.events: queue.Queue[dict[str, Any]] = queue.Queue()
        self.reader = threading.Thread(target=self.read)
        self.reader.start()

    def read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.events.put(json.loads(line))

    def wait_for(self, kind: str, deadline_s: float = 15.0) -> dict[str, Any]:
        end = time.monotonic() + deadline_s
        while True:
            event = self.events.get(timeout=max(0.01, end - time.monotonic()))
            if event["event"] == kind:
                return event

    def say(self, text: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text)
        self.process.stdin.flush()

    def close_stdin(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()

    def end(self) -> None:
        self.close_stdin()
        try:
            self.process.wait(timeout=15)
        finally:
            self.process.kill()
            self.reader.join(15)
            assert self.process.stdout is not None
            self.process.stdout.close()


Hold = Callable[..., Held]
"""Starts a leash: the words of a program, `options` of the leash, `heartbeat_s`."""


def alive(pid: int) -> bool:
    return pid in agent.running_processes()


def wait_until(condition: Callable[[], bool], deadline_s: float = 10.0) -> None:
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)
