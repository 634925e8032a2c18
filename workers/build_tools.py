"""What a host needs to build the engine itself, what it has of that, and the words that do it. Pure.

The agent looks for the tools (`agent.py tools`). Least versions: cmake as the engine's source asks; compilers by what
it needs of C++17 (gcc 8 has `std::filesystem` in a library of its own) and, on ARM, of SVE (gcc 10 has its header).
CPU libraries that a compiler of these cannot make are left out by `cpu_variants.cmake`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from workers.engine import Recipe, configure_flags
from workers.facts import HostFacts

Words = tuple[str, ...]

OLDEST_CMAKE = (3, 14)
OLDEST_COMPILER: Mapping[str, int] = MappingProxyType({"gcc": 9, "clang": 10})
OLDEST_GCC_ON_ARM = 10

BUILD_ENVIRONMENT: Mapping[str, str] = MappingProxyType({"NINJA_STATUS": "[%f/%t] ", "LC_ALL": "C"})

MEMORY_PER_JOB_BYTES = 1536 * 1024 * 1024
"""The largest of the engine's files take more than 1 GiB to compile."""

DISK_BYTES = 300 * 1024 * 1024
"""Archive, source, build folder and finished engine together took 190 MB on Debian 11."""

_NINJA_COUNTER = re.compile(r"^\[(\d+)/(\d+)\] ")
_MAKE_COUNTER = re.compile(r"^\[ *(\d+)%\] ")


@dataclass(frozen=True)
class BuildTools:
    """Absolute paths of what was found, "" for what was not; `compiler_kind` is "gcc" or "clang", its version the major
    one; `package_manager` is such as "apt-get"."""

    cmake: str
    cmake_version: str
    ninja: str
    make: str
    c_compiler: str
    cxx_compiler: str
    compiler_kind: str
    compiler_version: str
    package_manager: str

    @property
    def compiler(self) -> str:
        """Such as "gcc 10"."""
        return f"{self.compiler_kind} {self.compiler_version}"


def lacking(tools: BuildTools, facts: HostFacts) -> tuple[str, ...]:
    """What keeps this host from building the engine, all of it; empty when nothing does."""
    missing = (
        ("cmake", tools.cmake),
        ("ninja or make", tools.ninja or tools.make),
        ("C compiler", tools.c_compiler),
        ("C++ compiler", tools.cxx_compiler),
    )
    return (*(f"no {name}" for name, there in missing if not there), *_too_old(tools, facts))


def _too_old(tools: BuildTools, facts: HostFacts) -> tuple[str, ...]:
    found = []
    if tools.cmake and _numbers(tools.cmake_version) < OLDEST_CMAKE:
        oldest = ".".join(map(str, OLDEST_CMAKE))
        found.append(f"cmake {tools.cmake_version} is too old, {oldest} or later is needed")
    least = oldest_compiler(tools.compiler_kind, facts.architecture)
    if tools.cxx_compiler and _numbers(tools.compiler_version) < (least,):
        found.append(f"{tools.compiler} is too old, {tools.compiler_kind} {least} or later is needed")
    return tuple(found)


def oldest_compiler(kind: str, architecture: str) -> int:
    """The least major version of that kind of compiler."""
    on_arm = architecture in ("aarch64", "arm64")
    return OLDEST_GCC_ON_ARM if kind == "gcc" and on_arm else OLDEST_COMPILER.get(kind, 0)


_INSTALL: Mapping[str, tuple[str, str, str, str]] = MappingProxyType(
    {
        "apt-get": ("apt install", "cmake", "ninja-build", "g++"),
        "dnf": ("dnf install", "cmake", "ninja-build", "gcc-c++"),
        "zypper": ("zypper install", "cmake", "ninja", "gcc-c++"),
        "pacman": ("pacman -S", "cmake", "ninja", "gcc"),
        "apk": ("apk add", "cmake", "make", "g++"),
    }
)
"""How a package is installed, and what cmake, a build program and both compilers are called."""


def install_hint(tools: BuildTools, facts: HostFacts) -> str:
    """The command that installs what is missing there, for the package manager that the host has."""
    build_program, compilers = tools.ninja or tools.make, tools.c_compiler and tools.cxx_compiler
    wanted = (not tools.cmake, not build_program, not compilers)
    if not any(wanted):
        return "install newer ones there (for a compiler: so that `c++` and `cc` are the newer ones)"
    if facts.os == "Darwin":
        return _mac_hint(wanted)
    if tools.package_manager not in _INSTALL:
        names = ("cmake", "ninja", "a C++ compiler such as g++")
        return "install there: " + ", ".join(name for name, is_wanted in zip(names, wanted, strict=True) if is_wanted)
    command, *packages = _INSTALL[tools.package_manager]
    names_there = " ".join(name for name, is_wanted in zip(packages, wanted, strict=True) if is_wanted)
    rights = "" if facts.user == "root" else "sudo "
    return f"there: `{rights}{command} {names_there}`"


def _mac_hint(wanted: tuple[bool, bool, bool]) -> str:
    brewed = [name for name, is_wanted in zip(("cmake", "ninja"), wanted[:2], strict=True) if is_wanted]
    commands = (
        *(("xcode-select --install",) if wanted[2] else ()),
        *((f"brew install {' '.join(brewed)}",) * bool(brewed)),
    )
    return "there: " + " and ".join(f"`{command}`" for command in commands) + (" (https://brew.sh)" if brewed else "")


def configure_command(tools: BuildTools, tree: str, build: str, recipe: Recipe, platform: str) -> Words:
    """Prepare `build` for the llama.cpp `tree`, by the same recipe as everywhere."""
    generator = "Ninja" if tools.ninja else "Unix Makefiles"
    return (
        *(tools.cmake, "-S", tree, "-B", build, "-G", generator),
        f"-DCMAKE_MAKE_PROGRAM={tools.ninja or tools.make}",
        *(f"-DCMAKE_C_COMPILER={tools.c_compiler}", f"-DCMAKE_CXX_COMPILER={tools.cxx_compiler}"),
        *configure_flags(recipe, platform),
    )


def compile_command(tools: BuildTools, build: str, programs: Sequence[str], jobs: int) -> Words:
    return (tools.ninja or tools.make, "-C", build, "-j", str(jobs), *programs)


def jobs_for(facts: HostFacts) -> int:
    """Compilers at once: as many as there are processors to use and memory for."""
    cores = min(facts.cores_logical, int(facts.cpu_quota or facts.cores_logical))
    return max(1, min(cores, facts.memory_available_bytes // MEMORY_PER_JOB_BYTES))


def read_counter(line: str) -> tuple[int, int] | None:
    """(done, in all) of a line of ninja's or make's (per cent, then); None of any other."""
    ninja, make = _NINJA_COUNTER.match(line), _MAKE_COUNTER.match(line)
    if ninja:
        return int(ninja[1]), int(ninja[2])
    return (int(make[1]), 100) if make else None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
