from pathlib import Path

import pytest

from orchestrator.engine.smoke import PROOFS, compute_problem, loaded_library, prove_engine, signal_name
from orchestrator.engine.store import EXCLUDED, MANIFEST, check_engine, read_engine
from orchestrator.errors import EngineError
from orchestrator.shell.local import LocalShell
from orchestrator.shell.protocol import Finished
from tests.orchestrator.engine.fake_engine import BEST, NEXT, make_engine, runs


@pytest.fixture
def shell(tmp_path: Path) -> LocalShell:
    return LocalShell("desk", tmp_path / "root", tmp_path)


async def test_an_engine_that_computes_is_left_as_it_is(shell: LocalShell, tmp_path: Path) -> None:
    engine = make_engine(tmp_path / "engine", platform="linux-x86_64")

    assert await prove_engine(shell, str(engine.folder), engine.manifest, "a cpu") == engine.manifest
    assert read_engine(engine.folder) == engine
    assert (engine.folder / PROOFS).read_text() == f'[\n  {{\n    "device": "a cpu",\n    "loaded": "{BEST}"\n  }}\n]\n'
    assert not (engine.folder / ".smoke").exists()


@pytest.mark.parametrize("signal", ["ILL", "SEGV", "ABRT"])
async def test_a_library_whose_code_crashes_is_taken_out_and_the_manifest_says_so(
    shell: LocalShell, tmp_path: Path, signal: str
) -> None:
    engine = make_engine(tmp_path / "engine", crashing=(BEST,), signal=signal, platform="linux-x86_64")

    proven = await prove_engine(shell, str(engine.folder), engine.manifest, "a cpu")

    assert proven == engine.manifest.without(BEST)
    assert proven.excluded == (BEST,)
    assert read_engine(engine.folder).manifest == proven
    assert (engine.folder / EXCLUDED / BEST).is_file()
    assert not (engine.folder / BEST).exists()
    assert check_engine(read_engine(engine.folder)) == ()
    assert NEXT in (engine.folder / PROOFS).read_text()
    assert runs(engine) == 2


async def test_a_driver_that_ends_programs_costs_no_library_of_the_cpu(shell: LocalShell, tmp_path: Path) -> None:
    engine = make_engine(tmp_path / "engine", signal="SEGV", platform="linux-x86_64", gpu_crashes=True)

    with pytest.raises(
        EngineError,
        match=r"^desk: the engine cannot compute there with its library for vulkan: it was ended by SIGSEGV; without",
    ):
        await prove_engine(shell, str(engine.folder), engine.manifest, "a cpu")

    assert read_engine(engine.folder) == engine
    assert check_engine(engine) == ()
    assert not (engine.folder / PROOFS).exists()


async def test_beside_a_driver_that_ends_programs_a_crashing_library_is_found_first(
    shell: LocalShell, tmp_path: Path
) -> None:
    """Both are put back: what the CPU's engine does with that library is a question of its own."""
    engine = make_engine(
        tmp_path / "engine", crashing=(BEST,), signal="SEGV", platform="linux-x86_64", gpu_crashes=True
    )
    with pytest.raises(EngineError, match="without it, it can"):
        await prove_engine(shell, str(engine.folder), engine.manifest, "a cpu")
    assert check_engine(read_engine(engine.folder)) == ()
    assert read_engine(engine.folder) == engine


async def test_the_proof_is_made_once_per_processor(shell: LocalShell, tmp_path: Path) -> None:
    engine = make_engine(tmp_path / "engine", platform="linux-x86_64")
    for cpu_name in ("a cpu", "a cpu", "another cpu", "a cpu"):
        await prove_engine(shell, str(engine.folder), engine.manifest, cpu_name)
    assert runs(engine) == 2
    await prove_engine(shell, str(engine.folder), engine.manifest, "a cpu", again=True)
    assert runs(engine) == 3


async def test_an_engine_that_crashes_with_every_library_is_an_error_and_stays_as_it_was(
    shell: LocalShell, tmp_path: Path
) -> None:
    engine = make_engine(tmp_path / "engine", crashing=(BEST, NEXT), platform="linux-x86_64")

    with pytest.raises(
        EngineError, match=r"^desk: the engine cannot compute there: it ended with exit status 1$"
    ) as caught:
        await prove_engine(shell, str(engine.folder), engine.manifest, "a cpu")

    assert caught.value.details == "no CPU backend found"
    assert read_engine(engine.folder) == engine
    assert check_engine(engine) == ()
    assert not (engine.folder / PROOFS).exists()
    assert not (engine.folder / ".smoke").exists()


async def test_a_worker_program_that_does_not_start_is_an_error(shell: LocalShell, tmp_path: Path) -> None:
    engine = make_engine(tmp_path / "engine", platform="linux-x86_64")
    (engine.folder / "ggml-rpc-server").write_text("#!/bin/sh\necho libgomp.so.1 is missing >&2\nexit 127\n")

    with pytest.raises(EngineError, match="ggml-rpc-server ended with status 127") as caught:
        await prove_engine(shell, str(engine.folder), engine.manifest, "a cpu")
    assert caught.value.details == "libgomp.so.1 is missing"


async def test_proofs_that_cannot_be_read_are_made_anew(shell: LocalShell, tmp_path: Path) -> None:
    engine = make_engine(tmp_path / "engine", platform="linux-x86_64")
    (engine.folder / PROOFS).write_text("nonsense")
    await prove_engine(shell, str(engine.folder), engine.manifest, "a cpu")
    assert "a cpu" in (engine.folder / PROOFS).read_text()
    assert (engine.folder / MANIFEST).read_bytes() == engine.manifest.to_json()


@pytest.mark.parametrize(
    ("status", "name"),
    [
        (0, None),
        (1, None),
        (127, None),
        (-4, "SIGILL"),
        (132, "SIGILL"),
        (-11, "SIGSEGV"),
        (134, "SIGABRT"),
        (255, None),
    ],
)
def test_a_status_tells_the_signal_that_ended_a_program(status: int, name: str | None) -> None:
    assert signal_name(status) == name


def test_the_loaded_library_is_read_from_what_the_engine_says() -> None:
    said = (
        b"load_backend: loaded RPC backend from /e/libggml-rpc.so\n"
        b"load_backend: loaded CPU backend from /a b/libggml-cpu-haswell.so\nmore"
    )
    assert loaded_library(said) == "libggml-cpu-haswell.so"
    assert loaded_library(b"nothing") == ""


@pytest.mark.parametrize(
    ("stdout", "problem"),
    [
        (b"[]", "it should have measured 6 speeds and said []"),
        (b'[{"avg_ts": NaN}]', "it should have measured 6 speeds and said [nan]"),
        (b"[{}]", "its answer cannot be read (KeyError('avg_ts'))"),
    ],
)
def test_answers_without_all_speeds_are_a_problem(stdout: bytes, problem: str) -> None:
    assert compute_problem(Finished(0, stdout, b"")) == problem
