"""Bring a finished engine to a host, whole or not at all, and prove once that it computes there.

What a host already has is compared with our manifest and checked by hash before it is used. Programs are never built
on a host here, so its platform and C library must fit.
"""

import asyncio
import hashlib
import io
import os
import tarfile
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress
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
from orchestrator.errors import EngineError, HostError
from orchestrator.host_agent import check_folder, tell_nobody, unpack
from orchestrator.shell.protocol import Progress, Shell
from orchestrator.view.sizes import bytes_text
from workers.agent import Recorded, read_record, write_record
from workers.engine import Manifest, libc_problem, read_manifest
from workers.errors import ManifestError
from workers.facts import HostFacts

_QUICK_S = 30.0


async def ensure_on_host(
    shell: Shell,
    facts: HostFacts,
    agent: str,
    engine: Engine,
    progress: Progress,
    tell: Callable[[str], None] = tell_nobody,
) -> str:
    """Absolute folder of the engine on the host, complete and proven there.

    Every file there is compared with its hash before any of them runs; a damaged engine is put there anew, which is
    told. `agent` is the agent's path on the host; `progress` is told the bytes of a transfer. EngineError when the
    engine cannot run there or is damaged here; what the host had before is then still there.
    """
    if shell.is_local:
        return str((await prove_here(shell, facts, engine)).folder)
    async with _only_on_machine(shell, facts, engine):
        folder = str(PurePosixPath(shell.root, "engines", engine.manifest.engine))
        there, damage = await _manifest_there(shell, agent, folder)
        if damage:
            tell(f"{shell.host}: the engine there is damaged and is put there anew: {damage}")
        if there is None or not there.is_same_build(engine.manifest):
            check_fits(shell.host, facts, engine.manifest)
            archive = await pack_engine(engine)
            check_room(shell.host, facts, archive.stat().st_size + engine.manifest.size_bytes)
            there = await _send(shell, agent, archive, folder, progress)
        await prove_engine(shell, folder, there, facts.cpu_name)
        return folder


async def prove_here(shell: Shell, facts: HostFacts, engine: Engine, *, again: bool = False) -> Engine:
    """The engine of this machine with every file whole, after it has computed here (`again`: once more).

    EngineError names every file that is damaged.
    """
    async with _only_on_machine(shell, facts, engine):
        # Read again: while we waited for the lock another run may have taken a library out.
        current = read_engine(engine.folder)
        problems = await asyncio.to_thread(check_engine, current)
        if problems:
            raise EngineError(
                f"the engine in {engine.folder} is damaged: {'; '.join(problems)}",
                hint="build it again: meshctl engine build --again",
            )
        proven = await prove_engine(shell, str(engine.folder), current.manifest, facts.cpu_name, again=again)
        return Engine(engine.folder, proven)


def _only_on_machine(shell: Shell, facts: HostFacts, engine: Engine) -> AbstractAsyncContextManager[None]:
    """Two names in an inventory may be one machine and one folder there: only one at a time then."""
    identity = "\0".join((facts.hostname, facts.user, shell.root))
    digest = hashlib.sha256(identity.encode()).hexdigest()[:12]
    return exclusive(engine.folder.with_name(f".install-{digest}.lock"), lambda: None)


async def _manifest_there(shell: Shell, agent: str, folder: str) -> tuple[Manifest | None, str]:
    """The manifest of a whole engine on the host, None when there is none; what is damaged in it, "" for nothing."""
    answer = await shell.run(("cat", str(PurePosixPath(folder, MANIFEST))), deadline_s=_QUICK_S, check=False)
    if answer.status != 0:
        return None, ""
    try:
        manifest = read_manifest(answer.stdout)
    except ManifestError:
        return None, f"{MANIFEST} cannot be read"
    check = await check_folder(shell, agent, folder)
    return (manifest if check.ok else None), str(check)


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


def check_room(host: str, facts: HostFacts, needed_bytes: int) -> None:
    """EngineError when the archive and what is in it do not fit on the host's disk together."""
    if facts.disk_free_bytes < needed_bytes:
        free = bytes_text(facts.disk_free_bytes)
        raise EngineError(
            f"{host}: the engine needs {bytes_text(needed_bytes)} of disk in {facts.root}, {free} are free",
            hint=f"free at least {bytes_text(needed_bytes)} there",
        )


async def _send(shell: Shell, agent: str, archive: Path, folder: str, progress: Progress) -> Manifest:
    packed = await asyncio.to_thread(describe_file, archive.parent, archive)
    sent = f"{folder}.part"  # a name that is tidied away if we are killed
    try:
        await shell.put(archive, sent, progress=progress)
        await unpack(shell, agent, sent, folder, packed.sha256)
    finally:
        with suppress(HostError):  # a lost connection is reported by what failed first
            await shell.run(("rm", "-f", sent), deadline_s=_QUICK_S)
    there, damage = await _manifest_there(shell, agent, folder)
    if there is None:
        raise EngineError(
            f"{shell.host}: the engine in {folder} is not what was sent: {damage}",
            hint="look at the disks there and here (meshctl doctor), and try again",
        )
    return there


async def pack_engine(engine: Engine) -> Path:
    """The archive that hosts get, made once per build: with every library, also those that crash on this machine."""
    archive = beside(engine.folder, ".tar.gz")
    async with exclusive(beside(engine.folder, ".pack.lock"), lambda: None):
        if not await asyncio.to_thread(_is_as_packed, archive):
            await asyncio.to_thread(_pack, engine.folder, archive)
    return archive


def _is_as_packed(archive: Path) -> bool:
    """Whether it is there and what it was when it was packed: its digest is kept beside."""
    known = [one.digest for one in read_record(str(archive))]
    return archive.is_file() and known == [describe_file(archive.parent, archive).sha256]


def _pack(folder: Path, archive: Path) -> None:
    manifest = whole_manifest(read_engine(folder))
    partial = archive.with_name(f".{archive.name}.{os.getpid()}.partial")
    try:
        with tarfile.open(partial, "w:gz", compresslevel=6) as tar:
            for file in manifest.files:
                place = folder / file.path
                tar.add(place if place.is_file() else folder / EXCLUDED / file.path, arcname=file.path)
            _add_bytes(tar, MANIFEST, manifest.to_json())
        packed = describe_file(archive.parent, partial)
        partial.replace(archive)
        write_record(str(archive), Recorded("", packed.size_bytes, packed.sha256))
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
