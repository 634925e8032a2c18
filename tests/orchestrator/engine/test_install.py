import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.engine.install import check_fits, check_room, ensure_on_host, pack_engine, prove_here, whole_manifest
from orchestrator.engine.store import EXCLUDED, Engine, read_engine
from orchestrator.errors import EngineError
from orchestrator.host_agent import ask_facts, ensure_agent
from orchestrator.shell.local import LocalShell
from tests.orchestrator.engine.fake_engine import BEST, make_engine, runs
from workers.facts import HostFacts


def ignore(done: int, total: int) -> None:
    """Progress that nobody watches."""


@pytest.fixture
def there(tmp_path: Path) -> LocalShell:
    """A host that is not the controller: the same machine with a root of its own."""
    home = tmp_path / "there"
    home.mkdir()
    shell = LocalShell("there", home / "root", home)
    shell.is_local = False
    return shell


@pytest.fixture
async def agent(there: LocalShell) -> str:
    return await ensure_agent(there)


@pytest.fixture
async def facts(there: LocalShell, agent: str) -> HostFacts:
    return await ask_facts(there, agent)


@pytest.fixture
def engine(tmp_path: Path, facts: HostFacts) -> Engine:
    return make_engine(tmp_path / "engines" / "cpu-test-0123", platform=facts.platform)


async def test_a_host_without_the_engine_gets_all_of_it_and_computes(
    there: LocalShell, agent: str, facts: HostFacts, engine: Engine
) -> None:
    seen: list[tuple[int, int]] = []

    folder = await ensure_on_host(there, facts, agent, engine, lambda done, total: seen.append((done, total)))

    assert folder == f"{there.root}/engines/cpu-test-0123"
    assert read_engine(Path(folder)).manifest == engine.manifest
    assert runs(Engine(Path(folder), engine.manifest)) == 1
    size = (engine.folder.parent / "cpu-test-0123.tar.gz").stat().st_size
    assert seen[-1] == (size, size)
    assert not Path(f"{folder}.tar.gz").exists()


async def test_a_host_that_has_the_engine_is_sent_nothing(
    there: LocalShell, agent: str, facts: HostFacts, engine: Engine
) -> None:
    folder = await ensure_on_host(there, facts, agent, engine, ignore)
    seen: list[int] = []
    assert await ensure_on_host(there, facts, agent, engine, lambda done, total: seen.append(done)) == folder
    assert seen == []
    assert runs(Engine(Path(folder), engine.manifest)) == 1


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        (BEST, f"Code of {BEST}", f"{BEST} has changed"),
        (BEST, "short", f"{BEST} has changed"),
        ("libggml-cpu-added.so", "code that would be loaded", "libggml-cpu-added.so does not belong there"),
        ("manifest.json", "{}", "manifest.json cannot be read"),
    ],
)
async def test_a_damaged_engine_on_a_host_is_put_there_anew_before_it_runs(
    there: LocalShell, agent: str, facts: HostFacts, engine: Engine, name: str, content: str, what: str
) -> None:
    folder = Path(await ensure_on_host(there, facts, agent, engine, ignore))
    (folder / name).write_text(content)
    told: list[str] = []
    await ensure_on_host(there, facts, agent, engine, ignore, told.append)
    assert told == [f"there: the engine there is damaged and is put there anew: {what}"]
    assert (folder / BEST).read_text() == f"code of {BEST}"
    assert read_engine(folder).manifest == engine.manifest
    assert not (folder / "libggml-cpu-added.so").exists()
    await ensure_on_host(there, facts, agent, engine, ignore, told.append)
    assert len(told) == 1


async def test_a_damaged_archive_here_is_packed_again(engine: Engine) -> None:
    archive = await pack_engine(engine)
    whole = archive.read_bytes()
    archive.write_bytes(whole[:-20] + bytes(20))
    (await pack_engine(engine)).read_bytes()
    assert len(archive.read_bytes()) == pytest.approx(len(whole), abs=100)
    assert archive.read_bytes()[-20:] != bytes(20)


async def test_another_build_of_the_same_recipe_on_a_host_is_replaced(
    tmp_path: Path, there: LocalShell, agent: str, facts: HostFacts, engine: Engine
) -> None:
    await ensure_on_host(there, facts, agent, engine, ignore)
    rebuilt = make_engine(
        tmp_path / "again" / "cpu-test-0123", crashing=("nothing",), platform=engine.manifest.platform
    )
    folder = Path(await ensure_on_host(there, facts, agent, rebuilt, ignore))
    assert read_engine(folder).manifest == rebuilt.manifest


async def test_libraries_taken_out_here_are_still_sent_and_those_taken_out_there_stay_out(
    tmp_path: Path, there: LocalShell, agent: str, facts: HostFacts
) -> None:
    engine = make_engine(tmp_path / "engines" / "cpu-test", crashing=(BEST,), platform=facts.platform)
    here = LocalShell("here", tmp_path / "root", tmp_path)
    proven = await prove_here(here, facts, engine)
    assert proven.manifest.excluded == (BEST,)
    assert whole_manifest(proven) == engine.manifest

    folder = Path(await ensure_on_host(there, facts, agent, proven, ignore))

    assert (folder / EXCLUDED / BEST).is_file()
    assert read_engine(folder).manifest == proven.manifest
    await ensure_on_host(there, facts, agent, proven, ignore)
    assert runs(Engine(folder, proven.manifest)) == 2


async def test_two_names_of_one_machine_install_one_after_the_other(
    there: LocalShell, agent: str, facts: HostFacts, engine: Engine
) -> None:
    async with asyncio.timeout(60):
        folders = await asyncio.gather(*(ensure_on_host(there, facts, agent, engine, ignore) for _ in range(3)))
    assert len(set(folders)) == 1
    assert runs(Engine(Path(folders[0]), engine.manifest)) == 1


async def test_a_damaged_engine_on_the_controller_is_an_error_that_names_the_file(
    tmp_path: Path, facts: HostFacts, agent: str, engine: Engine
) -> None:
    (engine.folder / BEST).write_text(f"CODE of {BEST}")
    here = LocalShell("here", tmp_path / "root", tmp_path)
    with pytest.raises(EngineError, match=f"is damaged: {BEST} has changed"):
        await ensure_on_host(here, facts, agent, engine, ignore)


async def test_the_local_host_uses_the_folder_itself(
    tmp_path: Path, facts: HostFacts, agent: str, engine: Engine
) -> None:
    here = LocalShell("here", tmp_path / "root", tmp_path)
    assert await ensure_on_host(here, facts, agent, engine, ignore) == str(engine.folder)


async def test_the_archive_is_packed_once(engine: Engine) -> None:
    first = (await pack_engine(engine)).stat().st_mtime_ns
    assert (await pack_engine(engine)).stat().st_mtime_ns == first


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"os": "Darwin", "architecture": "arm64"}, "linux-x86_64, the host is darwin-arm64"),
        ({"libc": "glibc 2.31"}, "it needs glibc 2.34 or later, the host has glibc 2.31"),
        ({"libc": "musl 1.2.4"}, "it needs glibc, the host has musl 1.2.4"),
    ],
)
def test_hosts_that_cannot_run_the_build_are_refused(
    facts: HostFacts, engine: Engine, change: dict[str, str], message: str
) -> None:
    host = replace(facts, **{"os": "Linux", "architecture": "x86_64", "libc": "glibc 2.36", **change})  # type: ignore[arg-type]
    manifest = replace(engine.manifest, platform="linux-x86_64", libc="glibc 2.34")
    with pytest.raises(EngineError, match=message) as caught:
        check_fits("pi", host, manifest)
    assert "building on the host comes in a later version" in caught.value.hint


def test_a_disk_too_small_for_the_engine_is_told_before_anything_is_sent(facts: HostFacts) -> None:
    small = replace(facts, root="/home/ada/.cache/meshctl", disk_free_bytes=40 * 2**20)
    check_room("pi", small, 40 * 2**20)
    with pytest.raises(EngineError) as caught:
        check_room("pi", small, 87 * 2**20)
    assert str(caught.value) == ("pi: the engine needs 87.0 MiB of disk in /home/ada/.cache/meshctl, 40.0 MiB are free")
    assert caught.value.hint == "free at least 87.0 MiB there"
