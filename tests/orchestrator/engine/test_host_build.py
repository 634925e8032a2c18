"""Building on a host: a small project of its own, with a real cmake, ninja and compiler, and a real smoke test."""

import asyncio
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.engine import host_build
from orchestrator.engine.archive import Member, packed
from orchestrator.engine.build import find_program
from orchestrator.engine.install import Installed, ensure_on_host, foresee
from orchestrator.engine.offer import Offer
from orchestrator.engine.store import Engine, check_engine, read_engine
from orchestrator.errors import EngineError
from orchestrator.host_agent import ask_facts
from orchestrator.host_door import ensure_agent
from orchestrator.shell.local import LocalShell
from tests.orchestrator.engine.conftest import Heard, MakeThere, OfferOf
from tests.workers.test_build_tools import ALL
from workers.agent import openmp_runtime, running_processes
from workers.build_tools import BuildTools
from workers.engine import RECIPES, SOURCE, Recipe
from workers.facts import Gpu, HostFacts

PROJECT = """\
cmake_minimum_required(VERSION 3.14)
project(standin C CXX)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
set(CMAKE_LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
add_library(ggml-cpu-only MODULE library.c)
add_executable(llama-bench bench.c)
add_executable(ggml-rpc-server worker.cpp)
add_executable(not-wanted missing.c)
add_dependencies(llama-bench ggml-cpu-only)
"""
BENCH = """\
#include <stdio.h>
int main(void) {
    fputs("load_backend: loaded CPU backend from /e/libggml-cpu-only.so\\n", stderr);
    for (int i = 0; i < 6; i++) printf("%s{\\"avg_ts\\": 1}%s", i ? ", " : "[", i == 5 ? "]\\n" : "");
    return 0;
}
"""
FILES = {
    "CMakeLists.txt": PROJECT,
    "bench.c": BENCH,
    "library.c": "int answer(void) { return 42; }\n",
    "worker.cpp": '#include <filesystem>\nint main() { return std::filesystem::exists("/") ? 0 : 1; }\n',
    "missing.c": "",
}
FLAGS = ("-DCMAKE_BUILD_TYPE=Release", "-DCMAKE_CXX_STANDARD=17")

MakeOffer = Callable[..., Offer]


@pytest.fixture
def engine(fake_engine: Engine) -> Engine:
    """The controller's."""
    return fake_engine


@pytest.fixture
def make_offer(tmp_path: Path, newer: Engine) -> MakeOffer:
    """Makes an offer of the project, in which some files are other than above."""

    def make(**changes: str) -> Offer:
        files = {**FILES, **{name.replace("_", "."): text for name, text in changes.items()}}
        members = [Member(name, text.encode()) for name, text in files.items()]
        recipe = Recipe("cpu", FLAGS, ("llama-bench", "ggml-rpc-server"))
        return Offer(recipe, lambda: packed(tmp_path / "source.tar.gz", members), newer)

    return make


@pytest.fixture
def newer(engine: Engine) -> Engine:
    """The controller's engine, which asks for a C library that no host has yet."""
    return Engine(engine.folder, replace(engine.manifest, libc="glibc 99.1", commit=SOURCE.commit))


@pytest.fixture
def misfit(facts: HostFacts) -> str:
    return f"this machine's does not run there, it needs glibc 99.1 or later, the host has {facts.libc}"


def left_there(there: LocalShell) -> list[str]:
    """Beside locks, which stay."""
    return sorted(path.name for path in Path(there.root, "engines").glob("*") if path.suffix != ".lock")


async def test_an_engine_that_does_not_run_there_is_built_there_once(
    there: LocalShell, agent: str, facts: HostFacts, newer: Engine, make_offer: MakeOffer, heard: Heard, misfit: str
) -> None:
    offer = make_offer()
    foreseen = await foresee(there, facts, agent, offer, None)
    assert foreseen.startswith("cpu-test-0123 will be built there with ")
    assert foreseen.endswith(f": {misfit}")

    installed = await ensure_on_host(there, facts, agent, offer, heard)

    folder, size = Path(there.root, "engines", "cpu-test-0123"), (await offer.pack()).stat().st_size
    assert replace(installed, seconds=0) == Installed(str(folder), "built", size)
    built = read_engine(folder)
    names = {"llama-bench", "ggml-rpc-server", "libggml-cpu-only.so", *map(os.path.basename, openmp_runtime())}
    assert {file.path for file in built.manifest.files} == names
    assert (built.manifest.built_on_host, built.manifest.commit) == (True, SOURCE.commit)
    assert built.manifest.libc.startswith("glibc 2.")
    assert check_engine(built) == ()
    compiled = [figures for figures in heard.figures if figures.label == "there: compiled"]
    assert compiled[-1].done == compiled[-1].total > 3
    assert left_there(there) == ["cpu-test-0123"]
    assert Path(there.root, "logs", "engine", "compiling.log").is_file()
    assert replace(await ensure_on_host(there, facts, agent, offer, heard), seconds=0) == Installed(
        str(folder), "there"
    )
    assert heard.warnings == []


async def test_make_will_do_where_there_is_no_ninja(
    make_there: MakeThere, newer: Engine, make_offer: MakeOffer, heard: Heard, tmp_path: Path
) -> None:
    if shutil.which("make") is None:
        pytest.skip("this machine has no make")
    path = folder_of_links(tmp_path / "path", "make")
    there = make_there(path)
    agent = await ensure_agent(there)
    facts = await ask_facts(there, agent)
    installed = await ensure_on_host(there, facts, agent, make_offer(), heard)
    assert installed.how == "built"
    assert heard.figures[-1].total == 100


async def test_all_that_a_bare_host_lacks_is_named_before_anything_is_sent(
    make_there: MakeThere, newer: Engine, offer_of: OfferOf, heard: Heard, tmp_path: Path
) -> None:
    path = folder_of_links(tmp_path / "path")
    for name in ("cmake", "cc", "c++", "ld", "as"):
        Path(path, name).unlink(missing_ok=True)
    Path(path, "apt-get").symlink_to("/bin/true")
    there = make_there(path)
    agent = await ensure_agent(there)
    facts = replace(await ask_facts(there, agent), user="ada")
    for work in (
        foresee(there, facts, agent, offer_of(newer), None),
        ensure_on_host(there, facts, agent, offer_of(newer), heard),
    ):
        with pytest.raises(EngineError) as caught:
            await work
        assert str(caught.value) == (
            "there: the engine has to be built there (this machine's does not run there, it needs glibc 99.1 or later, "
            f"the host has {facts.libc}), but: no cmake; no ninja or make; no C compiler; no C++ compiler"
        )
        assert caught.value.hint == "there: `sudo apt install cmake ninja-build g++`"
    assert left_there(there) == []
    assert heard.figures == []


@pytest.mark.parametrize("seen", [False, True])
async def test_a_toolkit_for_a_card_that_nobody_sees_is_not_the_first_thing_to_install(
    monkeypatch: pytest.MonkeyPatch,
    there: LocalShell,
    facts: HostFacts,
    newer: Engine,
    offer_of: OfferOf,
    seen: bool,
) -> None:
    async def without_toolkit(*_: object) -> BuildTools:
        return ALL

    monkeypatch.setattr(host_build, "ask_tools", without_toolkit)
    card = Gpu("cuda", 0, "a card", 8 * 1024**3, 8 * 1024**3)
    facts = replace(facts, gpus=(card,) if seen else ())
    offer = replace(offer_of(newer), recipe=RECIPES["cuda"], engine=None)
    with pytest.raises(EngineError, match="the engine has to be built there") as caught:
        await host_build.able_tools(there, "agent", facts, offer, "there is none here")
    first = "there: install the CUDA toolkit, cuBLAS with it"
    told = f"there shows no NVIDIA card: write `backend: auto` for it, or install the card's driver first; then {first}"
    assert caught.value.hint.startswith(first if seen else told)


async def test_a_build_that_fails_shows_the_compilers_words_and_keeps_only_its_log(
    there: LocalShell, agent: str, facts: HostFacts, newer: Engine, make_offer: MakeOffer, heard: Heard
) -> None:
    with pytest.raises(EngineError) as caught:
        await ensure_on_host(there, facts, agent, make_offer(bench_c="int main(void) { return nothing; }\n"), heard)
    assert str(caught.value).startswith("there: compiling the engine failed there: exit status ")
    assert "nothing" in caught.value.details
    assert caught.value.hint == f"the whole log is {there.root}/logs/engine/compiling.log on there"
    assert "nothing" in Path(there.root, "logs/engine/compiling.log").read_text()
    assert left_there(there) == []


async def test_a_build_whose_controller_leaves_ends_and_leaves_nothing(
    there: LocalShell, agent: str, facts: HostFacts, newer: Engine, make_offer: MakeOffer, heard: Heard, tmp_path: Path
) -> None:
    pid = tmp_path / "pid"
    slow = "add_custom_command(OUTPUT slow.c COMMAND sh ${CMAKE_SOURCE_DIR}/slow.sh)\n"
    project = PROJECT.replace("llama-bench bench.c", "llama-bench bench.c slow.c") + slow
    offer = make_offer(CMakeLists_txt=project, slow_sh=f"echo $$ > {pid}.new; mv {pid}.new {pid}; exec sleep 99\n")
    task = asyncio.create_task(ensure_on_host(there, facts, agent, offer, heard))
    async with asyncio.timeout(60):
        while not pid.exists():
            await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert int(pid.read_text()) not in running_processes()
    assert left_there(there) == []


def folder_of_links(folder: Path, *more: str) -> str:
    """A search path with what a host has at least, cmake, a compiler, and these programs."""
    folder.mkdir()
    (folder / "python3").symlink_to(os.path.realpath(sys.executable))  # one on the path may be a script of others
    names = (
        "env",
        "sh",
        "cat",
        "rm",
        "mkdir",
        "mv",
        "uname",
        "cc",
        "c++",
        "ld",
        "as",
        "ar",
        "ranlib",
        *more,
    )
    for name in names:
        found = shutil.which(name)
        if found is not None:
            (folder / name).symlink_to(found)
    (folder / "cmake").symlink_to(find_program("cmake", "CMAKE_BIN_DIR"))
    return str(folder)
