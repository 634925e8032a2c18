"""What has happened to a cluster, as `events` prints it. Pure."""

from collections.abc import Iterable

from rich.table import Table
from rich.text import Text

from orchestrator.history import HistoryEvent


def events_table(events: Iterable[HistoryEvent]) -> Table:
    """A row per event; long reasons go on below their beginning."""
    table = Table(box=None, pad_edge=False)
    table.add_column("at", no_wrap=True)
    for title in ("what", "why"):
        table.add_column(title, overflow="fold")
    for event in events:
        table.add_row(time_text(event.at), event.what, Text(_message(event)))
    return table


def event_line(event: HistoryEvent) -> str:
    """The same in one line."""
    return f"{time_text(event.at)}  {event.what:<10}  {' '.join(_message(event).split())}"


def time_text(moment: str) -> str:
    """An ISO 8601 time in UTC, as short as it can be read: 2026-11-26 12:00:00Z."""
    return moment.replace("T", " ").replace("+00:00", "Z")


def _message(event: HistoryEvent) -> str:
    """With the host in front, once."""
    if not event.host or event.message.startswith(f"{event.host}: "):
        return event.message
    return f"{event.host}: {event.message}"
