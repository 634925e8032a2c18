"""What an engine is: its pinned source, one recipe per backend, and the manifest that names every file of a build.

Pure values; building is `orchestrator/engine/build.py`. The flags were found by running the pinned source: a portable
CPU build with one library per processor generation, RPC on, everything that meshctl does not use off.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from pydantic import TypeAdapter, ValidationError

from workers.errors import ManifestError
from workers.facts import HostFacts
from workers.source_edits import EDITS, Edit


@dataclass(frozen=True)
class Source:
    """A source distribution on a package index; `commit` and `protocol` are those of the llama.cpp tree inside it.

    `edits` are made to that tree before anything is built.
    """

    package: str
    version: str
    sha256: str
    commit: str
    protocol: str
    edits: tuple[Edit, ...] = ()

    @property
    def digest(self) -> str:
        """Of the archive and what is changed in it: the same for the same tree."""
        parts = (self.sha256, *(part for edit in self.edits for part in (edit.path, edit.before, edit.after)))
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    @property
    def requirement(self) -> str:
        """One line of a pip requirements file that accepts this very archive only."""
        return f"{self.package}=={self.version} --hash=sha256:{self.sha256}"


SOURCE = Source(
    package="llama-cpp-python",
    version="0.3.36",
    sha256="832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e",
    commit="0c1e57098",
    protocol="7.0.0",
    edits=EDITS,
)

PROGRAMS = (
    "ggml-rpc-server",
    "llama-server",
    "llama-bench",
    "llama-batched-bench",
    "llama-fit-params",
    "llama-quantize",
    "llama-gguf-split",
    "llama-perplexity",
)


@dataclass(frozen=True)
class Recipe:
    """How one backend is built: flags of cmake, and the programs (which are also the build's targets)."""

    backend: str
    cmake_flags: tuple[str, ...]
    programs: tuple[str, ...] = PROGRAMS

    @property
    def plugin(self) -> str:
        """The one target, and library, that this backend's engine has more than the CPU's; "" for the CPU."""
        return "" if self.backend == "cpu" else f"ggml-{self.backend}"

    @property
    def capabilities(self) -> tuple[str, ...]:
        """The compute capabilities that CUDA's code is for, such as "8.9", ascending; none: all that there are."""
        named = (flag.partition("=")[2] for flag in self.cmake_flags if flag.startswith(f"-D{CUDA_ARCHITECTURES}="))
        return tuple(f"{number[:-1]}.{number[-1]}" for numbers in named for number in numbers.split(";"))


_PORTABLE = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DGGML_RPC=ON",
    "-DGGML_RPC_RDMA=OFF",  # a known stack overflow in this tree
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",  # else the build asks a model hub for one even so
    "-DGGML_NATIVE=OFF",
    "-DGGML_CPU_ALL_VARIANTS=ON",
    "-DGGML_BACKEND_DL=ON",
    "-DCMAKE_PLATFORM_NO_VERSIONED_SONAME=ON",  # one file per library, no links that a copy would have to keep
    "-DCMAKE_BUILD_WITH_INSTALL_RPATH=ON",
    f"-DLLAMA_BUILD_COMMIT={SOURCE.commit}",  # else cmake asks git, which may find a repository around the cache
    "-DLLAMA_BUILD_NUMBER=0",
)

CUDA_ARCHITECTURES = "CMAKE_CUDA_ARCHITECTURES"

RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        "cpu": Recipe("cpu", _PORTABLE),
        "cuda": Recipe("cuda", (*_PORTABLE, "-DGGML_CUDA=ON", "-DGGML_CUDA_NCCL=OFF")),
        "metal": Recipe("metal", (*_PORTABLE, "-DGGML_METAL=ON", "-DGGML_METAL_EMBED_LIBRARY=ON")),
        "vulkan": Recipe("vulkan", (*_PORTABLE, "-DGGML_VULKAN=ON")),
    }
)


def recipe_of(backend: str, capabilities: Iterable[str] = ()) -> Recipe:
    """The recipe of this backend; `capabilities`: the GPUs' compute capabilities that it is for, such as "8.9".

    CUDA code is compiled for these alone: for all that there are it takes hours. KeyError for an unknown backend.
    """
    recipe = RECIPES[backend]
    numbers = sorted({one.replace(".", "") for one in capabilities}, key=int)
    if backend != "cuda" or not numbers:
        return recipe
    return replace(recipe, cmake_flags=(*recipe.cmake_flags, f"-D{CUDA_ARCHITECTURES}={';'.join(numbers)}"))


def recipe_for(backend: str, facts: HostFacts) -> Recipe:
    """What is built for a host: CUDA's code for its very GPUs."""
    return recipe_of(backend, (gpu.compute_capability for gpu in facts.gpus if gpu.compute_capability))


_PLATFORM_FLAGS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "linux": (
            "-DCMAKE_INSTALL_RPATH=$ORIGIN",
            "-DCMAKE_EXE_LINKER_FLAGS=-s",
            "-DCMAKE_SHARED_LINKER_FLAGS=-s",
            "-DCMAKE_MODULE_LINKER_FLAGS=-s",
        ),
        "darwin": ("-DCMAKE_INSTALL_RPATH=@loader_path", "-DGGML_BLAS=OFF"),
    }
)


def configure_flags(recipe: Recipe, platform: str) -> tuple[str, ...]:
    """The recipe's flags and those that make programs find their libraries beside them on this platform."""
    system, _, _ = platform.partition("-")
    off = _OFF_ON_A_MAC if system == "darwin" and recipe.backend != "metal" else ()
    return (*recipe.cmake_flags, *_PLATFORM_FLAGS.get(system, ()), *off)


_OFF_ON_A_MAC = ("-DGGML_METAL=OFF",)
"""There it is on by itself."""


def engine_id(recipe: Recipe, platform: str) -> str:
    """Such as "cpu-linux-x86_64-1a2b3c4d5e6f": equal only for equal source, flags, programs and platform."""
    parts = (SOURCE.digest, platform, *configure_flags(recipe, platform), *recipe.programs)
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    return f"{recipe.backend}-{platform}-{digest[:12]}"


def recipe_of_engine(name: str, capabilities: Iterable[str]) -> Recipe | None:
    """The recipe that gives an engine this name; None when none of this version of meshctl does."""
    backend, _, rest = name.partition("-")
    if backend not in RECIPES:
        return None
    recipe = recipe_of(backend, capabilities)
    return recipe if engine_id(recipe, rest.rpartition("-")[0]) == name else None


@dataclass(frozen=True)
class EngineFile:
    """One file of an engine; `path` is relative to its folder."""

    path: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class Manifest:
    """`manifest.json` of an engine folder.

    `libc` is the oldest that the programs run with, such as "glibc 2.34" ("" where that is not a question).
    `files` lie in the folder; `excluded` names libraries that were moved to its `excluded/` folder because their
    code crashes on that machine. `built_on_host`: made there by a controller whose own build does not run there.
    `capabilities`: the compute capabilities that CUDA's code is for.
    """

    engine: str
    commit: str
    protocol: str
    backend: str
    platform: str
    libc: str
    files: tuple[EngineFile, ...]
    excluded: tuple[str, ...] = ()
    built_on_host: bool = False
    capabilities: tuple[str, ...] = ()

    @property
    def recipe(self) -> Recipe | None:
        """By which it was built; None: by none of this version of meshctl."""
        return recipe_of_engine(self.engine, self.capabilities)

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)

    def to_json(self) -> bytes:
        return _MANIFEST.dump_json(self, indent=2) + b"\n"

    def without(self, path: str) -> "Manifest":
        """This manifest after the library `path` was taken out."""
        kept = tuple(file for file in self.files if file.path != path)
        return replace(self, files=kept, excluded=(*self.excluded, path))

    def is_same_build(self, other: "Manifest") -> bool:
        """Whether both come from one build; each machine may have taken out other libraries of it."""
        if self.engine != other.engine:
            return False
        mine = {file.path: file for file in self.files}
        theirs = {file.path: file for file in other.files}
        shared = mine.keys() & theirs.keys()
        missing = mine.keys() ^ theirs.keys()
        return missing <= {*self.excluded, *other.excluded} and all(mine[path] == theirs[path] for path in shared)


_MANIFEST = TypeAdapter(Manifest)


def read_manifest(text: bytes | str) -> Manifest:
    """Read manifest.json; ManifestError names the first thing that is not as it should be."""
    try:
        return _MANIFEST.validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ManifestError(
            f"the engine's manifest cannot be read: {place}: {first['msg']}",
            hint="build the engine again: meshctl engine build",
        ) from error


def libc_problem(needed: str, offered: str) -> str | None:
    """Why programs that need libc `needed` cannot run with `offered`, both as "NAME VERSION"; None: they can.

    An `offered` of "" is a host that does not say; the smoke test there gives the answer.
    """
    if not needed or not offered:
        return None
    needed_name, _, needed_version = needed.partition(" ")
    offered_name, _, offered_version = offered.partition(" ")
    if needed_name != offered_name:
        return f"it needs {needed_name}, the host has {offered}"
    if _version(offered_version) < _version(needed_version):
        return f"it needs {needed} or later, the host has {offered}"
    return None


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdigit())
