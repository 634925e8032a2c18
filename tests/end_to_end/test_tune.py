"""Tuning on this machine: two local hosts, the real engine, the real model, stopped half-way."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestrator.tuned import BEST_MEASURED
from tests.end_to_end.inventories import write_local
from tests.program import Meshctl, left_after, processes_with

pytestmark = pytest.mark.engine

CLUSTER = "half-way"
"""In the path of every log, and so in the command line of every leash."""

VARIED_MICRO_BATCH = 32
"""The first one that is tried; no plan has it."""

DEADLINE_S = 300.0
POLL_S = 0.05


def test_a_tuning_that_is_stopped_half_way_keeps_what_it_measured_and_leaves_no_process(meshctl: Meshctl) -> None:
    """The best plan runs, then with other threads, then in other micro-batches: each as the engine is told."""
    path = write_local(meshctl.folder / "inventory.yaml", memory="90MiB", context=256, cluster=CLUSTER)
    path.write_text(re.sub(r"\n *threads: 1", "", path.read_text()))
    inventory = str(path)
    survey = meshctl.ok("survey", inventory, "--json").json
    default = survey["hosts"][0]["devices"][0]["threads"]
    programs = run_until(meshctl, inventory, f" --ubatch-size {VARIED_MICRO_BATCH} ")
    assert left_after(f"logs/{CLUSTER}", 10.0) == []
    assert [left for words in programs for left in processes_with(words)] == []
    threads = {match[1] for words in programs if (match := re.search(r" --threads (\d+) ", words))}
    assert threads == {str(count) for count in (default, max(1, default - 1), max(1, default // 2))}
    plan = meshctl.ok("plan", inventory, "--json").json["plans"][0]
    assert plan["reasons"][0] == BEST_MEASURED
    assert {group["known"] for group in plan["groups"]} == {"measured"}
    assert "1 kept winner dropped" in meshctl.ok("tune", inventory, "--forget").stderr
    assert BEST_MEASURED not in meshctl.ok("plan", inventory, "--json").json["plans"][0]["reasons"]


def run_until(meshctl: Meshctl, inventory: str, word: str) -> set[str]:
    """Begin to tune, and interrupt it when a program with this word runs; the command lines of all that ran."""
    words = (sys.executable, "-m", "orchestrator", "tune", inventory, "--top", "1")
    environment = {**meshctl.environment, "PYTHONPATH": str(Path(__file__).parents[2])}
    talk = meshctl.folder / "talk.txt"
    programs = set[str]()
    with talk.open("wb") as file, subprocess.Popen(words, cwd=meshctl.folder, env=environment, stderr=file) as tuning:
        deadline = time.monotonic() + DEADLINE_S
        while not any(word in program for program in programs):
            assert tuning.poll() is None, talk.read_text()
            assert time.monotonic() < deadline, talk.read_text()
            programs.update(line.partition(" -- ")[2] for line in processes_with(f"logs/{CLUSTER}.bench/"))
            time.sleep(POLL_S)
        tuning.send_signal(signal.SIGINT)
        assert tuning.wait(60) == 130, talk.read_text()
    assert talk.read_text().endswith("interrupted\n")
    return programs
