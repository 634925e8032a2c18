"""The engines in the controller's cache: where they lie, which there are, whether their files are what they were.

Reads only; `build.py` makes engines and `install.py` brings them to hosts.
"""

import hashlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import EngineError
from workers.agent import extra_files
from workers.engine import RECIPES, EngineFile, Manifest, Recipe, engine_id, read_manifest
from workers.errors import ManifestError

MANIFEST = "manifest.json"
EXCLUDED = "excluded"
"""Folder inside an engine for libraries that crash on this machine."""

FAILED = ".failed"
"""Beside where an engine would be: why it could not be built. It is not tried again at every start."""

INSTALL_LOCK = ".install.lock"
"""Beside an engine: held by whoever builds it, puts it there or proves it, on whatever machine that is."""


@dataclass(frozen=True)
class Engine:
    """A finished build on this machine."""

    folder: Path
    manifest: Manifest

    def program(self, name: str) -> Path:
        """Absolute path of one of its programs; EngineError if it has none of that name."""
        path = self.folder / name
        if not path.is_file():
            raise EngineError(
                f"the engine {self.manifest.engine} has no program {name} in {self.folder}",
                hint="build it again: meshctl engine build --again",
            )
        return path


def engines_folder(cache: Path) -> Path:
    return cache / "engines"


def known_backend(backend: str) -> str:
    """EngineError for an unknown one."""
    if backend not in RECIPES:
        raise EngineError(f"there is no backend {backend!r}", hint=f"choose one of: {', '.join(RECIPES)}")
    return backend


def beside(folder: Path, suffix: str) -> Path:
    """What belongs to an engine without being part of it: its ".log", ".lock" and ".tar.gz"."""
    return folder.with_name(folder.name + suffix)


def read_engine(folder: Path) -> Engine:
    """The engine in `folder`; ManifestError when its manifest cannot be read."""
    return Engine(folder, read_manifest((folder / MANIFEST).read_bytes()))


def find_built(cache: Path, recipe: Recipe, platform: str) -> Engine | None:
    """The engine of this recipe, None when it is not built yet."""
    folder = engines_folder(cache) / engine_id(recipe, platform)
    return read_engine(folder) if (folder / MANIFEST).is_file() else None


def find_wider(cache: Path, recipe: Recipe, platform: str) -> Engine | None:
    """An engine of the same backend for the recipe's GPUs and more; of several the one for the fewest."""
    wanted = set(recipe.capabilities)
    found = [
        engine
        for engine in _readable(cache)
        if engine.manifest.backend == recipe.backend and engine.manifest.platform == platform
        if wanted and wanted < set(engine.manifest.capabilities) and engine.manifest.recipe is not None
    ]
    return min(found, key=lambda engine: (len(engine.manifest.capabilities), engine.folder.name), default=None)


def _readable(cache: Path) -> Iterator[Engine]:
    for manifest in sorted(engines_folder(cache).glob(f"[!.]*/{MANIFEST}")):
        with suppress(ManifestError):  # somebody else's, or damaged: it is no engine to us
            yield read_engine(manifest.parent)


def find_engine(cache: Path, backend: str, platform: str) -> Engine | None:
    """The engine of the backend's recipe, None when it is not built yet; EngineError for an unknown backend."""
    return find_built(cache, RECIPES[known_backend(backend)], platform)


def list_engines(cache: Path) -> tuple[Engine, ...]:
    """Every finished engine in the cache, also those of older recipes."""
    manifests = sorted(engines_folder(cache).glob(f"[!.]*/{MANIFEST}"))
    return tuple(read_engine(path.parent) for path in manifests)


def check_engine(engine: Engine) -> tuple[str, ...]:
    """What is wrong with its files, one sentence each; empty when those of the manifest, and no others, are there as
    they were built."""
    problems = (_file_problem(engine.folder, file) for file in engine.manifest.files)
    extra = extra_files(str(engine.folder), {file.path for file in engine.manifest.files})
    return (*(problem for problem in problems if problem), *(f"{path} does not belong there" for path in extra))


def _file_problem(folder: Path, expected: EngineFile) -> str:
    path = folder / expected.path
    if not path.is_file():
        return f"{expected.path} is missing"
    if path.stat().st_size != expected.size_bytes:
        return f"{expected.path} has {path.stat().st_size} bytes, not {expected.size_bytes}"
    if describe_file(folder, path).sha256 != expected.sha256:
        return f"{expected.path} has changed: its sha256 is not the manifest's"
    return ""


def describe_file(folder: Path, path: Path) -> EngineFile:
    """Size and hash of a file, named relative to `folder`."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return EngineFile(str(path.relative_to(folder)), digest, path.stat().st_size)
