"""What a host gets that has to build the engine itself: the part of the source that a build needs."""

import hashlib
from collections.abc import Iterator
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


async def pack_source(cache: Path, source: Source = SOURCE) -> Path:
    """The archive, packed once; the source is fetched if it is not here yet. EngineError."""
    tree = await fetch_source(cache, source)
    version = hashlib.sha256("\0".join(NEEDED).encode()).hexdigest()[:12]
    return await packed(tree.with_name(f"minimal-{version}.tar.gz"), _members(tree))


def _members(tree: Path) -> Iterator[Member]:
    for name in NEEDED:
        place = tree / name
        if not place.exists():
            raise EngineError(f"the engine's source has no {name}: {tree}", hint=f"remove {tree}, it is fetched again")
        for path in (place,) if place.is_file() else place.rglob("*"):
            if path.is_file():
                yield Member.of(tree, path)
