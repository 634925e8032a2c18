"""`meshctl model` as a user runs it: answers on stdout, talk and errors on stderr, nothing half done."""

import asyncio
import json
import os
from pathlib import Path

import pytest

from orchestrator.cli.model import _progress
from orchestrator.report import Event, Report
from quant.shards import split_model
from quant.synthetic import Shape, write_random_model
from tests.program import Meshctl

SHAPE = Shape(layers=6, embedding=256, feed_forward=512, heads=4, kv_heads=2, vocabulary=300)


@pytest.fixture
def program(tmp_path: Path) -> Meshctl:
    """With folders of its own and a model `ada.gguf` in the current one; needs no engine."""
    write_random_model(tmp_path / "ada.gguf", SHAPE, "Q8_0", reads_text=True)
    homes = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "XDG_STATE_HOME": str(tmp_path / "state")}
    return Meshctl(tmp_path, {**os.environ, **homes})


def test_a_model_is_shown_for_people_and_for_programs(program: Meshctl) -> None:
    shown = program.ok("model", "show", "ada.gguf")
    assert shown.stdout.splitlines()[:2] == [
        "meshctl synthetic",
        "  architecture   llama, 3.70 M parameters, 8.52 bits per weight".ljust(len(shown.stdout.splitlines()[1])),
    ]
    assert shown.stderr == ""
    told = program.ok("model", "show", "ada.gguf", "--json").json
    assert (told["architecture"], told["block_count"], told["vocabulary"]) == ("llama", 6, 300)
    kept = list((program.folder / "cache" / "meshctl" / "descriptions").iterdir())
    assert len(kept) == 1


def test_a_model_is_split_and_joined_to_the_same_file(program: Meshctl) -> None:
    split = program.ok("model", "split", "ada.gguf", "--max-size", "1MiB", "--out", "parts")
    made = split.stdout.splitlines()
    assert made == [f"parts/ada-{number:05}-of-00004.gguf" for number in range(1, 5)]
    joined = program.ok("model", "join", made[0], "--out", "again.gguf")
    assert joined.stdout == "again.gguf\n"
    again, whole = program.folder / "again.gguf", program.folder / "ada.gguf"
    assert again.read_bytes() == whole.read_bytes()
    there = program.run("model", "join", made[0], "--out", "again.gguf")
    assert (there.status, there.stdout) == (1, "")
    assert (
        "error: again.gguf exists already\nhint: --force replaces it; or name another place with --out" in there.stderr
    )
    program.ok("model", "join", made[0], "--out", "again.gguf", "--force")
    folder = program.run("model", "join", made[0], "--out", ".", "--force")
    assert (folder.status, folder.stdout) == (1, "")
    assert "error: . is a folder\nhint: name a file in it: --out ada.gguf\n" in folder.stderr


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("split", "ada.gguf", "--max-size", "5"), 2, 'error: --max-size "5" has no unit\n'),
        (("split", "ada.gguf", "--max-size", "1GiB"), 1, "error: ada.gguf takes 3.8 MiB: it fits into one file of"),
        (("join", "ada.gguf", "--out", "x.gguf"), 1, "ada.gguf is a whole model, not one of several shards\n"),
        (("show", "nobody"), 1, "error: there is no model nobody\n"),
        (("show", "broken.gguf"), 1, "is not a GGUF file; it seems to be a JSON file\n"),
    ],
)
def test_what_cannot_be_done_is_said_with_the_next_move(
    program: Meshctl, words: tuple[str, ...], status: int, said: str
) -> None:
    (program.folder / "broken.gguf").write_text(json.dumps({}))
    outcome = program.run("model", *words)
    assert (outcome.status, outcome.stdout) == (status, "")
    assert said in outcome.stderr
    assert "hint: " in outcome.stderr
    assert not (program.folder / "x.gguf").exists()


def test_an_interrupted_split_leaves_nothing(program: Meshctl) -> None:
    """The first Ctrl-C cancels the task that asyncio runs; the next piece that is written finds out."""
    out, told = program.folder / "parts", list[Event]()

    async def interrupted() -> None:
        task = asyncio.current_task()
        assert task is not None

        def listen(event: Event) -> None:
            told.append(event)
            task.cancel()

        on_progress = _progress(Report(listen), "ada")
        split_model(program.folder / "ada.gguf", out, 1024 * 1024, on_progress=on_progress)

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(interrupted())
    assert (len(told), list(out.iterdir())) == (1, [])
