"""The whole answer of `meshctl model fit` from a saved survey: two hosts, several cache types, a model of the hub."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator import fit_options
from orchestrator.engine.store import Engine
from orchestrator.errors import EngineError
from orchestrator.experience_store import circumstances_of, remember
from orchestrator.fitting import Answer, Question, answer_fit
from orchestrator.folders import Folders
from orchestrator.inventory import Host, Inventory
from orchestrator.plan.experience import Measured
from orchestrator.report import Event, Remark, Report
from orchestrator.survey.values import KernelRate, Survey
from orchestrator.view.fit import next_moves
from quant.gguf_file import read_model
from quant.hub import Hub
from quant.model import Model
from quant.slice import shape_digest
from quant.synthetic import Shape, write_random_model
from tests.orchestrator.plan.examples import make_device, make_survey
from tests.quant.importance_matrices import write_importance
from tests.quant.web_server import serving
from workers.budget import MIB, MemoryCap, budget

pytestmark = pytest.mark.engine

SHAPE = Shape(layers=8, embedding=512, feed_forward=1024, heads=8, kv_heads=2, vocabulary=2048)
ODD_HEADS = Shape(layers=2, embedding=1280, feed_forward=1280, heads=16, kv_heads=4, vocabulary=256)
RATES = tuple(
    KernelRate(kind, (1, 64), (seconds, 12.0)) for kind, seconds in (("F16", 8.0), ("Q8_0", 4.4), ("Q6_K", 5.0))
)
LARGE, SMALL = 4096, 1


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def report(told: list[str]) -> Report:
    def listen(event: Event) -> None:
        if isinstance(event, Remark) and event.level == "warning":
            told.append(event.text)

    return Report(listen)


@pytest.fixture
def source(tmp_path: Path) -> Model:
    write_random_model(tmp_path / "own-F16.gguf", SHAPE, "F16")
    return read_model(tmp_path / "own-F16.gguf")


def surveyed(model: Model, engine: Engine, mib: int = LARGE) -> Survey:
    """Of two hosts, whose kernels of two types were timed."""
    devices = (make_device("a/cpu", mib), make_device("b/cpu", mib, gib_per_s=5.0))
    usable = budget(MemoryCap(limit_bytes=mib * MIB), 2 * LARGE * MIB)
    rated = [
        replace(one, budget=usable, speed=replace(one.speed, rates=RATES), native=replace(one.native, rates=RATES))
        for one in devices
    ]
    survey = make_survey(rated, controller_mib=LARGE)
    return replace(survey, shape=shape_digest(model), engine=engine.manifest.engine)


def ask(model: Model | str, survey: Survey, **changes: object) -> Question:
    """Of two hosts at two contexts, which give what the survey found."""
    name = model if isinstance(model, str) else str(model.path)
    given = {one.host: MemoryCap(limit_bytes=one.budget.usable_bytes) for one in survey.devices}
    hosts = tuple(Host(host, "ssh", memory=cap) for host, cap in given.items())
    inventory = Inventory(Path("inventory.yaml"), "demo", name, hosts, context=1024)
    question = Question(name, Path(), inventory, inventory, (512, 1024), ("f16",), saved=(survey, Path("survey.json")))
    return replace(question, **changes)  # type: ignore[arg-type] # each test knows its fields


def kinds(answer: Answer) -> set[tuple[str, int, str]]:
    return {(row.option.name, row.context, row.cache_type) for row in answer.rows if row.plan is not None}


async def test_every_option_is_planned_at_each_context_and_cache_type(
    source: Model, engine: Engine, folders: Folders, report: Report, told: list[str]
) -> None:
    """Only keys and values that were not timed so are doubted."""
    survey, types = surveyed(source, engine), ("F16", "Q8_0")
    question = ask(source, survey, types=types, cache_types=("f16", "q8_0"))
    answer = await answer_fit(question, folders, report)
    assert kinds(answer) == {(kind, size, kv) for kind in types for size in (512, 1024) for kv in ("f16", "q8_0")}
    best = answer.wanted
    assert best is not None
    assert (best.option.name, best.context, best.cache_type) == ("Q8_0", 1024, "f16")
    assert {row.speed_from for row in answer.rows if row.cache_type == "q8_0"} == {"timed with f16", "kernels with f16"}
    assert told == [
        "survey.json was measured with keys and values as f16, this is for q8_0: prompts may be read at another speed"
    ]


async def test_what_was_not_timed_is_told_of_rows_that_show_a_speed(
    source: Model, engine: Engine, folders: Folders, report: Report, told: list[str]
) -> None:
    await answer_fit(ask(source, surveyed(source, engine, SMALL), types=("F16", "Q4_0")), folders, report)
    assert told == []
    await answer_fit(ask(source, surveyed(source, engine), types=("F16", "Q4_0")), folders, report)
    assert told == [
        "Q4_0: not timed on every device, speeds of these are worked out by bytes; without --survey they are timed"
    ]


async def test_what_has_run_with_one_cache_type_is_shown_of_that_only(
    source: Model, engine: Engine, folders: Folders, report: Report
) -> None:
    survey = surveyed(source, engine)
    question = ask(source, survey, types=("F16",), contexts=(1024,), cache_types=("f16", "q8_0"))
    row, _ = (await answer_fit(question, folders, report)).rows
    assert row.plan is not None
    of = circumstances_of(source, survey.engine, survey, question.inventory)
    group = row.plan.fastest
    remember(folders, of, group, Measured(group.token_s / 1.1, group.step_s / 1.1, group.prefill_s))
    again = await answer_fit(question, folders, report)
    assert [(one.cache_type, one.speed_from) for one in again.rows] == [("f16", "measured"), ("q8_0", "timed with f16")]


async def test_what_one_quantisation_has_shown_corrects_the_others_and_not_it_alone(
    source: Model, engine: Engine, folders: Folders, report: Report
) -> None:
    """Else one that ran, and was as much slower as all would be, would be passed over for one that never did."""
    survey = surveyed(source, engine)
    question = ask(source, survey, types=("F16", "Q8_0"), contexts=(1024,))
    before = {row.option.name: row for row in (await answer_fit(question, folders, report)).rows}
    ran = before["Q8_0"]
    assert ran.plan is not None
    of = circumstances_of(ran.option.model, survey.engine, survey, question.inventory)
    group = ran.plan.fastest
    remember(folders, of, group, Measured(group.token_s / 1.3, group.step_s / 1.3, group.prefill_s))
    after = {row.option.name: row for row in (await answer_fit(question, folders, report)).rows}
    assert {name: row.speed_from for name, row in after.items()} == {"F16": "timed, corrected", "Q8_0": "measured"}
    for name in ("F16", "Q8_0"):
        was, now = before[name].plan, after[name].plan
        assert was is not None
        assert now is not None
        assert now.decode_tokens_per_s / was.decode_tokens_per_s == pytest.approx(1.3)


async def test_with_an_importance_matrix_there_is_more_to_choose_from(
    source: Model, engine: Engine, folders: Folders, report: Report, tmp_path: Path
) -> None:
    write_importance(tmp_path / "own.imatrix.gguf", source)
    question = ask(source, surveyed(source, engine), contexts=(512,), importance=tmp_path / "own.imatrix.gguf")
    answer = await answer_fit(question, folders, report)
    assert ("IQ2_XXS", 512, "f16") in kinds(answer)


async def test_a_survey_with_another_engine_is_doubted(
    source: Model, engine: Engine, folders: Folders, report: Report, told: list[str]
) -> None:
    survey = replace(surveyed(source, engine), engine="older")
    await answer_fit(ask(source, survey, types=("F16",)), folders, report)
    assert told == [f"survey.json was measured with engine older, the one here is {engine.manifest.engine}"]


async def test_what_the_engine_refuses_is_a_row_and_an_error_where_that_is_all(
    engine: Engine, folders: Folders, report: Report, tmp_path: Path
) -> None:
    """Heads of 80 numbers are packed by none of the smaller cache types."""
    write_random_model(tmp_path / "odd-F16.gguf", ODD_HEADS, "F16")
    odd = read_model(tmp_path / "odd-F16.gguf")
    survey = surveyed(odd, engine)
    answer = await answer_fit(ask(odd, survey, types=("F16",), cache_types=("f16", "q8_0")), folders, report)
    assert kinds(answer) == {("F16", 512, "f16"), ("F16", 1024, "f16")}
    assert {row.short.refused for row in answer.rows if row.short is not None} == {True}
    with pytest.raises(EngineError, match=r"cannot keep keys and values of odd-F16\.gguf as q8_0") as caught:
        await answer_fit(ask(odd, survey, types=("F16",), cache_types=("q8_0",)), folders, report)
    assert "--cache-type f16" in caught.value.hint


@pytest.fixture
def whole(source: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A repository that has a model of full precision only, on the user's hub."""
    with serving() as server:
        server.repositories["owner/own-GGUF"] = {"own-F16.gguf": source.path.read_bytes()}
        monkeypatch.setattr(fit_options, "user_hub", lambda: Hub(server.url, tmp_path / "hub"))
        yield "hf:owner/own-GGUF"


async def test_of_a_model_of_the_hub_it_is_told_what_to_make_and_of_what(
    whole: str, source: Model, engine: Engine, folders: Folders, report: Report
) -> None:
    answer = await answer_fit(ask(whole, surveyed(source, engine), types=("Q8_0",)), folders, report)
    assert kinds(answer) == {("Q8_0", 512, "f16"), ("Q8_0", 1024, "f16")}
    assert next_moves(answer)[0] == f"to make it: meshctl model quantise {whole}:F16 --type Q8_0"
