"""What a cluster becomes when something happens, whatever happens."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.lifecycle import (
    ASIDE_S,
    FAULTS,
    FIRST_WAIT_S,
    JITTER,
    MOST_WAIT_S,
    NOTHING_FITS_WAIT_S,
    STEADY_S,
    WITHIN_S,
    CannotStart,
    Event,
    Fault,
    Lifecycle,
    Lost,
    Moving,
    NothingFits,
    Up,
)

NEW = Lifecycle()
EVENTS = st.one_of(
    st.builds(Up, st.dictionaries(st.sampled_from("abc"), st.just("no answer"), max_size=2)),
    st.builds(Lost, st.sampled_from(["a", "b", "controller"]), st.just("its worker ended"), st.booleans()),
    st.builds(CannotStart, st.just("it does not start"), st.sampled_from([(), ("a",), ("a", "b")]), st.booleans()),
    st.builds(NothingFits, st.just("too small"), st.booleans()),
    st.builds(Moving, st.just("a better plan")),
)


def run(*events: tuple[float, Event], cycle: Lifecycle = NEW) -> Lifecycle:
    for now_s, event in events:
        cycle = cycle.after(event, now_s)
    return cycle


def test_it_is_ready_when_all_are_there_and_degraded_when_one_is_missing() -> None:
    assert (run((0, Up())).state, run((0, Up())).reason) == ("ready", "answers")
    degraded = run((0, Up({"b": "no route"})))
    assert (degraded.state, degraded.reason, degraded.serves) == ("degraded", "b is missing: no route", True)


def test_after_a_loss_the_first_attempt_is_at_once_and_later_ones_are_further_and_further_apart() -> None:
    lost = run((0, Up()), (100, Lost("a", "its worker ended")))
    assert (lost.state, lost.reason, lost.wait_s(0.5)) == ("recovering", "its worker ended", 0.0)
    waits = []
    for number in range(10):
        lost = lost.after(CannotStart("no"), 101 + number)
        waits.append(lost.wait_s(0.5))
    assert waits[:4] == [FIRST_WAIT_S, 2 * FIRST_WAIT_S, 4 * FIRST_WAIT_S, 8 * FIRST_WAIT_S]
    assert waits[-1] == MOST_WAIT_S
    assert lost.wait_s(0.0) == pytest.approx(MOST_WAIT_S * (1 - JITTER))
    assert lost.wait_s(0.999) < MOST_WAIT_S * (1 + JITTER)


def test_what_is_lost_soon_after_it_came_up_again_waits_longer_until_it_was_steady() -> None:
    """Else a worker that dies at its first question would be started again all the time."""
    cycle, waits = run((0, Up())), []
    for number in range(4):
        cycle = run((10 * number + 1, Lost("controller", "gone")), cycle=cycle)
        waits.append(cycle.wait_s(0.5))
        cycle = run((10 * number + 2, Up()), cycle=cycle)
    assert waits == [0.0, 1.0, 2.0, 4.0]
    assert run((100 + STEADY_S, Lost("controller", "gone")), cycle=cycle).wait_s(0.5) == 0.0


def test_a_host_that_fails_again_and_again_is_set_aside_and_comes_back() -> None:
    cycle = run((0, Up()))
    for number in range(FAULTS):
        assert cycle.without(10 * number) == {}
        cycle = run((10 * number, Lost("a", "gone")), (10 * number + 1, Up()), cycle=cycle)
    now_s = 10.0 * FAULTS
    assert list(cycle.without(now_s)) == ["a"]
    assert cycle.state == "degraded"
    assert "it failed 3 times within 10 minutes" in cycle.reason
    assert cycle.without(now_s + ASIDE_S) == {}


def test_the_last_fault_of_each_host_is_kept_however_long_ago() -> None:
    cycle = run((0, Up()), (1, Lost("a", "its worker ended")), (2, CannotStart("no route", ("b",))), (3, Up()))
    later = run((5 * WITHIN_S, Lost("b", "gone")), cycle=cycle)
    assert later.last_faults == {"a": Fault("a", 1, "its worker ended"), "b": Fault("b", 5 * WITHIN_S, "gone")}
    assert later.faults == (Fault("b", 5 * WITHIN_S, "gone"),)


def test_whoever_was_set_aside_before_is_set_aside_for_longer() -> None:
    cycle = NEW
    for number in range(2 * FAULTS):
        cycle = run((number, Lost("a", "gone")), cycle=cycle)
    assert list(cycle.without(FAULTS + 1.5 * ASIDE_S)) == ["a"]


def test_faults_that_lie_far_apart_set_nobody_aside() -> None:
    cycle = NEW
    for number in range(10):
        cycle = run((number * WITHIN_S / 2, Lost("a", "gone")), cycle=cycle)
    assert cycle.aside == {}


def test_the_controller_is_never_set_aside() -> None:
    cycle = NEW
    for number in range(20):
        cycle = run((number, Lost("controller", "its head ended")), cycle=cycle)
    assert cycle.aside == {}


def test_when_nothing_fits_it_has_failed_says_why_and_tries_again_by_itself() -> None:
    failed = run((0, Up()), (1, Lost("a", "gone")), (2, NothingFits("3 GiB are missing")))
    assert (failed.state, failed.reason, failed.serves) == ("failed", "3 GiB are missing", False)
    assert failed.wait_s(0.5) > 0
    assert run((30, Up()), cycle=failed).state == "ready"


def test_while_other_heads_serve_it_is_never_worse_than_degraded() -> None:
    """And it goes on trying to replace what is gone, as often as if nothing served."""
    lost = run((0, Up()), (100, Lost("a", "its head ended", others=True)))
    assert (lost.state, lost.serves, lost.wait_s(0.5)) == ("degraded", True, 0.0)
    again = run((101, CannotStart("no route", others=True)), cycle=lost)
    assert (again.state, again.wait_s(0.5)) == ("degraded", FIRST_WAIT_S)
    small = run((102, NothingFits("3 GiB are missing", others=True)), cycle=again)
    assert (small.state, small.reason, small.wait_s(0.5)) == ("degraded", "3 GiB are missing", NOTHING_FITS_WAIT_S)
    assert run((103, Lost("b", "its head ended, too")), cycle=small).state == "recovering"


def test_what_is_moved_on_purpose_is_brought_up_at_once_and_blames_nobody() -> None:
    moved = run((0, Up()), (1, Lost("a", "gone")), (2, Up()), (3, Moving("a better plan")))
    assert (moved.state, moved.wait_s(0.5), len(moved.faults)) == ("recovering", 0.0, 1)


@given(st.lists(st.tuples(st.floats(0, 500), EVENTS), max_size=40))
def test_whatever_happens_it_is_told_and_waited_for_within_bounds(steps: list[tuple[float, Event]]) -> None:
    cycle, now_s = NEW, 0.0
    for later_s, event in steps:
        now_s += later_s
        cycle = cycle.after(event, now_s)
        assert cycle.serves == (isinstance(event, Up) or getattr(event, "others", False))
        assert cycle.reason
        assert 0 <= cycle.wait_s(0.999) <= MOST_WAIT_S * (1 + JITTER)
        assert "controller" not in cycle.aside
        assert len(cycle.faults) < 3 * FAULTS + len(steps)
        if isinstance(event, Up):
            absent = {*event.missing, *cycle.without(now_s)}
            assert cycle.state == ("degraded" if absent else "ready")
            assert all(host in cycle.reason for host in absent)


def test_a_host_that_should_be_left_out_but_is_all_there_is_makes_no_cluster_degraded() -> None:
    cycle = Lifecycle()
    for number in range(FAULTS):
        cycle = run((10 * number, Up()), (10 * number + 1, Lost("a", "gone")), cycle=cycle)
    assert set(cycle.without(25)) == {"a"}
    assert run((25, Up()), cycle=cycle).state == "degraded"
    assert run((25, Up(use=("a",))), cycle=cycle).state == "ready"
