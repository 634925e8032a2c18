"""`meshctl model fit`: what is asked, and what is refused before a host is reached."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from orchestrator.cli import fitting
from orchestrator.cli.app import app
from orchestrator.cli.fitting import read_question
from orchestrator.errors import PlanError, UsageError
from orchestrator.fitting import Answer, Question
from orchestrator.plan.fit import Option
from orchestrator.survey.values import survey_json
from tests.orchestrator.plan.examples import make_device, make_survey
from tests.orchestrator.view.test_fit import OPTIONS, answer

INVENTORY = """\
cluster: demo
model: smollm2-135m
context: 8192
parallel: 2
hosts:
  - {name: a, connection: local, memory: 2GiB}
"""


@pytest.fixture
def inventory(tmp_path: Path) -> Path:
    path = tmp_path / "inventory.yaml"
    path.write_text(INVENTORY)
    return path


def test_without_options_the_inventory_says_what_is_asked(inventory: Path) -> None:
    question = read_question("m.gguf", inventory)
    assert (question.model, question.contexts, question.cache_types) == ("m.gguf", (8192,), ("f16",))
    assert (question.types, question.prefer, question.saved) == (None, "balance", None)
    assert (question.inventory.parallel, question.inventory.goal) == (2, "latency")


def test_options_override_it(inventory: Path) -> None:
    question = read_question(
        "m.gguf",
        inventory,
        context="16384, 4096",
        cache_type="q8_0,f16",
        types="q4_k_m,Q6_K",
        goal="throughput",
        parallel=4,
        prefer="quality",
    )
    assert (question.contexts, question.cache_types) == ((4096, 16384), ("f16", "q8_0"))
    assert (question.types, question.prefer) == (("Q4_K_M", "Q6_K"), "quality")
    assert (question.inventory.goal, question.inventory.parallel) == ("throughput", 4)
    assert (question.inventory.context, question.inventory.cache_type) == (16384, "f16")
    assert (question.written.context, question.written.parallel) == (8192, 2)


def test_a_cache_type_that_is_asked_for_is_surveyed_instead_of_the_inventorys(inventory: Path) -> None:
    """Which the engine may refuse for this very model."""
    inventory.write_text(f"{INVENTORY}cache_type: q8_0\n")
    asked = read_question("m.gguf", inventory, cache_type="f16")
    assert (asked.inventory.cache_type, asked.written.cache_type) == ("f16", "q8_0")
    assert read_question("m.gguf", inventory, cache_type="q8_0,f16").inventory.cache_type == "q8_0"


def test_where_a_survey_cannot_be_kept_is_said_before_it_is_taken(inventory: Path, tmp_path: Path) -> None:
    for save, problem in (
        (tmp_path / "none" / "s.json", f"there is no folder {tmp_path / 'none'}"),
        (tmp_path, "is a folder"),
    ):
        done = CliRunner().invoke(app, ["model", "fit", "m.gguf", str(inventory), "--save", str(save)])
        assert isinstance(done.exception, UsageError)
        assert problem in str(done.exception)
        assert done.exception.hint


DIFFERENT_TYPES = (
    "--cache-type: keys and values of different types are not known to be safe over RPC, and CUDA has no kernels of "
    "its own for them"
)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--context", "4k"], "--context '4k': 4k is no number of 256 to 16777216 tokens"),
        (["--context", "4096,16"], "--context '4096,16': 16 is no number of 256 to 16777216 tokens"),
        (["--context", "99999999999"], "--context '99999999999': 99999999999 is no number of 256 to 16777216 tokens"),
        (["--cache-type", "f16,f32"], '--cache-type: "f32" takes twice the memory of f16'),
        (["--cache-type", "q8_0/q4_0"], DIFFERENT_TYPES),
        (["--cache-type", ","], "--cache-type names nothing"),
        (["--types", ","], "--types names nothing"),
    ],
)
def test_what_cannot_be_meant_is_wrong_usage(inventory: Path, options: list[str], problem: str) -> None:
    done = CliRunner().invoke(app, ["model", "fit", "m.gguf", str(inventory), *options])
    assert isinstance(done.exception, UsageError)
    assert str(done.exception) == problem
    assert done.exception.hint


def test_a_saved_survey_is_not_measured_again(inventory: Path, tmp_path: Path) -> None:
    saved = tmp_path / "survey.json"
    saved.write_text(survey_json(make_survey([make_device("a/cpu", 1000)])))
    with pytest.raises(UsageError, match="exclude each other"):
        read_question("m.gguf", inventory, survey=saved, recalibrate=True)
    question = read_question("m.gguf", inventory, survey=saved)
    assert question.saved == (make_survey([make_device("a/cpu", 1000)]), saved)


@pytest.mark.parametrize(("kinds", "status"), [(OPTIONS[:1], 1), (OPTIONS[:2], 0)])
def test_the_status_says_whether_anything_fits(
    kinds: list[Option], status: int, inventory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "ask", lambda question: answer(kinds))
    done = CliRunner().invoke(app, ["model", "fit", "m.gguf", str(inventory)])
    assert (done.exit_code, "Nothing fits" in done.stdout) == (status, status == 1)


def test_quantising_needs_a_type_or_hosts_that_it_shall_fit(inventory: Path) -> None:
    for options in ([], ["--type", "Q4_K_M", "--fit", str(inventory)]):
        done = CliRunner().invoke(app, ["model", "quantise", "m.gguf", *options])
        assert isinstance(done.exception, UsageError)
        assert done.exception.hint == "give either --type TYPE or --fit INVENTORY"


def test_the_best_to_make_is_chosen_with_the_importance_matrix(
    inventory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Question] = []

    def ask(question: Question) -> Answer:
        asked.append(question)
        raise PlanError("nothing fits")

    monkeypatch.setattr(fitting, "ask", ask)
    words = ["model", "quantise", "m.gguf", "--fit", str(inventory), "--imatrix", "m.imatrix.gguf"]
    assert isinstance(CliRunner().invoke(app, words).exception, PlanError)
    assert [one.importance for one in asked] == [Path("m.imatrix.gguf")]
