from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.engine.own import check_own, prove_own
from orchestrator.engine.store import MANIFEST, Engine, describe_file
from orchestrator.errors import EngineError
from orchestrator.host_door import ensure_agent
from orchestrator.shell.local import LocalShell
from tests.orchestrator.engine.fake_engine import BEST, make_engine
from workers.engine import PROGRAMS


@pytest.fixture
def shell(tmp_path: Path) -> LocalShell:
    return LocalShell("pi", tmp_path / "root", tmp_path)


@pytest.fixture
async def agent(shell: LocalShell) -> str:
    return await ensure_agent(shell)


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    """A folder with every program, of the commit "abc"."""
    return with_programs(make_engine(tmp_path / "own", platform="linux-x86_64"))


def with_programs(engine: Engine) -> Engine:
    for name in set(PROGRAMS) - {file.path for file in engine.manifest.files}:
        (engine.folder / name).write_text("#!/bin/sh\n")
    paths = sorted(path for path in engine.folder.iterdir() if path.name != MANIFEST)
    manifest = replace(engine.manifest, files=tuple(describe_file(engine.folder, path) for path in paths))
    (engine.folder / MANIFEST).write_bytes(manifest.to_json())
    return Engine(engine.folder, manifest)


def state(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


async def test_an_engine_of_the_users_own_is_accepted_and_proven_without_a_change(
    shell: LocalShell, agent: str, engine: Engine, tmp_path: Path
) -> None:
    before = state(engine.folder)
    assert await check_own(shell, agent, str(engine.folder), "abc") == engine.manifest
    await prove_own(shell, str(engine.folder))
    assert state(engine.folder) == before
    assert list((tmp_path / "root" / "engines").iterdir()) == []


async def test_one_of_another_commit_is_refused_with_both(shell: LocalShell, agent: str, engine: Engine) -> None:
    with pytest.raises(EngineError) as caught:
        await check_own(shell, agent, str(engine.folder), "def")
    assert str(caught.value) == (f"pi: the engine in {engine.folder} is of llama.cpp commit abc, the cluster runs def")
    assert caught.value.hint == "put one of def there, or remove `engine` of pi: it then gets one"


async def test_a_folder_without_a_manifest_is_told_what_is_meant(shell: LocalShell, agent: str, tmp_path: Path) -> None:
    with pytest.raises(
        EngineError, match=rf"pi: {tmp_path} is no engine's folder: there is no .*/manifest\.json"
    ) as caught:
        await check_own(shell, agent, str(tmp_path), "abc")
    assert "meshctl engine path" in caught.value.hint


async def test_one_that_is_not_whole_or_lacks_a_program_is_refused(
    shell: LocalShell, agent: str, engine: Engine, tmp_path: Path
) -> None:
    (engine.folder / BEST).write_text("changed")
    with pytest.raises(EngineError, match=f"is not whole: {BEST} has changed"):
        await check_own(shell, agent, str(engine.folder), "abc")
    bare = make_engine(tmp_path / "bare", platform="linux-x86_64")
    with pytest.raises(EngineError, match=r"is not whole: it lacks .*llama-server"):
        await check_own(shell, agent, str(bare.folder), "abc")


async def test_one_that_crashes_is_an_error_and_stays_as_it_is(shell: LocalShell, tmp_path: Path) -> None:
    engine = make_engine(tmp_path / "own", crashing=(BEST,), platform="linux-x86_64")
    before = state(engine.folder)
    with pytest.raises(EngineError, match=f"pi: the engine cannot compute there: it was ended by SIGILL, with {BEST}"):
        await prove_own(shell, str(engine.folder))
    assert {path: data for path, data in state(engine.folder).items() if path in before} == before
