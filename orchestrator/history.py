"""What has happened to a cluster, phase by phase with the reasons, kept beyond its end: `meshctl events`.

A file with a JSON line for each event, written by the cluster's supervisor alone; the oldest go when it grows large.
"""

import os
from dataclasses import dataclass

from pydantic import TypeAdapter, ValidationError

from orchestrator.folders import ClusterFolder
from orchestrator.state import Phase, write_private

LARGEST_BYTES = 256 * 1024


@dataclass(frozen=True)
class HistoryEvent:
    """The cluster entered a phase; `message` says why."""

    at: str  # ISO 8601, UTC
    phase: Phase
    message: str


_EVENT = TypeAdapter(HistoryEvent)


def add_event(folder: ClusterFolder, event: HistoryEvent) -> None:
    """Add it at the end; at the size limit the older half goes first."""
    line = event_json(event) + "\n"
    if folder.history.exists() and folder.history.stat().st_size + len(line) > LARGEST_BYTES:
        lines = folder.history.read_text(encoding="utf-8").splitlines(keepends=True)
        write_private(folder.history, "".join(lines[len(lines) // 2 :]))
    descriptor = os.open(folder.history, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(line)


def read_events(folder: ClusterFolder, last: int) -> tuple[HistoryEvent, ...]:
    """The last events, oldest first; lines that cannot be read are passed over."""
    try:
        lines = folder.history.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return ()
    events = []
    for line in lines[-last:]:
        try:
            events.append(_EVENT.validate_json(line))
        except ValidationError:
            continue
    return tuple(events)


def event_json(event: HistoryEvent) -> str:
    """One line of JSON, as in the file and with `--json`."""
    return _EVENT.dump_json(event).decode()
