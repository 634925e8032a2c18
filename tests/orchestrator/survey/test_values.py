"""A survey comes back from its file as it was; what no plan could be made from is refused with its place."""

from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.errors import UsageError
from orchestrator.survey.values import (
    HostSurvey,
    KernelRate,
    PassTime,
    Survey,
    TensorTime,
    doubts,
    read_survey,
    survey_json,
)
from tests.orchestrator.plan.examples import make_device, make_survey, make_tensor_time
from workers.budget import MIB, Budget, MemoryCap

SURVEY = make_survey(
    [make_device("a/cpu", 700), make_device("b/cpu", 0, native_gib_per_s=0)],
    tensor=[make_tensor_time(("a/cpu", "b/cpu"), (1, 1), 3)],
)


def kept(survey: Survey, folder: Path) -> Path:
    path = folder / "survey.json"
    path.write_text(survey_json(survey))
    return path


def test_a_survey_comes_back_as_it_was(tmp_path: Path) -> None:
    assert read_survey(kept(SURVEY, tmp_path)) == SURVEY


@pytest.mark.parametrize(("times", "problem"), [(0, "hosts: it has none"), (2, "hosts: a, b is there twice")])
def test_hosts_are_there_once(tmp_path: Path, times: int, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        read_survey(kept(replace(SURVEY, hosts=SURVEY.hosts * times), tmp_path))


ONE = PassTime(1, 0.0, (10, 20), (0.1, 0.2))


@pytest.mark.parametrize(
    ("passes", "problem"),
    [
        ((), "needs one of 1 token, and others by ascending tokens"),
        ((replace(ONE, tokens=8),), "needs one of 1 token, and others by ascending tokens"),
        ((ONE, ONE), "needs one of 1 token, and others by ascending tokens"),
        ((PassTime(1, 0.0, (), ()),), "that of 1 tokens needs ascending layers_bytes and as many layers_s"),
        ((replace(ONE, layers_bytes=(20, 10)),), "that of 1 tokens needs ascending layers_bytes and as many layers_s"),
        ((replace(ONE, layers_s=(0.1,)),), "that of 1 tokens needs ascending layers_bytes and as many layers_s"),
        ((ONE, PassTime(64, 0.0, (10, 20), (0.0, 0.2))), "that of 64 tokens has a time that is none"),
        ((replace(ONE, fixed_s=-1.0),), "that of 1 tokens has a time that is none"),
        ((replace(ONE, layers_s=(1e299, 1e300)),), "that of 1 tokens has a time that is none"),
        ((replace(ONE, spread=-0.1),), "that of 1 tokens has a spread that is none"),
    ],
)
def test_times_that_no_plan_can_be_made_from_are_refused(
    tmp_path: Path, passes: tuple[PassTime, ...], problem: str
) -> None:
    (timed,) = SURVEY.tensor
    path = kept(replace(SURVEY, tensor=(replace(timed, passes=passes),)), tmp_path)
    with pytest.raises(UsageError) as refused:
        read_survey(path)
    assert str(refused.value) == f"{path}: tensor.0.passes: {problem}"
    assert refused.value.hint


def test_the_device_whose_times_are_wrong_is_named(tmp_path: Path) -> None:
    (host, other) = SURVEY.hosts
    (device,) = host.devices
    wrong = replace(device, native=replace(device.native, passes=(replace(ONE, layers_s=(0.1, -0.2)),)))
    path = kept(replace(SURVEY, hosts=(replace(host, devices=(wrong,)), other)), tmp_path)
    with pytest.raises(UsageError, match=r"a/cpu native\.passes: that of 1 tokens has a time that is none"):
        read_survey(path)


def test_rates_of_kernels_come_back_and_may_be_missing(tmp_path: Path) -> None:
    (host, *others) = SURVEY.hosts
    (device,) = host.devices
    rated = replace(device, speed=replace(device.speed, rates=(KernelRate("Q4_K", (1, 64), (1e-10, 2e-9)),)))
    survey = replace(SURVEY, hosts=(replace(host, devices=(rated,)), *others))
    path = kept(survey, tmp_path)
    assert read_survey(path) == survey
    path.write_text(path.read_text().replace('"rates"', '"unknown_then"'))
    assert read_survey(path) == SURVEY


@pytest.mark.parametrize(
    ("rate", "problem"),
    [
        (KernelRate("Q4_K", (), ()), "that of Q4_K needs ascending tokens and as many weight_s"),
        (KernelRate("Q4_K", (64, 1), (1.0, 1.0)), "that of Q4_K needs ascending tokens and as many weight_s"),
        (KernelRate("Q4_K", (1,), (0.0,)), "that of Q4_K has a time that is none"),
    ],
)
def test_rates_that_compare_nothing_are_refused(tmp_path: Path, rate: KernelRate, problem: str) -> None:
    path = kept(replace(SURVEY, controller_speed=replace(SURVEY.controller_speed, rates=(rate,))), tmp_path)
    with pytest.raises(UsageError) as refused:
        read_survey(path)
    assert str(refused.value) == f"{path}: controller_speed.rates: {problem}"


def with_device(**changes: object) -> Survey:
    (host, *others) = SURVEY.hosts
    (device,) = host.devices
    changed = replace(device, **changes)  # type: ignore[arg-type] # each test knows its fields
    return replace(SURVEY, hosts=(replace(host, devices=(changed,)), *others))


def with_twice() -> HostSurvey:
    host = SURVEY.hosts[0]
    return replace(host, devices=host.devices * 2)


DEVICE = SURVEY.devices[0]
TIME = TensorTime((DEVICE.name,), (1,), DEVICE.speed.passes, 0.001)


@pytest.mark.parametrize(
    ("survey", "problem"),
    [
        (with_device(native=replace(DEVICE.speed, output_s=-1.0)), f"{DEVICE.name} native: output_s, output_bytes and"),
        (
            with_device(native=replace(DEVICE.speed, output_bytes=-1)),
            f"{DEVICE.name} native: output_s, output_bytes and",
        ),
        (with_device(speed=replace(DEVICE.speed, context_s=-1.0)), f"{DEVICE.name} speed: output_s, output_bytes and"),
        (with_device(link=replace(DEVICE.link, round_trip_s=-1.0)), f"{DEVICE.name} link: times and rates must be"),
        (with_device(host="other"), f"{DEVICE.name}: it is listed under a"),
        (with_device(name="other/cpu"), "other/cpu: it is listed under a"),
        (with_device(kind="abacus"), f"{DEVICE.name} kind: abacus is none of cpu, cuda, metal, vulkan"),
        (with_device(budget=Budget(10**400, 1, 0)), f"{DEVICE.name} budget: bytes are numbers from 0 to"),
        (with_device(threads=-3), f"{DEVICE.name} threads: -3 is no number of threads"),
        (replace(SURVEY, hosts=(with_twice(), *SURVEY.hosts[1:])), f"{DEVICE.name}: it is there twice"),
        (
            replace(SURVEY, tensor=(replace(TIME, devices=(DEVICE.name,) * 2, parts=(1, 1)),)),
            "tensor.0.devices: one of them is there twice",
        ),
        (replace(SURVEY, tensor=(replace(TIME, devices=("nope",)),)), "tensor.0.devices: there is no device nope"),
        (replace(SURVEY, tensor=(replace(TIME, parts=(0,)),)), "tensor.0.parts: one of 1 or more for each device"),
        (replace(SURVEY, tensor=(replace(TIME, output_s=-1.0),)), "tensor.0.output_s: must be a number of 0 or more"),
    ],
)
def test_a_survey_that_nothing_can_be_worked_out_from_is_refused(survey: Survey, problem: str, tmp_path: Path) -> None:
    path = kept(survey, tmp_path)
    with pytest.raises(UsageError) as refused:
        read_survey(path)
    assert str(refused.value).startswith(f"{path}: {problem}")


def test_other_hosts_and_more_conversations_than_were_measured_are_doubted() -> None:
    names = [host.name for host in SURVEY.hosts]
    about = (SURVEY, "s.json", ("f16",), "auto", SURVEY.engine)
    assert list(doubts(*about, hosts=reversed(names))) == []  # type: ignore[arg-type]
    assert list(doubts(*about, hosts=["x"], parallel=3)) == [  # type: ignore[arg-type]
        f"s.json was measured on {', '.join(sorted(names))}: these are planned for, not x",
        "s.json was not measured with 3 conversations at once: their speed is worked out between others",
    ]


def test_memory_that_the_inventory_gives_otherwise_is_told_and_the_files_counts() -> None:
    about = (SURVEY, "s.json", ("f16",), "auto", SURVEY.engine)
    cap = MemoryCap(limit_bytes=300 * MIB)
    assert list(doubts(*about, caps={"a": cap, "x": cap})) == [  # type: ignore[arg-type]
        "s.json has a budget of 700 MiB for a/cpu, "
        "by the inventory's `memory: 300 MiB` it would be 300 MiB: the file counts"
    ]


def test_what_a_survey_is_not_of_is_doubted() -> None:
    assert list(doubts(SURVEY, "s.json", ("f16",), "auto", SURVEY.engine)) == []
    assert list(doubts(SURVEY, "s.json", ("f16", "q8_0", "q4_0"), "off", "newer")) == [
        "s.json was measured with keys and values as f16, this is for q8_0, q4_0: prompts may be read at another speed",
        "s.json was measured with flash attention auto, this is for off: prompts may be read at another speed",
        f"s.json was measured with engine {SURVEY.engine}, the one here is newer",
    ]
