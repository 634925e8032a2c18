"""At which step a bring-up is, from its report."""

from orchestrator.host_state import StepState, StepTime
from orchestrator.report import Report
from orchestrator.steps import StepClock, StepListener


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


def test_of_a_bring_up_each_step_is_timed_from_connecting_on() -> None:
    moments = iter((1.0, 2.0, 4.5, 10.0, 20.0, 30.0))
    clock = StepClock(lambda: next(moments))
    report = Report(clock.listen)
    report.step("Recovering", "waiting")
    report.step("Connecting", "connecting")
    report.say("something")
    report.step("Loading", "loading")
    assert clock.take() == (StepTime("Connecting", 2.5), StepTime("Loading", 5.5))
    report.step("Connecting", "connecting")
    assert clock.take() == (StepTime("Connecting", 10.0),)
