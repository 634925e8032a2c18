"""What is said about a cluster that has just been loaded, and where models lie on hosts."""

import os
from pathlib import Path

import pytest

from orchestrator.cluster import compare_speed, remote_model_folder
from orchestrator.plan.choose import make_plan
from orchestrator.processes import Answer
from orchestrator.report import Event, Remark, Report
from tests.orchestrator.plan.examples import make_device, make_memory, make_survey

PLAN = make_plan(make_survey([make_device("desk/cpu", 4000)]), make_memory(), goal="latency")


@pytest.mark.parametrize(("part", "level"), [(1.2, "info"), (0.5, "info"), (0.49, "warning")])
def test_a_measured_speed_far_below_the_prediction_is_a_warning_with_the_causes(part: float, level: str) -> None:
    told: list[Event] = []
    compare_speed(PLAN, Answer("text", 16, part * PLAN.decode_tokens_per_s), Report(told.append))
    (remark,) = told
    assert isinstance(remark, Remark)
    assert remark.level == level
    assert ("--recalibrate" in remark.text) == (level == "warning")


def test_another_file_of_the_same_name_lies_in_another_folder(tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(b"one")
    os.utime(model, ns=(1, 1))
    first = remote_model_folder("/cache", [model])
    assert first == remote_model_folder("/cache", [model])
    assert first.startswith("/cache/models/")
    os.utime(model, ns=(2, 2))
    assert remote_model_folder("/cache", [model]) != first
