"""What is written down of a cluster's turns."""

from dataclasses import dataclass, field
from typing import Any

from orchestrator.chronicle import Chronicle
from orchestrator.gateway.state import Counters
from orchestrator.lifecycle import ASIDE_S, FAULTS, CannotStart, Event, Lifecycle, Lost, NothingFits, Up


@dataclass
class Told:
    """A life cycle and what its chronicle says of it."""

    counters: Counters = field(default_factory=Counters)
    notes: list[tuple[Any, ...]] = field(default_factory=list)
    cycle: Lifecycle = field(default_factory=Lifecycle)

    def __post_init__(self) -> None:
        self.chronicle = Chronicle(lambda *note: self.notes.append(note), self.counters)

    def turn(self, now_s: float, event: Event) -> None:
        before, self.cycle = self.cycle, self.cycle.after(event, now_s)
        self.chronicle.turn(before, self.cycle, event, now_s)

    def taken(self) -> list[tuple[Any, ...]]:
        """The notes since the last time."""
        notes, self.notes[:] = list(self.notes), []
        return notes


def test_a_loss_has_its_host_and_a_recovery_its_seconds_from_when_nothing_answered_any_more() -> None:
    told = Told()
    told.turn(0, Up())
    assert told.taken() == []
    told.chronicle.interrupted(100.0)
    told.turn(103, Lost("a", "its worker ended"))
    told.turn(104, CannotStart("no route", ("b", "c")))
    told.turn(107, Up())
    assert told.taken() == [
        ("fault", "recovering", "its worker ended", "a", None),
        ("fault", "recovering", "no route", "b", None),
        ("fault", "recovering", "no route", "c", None),
        ("recovery", "ready", "it serves again after 7.0 s", "", 7.0),
    ]
    assert told.counters.recoveries == {"ready": 1, "degraded": 0, "failed": 0}
    assert [sample.value for metric in told.counters.recovery_s.collect() for sample in metric.samples][-2] == 7.0


def test_when_nothing_fits_that_is_counted_once_and_the_recovery_that_comes_of_it_later_too() -> None:
    told = Told()
    events: list[Event] = [Up(), Lost("a", "gone"), NothingFits("too small"), NothingFits("too small")]
    for now_s, event in enumerate(events):
        told.turn(now_s, event)
    assert told.counters.recoveries == {"ready": 0, "degraded": 0, "failed": 1}
    told.turn(61, Up({"a": "no route"}))
    assert told.taken()[1:] == [
        ("missing", "degraded", "no route", "a", None),
        ("recovery", "degraded", "it serves again after 60.0 s", "", 60.0),
    ]
    assert told.counters.recoveries == {"ready": 0, "degraded": 1, "failed": 1}


def test_hosts_that_are_set_aside_or_missing_are_told_and_when_they_can_be_used_again() -> None:
    told = Told()
    told.turn(0, Up())
    for number in range(FAULTS):
        told.turn(10 * number + 1, Lost("a", "gone"))
        told.turn(10 * number + 2, Up())
    aside = [note for note in told.taken() if note[0] in ("set_aside", "taken_back")]
    reason = "it failed 3 times within 10 minutes; set aside for 5"
    assert aside == [("set_aside", "recovering", reason, "a", ASIDE_S)]
    told.turn(100, Lost("controller", "gone"))
    told.turn(101, Up({"b": "no route"}))
    told.turn(10 + 2 * ASIDE_S, Lost("controller", "gone"))
    told.turn(11 + 2 * ASIDE_S, Up())
    changes = [note for note in told.taken() if note[0] not in ("fault", "recovery")]
    assert changes == [
        ("missing", "degraded", "no route", "b", None),
        ("taken_back", "ready", "it can be used again", "a", None),
        ("taken_back", "ready", "it can be used again", "b", None),
    ]
