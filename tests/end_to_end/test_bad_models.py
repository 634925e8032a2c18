"""Models that cannot be run: each is one clear error that names the file and the next move, and nothing is started."""

import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from lab_folder import LabHost
from orchestrator.engine.store import Engine
from orchestrator.survey.values import survey_json
from quant.catalogue import CATALOGUE
from tests.end_to_end.inventories import free_port, write_local
from tests.end_to_end.refusals import assert_nothing_left, error_of, files_of
from tests.lab_fixture import MakeLab
from tests.orchestrator.plan.examples import make_device, make_survey
from tests.program import Meshctl

pytestmark = pytest.mark.engine

PATH = "check the path; one in an inventory is relative to the inventory"
AGAIN = "fetch the file again, and compare its size or checksum with what its publisher states"
OTHERS = "a path to a .gguf file, a link to one, or hf:OWNER/REPOSITORY"
FORMAT = "meshctl runs models in the GGUF format (.gguf)"
CUTS = (0, 2, 20, 1000, 1_000_000, 50_000_000)
SIZE = 98_362_432

REFUSALS = {
    "missing.gguf": (
        "the model file {folder}/missing.gguf does not exist",
        PATH,
    ),
    "missing": ("there is no model missing", f"choose one of {', '.join(CATALOGUE)}, or name {OTHERS}"),
    "smolm2-135m": ("there is no model smolm2-135m", f"did you mean smollm2-135m? Or name {OTHERS}"),
    "folder": ("{folder}/folder is a folder, not a GGUF file", "name the .gguf file itself"),
    "page.gguf": ("{folder}/page.gguf is not a GGUF file; it seems to be an HTML page", FORMAT),
    "archive.gguf": (
        "{folder}/archive.gguf is not a GGUF file; it seems to be a zip archive or a PyTorch checkpoint",
        FORMAT,
    ),
    "cut-0.gguf": ("{folder}/cut-0.gguf is empty", AGAIN),
    "cut-2.gguf": ("{folder}/cut-2.gguf is not a GGUF file", FORMAT),
    "cut-20.gguf": ("{folder}/cut-20.gguf is truncated or damaged: its 20 bytes end within the first bytes", AGAIN),
    "cut-1000.gguf": ("{folder}/cut-1000.gguf is truncated or damaged: its 1,000 bytes end within the metadata", AGAIN),
    "cut-1000000.gguf": (
        "{folder}/cut-1000000.gguf is truncated or damaged: its 1,000,000 bytes end within the metadata",
        AGAIN,
    ),
    "cut-50000000.gguf": (
        f"{{folder}}/cut-50000000.gguf is truncated: 48,362,432 of {SIZE:,} bytes are missing",
        AGAIN,
    ),
    "cut-98362431.gguf": (f"{{folder}}/cut-98362431.gguf is truncated: 1 of {SIZE:,} bytes are missing", AGAIN),
    "whole-00002-of-00003.gguf": (
        "{folder}/whole-00002-of-00003.gguf is shard 2 of 3; a model is named by its first shard",
        "use {folder}/whole-00001-of-00003.gguf",
    ),
    "part-00001-of-00003.gguf": (
        "{folder}/part-00001-of-00003.gguf is the first of 3 shards; missing beside it: "
        "part-00002-of-00003.gguf, part-00003-of-00003.gguf",
        "put every shard into {folder}",
    ),
}
"""Message and hint by the model's name in the inventory; {folder} is where the inventory and the files lie."""


@pytest.fixture(scope="module")
def folder(engine: Engine, demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bad files made of the demo model."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "folder").mkdir()
    (folder / "page.gguf").write_text("<!DOCTYPE html>\n<html><title>Not found</title></html>\n")
    with zipfile.ZipFile(folder / "archive.gguf", "w") as archive:
        archive.writestr("model/data.pkl", "weights")
    data = demo_model.read_bytes()
    assert len(data) == SIZE
    for size in (*CUTS, SIZE - 1):
        (folder / f"cut-{size}.gguf").write_bytes(data[:size])
    words = (str(engine.program("llama-gguf-split")), "--split", "--split-max-tensors", "100", str(demo_model))
    subprocess.run((*words, str(folder / "whole")), check=True, capture_output=True, timeout=120)
    (folder / "part-00001-of-00003.gguf").hardlink_to(folder / "whole-00001-of-00003.gguf")
    survey = make_survey([make_device("part1/cpu", 4096)])
    (folder / "survey.json").write_text(survey_json(survey))
    return folder


@pytest.mark.parametrize("name", REFUSALS)
def test_a_bad_model_is_one_error_with_the_next_move(meshctl: Meshctl, folder: Path, name: str) -> None:
    inventory = str(write_local(folder / "inventory.yaml", hosts=1, model=name, context=512))
    error = error_of(meshctl.run("plan", inventory, "--survey", str(folder / "survey.json")))
    assert error == refusal(name, folder)


@pytest.mark.parametrize("how", [(), ("--detach",)])
def test_up_says_the_same_and_ends(meshctl: Meshctl, folder: Path, how: tuple[str, ...]) -> None:
    """In the foreground and behind; the state of the cluster keeps the message."""
    name = "part-00001-of-00003.gguf"
    inventory = str(write_local(folder / "inventory.yaml", model=name, context=512))
    assert error_of(meshctl.run("up", inventory, *how)) == refusal(name, folder)
    assert_nothing_left(meshctl)
    assert "missing beside it" in meshctl.ok("status", "--cluster", "test", "--json").json["message"]


@pytest.mark.lab
def test_a_bad_model_costs_no_host_a_transfer(make_lab: MakeLab, meshctl: Meshctl, folder: Path) -> None:
    lab = make_lab(LabHost("host1"))
    inventory = str(lab.inventory(folder / "lab.yaml", model="page.gguf", gateway_port=free_port()))
    meshctl.ok("trust", inventory, "--yes")
    assert error_of(meshctl.run("up", inventory, "--detach")) == refusal("page.gguf", folder)
    assert {name.partition("/")[0] for name in files_of(lab.hosts[0])} == {"agent"}
    assert_nothing_left(meshctl, lab)


def test_a_survey_of_another_model_is_refused(meshctl: Meshctl, folder: Path) -> None:
    survey = replace(make_survey([make_device("part1/cpu", 4096)]), shape="that of another")
    (folder / "other.json").write_text(survey_json(survey))
    inventory = str(write_local(folder / "inventory.yaml", hosts=1, model="whole-00001-of-00003.gguf", context=512))
    refused = meshctl.run("plan", inventory, "--survey", str(folder / "other.json"))
    assert (refused.status, refused.stdout) == (2, "")
    assert refused.stderr.endswith(
        f"error: {folder / 'other.json'} was measured with llama.gguf: whole-00001-of-00003.gguf has other tensors, at "
        "other speeds\nhint: take a survey with this model: meshctl survey INVENTORY --json > FILE\n"
    )


def test_a_model_in_shards_is_planned_like_the_whole(meshctl: Meshctl, folder: Path) -> None:
    """The counterpart of the refusals: the same shards, complete and named by the first, are a model."""
    inventory = str(write_local(folder / "inventory.yaml", hosts=1, model="whole-00001-of-00003.gguf", context=512))
    plan = meshctl.ok("plan", inventory, "--survey", str(folder / "survey.json"), "--json").json
    assert [(share["device"], share["layers"]) for share in plan["plans"][0]["groups"][0]["shares"]] == [
        ("part1/cpu", 30)
    ]


def refusal(name: str, folder: Path) -> str:
    message, hint = (text.format(folder=folder) for text in REFUSALS[name])
    return f"{message}\nhint: {hint}"
