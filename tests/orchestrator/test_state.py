"""State on disk and the lock that says whether a cluster runs."""

import fcntl
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.errors import ClusterStateError
from orchestrator.folders import Folders
from orchestrator.state import (
    ClusterState,
    GroupSpeed,
    at_rest,
    hold,
    is_held,
    read_state,
    running_clusters,
    serving_cluster,
    write_state,
)
from orchestrator.status import inventory_running, last_state
from tests.orchestrator.groups import make_group, make_plan_of, make_share


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return Folders(tmp_path / "cache", tmp_path / "state")


def state_of(cluster: str, phase: str = "ready") -> ClusterState:
    return ClusterState(cluster, "inventory.yaml", 1, phase, "answers", "2026-11-22T12:00:00+00:00")  # type: ignore[arg-type]


def test_a_state_is_read_back_equal_and_only_its_owner_can_read_it(folders: Folders) -> None:
    folder = folders.cluster("home")
    folder.prepare()
    write_state(folder, state_of("home"))
    assert read_state(folder) == state_of("home")
    layers = make_group(make_share("a/cpu"), make_share("b/cpu"))
    speed = GroupSpeed("head", "controller", "layers", 10.0, 11.0, 20.0, 21.0, 500.0, 480.0)
    full = replace(state_of("home"), plan=make_plan_of(layers), speeds=(speed,))
    write_state(folder, full)
    assert read_state(folder) == full
    assert stat.S_IMODE(folder.state.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700


def test_a_second_supervisor_is_refused_while_the_first_lives(folders: Folders) -> None:
    with hold(folders.cluster("home")):
        assert running_clusters(folders) == ("home",)
        with pytest.raises(ClusterStateError, match="cluster home is already running"), hold(folders.cluster("home")):
            pass
    assert not is_held(folders.cluster("home"))


def test_somebody_else_who_looks_is_not_taken_for_a_supervisor(folders: Folders) -> None:
    folder = folders.cluster("home")
    folder.prepare()
    with folder.lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        assert not is_held(folder)


def test_the_lock_goes_with_a_killed_process(folders: Folders) -> None:
    """The kernel lets go of the lock: nothing needs to be cleaned up by hand."""
    code = (
        "import sys; from pathlib import Path; from orchestrator.folders import Folders\n"
        "from orchestrator.state import hold\n"
        f"with hold(Folders(Path({str(folders.cache)!r}), Path({str(folders.state)!r})).cluster('home')):\n"
        "    print('held', flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen((sys.executable, "-c", code), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert is_held(folders.cluster("home"))
        holder.kill()
        holder.wait(timeout=10)
    assert not is_held(folders.cluster("home"))


def test_a_state_left_by_a_dead_supervisor_is_told_as_what_it_is(folders: Folders) -> None:
    folders.cluster("home").prepare()
    write_state(folders.cluster("home"), state_of("home"))
    told = last_state(folders, None)
    assert (told.phase, told.message) == ("failed", "the supervisor ended without a word")
    assert not told.supervised


def test_of_what_does_not_run_no_figures_are_left() -> None:
    busy = replace(state_of("home"), requests_running=2, requests_waiting=1, tokens_per_s=34.5, supervised=True)
    resting = at_rest(busy)
    assert (resting.requests_running, resting.requests_waiting, resting.tokens_per_s) == (0, 0, 0.0)
    assert (resting.hosts, resting.heads, resting.processes, resting.supervised) == ((), (), (), False)


def test_the_inventory_of_the_cluster_that_runs_is_known(folders: Folders) -> None:
    assert inventory_running(folders) is None
    folders.cluster("home").prepare()
    write_state(folders.cluster("home"), replace(state_of("home"), inventory="/home/ada/lab.yaml"))
    with hold(folders.cluster("home")):
        assert inventory_running(folders) == Path("/home/ada/lab.yaml")


def test_when_none_runs_the_one_that_changed_last_is_shown(folders: Folders) -> None:
    for name, since in (("a", "2026-11-22T12:00:01+00:00"), ("b", "2026-11-22T12:00:02+00:00"), ("c", "2025")):
        folders.cluster(name).prepare()
        write_state(folders.cluster(name), replace(state_of(name, "failed"), since=since))
    assert last_state(folders, None).cluster == "b"
    with hold(folders.cluster("a")):
        assert last_state(folders, None).cluster == "a"
        with hold(folders.cluster("c")), pytest.raises(ClusterStateError, match="2 clusters run: a, c"):
            last_state(folders, None)


def test_a_cluster_that_was_measured_and_never_up_is_not_told_as_known(folders: Folders) -> None:
    for name in ("tuned", "home"):
        folders.cluster(name).prepare()
    write_state(folders.cluster("home"), state_of("home"))
    with pytest.raises(ClusterStateError, match=r"tuned is known, or it was never up \(known: home\)"):
        last_state(folders, "tuned")


def test_which_cluster_is_meant_must_be_clear(folders: Folders) -> None:
    with pytest.raises(ClusterStateError, match="no cluster runs"):
        serving_cluster(folders, None)
    with hold(folders.cluster("a")), hold(folders.cluster("b")):
        with pytest.raises(ClusterStateError, match="2 clusters run: a, b"):
            serving_cluster(folders, None)
        with pytest.raises(ClusterStateError, match="cluster c does not run"):
            serving_cluster(folders, "c")
        write_state(folders.cluster("a"), state_of("a", "starting"))
        with pytest.raises(ClusterStateError, match="cluster a is starting"):
            serving_cluster(folders, "a")


def test_a_state_of_another_version_is_an_error_with_a_way_out(folders: Folders) -> None:
    folders.cluster("home").prepare()
    folders.cluster("home").state.write_text('{"cluster": 1}')
    with pytest.raises(ClusterStateError, match="written by another version of meshctl"):
        read_state(folders.cluster("home"))
