"""What is written down of a cluster, also where the disk takes nothing for a while."""

import logging
from pathlib import Path

import pytest

from orchestrator.folders import ClusterFolder
from orchestrator.history import read_events
from orchestrator.inventory_file import load_inventory
from orchestrator.state import read_state
from orchestrator.state_keeper import StateKeeper, note_crash

INVENTORY = "cluster: demo\nmodel: smollm2-135m\nhosts:\n  - {name: a, connection: local, memory: 1GiB}\n"


@pytest.fixture
def keeper(tmp_path: Path) -> StateKeeper:
    path = tmp_path / "inventory.yaml"
    path.write_text(INVENTORY)
    folder = ClusterFolder(tmp_path / "demo")
    folder.prepare()
    return StateKeeper(folder, load_inventory(path))


def test_the_same_phase_goes_on_and_is_an_event_only_for_another_reason(keeper: StateKeeper, tmp_path: Path) -> None:
    """A cluster that tries again every minute for a night would lose its history otherwise."""
    folder = ClusterFolder(tmp_path / "demo")
    keeper.phase("starting", "starting")
    keeper.phase("failed", "3 GiB are missing")
    since = keeper.state.since
    for _ in range(3):
        keeper.phase("failed", "3 GiB are missing")
    keeper.phase("failed", "2 GiB are missing")
    assert keeper.state.since == since
    told = [(event.phase, event.message) for event in read_events(folder, 10)]
    assert told == [("starting", "starting"), ("failed", "3 GiB are missing"), ("failed", "2 GiB are missing")]


def test_what_cannot_be_written_ends_nothing_and_is_said_once(
    keeper: StateKeeper, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = ClusterFolder(tmp_path / "demo")
    folder.path.rmdir()
    with caplog.at_level(logging.ERROR):
        keeper.phase("ready", "answers")
        keeper.note("fault", "ready", "a worker ended", "a")
        keeper.update(requests_running=1)
    assert [record.getMessage() for record in caplog.records if "cannot be written" in record.getMessage()] != []
    assert len(caplog.records) == 1
    assert (keeper.state.phase, keeper.state.requests_running) == ("ready", 1)
    folder.prepare()
    keeper.update(requests_running=2)
    state = read_state(folder)
    assert state is not None
    assert (state.phase, state.requests_running) == ("ready", 2)


def test_a_supervisor_that_ended_without_a_word_is_in_the_history_of_the_next(
    keeper: StateKeeper, tmp_path: Path
) -> None:
    folder = ClusterFolder(tmp_path / "demo")
    note_crash(folder)
    keeper.phase("ready", "answers")
    note_crash(folder)
    keeper.end("stopped", "stopped on request")
    note_crash(folder)
    told = [(event.phase, event.message) for event in read_events(folder, 10)]
    assert told == [
        ("ready", "answers"),
        ("failed", "the supervisor ended without a word"),
        ("stopped", "stopped on request"),
    ]
