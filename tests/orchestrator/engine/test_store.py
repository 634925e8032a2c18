from pathlib import Path

import pytest

from orchestrator.engine.store import MANIFEST, check_engine, engines_folder, find_engine, list_engines
from orchestrator.errors import EngineError
from tests.orchestrator.engine.fake_engine import BEST, NEXT, make_engine
from workers.engine import RECIPES, engine_id
from workers.errors import ManifestError

PLATFORM = "linux-x86_64"


def test_an_engine_is_found_by_backend_and_platform(tmp_path: Path) -> None:
    assert find_engine(tmp_path, "cpu", PLATFORM) is None
    engine = make_engine(engines_folder(tmp_path) / engine_id(RECIPES["cpu"], PLATFORM), platform=PLATFORM)
    assert find_engine(tmp_path, "cpu", PLATFORM) == engine
    assert find_engine(tmp_path, "cpu", "linux-aarch64") is None
    assert find_engine(tmp_path, "vulkan", PLATFORM) is None


def test_every_finished_engine_is_listed_and_unfinished_ones_are_not(tmp_path: Path) -> None:
    assert list_engines(tmp_path) == ()
    engines = tuple(make_engine(tmp_path / "engines" / name, platform=PLATFORM) for name in ("cpu-a", "cpu-b"))
    make_engine(tmp_path / "engines" / ".building-cpu-c", platform=PLATFORM)
    assert list_engines(tmp_path) == engines


def test_a_check_names_every_file_that_is_not_as_it_was(tmp_path: Path) -> None:
    engine = make_engine(tmp_path / "cpu-a", platform=PLATFORM)
    assert check_engine(engine) == ()
    (engine.folder / BEST).write_text(f"CODE of {BEST}")
    (engine.folder / NEXT).unlink()
    (engine.folder / "ggml-rpc-server").write_text("short")
    assert check_engine(engine) == (
        "ggml-rpc-server has 5 bytes, not 17",
        f"{BEST} has changed: its sha256 is not the manifest's",
        f"{NEXT} is missing",
    )


def test_a_program_is_a_path_or_an_error_that_names_it(tmp_path: Path) -> None:
    engine = make_engine(tmp_path / "cpu-a", platform=PLATFORM)
    assert engine.program("llama-bench") == engine.folder / "llama-bench"
    with pytest.raises(EngineError, match="the engine cpu-a has no program llama-nothing"):
        engine.program("llama-nothing")


def test_a_manifest_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    engine = make_engine(engines_folder(tmp_path) / engine_id(RECIPES["cpu"], PLATFORM), platform=PLATFORM)
    (engine.folder / MANIFEST).write_text("{}")
    with pytest.raises(ManifestError, match="the engine's manifest cannot be read: engine: Field required"):
        find_engine(tmp_path, "cpu", PLATFORM)
