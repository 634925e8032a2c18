"""Follows a report to know at which step of a bring-up a cluster is, and how far that is."""

from collections.abc import Callable

from orchestrator.host_state import StepState
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
