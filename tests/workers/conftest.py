"""What tests of the agent share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.workers.held import HEARTBEAT_S, Held, Hold


@pytest.fixture
def hold(tmp_path: Path) -> Iterator[Hold]:
    """Starts leashes with a heartbeat of 1 s and ends them whatever happens."""
    held: list[Held] = []

    def start(*words: str, options: tuple[str, ...] = (), heartbeat_s: float = HEARTBEAT_S) -> Held:
        held.append(Held(tmp_path / "test.log", words, "--heartbeat-s", str(heartbeat_s), *options))
        return held[-1]

    yield start
    for one in held:
        one.end()
