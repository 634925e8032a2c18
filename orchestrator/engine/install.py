"""Bring a finished engine to a host, whole or not at all, and prove once that it computes there.

What a host already has is compared with our manifest and checked by hash before it is used. Programs are never built
on a host here, so its platform and C library must fit.
"""

import asyncio
import hashlib
import io
import os
import tarfile
from dataclasses import replace
from pathlib import Path, PurePosixPath

from orchestrator.engine.lock import exclusive
from orchestrator.engine.smoke import prove_engine
from orchestrator.engine.store import (
    EXCLUDED,
    MANIFEST,
    Engine,
    beside,
    check_engine,
    describe_file,
    read_engine,
)
from orchestrator.errors import EngineError
from orchestrator.shell.protocol import Progress, Shell, Words
from workers.engine import Manifest, libc_problem, read_manifest
from workers.errors import ManifestError
from workers.facts import HostFacts

_QUICK_S = 30.0
_UNPACK_S = 300.0


async def ensure_on_host(shell: Shell, facts: HostFacts, agent: str, engine: Engine, progress: Progress) -> str:
    """Absolute folder of the engine on the host, complete and proven there.

    `agent` is the agent's path on the host; `progress` is told the bytes of a transfer. EngineError when the engine
    cannot run there or is damaged here; what the host had before is then still there.
    """
    lock = engine.folder.with_name(f".install-{_machine_digest(shell, facts)}.lock")
    async with exclusive(lock, lambda: None):
        if shell.is_local:
            return await _ensure_here(shell, facts, engine)
        folder = str(PurePosixPath(shell.root, "engines", engine.manifest.engine))
        there = await _manifest_there(shell, agent, folder)
        if there is None or not there.is_same_build(engine.manifest):
            check_fits(shell.host, facts, engine.manifest)
            there = await _send(shell, agent, engine, folder, progress)
        await prove_engine(shell, folder, there, facts.cpu_name)
        return folder


def _machine_digest(shell: Shell, facts: HostFacts) -> str:
    """Two names in an inventory may be one machine and one folder there: only one at a time then."""
    identity = "\0".join((facts.hostname, facts.user, shell.root))
    return hashlib.sha256(identity.encode()).hexdigest()[:12]


async def _ensure_here(shell: Shell, facts: HostFacts, engine: Engine) -> str:
    # Read again: while we waited for the lock another run may have taken a library out.
    current = read_engine(engine.folder)
    problems = await asyncio.to_thread(check_engine, current)
    if problems:
        raise EngineError(
            f"the engine in {engine.folder} is damaged: {'; '.join(problems)}",
            hint="build it again: meshctl engine build --again",
        )
    await prove_engine(shell, str(engine.folder), current.manifest, facts.cpu_name)
    return str(engine.folder)


async def _manifest_there(shell: Shell, agent: str, folder: str) -> Manifest | None:
    """The manifest of a complete engine on the host, None when there is none or its files are damaged."""
    answer = await shell.run(("cat", str(PurePosixPath(folder, MANIFEST))), deadline_s=_QUICK_S, check=False)
    if answer.status != 0:
        return None
    try:
        manifest = read_manifest(answer.stdout)
    except ManifestError:
        return None
    checked = await shell.run(check_words(agent, folder), deadline_s=_UNPACK_S, check=False)
    return manifest if checked.status == 0 else None


def check_fits(host: str, facts: HostFacts, manifest: Manifest) -> None:
    """EngineError when programs of this build cannot run on the host."""
    later = "building on the host comes in a later version of meshctl"
    if facts.platform != manifest.platform:
        raise EngineError(
            f"{host}: the engine is built for {manifest.platform}, the host is {facts.platform}",
            hint=f"{later}; until then use hosts of the controller's own platform",
        )
    problem = libc_problem(manifest.libc, facts.libc)
    if problem is not None:
        raise EngineError(
            f"{host}: the engine cannot run there: {problem}",
            hint=f"{later}; until then build on the machine with the oldest system, or update the host",
        )


async def _send(shell: Shell, agent: str, engine: Engine, folder: str, progress: Progress) -> Manifest:
    archive = await pack_engine(engine)
    digest = await asyncio.to_thread(lambda: describe_file(archive.parent, archive).sha256)
    sent, fresh, old = (f"{folder}{suffix}" for suffix in (".tar.gz", ".new", ".old"))
    try:
        await _remove(shell, fresh, old)
        await shell.put(archive, sent, progress=progress)
        await shell.run(unpack_words(agent, sent, fresh, digest), deadline_s=_UNPACK_S)
        await shell.run(check_words(agent, fresh), deadline_s=_UNPACK_S)
        await shell.run(("mv", folder, old), deadline_s=_QUICK_S, check=False)
        await shell.run(("mv", fresh, folder), deadline_s=_QUICK_S)
    finally:
        await _remove(shell, sent, fresh, old)
    answer = await shell.run(("cat", str(PurePosixPath(folder, MANIFEST))), deadline_s=_QUICK_S)
    return read_manifest(answer.stdout)


async def _remove(shell: Shell, *paths: str) -> None:
    await shell.run(("rm", "-rf", *paths), deadline_s=_QUICK_S, check=False)


def unpack_words(agent: str, archive: str, folder: str, sha256: str) -> Words:
    return ("python3", agent, "unpack", archive, folder, sha256)


def check_words(agent: str, folder: str) -> Words:
    return ("python3", agent, "check", folder)


async def pack_engine(engine: Engine) -> Path:
    """The archive that hosts get, made once per build: with every library, also those that crash on this machine."""
    archive = beside(engine.folder, ".tar.gz")
    async with exclusive(beside(engine.folder, ".pack.lock"), lambda: None):
        if not archive.is_file():
            await asyncio.to_thread(_pack, engine.folder, archive)
    return archive


def _pack(folder: Path, archive: Path) -> None:
    manifest = whole_manifest(read_engine(folder))
    partial = archive.with_name(f".{archive.name}.{os.getpid()}.partial")
    try:
        with tarfile.open(partial, "w:gz", compresslevel=6) as tar:
            for file in manifest.files:
                place = folder / file.path
                tar.add(place if place.is_file() else folder / EXCLUDED / file.path, arcname=file.path)
            _add_bytes(tar, MANIFEST, manifest.to_json())
        partial.replace(archive)
    finally:
        partial.unlink(missing_ok=True)


def whole_manifest(engine: Engine) -> Manifest:
    """The manifest as it was after the build, before any library was taken out."""
    taken_out = engine.folder / EXCLUDED
    files = (*engine.manifest.files, *(describe_file(taken_out, taken_out / name) for name in engine.manifest.excluded))
    ordered = tuple(sorted(files, key=lambda file: file.path))
    return replace(engine.manifest, files=ordered, excluded=())


def _add_bytes(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    entry.mode = 0o644
    tar.addfile(entry, io.BytesIO(data))
