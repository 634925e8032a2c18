"""Events as a person reads them."""

from orchestrator.history import HistoryEvent
from orchestrator.view.events import event_line, events_table
from tests.orchestrator.view.rendering import rendered

AT = "2026-11-26T12:00:00+00:00"
EVENTS = (
    HistoryEvent(AT, "ready", "answers"),
    HistoryEvent(AT, "recovering", "a: worker-cpu-1 ended by itself", "fault", "a"),
    HistoryEvent(AT, "recovering", "it failed 3 times;\nset aside for 5", "set_aside", "[b]", 300.0),
    HistoryEvent(AT, "ready", "it serves again after 7.0 s", "recovery", "", 7.0),
)


def test_each_has_its_time_what_it_is_and_why_with_the_host_once() -> None:
    assert (
        rendered(events_table(EVENTS), 60)
        == """\
at                    what       why
2026-11-26 12:00:00Z  ready      answers
2026-11-26 12:00:00Z  fault      a: worker-cpu-1 ended by
                                 itself
2026-11-26 12:00:00Z  set aside  [b]: it failed 3 times;
                                 set aside for 5
2026-11-26 12:00:00Z  recovery   it serves again after 7.0 s
"""
    )


def test_one_line_holds_all_of_an_event() -> None:
    assert [event_line(event) for event in EVENTS[1:3]] == [
        "2026-11-26 12:00:00Z  fault       a: worker-cpu-1 ended by itself",
        "2026-11-26 12:00:00Z  set aside   [b]: it failed 3 times; set aside for 5",
    ]
