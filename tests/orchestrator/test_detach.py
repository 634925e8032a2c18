"""A supervisor in the background: one start at a time, its report followed, its end asked of the right process."""

import asyncio
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.detach import follow, start_supervisor, starting, stop_cluster, until_up
from orchestrator.errors import BringUpError, ClusterStateError
from orchestrator.folders import ClusterFolder
from orchestrator.report import Event, Ready, Report, Step, read_event, to_file
from orchestrator.state import ClusterState, Phase, hold, write_state


@pytest.fixture
def folder(tmp_path: Path) -> ClusterFolder:
    return ClusterFolder(tmp_path / "demo")


def state_of(pid: int, phase: Phase) -> ClusterState:
    return ClusterState("demo", "inventory.yaml", pid, phase, "", "2026-11-22T12:00:00+00:00")


def begin(*words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(words)


def test_a_second_start_is_told_that_there_is_a_first_one(folder: ClusterFolder) -> None:
    with starting(folder) as first, starting(folder) as second:
        assert (first, second) == (True, False)
    with starting(folder) as later:
        assert later


async def test_whoever_comes_second_waits_until_the_first_answers(folder: ClusterFolder) -> None:
    with hold(folder):
        write_state(folder, state_of(1, "starting"))
        waiting = asyncio.create_task(until_up(folder))
        await asyncio.sleep(0.3)
        assert not waiting.done()
        write_state(folder, state_of(1, "ready"))
        assert (await waiting).phase == "ready"


async def test_whoever_waits_is_told_why_the_first_one_failed(folder: ClusterFolder) -> None:
    with starting(folder):
        write_state(folder, replace(state_of(1, "failed"), message="no host answers"))
        waiting = asyncio.create_task(until_up(folder))
        await asyncio.sleep(0.3)
        assert not waiting.done()
    with pytest.raises(BringUpError, match="demo did not start: no host answers"):
        await waiting


def test_python_files_beside_an_inventory_are_not_run(
    folder: ClusterFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An inventory may lie in anybody's folder."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    (tmp_path / "typer.py").write_text("raise SystemExit(77)\n")
    (tmp_path / "inventory.yaml").write_text("not an inventory")
    supervisor = start_supervisor(tmp_path / "inventory.yaml", folder, ())
    assert supervisor.wait(timeout=60) == 1
    assert "inventory.yaml" in folder.supervisor_log.read_text()


@pytest.mark.parametrize("phase", ["stopped", "failed"])
async def test_a_process_that_only_has_the_number_of_an_earlier_supervisor_is_left_alone(
    folder: ClusterFolder, phase: Phase
) -> None:
    with hold(folder), begin("sleep", "99") as stranger:
        write_state(folder, state_of(stranger.pid, phase))
        try:
            with pytest.raises(ClusterStateError, match="cluster demo has just begun to start"):
                await stop_cluster(folder)
            assert stranger.poll() is None
        finally:
            stranger.kill()


async def test_a_state_left_by_a_killed_supervisor_does_not_stop_the_next_one_from_being_ended(
    folder: ClusterFolder,
) -> None:
    """It says "ready" with a number that nobody has any more, until the present one writes its own."""
    gone = begin("true")
    gone.wait()
    with hold(folder), begin("sleep", "99") as supervisor:
        write_state(folder, state_of(gone.pid, "ready"))
        stopping = asyncio.create_task(stop_cluster(folder))
        await asyncio.sleep(0.2)
        write_state(folder, state_of(supervisor.pid, "starting"))
        async with asyncio.timeout(10):
            while supervisor.poll() is None:
                await asyncio.sleep(0.05)
    assert await stopping


async def test_events_are_followed_as_whole_lines_only(folder: ClusterFolder) -> None:
    """The supervisor may be in the middle of one."""
    folder.prepare()
    write = f"""
import time
with open({str(folder.events)!r}, "ab", buffering=0) as events:
    for part in (b'{{"title": "Conn', b'ecting", "kind": "step"}}\\n{{"text": "answers", ', b'"kind": "ready"}}\\n'):
        events.write(part)
        time.sleep(0.3)
"""
    folder.events.touch()
    with begin(sys.executable, "-c", write) as supervisor:
        seen: list[Event] = [event async for event in follow(folder, supervisor)]
    assert seen == [Step("Connecting"), Ready("answers")]


async def test_a_supervisor_that_ends_without_a_word_is_an_error_with_its_log(folder: ClusterFolder) -> None:
    folder.prepare()
    folder.events.touch()
    folder.supervisor_log.write_text("error: the disk is full\n")
    supervisor = begin("sh", "-c", "exit 1")
    with pytest.raises(BringUpError, match="the supervisor ended with status 1 before") as caught:
        _ = [event async for event in follow(folder, supervisor)]
    assert caught.value.details == "error: the disk is full\n"


def test_what_is_reported_after_the_cluster_is_ready_makes_its_file_no_longer(tmp_path: Path) -> None:
    """Nobody reads it any more, and a cluster may recover again and again."""
    events = tmp_path / "events.jsonl"
    report = Report(to_file(events))
    for _ in range(2):
        report.step("Planning")
        report.ready("answers")
    lines = events.read_text().splitlines()
    assert [type(read_event(line.encode())) for line in lines] == [Step, Ready]
