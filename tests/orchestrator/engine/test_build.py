import asyncio
import os
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest

from orchestrator.engine import build
from orchestrator.engine.store import Engine, check_engine, find_engine, known_backend
from orchestrator.errors import EngineError
from workers.build_tools import BuildTools
from workers.engine import PROGRAMS, RECIPES, SOURCE, engine_id

Seen = list[tuple[str, int, int]]

FIELDS = [field.name for field in fields(BuildTools)]

_CMAKE = "#!/bin/sh\necho configured\n"
_NINJA = """#!/bin/sh
mkdir -p "$2/bin"
echo started >>"{marks}"
echo "[1/2] Building CXX object a.o"
{middle}
for name in {programs} libggml.so libllama.so.0; do echo "GLIBC_2.17 GLIBC_2.34 $name" >"$2/bin/$name"; done
echo "[2/2] Linking CXX executable llama-server"
"""


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache folder that has the source already."""
    (tmp_path / "cache" / "sources" / SOURCE.digest / "llama.cpp").mkdir(parents=True)
    return tmp_path / "cache"


@pytest.fixture
def use_tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Let scripts stand for cmake and ninja; gives the file with one line per start of ninja."""

    def use(middle: str) -> Path:
        marks = tmp_path / "marks"
        ninja = _NINJA.format(marks=marks, middle=middle, programs=" ".join(PROGRAMS))
        for name, text in (("cmake", _CMAKE), ("ninja", ninja)):
            (tmp_path / name).write_text(text)
            (tmp_path / name).chmod(0o755)
        monkeypatch.setattr(build, "find_program", lambda name, variable: tmp_path / name)
        monkeypatch.setattr(build, "openmp_runtime", list)
        return marks

    return use


async def build_cpu(cache: Path, seen: Seen, *, again: bool = False) -> Engine:
    async with asyncio.timeout(60):
        return await build.build_engine(cache, RECIPES["cpu"], lambda *step: seen.append(step), again=again)


def left_in(cache: Path) -> list[str]:
    return sorted(path.name for path in (cache / "engines").iterdir())


async def test_a_build_shows_its_steps_and_ends_as_one_whole_folder(
    cache: Path, use_tools: Callable[[str], Path]
) -> None:
    use_tools("")
    seen: Seen = []

    engine = await build_cpu(cache, seen)

    assert list(dict.fromkeys(title for title, _, _ in seen)) == [
        "Fetch the engine's source",
        "Configure the engine",
        "Compile the engine",
        "Collect the engine",
    ]
    assert [step[1:] for step in seen if step[0] == "Compile the engine"] == [(1, 2), (2, 2)]
    assert [file.path for file in engine.manifest.files] == sorted((*PROGRAMS, "libggml.so", "libllama.so.0"))
    assert (engine.manifest.libc, engine.manifest.excluded) == ("glibc 2.34", ())
    assert find_engine(cache, "cpu", build.local_platform()) == engine
    assert check_engine(engine) == ()
    name = engine.manifest.engine
    assert left_in(cache) == [name, f"{name}.install.lock", f"{name}.log"]


async def test_an_engine_that_is_there_is_built_again_only_when_asked(
    cache: Path, use_tools: Callable[[str], Path]
) -> None:
    marks = use_tools("")
    first = await build_cpu(cache, [])
    assert await build_cpu(cache, []) == first
    assert len(marks.read_text().splitlines()) == 1
    assert await build_cpu(cache, [], again=True) == first
    assert len(marks.read_text().splitlines()) == 2


async def test_a_second_build_waits_and_finds_the_finished_engine(
    cache: Path, use_tools: Callable[[str], Path]
) -> None:
    marks = use_tools("sleep 1")
    seen: Seen = []
    first, second = await asyncio.gather(build_cpu(cache, []), build_cpu(cache, seen))
    assert first == second
    assert len(marks.read_text().splitlines()) == 1
    assert seen[0] == ("Wait for another build of this engine", 0, 0)


async def test_a_failed_build_shows_the_end_of_its_log_and_leaves_only_that(
    cache: Path, use_tools: Callable[[str], Path]
) -> None:
    use_tools("echo 'x.cpp:3: error: no such thing'; exit 2")
    with pytest.raises(EngineError, match=r"^compiling the engine failed with exit status 2$") as caught:
        await build_cpu(cache, [])
    assert caught.value.details == "configured\n[1/2] Building CXX object a.o\nx.cpp:3: error: no such thing"
    name = engine_id(RECIPES["cpu"], build.local_platform())
    assert left_in(cache) == [f"{name}.install.lock", f"{name}.log"]
    assert str(cache / "engines" / f"{name}.log") in caught.value.hint


async def test_a_cancelled_build_ends_its_processes_and_leaves_no_folder(
    cache: Path, tmp_path: Path, use_tools: Callable[[str], Path]
) -> None:
    use_tools(f"echo $$ >{tmp_path}/pid; echo '[1/2] Still at it'; sleep 600")
    reached = asyncio.Event()

    def on_progress(title: str, done: int, total: int) -> None:
        if (tmp_path / "pid").exists():
            reached.set()

    task = asyncio.create_task(build.build_engine(cache, RECIPES["cpu"], on_progress))
    async with asyncio.timeout(60):
        await reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
    assert not [name for name in left_in(cache) if name.startswith(".")]


async def test_a_build_that_lacks_a_program_is_an_error(cache: Path, use_tools: Callable[[str], Path]) -> None:
    use_tools("exit 0")
    with pytest.raises(EngineError, match="the build has no ggml-rpc-server"):
        await build_cpu(cache, [])


async def test_a_gpus_engine_is_the_cpus_with_one_library_more(
    cache: Path, use_tools: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CPU's is built first where it is not there; one that was taken out of it is whole in the other."""
    monkeypatch.setattr(build, "lacking_here", lambda recipe: ())
    marks = use_tools('echo "code of shaders" >"$2/bin/libggml-vulkan.so"')
    engine = await build.build_engine(cache, RECIPES["vulkan"], lambda *step: None)
    cpu = find_engine(cache, "cpu", build.local_platform())
    assert cpu is not None
    assert marks.read_text().splitlines() == ["started", "started"]
    assert engine.manifest.backend == "vulkan"
    assert {file.path for file in engine.manifest.files} == {
        *(file.path for file in cpu.manifest.files),
        "libggml-vulkan.so",
    }
    assert {file for file in engine.manifest.files if file.path != "libggml-vulkan.so"} <= set(cpu.manifest.files)
    assert check_engine(engine) == ()
    assert await build.build_engine(cache, RECIPES["vulkan"], lambda *step: None) == engine
    assert len(marks.read_text().splitlines()) == 2


async def test_a_gpus_engine_without_its_library_is_an_error(
    cache: Path, use_tools: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "lacking_here", lambda recipe: ())
    use_tools("")
    with pytest.raises(EngineError, match="the build has no libggml-cuda"):
        await build.build_engine(cache, RECIPES["cuda"], lambda *step: None)
    assert find_engine(cache, "cuda", build.local_platform()) is None


async def test_what_a_gpus_backend_lacks_here_is_named_before_anything_is_built(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(build, "build_tools", lambda: dict.fromkeys(FIELDS, ""))
    with pytest.raises(EngineError) as caught:
        await build.build_engine(cache, RECIPES["vulkan"], lambda *step: None)
    assert str(caught.value) == (
        "the vulkan engine cannot be built on this machine: no glslc, which compiles Vulkan's shaders; no Vulkan "
        "headers; no Vulkan loader to link with; no SPIR-V headers"
    )
    assert caught.value.hint == "install the Vulkan SDK (https://vulkan.lunarg.com)"
    assert not (cache / "engines").exists()


def test_a_backend_that_nobody_knows_is_an_error() -> None:
    with pytest.raises(EngineError, match="there is no backend 'tpu'") as caught:
        known_backend("tpu")
    assert caught.value.hint == "choose one of: cpu, cuda, metal, vulkan"


@pytest.mark.parametrize(
    ("tool", "hint"),
    [
        ("apt-get", "apt install build-essential"),
        ("dnf", "dnf install gcc-c++"),
        ("pacman", "pacman -S base-devel"),
        ("xcode-select", "xcode-select --install"),
        ("something", "install a C++ compiler such as g++ or clang++"),
    ],
)
def test_a_missing_compiler_names_the_package_to_install(tmp_path: Path, tool: str, hint: str) -> None:
    (tmp_path / tool).write_text("#!/bin/sh\n")
    (tmp_path / tool).chmod(0o755)
    with pytest.raises(EngineError, match=r"this machine has no C\+\+ compiler") as caught:
        build.check_compiler({"PATH": str(tmp_path)})
    assert caught.value.hint == hint
    build.check_compiler({"PATH": str(tmp_path), "CXX": "/opt/cxx"})


def test_links_among_libraries_become_files_so_that_a_copy_needs_none(tmp_path: Path) -> None:
    binaries = tmp_path / "bin"
    binaries.mkdir()
    for name in (*PROGRAMS, "libggml.so.0.25"):
        (binaries / name).write_text(name)
    (binaries / "libggml.so").symlink_to("libggml.so.0.25")

    build.collect_engine(binaries, tmp_path / "cpu-x", RECIPES["cpu"])

    assert not any(path.is_symlink() for path in (tmp_path / "cpu-x").iterdir())
    assert (tmp_path / "cpu-x" / "libggml.so").read_text() == "libggml.so.0.25"


def test_the_real_cmake_and_ninja_are_found() -> None:
    assert os.access(build.find_program("cmake", "CMAKE_BIN_DIR"), os.X_OK)
    assert os.access(build.find_program("ninja", "BIN_DIR"), os.X_OK)


def test_a_program_that_is_nowhere_is_an_error_that_says_how_to_get_it() -> None:
    with pytest.raises(EngineError, match="no-such-program is missing"):
        build.find_program("no-such-program", "BIN_DIR")
