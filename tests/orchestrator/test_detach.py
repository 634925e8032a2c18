"""Only one `up --detach` starts a cluster at a time."""

from pathlib import Path

from orchestrator.detach import starting
from orchestrator.folders import ClusterFolder


def test_a_second_start_is_told_that_there_is_a_first_one(tmp_path: Path) -> None:
    folder = ClusterFolder(tmp_path / "demo")
    with starting(folder) as first, starting(folder) as second:
        assert (first, second) == (True, False)
    with starting(folder) as later:
        assert later
