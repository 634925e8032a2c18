"""Follows a report to know at which step of a bring-up a cluster is, how far that is, and how long each step took."""

from collections.abc import Callable

from orchestrator.host_state import StepState, StepTime
from orchestrator.report import Event, Failed, Progress, Ready, Step


class StepListener:
    """Listens to a report; `tell` is called with the step whenever it is another one or further by a hundredth."""

    def __init__(self, tell: Callable[[StepState | None], None]) -> None:
        self._tell = tell
        self._now: StepState | None = None
        self._progress: dict[str, Progress] = {}

    def listen(self, event: Event) -> None:
        match event:
            case Step(title, stage=stage):
                self._progress.clear()
                self._become(StepState(stage or "", title))
            case Progress() if self._now is not None:
                self._progress[event.label] = event
                self._become(StepState(self._now.stage, self._now.title, self._fraction()))
            case Ready() | Failed():
                self._become(None)

    def _become(self, step: StepState | None) -> None:
        if step != self._now:
            self._now = step
            self._tell(step)

    def _fraction(self) -> float:
        """Of all that is under way side by side, such as a transfer to each host."""
        total = sum(one.total for one in self._progress.values())
        done = sum(one.done for one in self._progress.values())
        return round(min(1.0, done / total), 2) if total else 1.0


class StepClock:
    """Listens to a report; a bring-up begins with the step at which hosts are connected to."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._begun: list[tuple[str, float]] = []

    def listen(self, event: Event) -> None:
        if isinstance(event, Step):
            if event.stage == "connecting":
                self._begun.clear()
            self._begun.append((event.title, self._clock()))

    def take(self) -> tuple[StepTime, ...]:
        """The steps so far, the last one ending now; the next bring-up begins anew."""
        begun, self._begun = self._begun, []
        ends = [*(at for _, at in begun[1:]), self._clock()]
        return tuple(StepTime(title, round(end - at, 3)) for (title, at), end in zip(begun, ends, strict=False))
