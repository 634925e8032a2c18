"""What is said about a cluster that has just been loaded, and where models lie on hosts."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from orchestrator import cluster
from orchestrator.cluster import RunningGroup, compare_memory, compare_speed, is_as_known, measure_group
from orchestrator.experience_store import Circumstances, load_experience, remember
from orchestrator.folders import Folders
from orchestrator.head_checks import Answer, HeadSpeed
from orchestrator.leash import Leashed
from orchestrator.model_copies import remote_model_folder
from orchestrator.plan.experience import Experience, Measured, record_of
from orchestrator.plan.values import Group, Known
from orchestrator.prepare import Prepared
from orchestrator.processes import Head, Started, Worker
from orchestrator.report import Event, Remark, Report, silent
from tests.orchestrator.groups import make_group, make_plan_of, make_share


@dataclass
class Logged:
    """Stands for a head's process: all that is asked of it is its log."""

    text: str = ""

    async def log_tail(self, lines: int = 20) -> str:
        return self.text


def make_head(log: str = "") -> Head:
    return Head("desk", "http://127.0.0.1:1", "secret", cast(Leashed, Logged(log)))


def make_worker(device: str, port: int) -> Worker:
    return Worker(device, device.partition("/")[0], port, f"127.0.0.1:{port}", cast(Leashed, Logged()))


GROUP = make_group(make_share("desk/cpu"), token_s=0.1, prefill_s=1.0)
MACHINES = {"": "controller", "desk/cpu": "desk"}


@pytest.mark.parametrize(
    ("decode", "prefill", "level"),
    [(1.2, 1.2, "info"), (0.51, 0.51, "info"), (0.49, 1.0, "warning"), (1.0, 0.49, "warning")],
)
def test_a_measured_speed_far_below_the_prediction_is_a_warning_with_the_causes(
    decode: float, prefill: float, level: str
) -> None:
    told: list[Event] = []
    speed = HeadSpeed(token_s=0.1 / decode, step_s=0.1, prefill_s=1.0 / prefill)
    compare_speed(RunningGroup(GROUP, "head2", make_head(), (), Answer("text", 16, 1.0), speed), Report(told.append))
    (remark,) = told
    assert isinstance(remark, Remark)
    assert remark.level == level
    assert remark.text.startswith(f"head2 on desk: decode {10 * decode:.1f} tokens/s measured, 10.0 predicted")
    assert ("--recalibrate" in remark.text) == (level == "warning")


def test_where_all_conversations_together_are_far_slower_that_is_told_too() -> None:
    told: list[Event] = []
    group = replace(GROUP, parallel=2, step_s=0.1, beside=1.0)  # 20 tokens per second together
    speed = HeadSpeed(token_s=0.1, step_s=0.25, prefill_s=1.0)
    compare_speed(RunningGroup(group, "head", make_head(), (), Answer("text", 16, 8.0), speed), Report(told.append))
    (remark,) = told
    assert isinstance(remark, Remark)
    assert remark.level == "warning"
    assert "10.0 predicted; 2 conversations 8.0 tokens/s measured, 20.0 predicted; prefill" in remark.text


@pytest.mark.parametrize(("before_s", "level"), [(0.25, "info"), (0.1, "warning")])
def test_what_is_measured_again_is_compared_with_the_last_time_and_the_prediction(before_s: float, level: str) -> None:
    """Who knows that it is slow is not warned of it each time."""
    told: list[Event] = []
    before = Experience((record_of(GROUP, Measured(before_s, before_s, 1.0)),)).correct(GROUP)
    speed = HeadSpeed(token_s=0.25, step_s=0.25, prefill_s=1.0)
    compare_speed(RunningGroup(before, "head", make_head(), (), Answer("text", 16, 8.0), speed), Report(told.append))
    (remark,) = told
    assert isinstance(remark, Remark)
    assert remark.level == level
    assert remark.text.startswith(
        f"head on desk: decode 4.0 tokens/s measured, {1 / before_s:.1f} before, 10.0 predicted; "
        "prefill 1024.0 tokens/s measured, 1024.0 before, 1024.0 predicted"
    )


@pytest.mark.parametrize(
    ("known", "decode", "expected"),
    [
        *(("measured", decode, True) for decode in (10.0, 8.1, 12.4)),
        *(("measured", decode, False) for decode in (7.9, 12.6)),
        *((known, 10.0, False) for known in ("corrected", "predicted")),
    ],
)
def test_what_was_measured_at_an_earlier_start_counts_while_the_answer_is_as_fast(
    known: Known, decode: float, expected: bool
) -> None:
    assert is_as_known(replace(GROUP, known=known), Answer("text", 16, decode)) is expected


def buffers(device: str, mib: int) -> str:
    return f"load_tensors: {device} model buffer size = {mib}.00 MiB\n"


LAYERS = make_group(make_share("desk/cpu", native=True), make_share("a/cpu"), make_share("b/cpu"))
CARDS = make_group(make_share("a/cpu"), make_share("desk/cuda1", gpu="CUDA1"), make_share("b/cpu"))
TENSOR = make_group(make_share("a/cpu", part=1, mib=50), make_share("b/cpu", part=4, mib=200), mode="tensor")
WORKERS = (make_worker("a/cpu", 21), make_worker("b/cpu", 22))


@pytest.mark.parametrize(
    ("group", "log", "said"),
    [
        (
            CARDS,
            buffers("RPC0[127.0.0.1:21]", 119)
            + buffers("CUDA0", 150)
            + buffers("CUDA_Host", 500)
            + buffers("RPC0[127.0.0.1:22]", 100),
            [
                ("info", "a/cpu: engine reports 119 MiB, planned 120 MiB"),
                ("info", "b/cpu: engine reports 100 MiB, planned 120 MiB"),
                ("warning", "desk/cuda1: engine reports 150 MiB, planned 120 MiB: more than planned"),
            ],
        ),
        (
            LAYERS,
            buffers("RPC0[127.0.0.1:21]", 119) + buffers("RPC0[127.0.0.1:22]", 140),
            [
                ("info", "a/cpu: engine reports 119 MiB, planned 120 MiB"),
                ("warning", "b/cpu: engine reports 140 MiB, planned 120 MiB: more than planned"),
            ],
        ),
        (
            TENSOR,
            buffers("Meta()", 239),
            [("info", "the fullest of a/cpu and b/cpu: engine reports 239 MiB, planned 240 MiB")],
        ),
        (TENSOR, "", [("warning", "the fullest of a/cpu and b/cpu: the engine has not said what it holds there")]),
    ],
)
async def test_what_the_engine_allocated_stands_beside_the_plan(
    group: Group, log: str, said: Sequence[tuple[str, str]]
) -> None:
    """Where layers are cut, the engine knows the sum of all devices only."""
    told: list[Event] = []
    own = dict(zip(["CUDA0"], (share for share in group.shares if share.gpu), strict=False))
    await compare_memory(group, make_head(log), WORKERS, own, Report(told.append))
    assert [(event.level, event.text) for event in told if isinstance(event, Remark)] == said


def test_another_file_of_the_same_name_lies_in_another_folder(tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(b"one")
    os.utime(model, ns=(1, 1))
    first = remote_model_folder("/cache", [model])
    assert first == remote_model_folder("/cache", [model])
    assert first.startswith("/cache/models/")
    os.utime(model, ns=(2, 2))
    assert remote_model_folder("/cache", [model]) != first


async def test_what_is_measured_of_a_head_is_known_to_later_plans_in_place_of_what_was_left_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def measure(*others: object) -> HeadSpeed:
        return HeadSpeed(0.125, 0.125, 1.0)

    monkeypatch.setattr(cluster, "measure_head", measure)
    folders, here = Folders(tmp_path / "cache", tmp_path / "state"), Circumstances("shape", "engine", MACHINES)
    disturbed = Measured(0.3, 0.3, 3.0)
    remember(folders, here, GROUP, disturbed)
    experience = Experience(outdated=(record_of(GROUP, disturbed),))
    prepared = cast(Prepared, SimpleNamespace(circumstances=here, experience=experience))
    planned = RunningGroup(
        GROUP, "head", make_head(), (), Answer("text", 16, 8.0), HeadSpeed(0.1, 0.1, 1.0), measured=False
    )
    one = await measure_group(planned, prepared, make_plan_of(GROUP), Started(), folders, silent())
    assert (one.measured, one.speed.token_s) == (True, 0.125)
    assert load_experience(folders, here).records == (record_of(GROUP, Measured(0.125, 0.125, 1.0)),)


async def test_a_head_of_several_on_a_machine_is_measured_alone_and_planned_beside_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def measure(head: object, started: object, group: Group, context: int) -> HeadSpeed:
        return HeadSpeed(group.token_s * 1.1, group.step_s * 1.1, group.prefill_s)

    monkeypatch.setattr(cluster, "measure_head", measure)
    folders, here = Folders(tmp_path / "cache", tmp_path / "state"), Circumstances("shape", "engine", MACHINES)
    prepared = cast(Prepared, SimpleNamespace(circumstances=here, experience=Experience()))
    crowded = replace(GROUP, step_s=4 * GROUP.step_s, beside=4.0)
    planned = RunningGroup(
        crowded, "head", make_head(), (), Answer("text", 16, 8.0), HeadSpeed(0.1, 0.1, 1.0), measured=False
    )
    one = await measure_group(planned, prepared, make_plan_of(crowded), Started(), folders, silent())
    assert one.speed.step_s == pytest.approx(1.1 * GROUP.step_s)
    known = load_experience(folders, here).correct(crowded)
    assert known.known == "measured"
    assert known.step_s == pytest.approx(1.1 * crowded.step_s)
