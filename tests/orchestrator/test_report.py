"""Who is told of what happens, and what that must not depend on."""

import pytest

from orchestrator.report import Event, Remark, Report, while_heard


@pytest.mark.parametrize("refusal", [OSError("no space left on device"), SystemExit(1)])
def test_who_cannot_be_told_any_more_ends_nothing(refusal: BaseException) -> None:
    told: list[Event] = []

    def listen(event: Event) -> None:
        told.append(event)
        if len(told) == 2:
            raise refusal

    report = Report(while_heard(listen))
    for text in ("one", "two", "three"):
        report.say(text)
    assert told == [Remark("one"), Remark("two")]
