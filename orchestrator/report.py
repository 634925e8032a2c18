"""How long work tells what it is doing: titled steps, remarks and progress, as frozen events.

A workflow calls a `Report`; what becomes of the events (a live view, a file that another process follows) is up to
the `listen` function it was made with.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

Stage = Literal["connecting", "preparing", "planning", "loading", "checking", "opening", "waiting"]
"""What a step of a bring-up is part of, for programs: the titles are for people. "waiting": until it is tried again."""


@dataclass(frozen=True)
class Step:
    """A titled step begins (and the one before it has ended)."""

    title: str
    kind: Literal["step"] = "step"
    stage: Stage | None = None


@dataclass(frozen=True)
class Remark:
    """One line worth reading about the step that runs; `level` is "info" or "warning"."""

    text: str
    level: Literal["info", "warning"] = "info"
    kind: Literal["remark"] = "remark"


@dataclass(frozen=True)
class Progress:
    """`done` of `total` of what `label` names; `unit` is "bytes" or "" for plain counts."""

    label: str
    done: float
    total: float
    unit: str = ""
    kind: Literal["progress"] = "progress"


@dataclass(frozen=True)
class Ready:
    """The work is done; `text` says what the user can do now."""

    text: str
    kind: Literal["ready"] = "ready"


@dataclass(frozen=True)
class Failed:
    """The work failed, with the parts of the error a user sees."""

    message: str
    hint: str = ""
    details: str = ""
    kind: Literal["failed"] = "failed"


Event = Step | Remark | Progress | Ready | Failed
_EVENT: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="kind")])


class Report:
    """What workflows talk to; every call becomes one event."""

    def __init__(self, listen: Callable[[Event], None]) -> None:
        self.listen = listen

    def step(self, title: str, stage: Stage | None = None) -> None:
        self.listen(Step(title, stage=stage))

    def say(self, text: str) -> None:
        self.listen(Remark(text))

    def warn(self, text: str) -> None:
        self.listen(Remark(text, "warning"))

    def progress(self, label: str, done: float, total: float, unit: str = "") -> None:
        self.listen(Progress(label, done, total, unit))

    def bytes_of(self, label: str) -> Callable[[int, int], None]:
        """A progress function for one transfer."""
        return lambda done, total: self.progress(label, done, total, "bytes")

    def ready(self, text: str) -> None:
        self.listen(Ready(text))

    def failed(self, message: str, hint: str = "", details: str = "") -> None:
        self.listen(Failed(message, hint, details))


def silent() -> Report:
    """A report that nobody listens to."""
    return Report(lambda event: None)


def to_file(path: Path) -> Callable[[Event], None]:
    """Append each event as one JSON line, at once, for another process that follows the file.

    That leaves when the cluster is ready: what comes later, at every recovery, is not written, or the file would grow
    for ever. What happened then is in the cluster's history.
    """
    ready = False

    def listen(event: Event) -> None:
        nonlocal ready
        if ready:
            return
        ready = isinstance(event, Ready)
        with path.open("ab") as file:
            file.write(_EVENT.dump_json(event) + b"\n")

    return listen


def read_event(line: bytes) -> Event:
    """Read one line that `to_file` wrote."""
    return _EVENT.validate_json(line)


def while_heard(listener: Callable[[Event], None]) -> Callable[[Event], None]:
    """A listener that is told no more once it cannot be: a full disk under a log, or nobody behind a pipe, must not end
    what is reported of."""
    heard = True

    def listen(event: Event) -> None:
        nonlocal heard
        if heard:
            try:
                listener(event)
            except (OSError, SystemExit):  # rich leaves so where a pipe is broken
                heard = False

    return listen


def both(first: Callable[[Event], None], second: Callable[[Event], None]) -> Callable[[Event], None]:
    """Tell two listeners."""

    def listen(event: Event) -> None:
        first(event)
        second(event)

    return listen
