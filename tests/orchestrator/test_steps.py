"""At which step a bring-up is, from its report."""

from orchestrator.host_state import StepState
from orchestrator.report import Report
from orchestrator.steps import StepListener


def test_a_bring_up_is_followed_step_by_step_with_the_fraction_of_each() -> None:
    told = list[StepState | None]()
    report = Report(StepListener(told.append).listen)
    report.say("before the first step")
    report.progress("nothing", 1, 2)
    report.step("Putting the engine on every host", "preparing")
    report.progress("a", 10, 100, "bytes")
    report.progress("b", 0, 100, "bytes")
    report.progress("b", 0, 100, "bytes")
    report.progress("b", 90, 100, "bytes")
    report.step("Loading", "loading")
    report.step("Something else")
    report.ready("answers")
    preparing = [StepState("preparing", "Putting the engine on every host", part) for part in (None, 0.1, 0.05, 0.5)]
    assert told == [*preparing, StepState("loading", "Loading"), StepState("", "Something else"), None]
