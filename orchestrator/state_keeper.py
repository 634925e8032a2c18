"""Writes down how a cluster stands, and what has happened to it: the state file and the history.

A disk that is full must not end a cluster that answers: what cannot be written is said once in the log, and tried again
with the next change.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime

from orchestrator.errors import ClusterStateError
from orchestrator.folders import ClusterFolder
from orchestrator.history import EventKind, HistoryEvent, add_event
from orchestrator.inventory import Inventory
from orchestrator.state import (
    WITHOUT_A_WORD,
    ClusterState,
    Phase,
    at_rest,
    read_state,
    write_state,
)

_LOG = logging.getLogger(__name__)


class StateKeeper:
    """The one writer of the cluster's state file."""

    def __init__(self, folder: ClusterFolder, inventory: Inventory) -> None:
        self._folder = folder
        self._told = False
        self.state = ClusterState(
            cluster=inventory.cluster,
            inventory=str(inventory.path.absolute()),
            pid=os.getpid(),
            phase="starting",
            message="starting",
            since=_now(),
            inventory_sha256=inventory.sha256,
            supervised=True,
        )

    def phase(self, phase: Phase, message: str, **changes: object) -> None:
        """Enter a phase and write it down; the same one again goes on, and is an event only for another reason."""
        before, now = self.state, _now()
        since = before.since if phase == before.phase != "starting" else now
        changes = {"step": None, "since": since, **changes}
        self.state = replace(before, phase=phase, message=message, **changes)  # type: ignore[arg-type]
        with self._writing():
            write_state(self._folder, self.state)
            if (phase, message) != (before.phase, before.message) or phase == "starting":
                add_event(self._folder, HistoryEvent(now, phase, message))

    def end(self, phase: Phase, message: str) -> None:
        """Enter a phase in which nothing runs any more."""
        self.state = at_rest(self.state)
        self.phase(phase, message)

    def note(self, kind: EventKind, phase: Phase, message: str, host: str = "", seconds: float | None = None) -> None:
        """Write down what happened beside the phases."""
        with self._writing():
            add_event(self._folder, HistoryEvent(_now(), phase, message, kind, host, seconds))

    def update(self, **changes: object) -> None:
        """Write changed figures within the same phase, only when something did change."""
        changed = replace(self.state, **changes)  # type: ignore[arg-type] # the dataclass checks the names
        if changed != self.state:
            self.state = changed
            with self._writing():
                write_state(self._folder, changed)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not self._told:
                _LOG.error("the state of the cluster cannot be written: %s", error)
            self._told = True
        else:
            self._told = False


def note_crash(folder: ClusterFolder) -> None:
    """Add to the history that the supervisor before this one ended without a word, if it did. Called by its holder."""
    with suppress(ClusterStateError, OSError):  # of another version; or the disk is full
        state = read_state(folder)
        if state is not None and state.supervised:
            add_event(folder, HistoryEvent(_now(), "failed", WITHOUT_A_WORD))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
