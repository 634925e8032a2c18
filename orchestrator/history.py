"""What has happened to a cluster, with the reasons, kept beyond its end: `meshctl events`.

A file with a JSON line for each event, written by the cluster's supervisor alone; the oldest go when it grows large.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from time import sleep
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from orchestrator.folders import ClusterFolder
from orchestrator.state import Phase, write_private

LARGEST_BYTES = 256 * 1024
LOOK_EVERY_S = 0.25

EventKind = Literal["phase", "fault", "missing", "set_aside", "taken_back", "recovery"]


@dataclass(frozen=True)
class HistoryEvent:
    """Something happened; `message` says what or why, `phase` is the cluster's after it.

    "phase": the cluster entered it. "fault": something on `host` ended or failed. "missing": `host` could not be used
    when the cluster was brought up again. "set_aside": `host` is not used for `seconds`. "taken_back": it can be used
    again. "recovery": the cluster serves again, `seconds` after it had stopped to.
    """

    at: str  # ISO 8601, UTC
    phase: Phase
    message: str
    kind: EventKind = "phase"
    host: str = ""
    seconds: float | None = None

    @property
    def what(self) -> str:
        """The phase that was entered, or the kind of event."""
        return self.phase if self.kind == "phase" else self.kind.replace("_", " ")


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
    return _events(_lines(folder)[-last:])


def follow_events(folder: ClusterFolder, last: int) -> Iterator[HistoryEvent | None]:
    """The last events, and those to come, without an end; None from time to time, when nothing has happened.

    The file is read whole each time it has changed: it is small, and at its size limit another one takes its place.
    """
    seen = _lines(folder)
    yield from _events(seen[-last:] if last else ())
    while True:
        lines = _lines(folder)
        fresh = lines[_known(seen, lines) :]
        seen = lines
        yield from _events(fresh)
        yield None
        if not fresh:
            sleep(LOOK_EVERY_S)


def event_json(event: HistoryEvent) -> str:
    """One line of JSON, as in the file and with `--json`."""
    return _EVENT.dump_json(event).decode()


def _known(seen: list[str], lines: list[str]) -> int:
    """How many of the lines were there before; the oldest of those seen may be gone."""
    if lines[: len(seen)] == seen:
        return len(seen)
    gone = (start for start in range(1, len(seen)) if lines[: len(seen) - start] == seen[start:])
    return len(seen) - next(gone, len(seen))


def _lines(folder: ClusterFolder) -> list[str]:
    """The whole lines; one that is being written is left for the next time."""
    try:
        text = folder.history.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    return [line for line in text.splitlines(keepends=True) if line.endswith("\n")]


def _events(lines: list[str] | tuple[()]) -> tuple[HistoryEvent, ...]:
    events = []
    for line in lines:
        try:
            events.append(_EVENT.validate_json(line))
        except ValidationError:
            continue
    return tuple(events)
