"""What a host gets that has to build the engine itself: the part of the pinned source that a build needs.

The only change to the source is `workers/cpu_variants.cmake`, which leaves out CPU libraries that an older compiler
cannot make; what is compiled is the pinned source.
"""

import hashlib
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

from orchestrator.engine.archive import Member, packed
from orchestrator.engine.source import fetch_source
from orchestrator.errors import EngineError
from workers.engine import SOURCE, Source

NEEDED = (
    *("CMakeLists.txt", "LICENSE", "app", "cmake", "common", "examples", "ggml", "gguf-py", "include", "licenses"),
    *("pocs", "scripts", "src", "tools", "vendor"),
)
"""Of the tree's root. Programs that are not built have to be there, too: cmake reads their lists."""

VARIANTS = "ggml/src/CMakeLists.txt"
_BEFORE_VARIANTS = "\nggml_add_backend(CPU)\n"


async def pack_source(cache: Path, source: Source = SOURCE) -> Path:
    """The archive, packed once; the source is fetched if it is not here yet. EngineError."""
    tree = await fetch_source(cache, source)
    version = hashlib.sha256("\0".join((*NEEDED, _variants())).encode()).hexdigest()[:12]
    return await packed(tree.with_name(f"minimal-{version}.tar.gz"), _members(tree))


def _members(tree: Path) -> Iterator[Member]:
    for name in NEEDED:
        place = tree / name
        if not place.exists():
            raise EngineError(f"the engine's source has no {name}: {tree}", hint=f"remove {tree}, it is fetched again")
        for path in (place,) if place.is_file() else place.rglob("*"):
            if path.is_file():
                member = Member.of(tree, path)
                yield Member(VARIANTS, with_variants(path.read_text()).encode()) if member.name == VARIANTS else member


def with_variants(text: str) -> str:
    """The list of CPU libraries with ours in front; EngineError when the pinned source does not look as it should."""
    if text.count(_BEFORE_VARIANTS) != 1:
        raise EngineError(f"{VARIANTS} of the engine's source has not the one place where CPU libraries begin")
    return text.replace(_BEFORE_VARIANTS, _BEFORE_VARIANTS + _variants())


def _variants() -> str:
    return resources.files("workers").joinpath("cpu_variants.cmake").read_text("utf-8")
