"""`meshctl model fit` with the real engine and model: what it says of a quantisation is what plan says of it."""

import os
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from gguf import GGUFReader

from orchestrator.engine.store import Engine
from orchestrator.survey.values import read_survey
from quant.gguf_file import read_model
from quant.synthetic import Shape, write_random_model
from tests.end_to_end.inventories import write_local
from tests.end_to_end.refusals import error_of
from tests.program import Meshctl, Outcome
from tests.quant.architectures import KINDS
from tests.quant.web_server import serving

pytestmark = pytest.mark.engine

INVENTORY = """\
cluster: fit
model: MODEL
context: 1024
hosts:
  - {name: fitted, connection: local, backend: cpu, memory: 1GiB, threads: 1}
"""
KIND = "Q4_1"
SHAPE = Shape(layers=8, embedding=512, feed_forward=1024, heads=8, kv_heads=2, vocabulary=2048)


@pytest.fixture
def model(meshctl: Meshctl, demo_model: Path) -> str:
    """Under a name of its own: what others have made of the demo model counts as here."""
    (meshctl.folder / "inventory.yaml").write_text(INVENTORY.replace("MODEL", "fitted.Q4_1.gguf"))
    (meshctl.folder / "fitted.Q4_1.gguf").symlink_to(demo_model)
    return "fitted.Q4_1.gguf"


def test_the_table_agrees_with_the_plan_and_from_a_saved_survey_with_itself(meshctl: Meshctl, model: str) -> None:
    """Kernels are timed once; then neither hosts nor kernels are asked again."""
    words = ("model", "fit", model, "inventory.yaml", "--types", f"{KIND},Q8_0", "--json")
    live = meshctl.ok(*words, "--save", "survey.json")
    assert live.stderr.count("timing Q8_0") >= 1

    saved = meshctl.ok(*words, "--survey", "survey.json")
    assert saved.json == live.json
    assert "timing" not in saved.stderr

    rows = {row["type"]: row for row in saved.json["rows"]}
    assert {kind: (row["where"], row["lost"], row["speed_from"]) for kind, row in rows.items()} == {
        KIND: ("here", [], "timed"),
        "Q8_0": ("make", ["Q4_1"], "kernels"),
    }
    (best, *_) = meshctl.ok("plan", "inventory.yaml", "--survey", "survey.json", "--json").json["plans"]
    assert rows[KIND]["plan"]["key"] == best["key"]
    assert rows[KIND]["plan"]["decode_tokens_per_s"] == best["prediction"]["decode_tokens_per_s"]
    assert rows[KIND]["plan"]["prefill_tokens_per_s"] == best["prediction"]["prefill_tokens_per_s"]

    again = meshctl.ok(*words)
    assert "timing" not in again.stderr
    assert again.json["rows"][0]["file_bytes"] == rows["Q8_0"]["file_bytes"]


def test_quantising_to_what_fits_finds_that_it_is_here(meshctl: Meshctl, model: str) -> None:
    """The only one with four bits or more that was not made of what has lost precision is the model itself."""
    meshctl.ok("model", "fit", model, "inventory.yaml", "--types", KIND, "--save", "survey.json")
    words = ("model", "quantise", model, "--fit", "inventory.yaml", "--survey", "survey.json")
    assert meshctl.ok(*words).stdout.strip().endswith("fitted.Q4_1.gguf")
    for other in (("--out", "other.gguf"), ("--force",)):
        refused = meshctl.run(*words, *other)
        assert (refused.status, refused.stdout) == (2, "")
        assert "error: Q4_1, the best, is here already: " in refused.stderr
        assert not (meshctl.folder / "other.gguf").exists()


def command_in(table: Outcome) -> tuple[str, ...]:
    """What the table says to run, without the program's name."""
    (line,) = (line for line in table.stdout.splitlines() if "to make it: " in line)
    program, *words = shlex.split(line.partition("to make it: ")[2])
    assert program == "meshctl"
    return tuple(words)


def test_the_command_that_is_printed_makes_what_is_marked_and_then_it_is_here(meshctl: Meshctl) -> None:
    """Asked of the original, and of what was made of it: both lead to the original."""
    write_random_model(meshctl.folder / "printed-F16.gguf", SHAPE, "F16")
    (meshctl.folder / "inventory.yaml").write_text(INVENTORY.replace("MODEL", "printed-F16.gguf"))
    asked = ("--types", "Q8_0,Q4_0", "--prefer", "quality")
    live = meshctl.ok("model", "fit", "printed-F16.gguf", "inventory.yaml", *asked, "--save", "survey.json")
    eight = meshctl.ok(*command_in(live)).stdout.strip()
    assert read_model(Path(eight)).quantisation == "Q8_0"

    saved = ("inventory.yaml", "--survey", "survey.json")
    again = meshctl.ok("model", "fit", "printed-F16.gguf", *saved, *asked, "--json").json
    best = {"type": "Q8_0", "context": 1024, "cache_type": "f16", "place": eight, "origin": None}
    assert again["best"] == best

    of_made = meshctl.ok("model", "fit", eight, *saved, "--types", "Q4_0")
    words = command_in(of_made)
    assert words == ("model", "quantise", str(meshctl.folder / "printed-F16.gguf"), "--type", "Q4_0")
    four = meshctl.ok(*words).stdout.strip()
    assert read_model(Path(four)).quantisation == "Q4_0"
    fitted = meshctl.ok("model", "quantise", eight, "--fit", *saved, "--prefer", "quality")
    assert fitted.stdout.strip() in (eight, str(meshctl.folder / "printed-F16.gguf"))  # whichever is faster


@pytest.fixture
def repository(meshctl: Meshctl, tmp_path: Path) -> Iterator[tuple[Meshctl, str]]:
    """A hub with a model of full precision that is not here."""
    write_random_model(tmp_path / "far-F16.gguf", SHAPE, "F16")
    with serving() as server:
        server.repositories["owner/far-GGUF"] = {"far-F16.gguf": (tmp_path / "far-F16.gguf").read_bytes()}
        own = {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "hf")}
        others = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        yield Meshctl(meshctl.folder, {**others, **meshctl.environment, **own}), "hf:owner/far-GGUF"


def test_of_a_repository_that_is_not_here_the_best_is_made_by_what_is_printed(
    repository: tuple[Meshctl, str],
) -> None:
    """Surveyed by its header alone, fetched only to be quantised."""
    program, name = repository
    (program.folder / "inventory.yaml").write_text(INVENTORY.replace("MODEL", name))
    asked = (name, "inventory.yaml", "--types", "Q8_0")
    live = program.ok("model", "fit", *asked, "--save", "survey.json")
    assert not (program.folder / "hf" / "hub").exists()
    words = command_in(live)
    assert words == ("model", "quantise", f"{name}:F16", "--type", "Q8_0")
    made = program.ok(*words).stdout.strip()
    best = program.ok("model", "fit", *asked, "--survey", "survey.json", "--json").json["best"]
    assert (best["type"], best["place"]) == ("Q8_0", made)


def test_a_cache_type_that_is_refused_is_not_surveyed_where_another_is_asked_for(meshctl: Meshctl) -> None:
    """Heads of 80 numbers cannot be kept as q8_0, which the inventory says."""
    write_random_model(meshctl.folder / "odd-F16.gguf", Shape(4, 1280, 1280, 16, 4, 256), "F16")
    inventory = INVENTORY.replace("MODEL", "odd-F16.gguf")
    (meshctl.folder / "inventory.yaml").write_text(f"{inventory}cache_type: q8_0\n")
    words = ("model", "fit", "odd-F16.gguf", "inventory.yaml", "--types", "F16")
    assert error_of(meshctl.run(*words)).startswith("the engine cannot keep keys and values of odd-F16.gguf as q8_0")
    found = meshctl.ok(*words, "--cache-type", "q8_0,f16", "--json").json
    assert found["best"]["cache_type"] == "f16"
    assert [row["short"] and row["short"]["reason"].partition(":")[0] for row in found["rows"]] == [
        None,
        "the engine cannot keep keys and values of odd-F16.gguf as q8_0",
    ]


def test_experts_of_a_model_that_is_not_here_are_timed_with_weights_at_random(
    engine: Engine, meshctl: Meshctl, tmp_path: Path
) -> None:
    """Of its file the header alone comes: with zeros for weights every token would take the same experts."""
    cache = tmp_path / "cache"
    (cache / "meshctl").mkdir(parents=True)
    (cache / "meshctl" / "engines").symlink_to(engine.folder.parent)
    path = KINDS["experts"].write(tmp_path / "experts-F32.gguf")
    inventory = str(write_local(tmp_path / "inventory.yaml", hosts=1, memory="1GiB", context=512))
    with serving() as web:
        web.repositories["owner/experts-GGUF"] = {path.name: path.read_bytes()}
        own = {"HF_ENDPOINT": web.url, "HF_HOME": str(tmp_path / "hf"), "XDG_CACHE_HOME": str(cache)}
        program = Meshctl(meshctl.folder, {**meshctl.environment, **own})
        words = ("model", "fit", "hf:owner/experts-GGUF", inventory, "--types", "F32", "--save", "survey.json")
        done = program.ok(*words)
    assert "what was timed had weights at random: the model's own are not here" in done.stdout
    assert read_survey(tmp_path / "survey.json").made_up
    slices = list((cache / "meshctl" / "slices").glob("*-made-up.gguf"))
    assert slices
    for one in slices:
        routers = [tensor.data for tensor in GGUFReader(one).tensors if "ffn_gate_inp" in tensor.name]
        assert all(row.any() for router in routers for row in router)
