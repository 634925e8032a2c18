"""What is fetched for the controller itself is what was published, also when somebody has changed it since."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator import prepare
from orchestrator.errors import UsageError
from orchestrator.folders import Folders
from orchestrator.models_quota import write_quota
from orchestrator.report import Event, Remark, Report, silent
from orchestrator.wishes import Wishes
from quant.catalogue import SMOLLM2_135M, WheelSource
from quant.download import MakeRoom
from quant.synthetic import Shape, write_random_model
from quant.wheel import wheel_model_path
from tests.quant.web_server import serving


async def test_a_fetched_model_that_somebody_has_changed_is_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = tmp_path / "published.gguf"
    write_random_model(published, Shape(1, 256, 256, 4, 4, 256), "F32")
    content = published.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    entry = replace(SMOLLM2_135M, name="tiny", size_bytes=len(content), sha256=digest)
    told: list[str] = []

    async def fetch(name: str, cache: Path, on_progress: Callable[[int, int], None], make_room: MakeRoom) -> Path:
        assert isinstance(entry.source, WheelSource)
        path = wheel_model_path(entry.source, cache)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return path

    def listen(event: Event) -> None:
        if isinstance(event, Remark) and "fetched again" in event.text:
            told.append(event.text)

    monkeypatch.setattr(prepare, "CATALOGUE", {"tiny": entry})
    monkeypatch.setattr(prepare, "fetch_model", fetch)
    folders = Folders(tmp_path / "cache", tmp_path / "state")
    model = await prepare.prepare_model("tiny", tmp_path, folders, Report(listen))
    await prepare.prepare_model("tiny", tmp_path, folders, Report(listen))
    assert told == []
    model.path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    await prepare.prepare_model("tiny", tmp_path, folders, Report(listen))
    assert told == [f"{model.path.name} has changed since it was fetched (by its sha256): it is fetched again"]
    assert model.path.read_bytes() == content


async def test_what_a_command_fetches_by_itself_keeps_to_the_quota(tmp_path: Path) -> None:
    folders = Folders(tmp_path / "cache", tmp_path / "state")
    old, new = folders.cache / "models" / "old.gguf", tmp_path / "new.gguf"
    old.parent.mkdir(parents=True)
    for path in (old, new):
        write_random_model(path, Shape(1, 256, 256, 4, 4, 256), "Q8_0")
    os.utime(old, (1000.0, 1000.0))
    write_quota(folders, old.stat().st_size)
    with serving() as web:
        web.files["new.gguf"] = new.read_bytes()
        model = await prepare.prepare_model(f"{web.url}/files/new.gguf", tmp_path, folders, silent())
    assert (model.path.exists(), old.exists()) == (True, False)


def test_a_split_of_other_layers_than_the_models_is_refused_once_the_model_is_read() -> None:
    prepare._check_split(Wishes(), "tiny", 30)
    prepare._check_split(Wishes(split={"a/cpu": 10, "b/cpu": 20}), "tiny", 30)
    with pytest.raises(UsageError, match=r"--split a/cpu=10,b/cpu=21: it has 31 layers, tiny has 30") as refused:
        prepare._check_split(Wishes(split={"a/cpu": 10, "b/cpu": 21}), "tiny", 30)
    assert refused.value.hint == "give numbers that add up to 30, or name the devices alone with --devices"
