"""The program that quantises, where the engine or the disk fails it: what it says, and what stands at the end."""

import ctypes
import os
import shutil
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import pytest

from quant import quantise
from quant.errors import QuantiseError
from quant.quantise import Request
from quant.whole_file import DISK_RESERVE_BYTES


class Parameters(ctypes.Structure):
    _fields_ = (("dry_run", ctypes.c_bool),)


def failing_engine() -> ModuleType:
    """Writes nothing and gives up, as the engine does when a stream fails."""

    def heard(hear: Any) -> Any:
        hear(quantise.ERROR, b"llama_model_quantize: failed to quantize: basic_ios::clear: iostream error\n", None)
        return hear

    return cast(
        ModuleType,
        SimpleNamespace(
            llama_log_callback=heard,
            llama_log_set=lambda hear, data: None,
            llama_model_quantize_default_params=Parameters,
            llama_model_quantize=lambda source, target, parameters: 1,
        ),
    )


@pytest.mark.parametrize("free_bytes", [DISK_RESERVE_BYTES - 1, DISK_RESERVE_BYTES])
def test_a_disk_that_runs_full_is_told_apart_from_other_failures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_bytes: int
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=free_bytes))
    request = Request("/engine", "/a.gguf", (7,), str(tmp_path / "b.gguf"), str(tmp_path / "b.partial"))
    if free_bytes < DISK_RESERVE_BYTES:
        with pytest.raises(QuantiseError, match=r"^the disk of .* has run full while b\.gguf was written$") as caught:
            quantise._quantise(failing_engine(), request, 7, None)
        assert caught.value.hint == "make room there, or write to another disk: --out FILE"
    else:
        outcome = quantise._quantise(failing_engine(), request, 7, None)
        assert outcome.refusal == "basic_ios::clear: iostream error"


@pytest.fixture
def written(tmp_path: Path) -> tuple[Path, Path]:
    """What was just written, and the name that it shall get."""
    partial = tmp_path / "b.partial"
    partial.write_text("new")
    return partial, tmp_path / "b.gguf"


def refuse_links(*paths: Path) -> None:
    raise PermissionError(1, "Operation not permitted")


@pytest.mark.parametrize("links", [True, False])
def test_a_name_that_is_free_is_taken(written: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    """Also on a disk without hard links."""
    partial, target = written
    if not links:
        monkeypatch.setattr(os, "link", refuse_links)
    quantise._put_in_place(partial, target, force=False)
    assert target.read_text() == "new"


@pytest.mark.parametrize("links", [True, False])
def test_what_has_come_to_stand_there_is_replaced_by_force_only(
    written: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    partial, target = written
    target.write_text("another's")
    if not links:
        monkeypatch.setattr(os, "link", refuse_links)
    with pytest.raises(QuantiseError, match=r"b\.gguf has come to be there while it was made anew"):
        quantise._put_in_place(partial, target, force=False)
    assert target.read_text() == "another's"
    quantise._put_in_place(partial, target, force=True)
    assert target.read_text() == "new"
