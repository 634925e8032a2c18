"""What has happened to a cluster is kept, bounded, and readable whatever lies in the file."""

import stat
from pathlib import Path

import pytest

from orchestrator import history
from orchestrator.folders import ClusterFolder
from orchestrator.history import HistoryEvent, add_event, follow_events, read_events


@pytest.fixture
def folder(tmp_path: Path) -> ClusterFolder:
    folder = ClusterFolder(tmp_path / "demo")
    folder.prepare()
    return folder


def event(number: int) -> HistoryEvent:
    return HistoryEvent(f"2026-11-26T12:00:{number % 60:02}+00:00", "failed", f"reason {number}\nand more")


def test_events_come_back_in_their_order_and_only_their_owner_can_read_them(folder: ClusterFolder) -> None:
    assert read_events(folder, 10) == ()
    for number in range(5):
        add_event(folder, event(number))
    assert read_events(folder, 3) == (event(2), event(3), event(4))
    assert stat.S_IMODE(folder.history.stat().st_mode) == 0o600


def test_a_line_cut_short_is_passed_over(folder: ClusterFolder) -> None:
    add_event(folder, event(1))
    with folder.history.open("a") as file:
        file.write('{"at": "2026\n')
    add_event(folder, event(2))
    assert read_events(folder, 10) == (event(1), event(2))


def test_the_oldest_go_when_the_file_grows_large(folder: ClusterFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "LARGEST_BYTES", 2000)
    for number in range(200):
        add_event(folder, event(number))
        assert folder.history.stat().st_size <= 2000
    kept = read_events(folder, 1000)
    assert kept[-1] == event(199)
    assert [one.message for one in kept] == [event(number).message for number in range(200 - len(kept), 200)]


def test_events_are_followed_as_they_happen_also_when_the_oldest_go(
    folder: ClusterFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "LARGEST_BYTES", 2000)
    for number in range(3):
        add_event(folder, event(number))
    following = follow_events(folder, 2)
    assert [next(following), next(following), next(following)] == [event(1), event(2), None]
    for number in range(3, 60):
        add_event(folder, event(number))
        assert (next(following), next(following)) == (event(number), None)


def test_events_that_happen_again_are_told_again(folder: ClusterFolder) -> None:
    following = follow_events(folder, 0)
    for _ in range(3):
        assert next(following) is None
        add_event(folder, event(1))
        assert next(following) == event(1)


def test_a_line_of_an_earlier_version_is_a_phase(folder: ClusterFolder) -> None:
    folder.history.write_text('{"at":"2026-11-26T12:00:00+00:00","phase":"ready","message":"answers"}\n')
    assert read_events(folder, 1) == (HistoryEvent("2026-11-26T12:00:00+00:00", "ready", "answers", "phase"),)
