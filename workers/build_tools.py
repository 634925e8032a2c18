"""What a host needs to build the engine itself, what it has of that, and the words that do it. Pure.

The agent looks for the tools (`agent.py tools`). Least versions: cmake as the engine's source asks; compilers by what
it needs of C++17 (gcc 8 has `std::filesystem` in a library of its own) and, on ARM, of SVE (gcc 10 has its header).
CPU libraries that a compiler of these cannot make are left out (`source_edits.py`). For GPUs cmake as the source of
their backend asks.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from workers.engine import RECIPES, Recipe, configure_flags
from workers.facts import Gpu, HostFacts

Words = tuple[str, ...]

OLDEST_CMAKE = (3, 14)
GPU_CMAKE: Mapping[str, tuple[int, int]] = MappingProxyType({"cuda": (3, 18), "vulkan": (3, 19)})
OLDEST_COMPILER: Mapping[str, int] = MappingProxyType({"gcc": 9, "clang": 10})
OLDEST_GCC_ON_ARM = 10

BUILD_ENVIRONMENT: Mapping[str, str] = MappingProxyType({"NINJA_STATUS": "[%f/%t] ", "LC_ALL": "C"})

MEMORY_PER_JOB_BYTES = 1536 * 1024 * 1024
"""The largest of the engine's files take more than 1 GiB to compile."""

MEMORY_PER_CUDA_JOB_BYTES = 3 * 1024 * 1024 * 1024

DISK_BYTES: Mapping[str, int] = MappingProxyType(
    {"cpu": 300 * 1024 * 1024, "metal": 400 * 1024 * 1024, "vulkan": 600 * 1024 * 1024, "cuda": 3 * 1024 * 1024 * 1024}
)
"""Archive, source, build folder and finished engine together took 190 MB on Debian 11 for the CPU. CUDA's run-time
libraries alone, which are part of the engine and of its archive, take 600 MB."""

_NINJA_COUNTER = re.compile(r"^\[(\d+)/(\d+)\] ")
_MAKE_COUNTER = re.compile(r"^\[ *(\d+)%\] ")


@dataclass(frozen=True)
class BuildTools:
    """Absolute paths of what was found, "" for what was not; `compiler_kind` is "gcc" or "clang", its version the major
    one; `package_manager` is such as "apt-get". For GPUs: CUDA's compiler, its version and the compute capabilities
    that it knows ("8.6 8.9"; "": it does not tell), its library of matrix products, and Vulkan's compiler of shaders,
    headers and loader."""

    cmake: str
    cmake_version: str
    ninja: str
    make: str
    c_compiler: str
    cxx_compiler: str
    compiler_kind: str
    compiler_version: str
    package_manager: str
    nvcc: str = ""
    nvcc_version: str = ""
    nvcc_knows: str = ""
    cublas: str = ""
    glslc: str = ""
    vulkan_headers: str = ""
    vulkan_loader: str = ""
    spirv_headers: str = ""

    @property
    def compiler(self) -> str:
        """Such as "gcc 10"."""
        return f"{self.compiler_kind} {self.compiler_version}"


def lacking(tools: BuildTools, facts: HostFacts, recipe: Recipe = RECIPES["cpu"]) -> tuple[str, ...]:
    """What keeps this host from building that engine, all of it; empty when nothing does."""
    missing = (
        ("cmake", tools.cmake),
        ("ninja or make", tools.ninja or tools.make),
        ("C compiler", tools.c_compiler),
        ("C++ compiler", tools.cxx_compiler),
    )
    return (
        *(f"no {name}" for name, there in missing if not there),
        *_too_old(tools, facts),
        *gpu_lacking(tools, recipe, facts.platform, facts.gpus),
    )


def gpu_lacking(tools: BuildTools, recipe: Recipe, platform: str, gpus: Sequence[Gpu] = ()) -> tuple[str, ...]:
    """What that engine needs beside what the CPU's does, and is not there; `gpus`: it is for these."""
    backend = recipe.backend
    if backend == "metal" and not platform.startswith("darwin"):
        return ("Metal is there on Macs only",)
    if backend in GPU_CMAKE and platform.startswith("darwin"):
        return (f"{backend} is not for Macs: their backend is metal",)
    found = [f"no {what}" for what, _ in _missing_parts(tools, backend)]
    least = GPU_CMAKE.get(backend, OLDEST_CMAKE)
    if OLDEST_CMAKE <= _numbers(tools.cmake_version) < least:
        found.append(f"cmake {tools.cmake_version} is too old for {backend}, {least[0]}.{least[1]} or later is needed")
    unknown = [_with_names(capability, gpus) for capability in unknown_capabilities(tools, recipe)]
    if unknown:
        known = sorted(tools.nvcc_knows.split(), key=_numbers)
        found.append(
            f"CUDA toolkit {tools.nvcc_version} makes no code for compute capability {' and '.join(unknown)}, "
            f"only for {known[0]} to {known[-1]}"
        )
    return tuple(found)


def unknown_capabilities(tools: BuildTools, recipe: Recipe) -> tuple[str, ...]:
    """Those of the recipe that the toolkit does not know; none where it does not tell."""
    known = tools.nvcc_knows.split()
    return tuple(one for one in recipe.capabilities if known and one not in known)


def _with_names(capability: str, gpus: Sequence[Gpu]) -> str:
    names = dict.fromkeys(gpu.name for gpu in gpus if gpu.compute_capability == capability)
    return f"{capability} ({', '.join(names)})" if names else capability


def _missing_parts(tools: BuildTools, backend: str) -> list[tuple[str, str]]:
    """What it is, and the name of its field."""
    parts = [(what, name) for of, what, name in _GPU_PARTS if of == backend]
    return [(what, name) for what, name in parts if not getattr(tools, name)]


_GPU_PARTS = (
    ("cuda", "CUDA toolkit (nvcc)", "nvcc"),
    ("cuda", "cuBLAS library of the CUDA toolkit", "cublas"),
    ("vulkan", "glslc, which compiles Vulkan's shaders", "glslc"),
    ("vulkan", "Vulkan headers", "vulkan_headers"),
    ("vulkan", "Vulkan loader to link with", "vulkan_loader"),
    ("vulkan", "SPIR-V headers", "spirv_headers"),
)


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


_GPU_PACKAGES: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "apt-get": {"glslc": "glslc", "vulkan_headers": "libvulkan-dev", "spirv_headers": "spirv-headers"},
        "dnf": {"glslc": "glslc", "vulkan_headers": "vulkan-devel", "spirv_headers": "spirv-headers-devel"},
        "zypper": {"glslc": "shaderc", "vulkan_headers": "vulkan-devel", "spirv_headers": "spirv-headers"},
        "pacman": {
            "glslc": "shaderc",
            "vulkan_headers": "vulkan-headers",
            "vulkan_loader": "vulkan-icd-loader",
            "spirv_headers": "spirv-headers",
        },
        "apk": {
            "glslc": "shaderc",
            "vulkan_headers": "vulkan-headers",
            "vulkan_loader": "vulkan-loader-dev",
            "spirv_headers": "spirv-headers",
        },
    }
)
"""Where the loader has no package of its own, it comes with the headers."""

_CUDA_HINT = (
    "install the CUDA toolkit, cuBLAS with it (https://developer.nvidia.com/cuda-downloads), as new as the card needs"
)

_TOOLKITS: Mapping[str, str] = MappingProxyType(
    {"8.6": "11.1", "8.7": "11.4", "8.9": "11.8", "9.0": "11.8", "10.0": "12.8", "12.0": "12.8"}
    | {"10.3": "12.9", "12.1": "12.9", "8.8": "13.0", "11.0": "13.0"}
)
"""The first toolkit for a compute capability (release notes of CUDA)."""

_LAST_FOR_OLD_CARDS = "12.9"
"""The last toolkit for compute capabilities below 7.5, from 5.0 on (release notes of CUDA 13.0)."""


def gpu_hint(tools: BuildTools, recipe: Recipe, rights: str = "sudo ") -> str:
    """How to install what that engine needs and is not there; "" where nothing can be installed."""
    missing = [name for _, name in _missing_parts(tools, recipe.backend)]
    if recipe.backend == "cuda":
        unknown = unknown_capabilities(tools, recipe)
        return _toolkit_hint(tools, unknown) if unknown else _CUDA_HINT if missing else ""
    if not missing:
        return ""
    known = _GPU_PACKAGES.get(tools.package_manager)
    if known is None:
        return "install the Vulkan SDK (https://vulkan.lunarg.com)"
    packages = dict.fromkeys(known.get(name, known["vulkan_headers"]) for name in missing)
    return f"`{rights}{_INSTALL[tools.package_manager][0]} {' '.join(packages)}`"


def _toolkit_hint(tools: BuildTools, unknown: Sequence[str]) -> str:
    """Which toolkit knows these cards."""
    where = "cuBLAS with it (https://developer.nvidia.com/cuda-toolkit-archive; the variable CUDACXX names its nvcc)"
    oldest = min(map(_numbers, tools.nvcc_knows.split()))
    if any(_numbers(one) < oldest for one in unknown):
        return f"install CUDA toolkit {_LAST_FOR_OLD_CARDS}, the last for cards below 7.5, {where}"
    if not all(one in _TOOLKITS for one in unknown):
        return f"install the newest CUDA toolkit, {where}"
    newest = max((_TOOLKITS[one] for one in unknown), key=_numbers)
    return f"install CUDA toolkit {newest} or later, {where}"


def install_hint(tools: BuildTools, facts: HostFacts, recipe: Recipe = RECIPES["cpu"]) -> str:
    """The command that installs what is missing there, for the package manager that the host has."""
    rights = "" if facts.user == "root" else "sudo "
    for_gpu = gpu_hint(tools, recipe, rights)
    basic = _basic_hint(tools, facts)
    if not for_gpu:
        return basic
    return f"there: {for_gpu}" if basic == _NEWER else f"{basic} and {for_gpu}"


_NEWER = "install newer ones there (for a compiler: so that `c++` and `cc` are the newer ones)"


def _basic_hint(tools: BuildTools, facts: HostFacts) -> str:
    build_program, compilers = tools.ninja or tools.make, tools.c_compiler and tools.cxx_compiler
    wanted = (not tools.cmake, not build_program, not compilers)
    if not any(wanted):
        return _NEWER
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
        *cuda_words(tools.nvcc, recipe),
        *configure_flags(recipe, platform),
    )


def cuda_words(nvcc: str, recipe: Recipe) -> Words:
    """cmake itself looks for nvcc on the search path only."""
    return (f"-DCMAKE_CUDA_COMPILER={nvcc}",) if recipe.backend == "cuda" and nvcc else ()


def compile_command(tools: BuildTools, build: str, programs: Sequence[str], jobs: int) -> Words:
    return (tools.ninja or tools.make, "-C", build, "-j", str(jobs), *programs)


def jobs_for(facts: HostFacts, backend: str = "cpu") -> int:
    """Compilers at once: as many as there are processors to use and memory for."""
    cores = min(facts.cores_logical, int(facts.cpu_quota or facts.cores_logical))
    return jobs_within(cores, facts.memory_available_bytes, backend)


def jobs_within(cores: int, memory_bytes: int, backend: str) -> int:
    each = MEMORY_PER_CUDA_JOB_BYTES if backend == "cuda" else MEMORY_PER_JOB_BYTES
    return max(1, min(cores, memory_bytes // each))


def read_counter(line: str) -> tuple[int, int] | None:
    """(done, in all) of a line of ninja's or make's (per cent, then); None of any other."""
    ninja, make = _NINJA_COUNTER.match(line), _MAKE_COUNTER.match(line)
    if ninja:
        return int(ninja[1]), int(ninja[2])
    return (int(make[1]), 100) if make else None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
