"""What the tests with made-up inputs share: how many they try, and that the log has nothing to say about it."""

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from hypothesis import HealthCheck, settings

TRIED: Counter[str] = Counter()
"""How many inputs each kind of test has tried; told at the end of a run."""


def fuzz(examples: int) -> settings:
    """The same inputs in every run: what fails fails again."""
    slow = (HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large)
    return settings(max_examples=examples, derandomize=True, database=None, deadline=None, suppress_health_check=slow)


class _Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@contextmanager
def nothing_logged() -> Iterator[None]:
    """Fails when anything was logged as a warning or worse meanwhile, tracebacks above all."""
    kept = _Kept()
    logging.getLogger().addHandler(kept)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(kept)
    formatter = logging.Formatter("%(name)s %(levelname)s %(message)s")
    if kept.records:
        raise AssertionError("\n".join(map(formatter.format, kept.records)))
