import asyncio
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.engine.host_build import check_room
from orchestrator.engine.install import (
    Installed,
    ensure_on_host,
    foresee,
    misfit,
    pack_engine,
    prove_here,
    whole_manifest,
)
from orchestrator.engine.store import EXCLUDED, INSTALL_LOCK, MANIFEST, Engine, read_engine
from orchestrator.errors import EngineError
from orchestrator.host_agent import host_lock
from orchestrator.report import Progress
from orchestrator.shell.local import LocalShell
from orchestrator.view.sizes import bytes_text
from tests.orchestrator.engine.conftest import Heard, OfferOf
from tests.orchestrator.engine.fake_engine import BEST, make_engine, runs
from workers.agent import hold_item
from workers.facts import HostFacts


class Bring:
    """`ensure_on_host` for the host of these tests."""

    def __init__(self, there: LocalShell, facts: HostFacts, agent: str, offer_of: OfferOf, heard: Heard) -> None:
        self.there, self.facts, self.agent, self.offer_of, self.heard = there, facts, agent, offer_of, heard

    async def __call__(self, engine: Engine) -> Installed:
        return await ensure_on_host(self.there, self.facts, self.agent, self.offer_of(engine), self.heard)

    async def foresee(self, engine: Engine) -> str:
        return await foresee(self.there, self.facts, self.agent, self.offer_of(engine), None)


@pytest.fixture
def engine(fake_engine: Engine) -> Engine:
    """The controller's."""
    return fake_engine


@pytest.fixture
def bring(there: LocalShell, facts: HostFacts, agent: str, offer_of: OfferOf, heard: Heard) -> Bring:
    return Bring(there, facts, agent, offer_of, heard)


async def test_a_host_without_the_engine_gets_all_of_it_and_computes(
    there: LocalShell, engine: Engine, bring: Bring, heard: Heard
) -> None:
    size_text = bytes_text(engine.manifest.size_bytes)
    assert await bring.foresee(engine) == f"cpu-test-0123 will be sent ({size_text})"
    installed = await bring(engine)
    folder, size = f"{there.root}/engines/cpu-test-0123", (await pack_engine(engine)).stat().st_size
    assert replace(installed, seconds=0) == Installed(folder, "sent", size)
    assert installed.seconds > 0
    assert read_engine(Path(folder)).manifest == engine.manifest
    assert runs(Engine(Path(folder), engine.manifest)) == 1
    assert heard.figures[-1] == Progress("there", size, size, "bytes")
    names = sorted(path.name for path in Path(folder).parent.iterdir())
    assert names == ["cpu-test-0123", "cpu-test-0123.install.lock", "cpu-test-0123.lock", "runs"]


async def test_a_host_that_has_the_engine_is_sent_nothing(engine: Engine, bring: Bring, heard: Heard) -> None:
    folder = (await bring(engine)).folder
    heard.figures.clear()
    assert await bring.foresee(engine) == "cpu-test-0123 is there"
    assert replace(await bring(engine), seconds=0) == Installed(folder, "there")
    assert heard.figures == []
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
    engine: Engine, bring: Bring, heard: Heard, name: str, content: str, what: str
) -> None:
    folder = Path((await bring(engine)).folder)
    (folder / name).write_text(content)
    assert (await bring(engine)).how == "sent"
    assert heard.warnings == [f"there: the engine there is damaged and is put there anew: {what}"]
    assert (folder / BEST).read_text() == f"code of {BEST}"
    assert read_engine(folder).manifest == engine.manifest
    assert not (folder / "libggml-cpu-added.so").exists()
    assert (await bring(engine)).how == "there"
    assert len(heard.warnings) == 1


async def test_a_damaged_archive_here_is_packed_again(engine: Engine) -> None:
    archive = await pack_engine(engine)
    whole = archive.read_bytes()
    archive.write_bytes(whole[:-20] + bytes(20))
    assert (await pack_engine(engine)).read_bytes() == whole


async def test_another_build_of_the_same_recipe_on_a_host_is_replaced_unless_it_serves(
    tmp_path: Path, engine: Engine, bring: Bring, heard: Heard
) -> None:
    folder = Path((await bring(engine)).folder)
    rebuilt = make_engine(
        tmp_path / "again" / "cpu-test-0123", crashing=("nothing",), platform=engine.manifest.platform
    )
    serving = hold_item(str(folder))
    assert (await bring(rebuilt)).how == "there"
    assert read_engine(folder).manifest == engine.manifest
    assert heard.said == ["there: another controller's build of the same engine serves there: it is used as it is"]
    os.close(serving)
    assert (await bring(rebuilt)).how == "sent"
    assert read_engine(folder).manifest == rebuilt.manifest


async def test_an_engine_of_another_commit_never_stays(engine: Engine, bring: Bring) -> None:
    folder = Path((await bring(engine)).folder)
    other = replace(engine.manifest, commit="def", built_on_host=True)
    (folder / MANIFEST).write_bytes(other.to_json())
    serving = hold_item(str(folder))
    assert (await bring(engine)).how == "sent"
    os.close(serving)
    assert read_engine(folder).manifest == engine.manifest


async def test_libraries_taken_out_here_are_still_sent_and_those_taken_out_there_stay_out(
    tmp_path: Path, facts: HostFacts, bring: Bring
) -> None:
    engine = make_engine(tmp_path / "engines" / "cpu-test", crashing=(BEST,), platform=facts.platform)
    here = LocalShell("here", tmp_path / "root", tmp_path)
    proven = await prove_here(here, facts, engine)
    assert proven.manifest.excluded == (BEST,)
    assert whole_manifest(proven) == engine.manifest

    installed = await bring(proven)
    folder = Path(installed.folder)

    assert installed.excluded == (BEST,)
    assert (folder / EXCLUDED / BEST).is_file()
    assert read_engine(folder).manifest == proven.manifest
    assert (await bring(proven)).excluded == (BEST,)
    assert runs(Engine(folder, proven.manifest)) == 2


async def test_two_names_of_one_machine_install_one_after_the_other(engine: Engine, bring: Bring, heard: Heard) -> None:
    async with asyncio.timeout(60):
        installed = await asyncio.gather(*(bring(engine) for _ in range(3)))
    assert sorted(one.how for one in installed) == ["sent", "there", "there"]
    assert runs(Engine(Path(installed[0].folder), engine.manifest)) == 1
    assert set(heard.said) == {"there: another meshctl is putting the engine there; waiting for it"}


async def test_a_whole_engine_is_found_while_another_controller_holds_its_lock(
    there: LocalShell, agent: str, engine: Engine, bring: Bring, heard: Heard
) -> None:
    folder = (await bring(engine)).folder
    nobody = lambda: pytest.fail("nobody else holds it")  # noqa: E731
    async with host_lock(there, agent, folder + INSTALL_LOCK, nobody), asyncio.timeout(20):
        assert (await bring(engine)).how == "there"
    assert heard.said == []


CONTROLLER = """
import asyncio, sys
from pathlib import Path
from orchestrator.engine.offer import Offer
from orchestrator.engine.install import ensure_on_host
from orchestrator.engine.store import read_engine
from orchestrator.host_agent import ask_facts
from orchestrator.host_door import ensure_agent
from orchestrator.report import silent
from orchestrator.shell.local import LocalShell
from orchestrator.view.sizes import bytes_text
from workers.engine import Recipe

async def main(home, engine):
    shell = LocalShell("there", home / "root", home)
    shell.is_local = False
    agent = await ensure_agent(shell)
    offer = Offer(Recipe("cpu", ()), None, read_engine(engine))
    installed = await ensure_on_host(shell, await ask_facts(shell, agent), agent, offer, silent())
    print(installed.how)

asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2])))
"""


async def test_two_controllers_at_once_leave_one_whole_engine(tmp_path: Path, engine: Engine, bring: Bring) -> None:
    """Real processes, each with a cache of its own, and a third that is killed while it is at it."""
    home = tmp_path / "there"

    async def controller(number: int) -> asyncio.subprocess.Process:
        own = tmp_path / f"cache{number}" / engine.folder.name
        shutil.copytree(engine.folder, own)
        words = (sys.executable, "-c", CONTROLLER, str(home), str(own))
        path = os.pathsep.join(sys.path)
        return await asyncio.create_subprocess_exec(
            *words, stdout=asyncio.subprocess.PIPE, env={**os.environ, "PYTHONPATH": path}
        )

    async with asyncio.timeout(60):
        killed, first, second = [await controller(number) for number in range(3)]
        while not (home / "root" / "engines").exists():
            await asyncio.sleep(0.01)
        killed.kill()
        answers = [(await process.communicate())[0].decode().strip() for process in (first, second)]
        await killed.communicate()
    assert [first.returncode, second.returncode] == [0, 0]
    assert set(answers) <= {"sent", "there"}
    assert "there" in answers
    assert replace(await bring(engine), seconds=0) == Installed(f"{home}/root/engines/cpu-test-0123", "there")


async def test_a_damaged_engine_on_the_controller_is_an_error_that_names_the_file(
    tmp_path: Path, facts: HostFacts, agent: str, engine: Engine, offer_of: OfferOf, heard: Heard
) -> None:
    (engine.folder / BEST).write_text(f"CODE of {BEST}")
    here = LocalShell("here", tmp_path / "root", tmp_path)
    with pytest.raises(EngineError, match=f"is damaged: {BEST} has changed"):
        await ensure_on_host(here, facts, agent, offer_of(engine), heard)


async def test_the_local_host_uses_the_folder_itself(
    tmp_path: Path, facts: HostFacts, agent: str, engine: Engine, offer_of: OfferOf, heard: Heard
) -> None:
    here = LocalShell("here", tmp_path / "root", tmp_path)
    installed = await ensure_on_host(here, facts, agent, offer_of(engine), heard)
    assert replace(installed, seconds=0) == Installed(str(engine.folder), "there")


async def test_the_archive_is_packed_once(engine: Engine) -> None:
    first = (await pack_engine(engine)).stat().st_mtime_ns
    assert (await pack_engine(engine)).stat().st_mtime_ns == first


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, ""),
        ({"os": "Darwin", "architecture": "arm64"}, "this machine's is for linux-x86_64, the host is darwin-arm64"),
        (
            {"libc": "glibc 2.31"},
            "this machine's does not run there, it needs glibc 2.34 or later, the host has glibc 2.31",
        ),
        ({"libc": "musl 1.2.4"}, "this machine's does not run there, it needs glibc, the host has musl 1.2.4"),
    ],
)
def test_why_a_host_cannot_run_the_build(
    facts: HostFacts, engine: Engine, offer_of: OfferOf, change: dict[str, str], message: str
) -> None:
    host = replace(facts, **{"os": "Linux", "architecture": "x86_64", "libc": "glibc 2.36", **change})  # type: ignore[arg-type]
    manifest = replace(engine.manifest, platform="linux-x86_64", libc="glibc 2.34")
    assert misfit(host, offer_of(Engine(engine.folder, manifest))) == message


def test_a_disk_too_small_for_the_engine_is_told_before_anything_is_sent(facts: HostFacts) -> None:
    small = replace(facts, root="/home/ada/.cache/meshctl", disk_free_bytes=40 * 2**20)
    check_room("pi", small, 40 * 2**20)
    with pytest.raises(EngineError) as caught:
        check_room("pi", small, 87 * 2**20)
    assert str(caught.value) == ("pi: the engine needs 87.0 MiB of disk in /home/ada/.cache/meshctl, 40.0 MiB are free")
    assert caught.value.hint == "free at least 87.0 MiB there"
