"""The pytest side of `scripts/lab_hosts.py`: labs that are gone when their test is over, however it ends."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path

import pytest

from lab_hosts import Lab, LabHost, LabSpec, unavailable, up

MakeLab = Callable[..., Lab]
"""Called with `LabHost` values, or with nothing for two hosts without limits."""


@pytest.fixture
def make_lab(tmp_path: Path) -> Iterator[MakeLab]:
    """A function that makes labs; skipped where the machine cannot (the reason says what is missing)."""
    reason = unavailable()
    if reason:
        pytest.skip(reason)
    numbers = count(1)
    with ExitStack() as labs:

        def make(*hosts: LabHost) -> Lab:
            name = f"test-{os.getpid()}-{next(numbers)}"
            spec = LabSpec(tmp_path / name, hosts or (LabHost("host1"), LabHost("host2")), name)
            return labs.enter_context(up(spec))

        yield make
