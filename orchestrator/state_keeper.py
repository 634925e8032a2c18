"""Writes down how a cluster stands, and what has happened to it: the state file and the history."""

import os
from dataclasses import replace
from datetime import UTC, datetime

from orchestrator.folders import ClusterFolder
from orchestrator.history import EventKind, HistoryEvent, add_event
from orchestrator.inventory import Inventory
from orchestrator.state import ClusterState, Phase, inventory_digest, write_state


class StateKeeper:
    """The one writer of the cluster's state file."""

    def __init__(self, folder: ClusterFolder, inventory: Inventory) -> None:
        self._folder = folder
        self.state = ClusterState(
            cluster=inventory.cluster,
            inventory=str(inventory.path.absolute()),
            pid=os.getpid(),
            phase="starting",
            message="starting",
            since=_now(),
            inventory_sha256=inventory_digest(inventory.path),
            supervised=True,
        )

    def phase(self, phase: Phase, message: str, **changes: object) -> None:
        """Enter a phase and write it down."""
        changes = {"step": None, **changes}
        self.state = replace(self.state, phase=phase, message=message, since=_now(), **changes)  # type: ignore[arg-type]
        write_state(self._folder, self.state)
        add_event(self._folder, HistoryEvent(self.state.since, phase, message))

    def note(self, kind: EventKind, phase: Phase, message: str, host: str = "", seconds: float | None = None) -> None:
        """Write down what happened beside the phases."""
        add_event(self._folder, HistoryEvent(_now(), phase, message, kind, host, seconds))

    def update(self, **changes: object) -> None:
        """Write changed figures within the same phase, only when something did change."""
        changed = replace(self.state, **changes)  # type: ignore[arg-type] # the dataclass checks the names
        if changed != self.state:
            self.state = changed
            write_state(self._folder, changed)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
