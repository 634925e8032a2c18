"""The planner's benchmark, as far as nothing runs: which cells there are, what is kept, what the records say."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

import bench_plan
from bench_plan_cells import CONTROLLER_CORES, GOALS, MODELS, SETUPS, Cell, cells
from bench_plan_devices import cpu_quota
from bench_plan_measure import QUICK, Result
from bench_plan_record import CellRecord, Memory, Rates, Run, append_record, read_records
from bench_plan_report import (
    best_plan,
    best_single,
    errors_of,
    has_changed,
    is_doubtful,
    markdown,
    nearness,
    ratio,
    run_of_role,
    standing,
    targets,
)
from orchestrator import prepare as preparing
from orchestrator.engine.store import Engine
from orchestrator.folders import Folders
from orchestrator.inventory import Inventory
from orchestrator.plan.experience import NO_EXPERIENCE
from orchestrator.plan.values import Ranking
from orchestrator.prepare import Prepared
from quant.gguf_file import read_model
from quant.synthetic import calibration_shape, write_random_model
from tests.orchestrator.plan.examples import make_device, make_memories, make_memory, make_survey

CHOSEN = Run("plan", "tensor a b", "tensor", ("a/cpu", "b/cpu"), Rates(5.0, 40.0), Rates(4.5, 42.0))
OTHER = Run("plan", "layers a b", "layers", ("a/cpu", "b/cpu"), Rates(3.0, 50.0), Rates(3.0))
ALONE = Run("plan", "single a", "single", ("a/cpu",), Rates(3.0, 25.0), Rates(3.0, 22.0))
WORKER = Run("one worker", "one worker a/cpu", devices=("a/cpu",), measured=Rates(2.5, 20.0))
SPLIT = Run("default split", "default split", devices=("a/cpu", "b/cpu"), note="took more than 420 s")
RECORD = CellRecord(
    *("two-equal/latency/1b/local", "two-equal", "latency", "1b", "local", 1, 1024, 2),
    runs=(CHOSEN, OTHER, ALONE, SPLIT, WORKER),
    memory=(Memory("a/cpu", 1000, 1020),),
)
EVERYTHING = ([one.name for one in SETUPS], [one.name for one in GOALS], [one.name for one in MODELS])


def test_no_setup_asks_for_more_than_two_cores() -> None:
    assert all(sum(setup.cores) + CONTROLLER_CORES <= 2 for setup in SETUPS)


def test_large_models_are_run_in_few_cells() -> None:
    keys = [cell.key for cell in cells(*EVERYTHING, "local")]
    assert len(keys) == len(set(keys)) == 2 * 12 + 3
    assert [key for key in keys if "3b" in key] == [
        "two-equal/latency/3b/local",
        "four-equal/latency/3b/local",
        "too-small/latency/3b/local",
    ]


def test_a_quota_is_at_least_a_millisecond() -> None:
    assert (cpu_quota(0.25), cpu_quota(0.1)) == ((1250, 5000), (1000, 10000))


def test_records_are_read_back_and_half_a_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    assert read_records(path) == ()
    newer = replace(RECORD, seconds=2.0)
    append_record(path, RECORD)
    append_record(path, newer)
    with path.open("ab") as file:
        file.write(b'{"key": "tw')
    assert read_records(path) == (RECORD, newer)


def test_of_each_cell_the_newest_record_stands_whose_speeds_count() -> None:
    """A newer one of a machine that changed meanwhile takes the place of none but such a one."""
    newer, other = replace(RECORD, seconds=2.0), replace(RECORD, key="another")
    changed = replace(RECORD, yardstick_s=(1.0, 1.3))
    assert standing([RECORD, other, newer]) == (newer, other)
    assert standing([RECORD, changed]) == (RECORD,)
    assert standing([changed, replace(changed, seconds=2.0)]) == (replace(changed, seconds=2.0),)
    assert standing([changed, newer]) == (newer,)


def test_the_chosen_plan_is_compared_with_what_was_measured() -> None:
    assert best_plan(RECORD) == CHOSEN
    assert best_single(RECORD, "decode") == ALONE
    assert ratio(RECORD, "decode", run_of_role(RECORD, "one worker")) == 1.8
    assert ratio(RECORD, "decode", run_of_role(RECORD, "default split")) is None
    assert nearness(replace(RECORD, runs=(OTHER, CHOSEN))) == 3.0 / 4.5


def test_errors_are_of_every_rate_that_was_predicted_and_measured() -> None:
    assert [round(error, 3) for error in errors_of([CHOSEN, OTHER])] == [0.111, 0.048, 0.0]


def test_targets_say_whether_they_are_met_and_when_nothing_tells() -> None:
    said = {target.name: target.met for target in targets([RECORD])}
    assert said == {
        "prediction error, median": True,
        "prediction error, worst": True,
        "cells whose plan is within 5 % of the best measured": True,
        "memory against planned, worst": True,
        "two equal slow, decode by one worker": True,
        "four equal slow, decode by one worker": None,
        "unequal devices by the default split": None,
        "8 streams on two equal by the better device": None,
        "prefill of 1,024 on two by one worker": True,
    }


def test_a_cell_whose_default_split_beats_one_worker_is_doubtful_and_in_no_target() -> None:
    """One worker decodes 2.5 tokens per second."""
    doubtful, fine = (
        replace(RECORD, runs=(CHOSEN, OTHER, ALONE, WORKER, replace(SPLIT, measured=Rates(rate))))
        for rate in (3.1, 2.9)
    )
    assert [is_doubtful(one) for one in (doubtful, fine, RECORD)] == [True, False, False]
    assert {one.name for one in targets([doubtful]) if one.count} == {"memory against planned, worst"}
    assert "| two-equal, latency, 1b, local † |" in markdown([doubtful])
    assert "\n†: the default split decoded more than 1.2 times as fast as one worker" in markdown([doubtful])
    assert "†" not in markdown([fine])


def test_a_cell_whose_machine_changed_meanwhile_is_in_no_target() -> None:
    changed, fine = (replace(RECORD, yardstick_s=(1.0, 1.1, last)) for last in (1.21, 1.19))
    assert [has_changed(one) for one in (changed, fine, RECORD)] == [True, False, False]
    assert {one.name for one in targets([changed]) if one.count} == {"memory against planned, worst"}
    assert targets([fine]) == targets([RECORD])
    assert "| two-equal, latency, 1b, local ‡ |" in markdown([changed])
    assert "\n‡: the same passes in a cgroup of their own took more than 1.2 times as long" in markdown([changed])
    assert "‡" not in markdown([fine])


def test_a_shorter_prompt_tells_nothing_about_one_of_1024() -> None:
    by_name = {target.name: target for target in targets([replace(RECORD, prompt=512)])}
    assert by_name["prefill of 1,024 on two by one worker"].met is None


def test_the_table_has_a_line_per_cell_and_says_what_was_not_measured() -> None:
    lines = markdown([RECORD]).splitlines()
    assert lines[2] == (
        "| two-equal, latency, 1b, local | tensor on 2 | 5.0 / 4.5 | 40.0 / 42.0 | - "
        "| tensor on 2: 4.5 | 1.50 | - | 1.80, 2.10 | 1.02 |"
    )
    assert lines[-1] == "- two-equal/latency/1b/local: default split: took more than 420 s"


def test_a_cell_is_run_in_a_folder_without_an_inventory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it surveys and measures is replaced; the ranking is the product's own."""
    write_random_model(tmp_path / "tiny.gguf", replace(calibration_shape(2), embedding=64, heads=2, kv_heads=1), "F16")
    memories = make_memories(make_memory())

    async def prepare(inventory: Inventory, *others: object) -> Prepared:
        return Prepared(
            inventory=inventory,
            engine=cast(Engine, SimpleNamespace(folder=tmp_path, manifest=SimpleNamespace(engine="cpu-test"))),
            engine_folders={},
            model=read_model(tmp_path / "tiny.gguf"),
            memories=memories,
            survey=make_survey([make_device("a/cpu", 4000)]),
            experience=NO_EXPERIENCE,
        )

    async def measure(cell: Cell, prepared: Prepared, ranking: Ranking, *others: object) -> Result:
        return Result(512, (Run("plan", ranking.chosen.mode, ranking.chosen.mode, ("a/cpu",), Rates(), Rates()),), ())

    @asynccontextmanager
    async def no_hosts(*others: object) -> AsyncIterator[None]:
        yield None

    taken_s = iter((1.0, 1.1, 1.2))

    class Passes:
        async def take(self) -> float:
            return next(taken_s)

    class Engines:
        async def cpu(self) -> Engine:
            return cast(Engine, SimpleNamespace(folder=tmp_path))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench_plan, "yardstick", lambda *others: nullcontext(Passes()))
    monkeypatch.setattr(bench_plan, "Stock", lambda *others: Engines())
    monkeypatch.setattr(preparing, "prepare", prepare)
    monkeypatch.setattr(bench_plan, "measure_cell", measure)
    monkeypatch.setattr(bench_plan, "open_hosts", no_hosts)
    cell = next(cells(*EVERYTHING, "local"))
    inventory = bench_plan._inventory(cell, "tiny.gguf", ())
    folders = Folders(tmp_path / "cache", tmp_path / "state")
    record = bench_plan._measured(RECORD, cell, inventory, folders, QUICK, False)
    assert [run.mode for run in record.runs] == ["single"]
    assert record.yardstick_s == (1.0, 1.1, 1.2)
