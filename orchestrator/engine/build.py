"""Build the engine on this machine: fetch, configure, compile, collect, and move the result into place whole.

One build of an engine runs at a time; whoever waits then finds it finished. A failed build leaves only its log.
"""

import asyncio
import importlib
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from orchestrator.engine.lock import exclusive
from orchestrator.engine.logged import log_tail, run_logged
from orchestrator.engine.source import fetch_source
from orchestrator.engine.store import (
    EXCLUDED,
    FAILED,
    INSTALL_LOCK,
    MANIFEST,
    Engine,
    beside,
    describe_file,
    engines_folder,
    find_built,
    read_engine,
)
from orchestrator.errors import EngineError
from workers.agent import (
    ask,
    build_tools,
    current_memory,
    find_nvcc,
    gpu_runtime,
    oldest_libc,
    openmp_runtime,
    read_version,
)
from workers.build_tools import BuildTools, cuda_words, gpu_hint, gpu_lacking, jobs_within, read_counter
from workers.engine import RECIPES, SOURCE, Manifest, Recipe, configure_flags, engine_id

BuildProgress = Callable[[str, int, int], None]
"""Called with (title of the step, done, in all); in all is 0 where nobody knows."""

_STEP_DEADLINE_S = 4 * 3600.0

_COMPILERS = ("c++", "g++", "clang++")
_COMPILER_PACKAGES = {
    "apt-get": "apt install build-essential",
    "dnf": "dnf install gcc-c++",
    "pacman": "pacman -S base-devel",
    "zypper": "zypper install gcc-c++",
    "apk": "apk add build-base",
    "xcode-select": "xcode-select --install",
}


async def build_engine(cache: Path, recipe: Recipe, on_progress: BuildProgress, *, again: bool = False) -> Engine:
    """The engine for this machine, built unless the cache has it (`again`: even then).

    That of a GPU's backend is the CPU's engine, which is built first, with one library more. EngineError: a tool is
    missing, the source cannot be fetched, or the build fails (its `details` are the end of the log).
    """
    here = local_platform()
    folder = engines_folder(cache) / engine_id(recipe, here)
    base = None
    if recipe.plugin and (again or find_built(cache, recipe, here) is None):
        check_tools(recipe)
        base = (await build_engine(cache, RECIPES["cpu"], on_progress)).folder
    engines_folder(cache).mkdir(parents=True, exist_ok=True)

    def on_wait() -> None:
        on_progress("Wait for another build of this engine", 0, 0)

    async with exclusive(beside(folder, INSTALL_LOCK), on_wait):
        found = find_built(cache, recipe, here)
        if found is not None and not again:
            return found
        check_compiler(os.environ)
        on_progress("Fetch the engine's source", 0, 0)
        tree = await fetch_source(cache)
        return await _build(tree, folder, recipe, base, on_progress)


def local_platform() -> str:
    """Such as "linux-x86_64"; the same words as `HostFacts.platform`."""
    return f"{platform.system().lower()}-{platform.machine()}"


def check_compiler(environment: Mapping[str, str]) -> None:
    """EngineError that names the package to install when there is no C++ compiler."""
    search = environment.get("PATH")
    if environment.get("CXX") or any(shutil.which(name, path=search) for name in _COMPILERS):
        return
    found = (package for tool, package in _COMPILER_PACKAGES.items() if shutil.which(tool, path=search))
    install = next(found, "install a C++ compiler such as g++ or clang++")
    raise EngineError("the engine cannot be built: this machine has no C++ compiler", hint=install)


def lacking_here(recipe: Recipe) -> tuple[str, ...]:
    """What keeps this machine from building that engine, beside a compiler; empty when nothing does."""
    return gpu_lacking(_tools_here(), recipe, local_platform())


def check_tools(recipe: Recipe) -> None:
    """EngineError that names what this machine lacks to build that engine, and how to install it."""
    missing = lacking_here(recipe)
    if missing:
        raise EngineError(
            f"the {recipe.backend} engine cannot be built on this machine: {'; '.join(missing)}",
            hint=tools_hint(recipe),
        )


def tools_hint(recipe: Recipe) -> str:
    """How to install what is missing on this machine."""
    return gpu_hint(_tools_here(), recipe)


def _tools_here() -> BuildTools:
    """With the cmake that builds here, which need not be the system's."""
    tools = BuildTools(**build_tools())
    try:
        cmake = str(find_program("cmake", "CMAKE_BIN_DIR"))
    except EngineError:
        return tools
    return replace(tools, cmake=cmake, cmake_version=read_version(ask((cmake, "--version"))))


async def _build(tree: Path, folder: Path, recipe: Recipe, base: Path | None, on_progress: BuildProgress) -> Engine:
    log = beside(folder, ".log")
    log.unlink(missing_ok=True)
    temporary = folder.with_name(f".building-{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        targets = recipe.programs if base is None else (recipe.plugin,)
        await _compile(tree, temporary / "build", recipe, targets, log, on_progress)
        on_progress("Collect the engine", 0, 0)
        collected = temporary / folder.name
        manifest = await asyncio.to_thread(collect_engine, temporary / "build" / "bin", collected, recipe, base)
        move_into_place(collected, folder)
        beside(folder, FAILED).unlink(missing_ok=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Engine(folder, manifest)


async def _compile(
    tree: Path, build: Path, recipe: Recipe, targets: Sequence[str], log: Path, on_progress: BuildProgress
) -> None:
    environment = {**os.environ, "NINJA_STATUS": "[%f/%t] ", "LC_ALL": "C"}
    ninja = str(find_program("ninja", "BIN_DIR"))
    on_progress("Configure the engine", 0, 0)
    configure = configure_words(str(find_program("cmake", "CMAKE_BIN_DIR")), ninja, tree, build, recipe)
    await _run_step("configuring the engine", configure, log, environment, lambda line: None)

    def on_line(line: str) -> None:
        counter = read_counter(line)
        if counter:
            on_progress("Compile the engine", *counter)

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    jobs = jobs_within(cores, current_memory().available_bytes, recipe.backend)
    await _run_step(
        "compiling the engine", (ninja, "-C", str(build), "-j", str(jobs), *targets), log, environment, on_line
    )


def configure_words(cmake: str, ninja: str, tree: Path, build: Path, recipe: Recipe) -> tuple[str, ...]:
    """The cmake command that prepares `build` for the llama.cpp `tree`."""
    return (
        *(cmake, "-S", str(tree), "-B", str(build), "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"),
        *(cuda_words(find_nvcc(), recipe) if recipe.backend == "cuda" else ()),
        *configure_flags(recipe, local_platform()),
    )


async def _run_step(
    what: str, words: tuple[str, ...], log: Path, environment: Mapping[str, str], on_line: Callable[[str], None]
) -> None:
    try:
        async with asyncio.timeout(_STEP_DEADLINE_S):
            status = await run_logged(words, log, environment, on_line)
    except TimeoutError as error:
        raise EngineError(
            f"{what} was not done after {_STEP_DEADLINE_S / 3600:.0f} h",
            hint=f"the whole log is {log}",
            details=log_tail(log),
        ) from error
    if status != 0:
        raise EngineError(
            f"{what} failed with exit status {status}",
            hint=f"the whole log is {log}",
            details=log_tail(log),
        )


def find_program(name: str, folder_variable: str) -> Path:
    """cmake or ninja: beside this Python, else where the PyPI package of that name says, else on the search path."""
    beside = Path(sys.executable).parent / name
    if beside.is_file():
        return beside
    try:
        packaged = Path(getattr(importlib.import_module(name), folder_variable)) / name
    except (ImportError, AttributeError):
        packaged = None
    if packaged is not None and packaged.is_file():
        return packaged
    found = shutil.which(name)
    if found is None:
        raise EngineError(f"{name} is missing", hint=f"install it: {sys.executable} -m pip install {name}")
    return Path(found)


def collect_engine(binaries: Path, target: Path, recipe: Recipe, base: Path | None = None) -> Manifest:
    """Copy programs and shared libraries of a build into the new folder `target` and write its manifest.

    With a `base`, which is the CPU's engine, only its backend's own library comes from the build.
    """
    target.mkdir(parents=True)
    for source in _parts(binaries, recipe) if base is None else _parts_on(base, binaries, recipe):
        if not source.is_file():
            raise EngineError(f"the build has no {source.name}", hint="build again: meshctl engine build --again")
        shutil.copy(source, target / source.name)
    files = sorted(target.iterdir())
    manifest = Manifest(
        engine=target.name,
        commit=SOURCE.commit,
        protocol=SOURCE.protocol,
        backend=recipe.backend,
        platform=local_platform(),
        libc=oldest_libc(map(str, files)),
        files=tuple(describe_file(target, path) for path in files),
        capabilities=recipe.capabilities,
    )
    (target / MANIFEST).write_bytes(manifest.to_json())
    return manifest


def _parts(binaries: Path, recipe: Recipe) -> Iterator[Path]:
    yield from (binaries / name for name in recipe.programs)
    yield from _libraries(binaries)
    yield from map(Path, openmp_runtime())


def _parts_on(base: Path, binaries: Path, recipe: Recipe) -> Iterator[Path]:
    """Every file of the engine `base` as it was built, and what the recipe adds to it."""
    engine = read_engine(base)
    yield from (base / file.path for file in engine.manifest.files)
    yield from (base / EXCLUDED / name for name in engine.manifest.excluded)
    plugins = [path for path in _libraries(binaries) if path.name.startswith(f"lib{recipe.plugin}.")]
    if not plugins:
        raise EngineError(f"the build has no lib{recipe.plugin}", hint="build again: meshctl engine build --again")
    yield from plugins
    for plugin in plugins:
        yield from map(Path, gpu_runtime(str(plugin)))


def _libraries(binaries: Path) -> list[Path]:
    return sorted(path for path in binaries.iterdir() if re.search(r"\.(so|dylib)(\.|$)", path.name))


def move_into_place(collected: Path, folder: Path) -> None:
    """Make `collected` the engine at `folder` in one rename; an engine already there is moved aside first."""
    if folder.exists():
        folder.rename(collected.with_name("old"))
    beside(folder, ".tar.gz").unlink(missing_ok=True)
    collected.rename(folder)
