"""Which quantisations there are: published ones by their headers only, made ones by the engine's own word."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.engine.store import Engine
from orchestrator.errors import UsageError
from orchestrator.fit_options import USUAL, Choices, find_choices
from orchestrator.folders import Folders
from orchestrator.perplexities import Circumstances, MeasuredPerplexity, keep_perplexity
from orchestrator.plan.fit import OnText
from orchestrator.report import Event, Remark, Report
from quant.errors import ModelNotFoundError
from quant.fetch import fetch_model
from quant.gguf_file import read_model
from quant.hub import Hub
from quant.made import Made, write_made
from quant.model import Model
from quant.slice import shape_digest
from quant.synthetic import Shape, write_random_model
from tests.quant.importance_matrices import write_importance
from tests.quant.web_server import WebServer, serving
from workers.perplexity_output import Perplexity

SHAPE = Shape(layers=8, embedding=512, feed_forward=1024, heads=8, kv_heads=2, vocabulary=2048)
NAME = "hf:owner/tiny-GGUF"


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    found = Folders(tmp_path / "cache", tmp_path / "state")
    (found.cache / "models").mkdir(parents=True)
    return found


@pytest.fixture
def remarks() -> list[str]:
    return []


@pytest.fixture
def report(remarks: list[str]) -> Report:
    def listen(event: Event) -> None:
        if isinstance(event, Remark) and event.level == "warning":
            remarks.append(event.text)

    return Report(listen)


def said(choices: Choices) -> list[tuple[str, str]]:
    return [(option.name, option.where) for option in choices.options]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("published")
    for kind in ("Q8_0", "Q4_0"):
        write_random_model(folder / f"tiny-{kind}.gguf", SHAPE, kind)
    write_random_model(folder / "draft-Q4_1.gguf", Shape(1, 256, 512, 4, 2, 2048), "Q4_1")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    return {**files, "tiny-Q2_K.gguf": b"GGUF no more than that" * 1000}


@pytest.fixture
def web(published: dict[str, bytes]) -> Iterator[WebServer]:
    with serving() as server:
        server.repositories["owner/tiny-GGUF"] = published
        yield server


@pytest.fixture
def hub(web: WebServer, tmp_path: Path) -> Hub:
    return Hub(web.url, tmp_path / "hub")


@pytest.mark.engine
async def test_a_repository_is_read_by_its_headers(
    hub: Hub, engine: Engine, folders: Folders, report: Report, remarks: list[str], published: dict[str, bytes]
) -> None:
    """A model that drafts, and a file that is damaged, are none of its quantisations; that is said of the latter."""
    choices = await find_choices(NAME, Path.cwd(), None, engine, folders, report, hub)
    assert said(choices) == [("Q4_0", "hub"), ("Q8_0", "hub")]
    assert choices.name == "hf:owner/tiny-GGUF:Q4_0"
    assert [option.file_bytes for option in choices.options] == [
        len(published["tiny-Q4_0.gguf"]),
        len(published["tiny-Q8_0.gguf"]),
    ]
    assert [option.work.mixture.types for option in choices.options] == [("Q4_0",), ("Q8_0",)]
    assert len(remarks) == 1
    assert remarks[0].startswith("tiny-Q2_K.gguf is left out: ")
    assert choices.surveyed(shape_digest(choices.options[1].model)) == choices.options[1].model
    assert choices.surveyed("of another model") is None


@pytest.mark.engine
async def test_only_types_that_were_asked_for(hub: Hub, engine: Engine, folders: Folders, report: Report) -> None:
    choices = await find_choices(NAME, Path.cwd(), ["Q8_0"], engine, folders, report, hub)
    assert said(choices) == [("Q8_0", "hub")]
    for types in (["Q5_K_M"], ["Q8_0", "Q5_K_M"]):
        with pytest.raises(ModelNotFoundError, match="has no Q5_K_M, and nothing of full precision") as told:
            await find_choices(NAME, Path.cwd(), types, engine, folders, report, hub)
        assert "Q4_0 (" in told.value.hint


WHOLE = "hf:owner/whole-GGUF"


@pytest.fixture
def whole(web: WebServer, published: dict[str, bytes], tmp_path: Path) -> str:
    """A repository with a model of full precision, and one file beside it."""
    write_random_model(tmp_path / "whole-F16.gguf", SHAPE, "F16")
    f16 = (tmp_path / "whole-F16.gguf").read_bytes()
    web.repositories["owner/whole-GGUF"] = {"whole-F16.gguf": f16, "whole-Q8_0.gguf": published["tiny-Q8_0.gguf"]}
    return WHOLE


@pytest.mark.engine
async def test_what_a_repository_lacks_can_be_made_of_its_model_of_full_precision(
    hub: Hub, engine: Engine, folders: Folders, report: Report, whole: str, web: WebServer
) -> None:
    choices = await find_choices(whole, Path.cwd(), None, engine, folders, report, hub)
    made = [kind for kind in USUAL if kind != "Q8_0"]
    assert said(choices) == [("Q8_0", "hub"), ("F16", "hub"), *((kind, "make") for kind in made)]
    assert {one.origin for one in choices.options if one.where == "make"} == {f"{whole}:F16"}
    assert not any(one.lost for one in choices.options)
    for types in (["q4_k"], ["Q4_K", "Q4_K_M"]):
        choices = await find_choices(whole, Path.cwd(), types, engine, folders, report, hub)
        assert said(choices) == [("Q4_K_M", "make")]
    with pytest.raises(UsageError, match="--types: there is no quantisation Q9"):
        await find_choices(whole, Path.cwd(), ["Q8_0", "Q9"], engine, folders, report, hub)


@pytest.mark.engine
async def test_of_two_files_of_one_quantisation_each_is_told_by_its_name(
    hub: Hub, engine: Engine, folders: Folders, report: Report, web: WebServer, published: dict[str, bytes]
) -> None:
    """Which of them is meant is asked of somebody who fetches, not of one who compares."""
    files = {"tiny-Q4_0.gguf": published["tiny-Q4_0.gguf"], "tiny-imat-Q4_0.gguf": published["tiny-Q4_0.gguf"]}
    web.repositories["owner/twice-GGUF"] = files
    choices = await find_choices("hf:owner/twice-GGUF", Path.cwd(), None, engine, folders, report, hub)
    assert said(choices) == [("tiny-Q4_0.gguf", "hub"), ("tiny-imat-Q4_0.gguf", "hub")]
    assert choices.name == "hf:owner/twice-GGUF:tiny-Q4_0.gguf"
    assert [one.quality_bits for one in choices.options] == [4.64, 4.64]


@pytest.mark.engine
async def test_a_link_is_read_by_its_header_and_what_could_be_made_of_it_is_told(
    web: WebServer, hub: Hub, engine: Engine, folders: Folders, report: Report, published: dict[str, bytes]
) -> None:
    web.files["tiny-Q8_0.gguf"] = published["tiny-Q8_0.gguf"]
    link = f"{web.url}/files/tiny-Q8_0.gguf"
    choices = await find_choices(link, Path.cwd(), ["Q8_0", "Q4_K_M"], engine, folders, report, hub)
    assert said(choices) == [("Q8_0", "hub"), ("Q4_K_M", "make")]
    assert [(one.lost, one.origin) for one in choices.options] == [((), ""), (("Q8_0",), link)]
    assert list((folders.cache / "models").iterdir()) == []


def written(path: Path, kind: str) -> Model:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_random_model(path, SHAPE, kind)
    return read_model(path)


def make(folders: Folders, source: Model, path: Path, kind: str, lost: tuple[str, ...] = ()) -> Model:
    """As `meshctl model quantise` leaves it."""
    made = written(path, kind)
    write_made(folders.cache, Made(str(path), made.files_digest, kind, str(source.path), source.files_digest, lost))
    return made


@pytest.mark.engine
async def test_of_a_model_that_is_here_others_can_be_made_and_those_that_are_made_are_here(
    engine: Engine, folders: Folders, report: Report, remarks: list[str], tmp_path: Path
) -> None:
    """Wherever they were put, and under whatever name."""
    source = written(tmp_path / "mine" / "own-F16.gguf", "F16")
    make(folders, source, tmp_path / "elsewhere" / "eight.gguf", "Q8_0")
    types = ["Q8_0", "Q4_K", "Q4_K_M", "IQ2_XXS"]
    choices = await find_choices(str(source.path), Path.cwd(), types, engine, folders, report)
    assert said(choices) == [("Q8_0", "here"), ("Q4_K_M", "make")]
    assert choices.options[0].model.path == tmp_path / "elsewhere" / "eight.gguf"
    assert choices.options[1].work.mixture.types == ("Q4_K", "Q6_K")
    assert [one.origin for one in choices.options] == ["", str(source.path)]
    assert remarks == ["IQ2_XXS is left out: it needs an importance matrix"]


@pytest.mark.engine
async def test_what_was_made_of_a_fetched_one_is_here(
    hub: Hub, engine: Engine, folders: Folders, report: Report, whole: str, tmp_path: Path
) -> None:
    source = read_model(await fetch_model(f"{whole}:F16", folders.cache, lambda done, total: None, hub=hub))
    made = make(folders, source, tmp_path / "small.gguf", "Q4_0")
    choices = await find_choices(whole, Path.cwd(), ["F16", "Q4_0", "Q6_K"], engine, folders, report, hub)
    assert said(choices) == [("F16", "here"), ("Q4_0", "here"), ("Q6_K", "make")]
    assert choices.options[1].model == made
    assert choices.source == source


@pytest.mark.engine
async def test_a_file_of_another_model_is_not_this_ones_whatever_its_name(
    engine: Engine, folders: Folders, report: Report, tmp_path: Path
) -> None:
    """What was trained further has its base's name, shape and size; a file beside it is of nobody knows what."""
    base = written(tmp_path / "base" / "model-F16.gguf", "F16")
    tuned = written(tmp_path / "tuned" / "model-F16.gguf", "F16")
    make(folders, base, folders.cache / "models" / "model-Q8_0.gguf", "Q8_0")
    written(tmp_path / "tuned" / "model-Q4_0.gguf", "Q4_0")
    for source, where in ((base, "here"), (tuned, "make")):
        choices = await find_choices(str(source.path), Path.cwd(), ["Q8_0", "Q4_0"], engine, folders, report)
        assert said(choices) == [("Q8_0", where), ("Q4_0", "make")]


@pytest.mark.engine
async def test_what_has_lost_precision_is_not_the_source_where_it_is_known_what_it_was_made_of(
    engine: Engine, folders: Folders, report: Report
) -> None:
    models = folders.cache / "models"
    alone = written(models / "alone-Q4_1.gguf", "Q4_1")
    choices = await find_choices(str(alone.path), Path.cwd(), ["Q4_1", "Q6_K"], engine, folders, report)
    assert [(one.name, one.lost, one.origin) for one in choices.options] == [
        ("Q4_1", (), ""),
        ("Q6_K", ("Q4_1",), str(alone.path)),
    ]
    whole = written(models / "own-F16.gguf", "F16")
    made = make(folders, whole, models / "own-Q4_1.gguf", "Q4_1")
    choices = await find_choices(str(made.path), Path.cwd(), None, engine, folders, report)
    assert said(choices)[:2] == [("F16", "here"), ("Q4_1", "here")]
    assert {(one.where, one.lost, one.origin) for one in choices.options[2:]} == {("make", (), str(whole.path))}
    assert choices.source == made


@pytest.mark.engine
async def test_what_was_made_of_a_lossy_one_is_no_better_than_that(
    engine: Engine, folders: Folders, report: Report
) -> None:
    models = folders.cache / "models"
    source = written(models / "own-Q4_1.gguf", "Q4_1")
    whole = make(folders, source, models / "own-F16.gguf", "F16", lost=("Q4_1",))
    for name in (source.path, whole.path):
        choices = await find_choices(str(name), Path.cwd(), ["Q4_1", "F16", "Q8_0"], engine, folders, report)
        assert [(one.name, one.where, one.lost, one.quality_bits) for one in choices.options] == [
            ("Q4_1", "here", (), 5.11),
            ("F16", "here", ("Q4_1",), 5.11),
            ("Q8_0", "make", ("Q4_1",), 5.11),
        ]
    source.path.unlink()
    choices = await find_choices(str(whole.path), Path.cwd(), ["F16", "Q8_0"], engine, folders, report)
    assert [(one.name, one.lost) for one in choices.options] == [("F16", ("Q4_1",)), ("Q8_0", ("Q4_1",))]


@pytest.mark.engine
async def test_a_type_counts_by_its_own_bits_not_by_what_fills_up_a_small_model(
    engine: Engine, folders: Folders, report: Report, tmp_path: Path
) -> None:
    """Rows of 320 weights have no blocks of 256: the engine takes larger types."""
    write_random_model(tmp_path / "odd-F16.gguf", Shape(4, 320, 320, 5, 5, 2048), "F16")
    choices = await find_choices(str(tmp_path / "odd-F16.gguf"), Path.cwd(), ["Q2_K"], engine, folders, report)
    (option,) = choices.options
    assert option.bits_per_weight > 4
    assert option.quality_bits == 3.1593


@pytest.mark.engine
async def test_with_an_importance_matrix_there_are_those_that_need_one(
    engine: Engine, folders: Folders, report: Report, remarks: list[str], tmp_path: Path
) -> None:
    source = written(tmp_path / "own-F16.gguf", "F16")
    matrix = tmp_path / "own.imatrix.gguf"
    write_importance(matrix, source)
    choices = await find_choices(str(source.path), Path.cwd(), None, engine, folders, report, importance=matrix)
    needing = ["IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "Q2_K_S", "IQ3_XXS", "IQ3_XS"]
    assert [name for name, where in said(choices) if where == "make"] == [*needing, *USUAL]
    assert remarks == []


@pytest.mark.engine
async def test_all_that_was_measured_is_there_the_newest_on_each_text(
    engine: Engine, folders: Folders, report: Report, tmp_path: Path
) -> None:
    source = written(tmp_path / "own-F16.gguf", "F16")

    def measure(text_digest: str, asked: int | None, value: float, name: str = "wiki.txt") -> None:
        of = Circumstances(text_digest, 512, asked, "engine")
        measured = MeasuredPerplexity(of, name, Perplexity(value, 0.1, 8, 512))
        keep_perplexity(folders.cache, source.files_digest, measured)

    measure("0f12", 8, 9.5)
    measure("77aa", 8, 7.5)
    measure("0f12", None, 9.6, "renamed.txt")
    choices = await find_choices(str(source.path), Path.cwd(), ["F16"], engine, folders, report)
    assert choices.options[0].perplexities == {
        OnText("0f12", 512, 8, "engine"): 9.6,
        OnText("77aa", 512, 8, "engine"): 7.5,
    }
