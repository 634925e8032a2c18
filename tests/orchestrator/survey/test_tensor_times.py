"""What a failed bench of mode tensor means: these devices cannot, or the engine cannot cut this model at all."""

from dataclasses import replace
from typing import cast

import pytest

from orchestrator.errors import EngineError, MeshctlError
from orchestrator.plan.tensor import TensorSet
from orchestrator.report import Event, Remark, Report
from orchestrator.survey import tensor_times
from orchestrator.survey.slices import Slice
from orchestrator.survey.tensor_times import measure_tensor, tensor_time, with_kept
from orchestrator.survey.timing import Measuring
from orchestrator.survey.values import Survey, TensorTime
from tests.orchestrator.plan.examples import make_device, make_survey
from tests.orchestrator.survey.test_speeds import SLICES
from workers.pass_bench import Timed

SETS = (TensorSet(("a/cpu", "b/cpu"), (2, 1)), TensorSet(("a/cpu", "c/cpu"), (2, 1)))
SURVEY = make_survey([make_device(name, 700) for name in ("a/cpu", "b/cpu", "c/cpu")])
TIME = TensorTime(SETS[1].devices, SETS[1].parts, (), 0.0, 0.0)
WORDS = "llama_model_load: error loading model: LLAMA_SPLIT_MODE_TENSOR not implemented for architecture 'mamba'"


def answer(monkeypatch: pytest.MonkeyPatch, first: MeshctlError, refusal: str) -> None:
    """The first set fails so, the second is timed."""

    async def measure(measuring: Measuring, survey: Survey, one: TensorSet, report: Report) -> TensorTime:
        if one == SETS[0]:
            raise first
        return TIME

    async def ask(measuring: Measuring) -> str:
        return refusal

    monkeypatch.setattr(tensor_times, "_kept_or_measured", measure)
    monkeypatch.setattr(tensor_times, "_refusal", ask)


async def measured() -> tuple[Survey, list[str]]:
    warnings: list[str] = []

    def note(event: Event) -> None:
        if isinstance(event, Remark):
            warnings.append(event.text)

    return await measure_tensor(cast(Measuring, None), SURVEY, SETS, Report(note)), warnings


async def test_what_fails_on_the_controller_too_is_the_engines_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, EngineError("the bench failed"), WORDS)
    survey, warnings = await measured()
    assert (survey.tensor, survey.tensor_failed, survey.tensor_refused) == ((), (), WORDS)
    assert warnings == ["mode tensor over a/cpu, b/cpu: the bench failed"]


@pytest.mark.parametrize("error", [EngineError("killed"), MeshctlError("too little memory")])
async def test_what_fails_on_some_devices_only_leaves_the_others_timed(
    monkeypatch: pytest.MonkeyPatch, error: MeshctlError
) -> None:
    answer(monkeypatch, error, "")
    survey, warnings = await measured()
    assert (survey.tensor, survey.tensor_failed, survey.tensor_refused) == ((TIME,), (SETS[0].devices,), "")
    assert warnings == [f"mode tensor over a/cpu, b/cpu: {error}"]


def test_times_known_from_earlier_runs_are_added_and_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not those that failed now, nor those that are there already."""
    third = TensorSet(("b/cpu", "c/cpu"), (1, 1))
    known = {one: TensorTime(one.devices, one.parts, (), 0.0, 0.0) for one in (*SETS, third)}
    monkeypatch.setattr(tensor_times, "_kept", lambda measuring, survey, one: known[one])
    survey = replace(SURVEY, tensor=(TIME,), tensor_failed=(SETS[0].devices,))
    assert with_kept(cast(Measuring, None), survey, (*SETS, third)).tensor == (TIME, known[third])


def test_the_output_layer_is_told_apart_by_its_bytes_and_graphs_by_the_layers() -> None:
    """500 bytes at 10 us each; 2 ms for whatever else; graphs of 0.1 ms for each layer squared."""

    def decoded(one: Slice) -> dict[int, Timed]:
        return {1: Timed(1e-5 * one.pass_bytes() + 0.005 + 0.002 + 1e-4 * one.layers**2, 0.01)}

    timed = tensor_time(SETS[0], SLICES, decoded(SLICES.shallow), decoded(SLICES.deep), 1e-4)
    assert timed.output_s == pytest.approx(0.005)
    (one,) = timed.passes
    assert (one.fixed_s, *one.layers_s) == pytest.approx((0.002, 0.022, 0.042))


def test_where_nothing_is_left_at_no_layer_the_output_layer_costs_nothing() -> None:
    shallow, deep = ({1: Timed(1e-5 * one.pass_bytes(), 0.01)} for one in (SLICES.shallow, SLICES.deep))
    assert tensor_time(SETS[0], SLICES, shallow, deep, 0.0).output_s == pytest.approx(0.0)


def test_the_engines_words_are_the_first_line_of_its_log_that_is_an_error() -> None:
    log = f"print_info: file type = Q4_1\n{WORDS}\nllama_bench: error: failed to load model\n"
    assert EngineError("ended with status 1", details=log).engine_words == WORDS
    assert EngineError("ended with status 1", details="no word of it").engine_words == "ended with status 1"
