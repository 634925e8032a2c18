"""Make sure that a host has the engine, whole, of this very commit, and that it computes there.

In order: it is there already; the controller's own build is sent where it runs; it is built there from the same
source by the same recipe. An engine that the user has put there is only examined. One controller at a time does this
on a host.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Literal

from orchestrator.engine.archive import Member, packed, send_archive
from orchestrator.engine.build import local_platform
from orchestrator.engine.gpus import Wanted, usable_gpus
from orchestrator.engine.host_build import able_tools, build_on_host, check_room
from orchestrator.engine.lock import exclusive
from orchestrator.engine.offer import Offer
from orchestrator.engine.own import check_own, prove_own
from orchestrator.engine.smoke import is_proven, prove_engine
from orchestrator.engine.store import (
    EXCLUDED,
    INSTALL_LOCK,
    MANIFEST,
    Engine,
    beside,
    check_engine,
    describe_file,
    read_engine,
)
from orchestrator.errors import EngineError
from orchestrator.host_agent import check_folder, end_orphans, host_lock
from orchestrator.host_cache import ask_cache
from orchestrator.report import Report
from orchestrator.shell.protocol import Shell
from orchestrator.view.sizes import bytes_text
from workers.devices import EngineGpu
from workers.engine import RECIPES, Manifest, engine_id, libc_problem, read_manifest
from workers.errors import ManifestError
from workers.facts import HostFacts

_QUICK_S = 30.0


@dataclass(frozen=True)
class Installed:
    """The engine of one host: its absolute folder there, and how it came there.

    "there": it was whole already; "own": the user's, which was only examined. `sent_bytes`: the archive's, 0 for none;
    `excluded`: CPU libraries that are not used there because their code crashes. `gpus`: those that compute there.
    """

    folder: str
    how: Literal["there", "sent", "built", "own"]
    sent_bytes: int = 0
    seconds: float = 0.0
    excluded: tuple[str, ...] = ()
    backend: str = "cpu"
    gpus: tuple[EngineGpu, ...] = ()


async def ensure_on_host(
    shell: Shell,
    facts: HostFacts,
    agent: str,
    offer: Offer,
    report: Report,
    *,
    own: str | None = None,
    wished: bool = False,
) -> Installed:
    """The offered engine on the host, complete and proven there; `own` is the folder of one that the user has put.

    Every file there is compared with its hash before any of them runs; a damaged engine is put there anew, which is
    told. `agent` is the agent's path on the host. What still serves there from another build, and nobody holds, is
    ended. `wished`: its backend is the user's wish, not only what the host seems to have. EngineError when the engine
    cannot come there, is damaged here, or finds no GPU that is wished for; what the host had is then still there.
    """
    began, backend = time.monotonic(), offer.recipe.backend
    await _end_orphans(shell, agent, offer, facts.platform, report)
    if own is not None:
        installed = await _ensure_own(shell, agent, offer, own)
        if wished and installed.backend != backend:
            raise EngineError(
                f"{shell.host}: the engine in {own} is for {installed.backend}, but the host has `backend: {backend}`",
                hint=f"put one for {backend} there, or say `backend: {installed.backend}`",
            )
    elif shell.is_local:
        proven = await prove_here(shell, facts, built(await offer.made()))
        installed = Installed(str(proven.folder), "there", excluded=proven.manifest.excluded, backend=backend)
    else:
        installed = await _ensure_remote(shell, facts, agent, offer, report)
    wanted = Wanted(installed.backend, wished, is_own=own is not None)
    gpus = await usable_gpus(shell, installed.folder, wanted, report)
    return replace(installed, gpus=gpus, seconds=time.monotonic() - began)


def built(offer: Offer) -> Engine:
    """This machine's own build; EngineError with the reason when there is none."""
    if offer.engine is None:
        raise EngineError(
            f"there is no {offer.recipe.backend} engine on this machine: {offer.absence}", hint=offer.hint
        )
    return offer.engine


async def foresee(shell: Shell, facts: HostFacts, agent: str, offer: Offer, own: str | None) -> str:
    """What `ensure_on_host` would do, in words; nothing is changed. EngineError with what it would fail of."""
    if own is not None:
        manifest = await check_own(shell, agent, own, offer.commit)
        return f"its own in {own}, commit {manifest.commit}"
    name = offer.name_on(facts.platform)
    if shell.is_local:
        if offer.make is not None:
            return f"{name} will be built here"
        return f"{built(offer).manifest.engine} runs on {facts.platform}"
    there, _ = await _manifest_there(shell, agent, _folder_there(shell, name))
    if there is not None and is_wanted(there, offer, name):
        return f"{name} is there"
    if offer.make is not None and facts.platform == local_platform():
        return f"{name} will be built here and sent"
    reason = misfit(facts, offer)
    if not reason:
        return f"{name} will be sent ({bytes_text(built(offer).manifest.size_bytes)})"
    tools = await able_tools(shell, agent, facts, offer, reason)
    return f"{name} will be built there with {tools.compiler}: {reason}"


async def prove_here(shell: Shell, facts: HostFacts, engine: Engine, *, again: bool = False) -> Engine:
    """The engine of this machine with every file whole, after it has computed here (`again`: once more).

    EngineError names every file that is damaged.
    """
    async with _only_here(engine):
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


def is_wanted(there: Manifest, offer: Offer, name: str) -> bool:
    """Whether a whole engine on a host is as good as offered: the controller's own build, or one made there for it;
    where the controller has none, any of this recipe."""
    if there.engine != name or there.commit != offer.commit:
        return False
    return there.built_on_host or offer.engine is None or there.is_same_build(offer.engine.manifest)


def misfit(facts: HostFacts, offer: Offer) -> str:
    """Why the controller has no build that runs on the host; "" when it has one."""
    if offer.engine is None:
        return f"this machine has none: {offer.absence}"
    manifest = offer.engine.manifest
    if facts.platform != manifest.platform:
        return f"this machine's is for {manifest.platform}, the host is {facts.platform}"
    problem = libc_problem(manifest.libc, facts.libc)
    return "" if problem is None else f"this machine's does not run there, {problem}"


async def _end_orphans(shell: Shell, agent: str, offer: Offer, platform: str, report: Report) -> None:
    """What serves from another build than any of this version's is ended, if nobody holds it."""
    ours = (offer.name_on(platform), *(engine_id(recipe, platform) for recipe in RECIPES.values()))
    for orphan in await end_orphans(shell, agent, ours):
        what = f"{orphan.program} of {orphan.engine} (process {orphan.pid})"
        report.warn(f"{shell.host}: {what} was left over from another build: it was ended")


async def _ensure_own(shell: Shell, agent: str, offer: Offer, folder: str) -> Installed:
    manifest = await check_own(shell, agent, folder, offer.commit)
    await prove_own(shell, folder)
    return Installed(folder, "own", excluded=manifest.excluded, backend=manifest.backend)


async def _ensure_remote(shell: Shell, facts: HostFacts, agent: str, offer: Offer, report: Report) -> Installed:
    name = offer.name_on(facts.platform)
    folder = _folder_there(shell, name)
    there, _ = await _manifest_there(shell, agent, folder)
    if there is not None and is_wanted(there, offer, name) and await is_proven(shell, folder, facts.cpu_name):
        return Installed(folder, "there", excluded=there.excluded, backend=offer.recipe.backend)
    async with _only_there(shell, agent, folder, report):
        there, damage = await _manifest_there(shell, agent, folder)
        if damage:
            report.warn(f"{shell.host}: the engine there is damaged and is put there anew: {damage}")
        if there is not None and await _may_stay(shell, agent, folder, there, offer, report):
            installed = Installed(folder, "there")
        else:
            installed = await _put(shell, facts, agent, offer, folder, report)
            there = await _put_whole(shell, agent, folder)
        proven = await prove_engine(shell, folder, there, facts.cpu_name)
        return replace(installed, excluded=proven.excluded, backend=offer.recipe.backend)


async def _may_stay(shell: Shell, agent: str, folder: str, there: Manifest, offer: Offer, report: Report) -> bool:
    """Whether what is there is used: also another controller's build of the same source and recipe while it serves."""
    name = PurePosixPath(folder).name
    if is_wanted(there, offer, name):
        return True
    if there.engine != name or there.commit != offer.commit:
        return False
    cache = await ask_cache(shell, agent)
    in_use = any(item.in_use for item in cache.items if item.place == f"engines/{name}")
    if in_use:
        report.say(f"{shell.host}: another controller's build of the same engine serves there: it is used as it is")
    return in_use


async def _put(shell: Shell, facts: HostFacts, agent: str, offer: Offer, folder: str, report: Report) -> Installed:
    if facts.platform == local_platform():
        offer = await offer.made()
    reason = misfit(facts, offer)
    if reason and not offer.may_build and offer.recipe.plugin:
        raise EngineError(f"{shell.host}: the engine would have to be built there: {reason}", hint=offer.hint)
    if reason:
        tools = await able_tools(shell, agent, facts, offer, reason)
        sent_bytes = await build_on_host(shell, agent, facts, tools, folder, offer, report)
        return Installed(folder, "built", sent_bytes)
    engine = built(offer)
    archive = await pack_engine(engine)
    check_room(shell.host, facts, archive.stat().st_size + engine.manifest.size_bytes)
    return Installed(
        folder, "sent", await send_archive(shell, agent, archive, folder, folder, report.bytes_of(shell.host))
    )


async def _put_whole(shell: Shell, agent: str, folder: str) -> Manifest:
    there, damage = await _manifest_there(shell, agent, folder)
    if there is None:
        raise EngineError(
            f"{shell.host}: the engine in {folder} is not what was put there: {damage}",
            hint="look at the disks there and here (meshctl doctor), and try again",
        )
    return there


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


def _folder_there(shell: Shell, name: str) -> str:
    return str(PurePosixPath(shell.root, "engines", name))


@asynccontextmanager
async def _only_there(shell: Shell, agent: str, folder: str, report: Report) -> AsyncIterator[None]:
    """One at a time: two names in an inventory may be one machine, and a host may have several controllers."""

    def on_wait() -> None:
        report.say(f"{shell.host}: another meshctl is putting the engine there; waiting for it")

    async with host_lock(shell, agent, folder + INSTALL_LOCK, on_wait):
        yield


def _only_here(engine: Engine) -> AbstractAsyncContextManager[None]:
    """The same lock for this machine, which may be a host of another controller."""
    return exclusive(beside(engine.folder, INSTALL_LOCK), lambda: None)


async def pack_engine(engine: Engine) -> Path:
    """The archive that hosts get, made once per build: with every library, also those that crash on this machine."""
    return await packed(beside(engine.folder, ".tar.gz"), _members(engine.folder))


def _members(folder: Path) -> Iterator[Member]:
    manifest = whole_manifest(read_engine(folder))
    for file in manifest.files:
        place = folder / file.path
        yield Member.of(folder, place if place.is_file() else folder / EXCLUDED / file.path, file.path)
    yield Member(MANIFEST, manifest.to_json())


def whole_manifest(engine: Engine) -> Manifest:
    """The manifest as it was after the build, before any library was taken out."""
    taken_out = engine.folder / EXCLUDED
    files = (*engine.manifest.files, *(describe_file(taken_out, taken_out / name) for name in engine.manifest.excluded))
    ordered = tuple(sorted(files, key=lambda file: file.path))
    return replace(engine.manifest, files=ordered, excluded=())
