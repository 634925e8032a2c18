"""Measurements are found again by whoever plans the same model on the same machines, and by nobody else."""

from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from orchestrator.experience_store import (
    MOST_OF_ONE_GROUP,
    MOST_RECORDS,
    Circumstances,
    circumstances_of,
    left_aside,
    load_experience,
    remember,
)
from orchestrator.folders import Folders
from orchestrator.inventory import Host, Inventory
from orchestrator.plan.experience import NO_EXPERIENCE, Measured, record_of
from orchestrator.survey.values import Device, Speed
from quant.gguf_file import read_model
from quant.synthetic import calibration_shape, write_random_model
from tests.orchestrator.groups import make_group, make_share
from tests.orchestrator.plan.examples import make_device, make_survey

GROUP = make_group(make_share("a/cpu"), make_share("b/cpu"))
REAL = Measured(0.15, 0.15, 3.0)
HERE = Circumstances("shape", "engine", {"": "c", "a/cpu": "1", "b/cpu": "2"})


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return Folders(tmp_path / "cache", tmp_path / "state")


def test_a_measurement_comes_back(folders: Folders) -> None:
    remember(folders, HERE, GROUP, REAL)
    assert load_experience(folders, HERE).records == (record_of(GROUP, REAL),)


def test_the_prediction_kept_is_the_uncorrected_one(folders: Folders) -> None:
    remember(folders, HERE, GROUP, REAL)
    learnt = load_experience(folders, HERE)
    remember(folders, HERE, learnt.correct(GROUP), REAL)
    first, second = load_experience(folders, HERE).records
    assert second.predicted.token_s == pytest.approx(first.predicted.token_s)


@pytest.mark.parametrize(
    "other",
    [
        replace(HERE, shape="another model"),
        replace(HERE, engine_id="another engine"),
        replace(HERE, machines={**HERE.machines, "b/cpu": "another machine"}),
        replace(HERE, machines={**HERE.machines, "": "another controller"}),
        replace(HERE, machines={"": "c", "a/cpu": "1"}),
        replace(HERE, cache_type="q8_0"),
        replace(HERE, flash_attention="off"),
    ],
)
def test_other_circumstances_know_nothing_of_it(folders: Folders, other: Circumstances) -> None:
    remember(folders, HERE, GROUP, REAL)
    assert load_experience(folders, other) == NO_EXPERIENCE


def test_how_far_predictions_were_off_counts_until_the_devices_are_timed_anew(folders: Folders) -> None:
    """Of another split the old ratio would correct what is right now; the group itself still took what it took."""
    timed = {"a/cpu": ("native", "rpc"), "b/cpu": ("native", "rpc")}
    before = replace(HERE, timed=timed)
    remember(folders, before, GROUP, REAL)
    other = replace(GROUP, micro_batch=512)
    assert load_experience(folders, before).correct(other).known == "corrected"
    for device, path, known in (("b/cpu", ("native", "anew"), "predicted"), ("a/cpu", ("anew", "rpc"), "corrected")):
        experience = load_experience(folders, replace(HERE, timed={**timed, device: path}))
        assert experience.correct(other).known == known
        assert experience.correct(GROUP).known == "measured"


def test_a_single_groups_measurement_does_not_depend_on_the_controller(folders: Folders) -> None:
    single = make_group(make_share("a/cpu", native=True), mode="single", head="a")
    remember(folders, HERE, single, REAL)
    elsewhere = replace(HERE, machines={**HERE.machines, "": "another controller"})
    assert len(load_experience(folders, elsewhere).records) == 1


def test_only_the_newest_are_kept(folders: Folders) -> None:
    for seconds in range(1, MOST_OF_ONE_GROUP + 3):
        remember(folders, HERE, GROUP, replace(REAL, token_s=float(seconds)))
    kept = [record.measured.token_s for record in load_experience(folders, HERE).records]
    assert kept == [3.0, 4.0, 5.0, 6.0, 7.0]
    for micro_batch in range(1, MOST_RECORDS + 1):
        remember(folders, HERE, replace(GROUP, micro_batch=micro_batch), REAL)
    assert len(load_experience(folders, HERE).records) == MOST_RECORDS


@pytest.mark.parametrize("text", ["", "{", '[{"record": 1}]'])
def test_what_cannot_be_read_counts_as_nothing(folders: Folders, text: str) -> None:
    remember(folders, HERE, GROUP, REAL)
    next((folders.cache / "experience").glob("*.json")).write_text(text)
    assert load_experience(folders, HERE) == NO_EXPERIENCE
    remember(folders, HERE, GROUP, REAL)
    assert len(load_experience(folders, HERE).records) == 1


def test_threads_launchers_and_processors_are_part_of_the_circumstances(tmp_path: Path) -> None:
    write_random_model(tmp_path / "tiny.gguf", replace(calibration_shape(2), embedding=64, heads=2, kv_heads=1), "F16")
    model = read_model(tmp_path / "tiny.gguf")
    device = make_device("a/cpu", 1000)
    hosts = (Host("a", "local"),)
    inventory = Inventory(tmp_path / "inventory.yaml", "demo", "tiny.gguf", hosts)

    def machine(threads: int = 8, description: str = "one", run_with: tuple[str, ...] = ()) -> str:
        survey = make_survey([replace(device, threads=threads, description=description)])
        there = replace(inventory, hosts=(replace(hosts[0], run_with=run_with),))
        return circumstances_of(model, "engine", survey, there).machines["a/cpu"]

    assert machine() == machine()
    assert len({machine(), machine(threads=4), machine(description="two"), machine(run_with=("numactl",))}) == 4


def test_speeds_that_were_timed_anew_are_told_from_those_that_are_kept(tmp_path: Path) -> None:
    write_random_model(tmp_path / "tiny.gguf", replace(calibration_shape(2), embedding=64, heads=2, kv_heads=1), "F16")
    model = read_model(tmp_path / "tiny.gguf")
    inventory = Inventory(tmp_path / "inventory.yaml", "demo", "tiny.gguf", (Host("a", "local"),))
    device = make_device("a/cpu", 1000)

    def timed(one: Device) -> tuple[str, str]:
        return circumstances_of(model, "engine", make_survey([one]), inventory).timed["a/cpu"]

    saved = TypeAdapter(Speed)
    again = saved.validate_json(saved.dump_json(device.speed))
    assert timed(replace(device, speed=again)) == timed(device)
    native, rpc = timed(replace(device, speed=replace(device.speed, output_s=1.0)))
    assert native == timed(device)[0]
    assert rpc != timed(device)[1]
    step = replace(device.speed.passes[0], tokens=8)
    with_steps = replace(device.speed, passes=(device.speed.passes[0], step, *device.speed.passes[1:]))
    assert timed(replace(device, speed=with_steps)) == timed(device)


def test_what_is_measured_anew_takes_the_place_of_what_was_left_aside(folders: Folders) -> None:
    """Of its mode on its machines, nothing else, and nothing that is newer; before it is there nothing is lost."""
    slow = Measured(0.3, 0.3, 6.0)
    other_machine = replace(HERE, machines={**HERE.machines, "b/cpu": "3"})
    for group in (GROUP, replace(GROUP, micro_batch=512), replace(GROUP, mode="tensor")):
        remember(folders, HERE, group, slow)
    remember(folders, other_machine, GROUP, slow)
    aside = left_aside(folders, HERE)
    assert aside.correct(GROUP) == GROUP
    assert len(load_experience(folders, HERE).records) == 3
    for group in (replace(GROUP, shares=GROUP.shares[::-1]), replace(GROUP, micro_batch=128)):
        remember(folders, HERE, group, REAL, aside.outdated)
    known = load_experience(folders, HERE)
    assert [(one.mode, one.measured) for one in known.records] == [("tensor", slow), ("layers", REAL), ("layers", REAL)]
    assert known.correct(GROUP).token_s == pytest.approx(REAL.token_s)
    assert len(load_experience(folders, other_machine).records) == 1


def test_what_devices_are_alike_comes_with_what_was_measured(folders: Folders) -> None:
    """Those of one machine that are predicted by the same timings."""
    same = {"a/cpu": ("native", "rpc"), "b/cpu": ("native", "rpc")}
    twins = replace(HERE, machines={"": "c", "a/cpu": "1", "b/cpu": "1"}, timed=same)
    other = make_group(make_share("b/cpu"))
    remember(folders, twins, make_group(make_share("a/cpu")), REAL)
    assert load_experience(folders, twins).correct(other).known == "corrected"
    for unlike in (
        replace(twins, machines={**twins.machines, "b/cpu": "2"}),
        replace(twins, timed={**same, "b/cpu": ("native", "another")}),
    ):
        assert load_experience(folders, unlike).correct(other).known == "predicted"


def test_devices_of_one_kind_on_one_machine_are_told_apart(folders: Folders) -> None:
    twins = replace(HERE, machines={"": "c", "a/cpu": "1", "b/cpu": "1"})
    alone = make_group(make_share("b/cpu"))
    remember(folders, twins, alone, REAL)
    remember(folders, twins, GROUP, REAL, left_aside(folders, twins).outdated)
    assert len(load_experience(folders, twins).records) == 2
