"""A survey with other machines than those that are there."""

from dataclasses import replace

import pytest

from orchestrator.errors import UsageError
from orchestrator.plan.costs import layers_seconds, output_seconds
from orchestrator.survey.values import NOT_MEASURED, Device, Link
from orchestrator.what_if import LINKS, parse_addition, what_if
from tests.orchestrator.plan.examples import (
    GIB,
    make_device,
    make_memory,
    make_speed,
    make_survey,
    make_tensor_time,
)
from workers.budget import Budget

DESK = make_device("desk/cpu", 8000, gib_per_s=16, native_gib_per_s=32)
NUC = make_device("nuc/cpu", 4000, gib_per_s=8, native_gib_per_s=0)
SURVEY = make_survey(
    [DESK, NUC],
    local=["desk"],
    tensor=[make_tensor_time(["desk/cpu", "nuc/cpu"], [2, 1], 12)],
)
MEMORY = make_memory()


def added(text: str) -> Device:
    return what_if(SURVEY, MEMORY, [], [parse_addition(text)]).devices[-1]


def test_with_nothing_asked_the_survey_stays_as_it_is() -> None:
    assert what_if(SURVEY, MEMORY, [], []) == SURVEY


def test_a_host_taken_away_takes_its_devices_and_timed_groups_along() -> None:
    left = what_if(SURVEY, MEMORY, ["nuc"], [])
    assert (left.devices, left.tensor) == ((DESK,), ())
    assert [one.devices for one in left.formula_off] == [2]
    assert what_if(left, MEMORY, [], []) == left


def test_a_machine_of_half_the_speed_takes_twice_the_time_natively_and_through_rpc() -> None:
    device = added("new=16GiB,desk*0.5,1Gbit/s@0.5ms")
    assert device == replace(
        DESK,
        name="new/cpu",
        host="new",
        description="hypothetical: desk*0.5",
        budget=Budget(16 * GIB, 16 * GIB, 0),
        link=Link("tunnel", 0.0005, 125e6, 125e6),
        speed=make_speed(8),
        native=make_speed(16),
    )


def test_an_added_host_has_its_own_memory() -> None:
    host = what_if(SURVEY, MEMORY, [], [parse_addition("new=16GiB,desk,gigabit")]).hosts[-1]
    assert (host.name, host.local, host.facts.hostname) == ("new", False, "new")
    assert host.facts.memory_available_bytes == host.facts.memory_total_bytes == 16 * GIB


def test_a_speed_in_tokens_scales_the_fastest_device_to_decode_this_model_at_it() -> None:
    device = added("new=16GiB,12t/s,wifi")
    native_s = layers_seconds(device.native, sum(MEMORY.layer_weights_bytes), 1)
    assert native_s + output_seconds(device.native, MEMORY.output_bytes) == pytest.approx(1 / 12)
    assert device.speed.passes[0].layers_s[0] == pytest.approx(2 * device.native.passes[0].layers_s[0])
    assert device.link == LINKS["wifi"]


def test_where_the_native_speed_of_the_model_machine_is_unknown_that_through_rpc_stands_for_it() -> None:
    assert added("new=16GiB,nuc*2,gigabit").native == make_speed(16)


def test_a_machine_may_take_the_place_of_the_one_it_is_like() -> None:
    exchanged = what_if(SURVEY, MEMORY, ["desk"], [parse_addition("desk=16GiB,desk/cpu*2,gigabit")])
    assert [device.name for device in exchanged.devices] == ["nuc/cpu", "desk/cpu"]
    assert exchanged.devices[-1].speed == make_speed(32)


def test_groups_that_failed_in_mode_tensor_are_those_of_the_devices_that_are_left() -> None:
    """A machine that takes the place of another, by its name, has not failed yet."""
    failed = replace(SURVEY, tensor_failed=(("desk/cpu", "nuc/cpu"),))
    assert what_if(failed, MEMORY, [], [parse_addition("new=16GiB,desk,gigabit")]).tensor_failed == failed.tensor_failed
    assert what_if(failed, MEMORY, ["nuc"], [parse_addition("nuc=16GiB,desk,gigabit")]).tensor_failed == ()


@pytest.mark.parametrize(
    ("without", "adds", "message"),
    [
        (["pi"], [], "--without pi: no such host"),
        (["nuc", "desk"], [], "--without leaves no host at all"),
        ([], ["nuc=1GiB,desk,wifi"], "--add nuc: this host is there already"),
        ([], ["new=1GiB,desk,wifi", "new=1GiB,desk,wifi"], "--add new: this host is added twice"),
        ([], ["new=1GiB,pi*2,wifi"], "--add new: its speed is that of pi, and there is no such host"),
        ([], ["new=1GiB,desk/cuda0,wifi"], "--add new: its speed is that of desk/cuda0, which was not measured"),
    ],
)
def test_names_that_do_not_fit_the_survey_are_refused(without: list[str], adds: list[str], message: str) -> None:
    with pytest.raises(UsageError) as refused:
        what_if(SURVEY, MEMORY, without, [parse_addition(text) for text in adds])
    assert str(refused.value) == message
    assert refused.value.hint


@pytest.mark.parametrize(
    ("text", "problem", "form"),
    [
        ("new", "needs a name, a memory, a speed and a link", ""),
        ("new=16GiB,desk", "needs a name, a memory, a speed and a link", ""),
        ("a b=16GiB,desk,wifi", '"a b" is not a possible name', ""),
        ("new=16,desk,wifi", '"16" has no unit: write "16GiB" or "16MiB"', ""),
        ("new=16GiB,fast * x,wifi", '"fast * x" is not a speed', "a speed is HOST*FACTOR"),
        ("new=16GiB,12,wifi", '"12" is not a speed', "a speed is HOST*FACTOR"),
        ("new=16GiB,desk*0,wifi", '"desk*0" is not more than 0', "a speed is HOST*FACTOR"),
        ("new=16GiB,0t/s,wifi", '"0t/s" is not more than 0', "a speed is HOST*FACTOR"),
        ("new=16GiB,desk,dsl", '"dsl" is not a link', "a link is RATE@ROUND-TRIP"),
        ("new=16GiB,desk,1Gbit/s", '"1Gbit/s" is not a link', "a link is RATE@ROUND-TRIP"),
        ("new=16GiB,desk,1Gbit/s@1h", '"1Gbit/s@1h" is not a link', "a link is RATE@ROUND-TRIP"),
        ("new=16GiB,desk,0Gbit/s@1ms", '"0Gbit/s@1ms" is not more than 0', "a link is RATE@ROUND-TRIP"),
    ],
)
def test_an_addition_that_cannot_be_read_is_refused_with_its_form_and_an_example(
    text: str, problem: str, form: str
) -> None:
    with pytest.raises(UsageError) as refused:
        parse_addition(text)
    assert problem in str(refused.value)
    hint = refused.value.hint
    assert hint.startswith(form or "write NAME=")
    assert "new=16GiB,desktop*0.5,1Gbit/s@0.5ms" in hint
    assert hint.count(" is ") == bool(form)


def test_without_any_measured_speed_nothing_can_be_scaled() -> None:
    unknown = make_survey([replace(DESK, speed=NOT_MEASURED, native=NOT_MEASURED)])
    with pytest.raises(UsageError, match="no device of the survey has a measured speed"):
        what_if(unknown, MEMORY, [], [parse_addition("new=1GiB,12t/s,wifi")])
