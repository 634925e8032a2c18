"""Build the engine on a host whose system is not the controller's: with that host's tools, by the same recipe.

What is compiled runs under a leash: it ends when the controller's connection goes. What is left of a build that failed
is its log in our folder there.
"""

import asyncio
import secrets
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import PurePosixPath

from orchestrator.engine.archive import send_archive
from orchestrator.engine.offer import Offer
from orchestrator.errors import EngineError, HostError
from orchestrator.host_agent import ask_tools, collect
from orchestrator.leash import start_leashed
from orchestrator.report import Report
from orchestrator.shell.protocol import Shell
from orchestrator.view.sizes import bytes_text, duration_text
from workers.build_tools import (
    BUILD_ENVIRONMENT,
    DISK_BYTES,
    BuildTools,
    Words,
    compile_command,
    configure_command,
    install_hint,
    jobs_for,
    lacking,
    read_counter,
)
from workers.engine import SOURCE, Manifest, Recipe
from workers.facts import HostFacts

_STEP_DEADLINE_S = 4 * 3600.0
_HEARTBEAT_S = 30.0
"""Longer than for what serves: a host whose processors all compile is slow to answer."""

_REMOVE_S = 120.0


async def able_tools(shell: Shell, agent: str, facts: HostFacts, offer: Offer, reason: str) -> BuildTools:
    """The host's tools; EngineError with all that it lacks and the command that installs it.

    `reason`: why no build of the controller's runs there.
    """
    tools = await ask_tools(shell, agent)
    problems = lacking(tools, facts, offer.recipe)
    if problems:
        hint = f"{_hint_of_card(shell.host, facts, offer.recipe)}{install_hint(tools, facts, offer.recipe)}"
        raise EngineError(
            f"{shell.host}: the engine has to be built there ({reason}), but: {'; '.join(problems)}",
            hint=f"{hint}; or on this machine: {offer.hint}" if offer.hint else hint,
        )
    check_room(shell.host, facts, DISK_BYTES[offer.recipe.backend])
    return tools


def _hint_of_card(host: str, facts: HostFacts, recipe: Recipe) -> str:
    """What comes before a toolkit of gigabytes is installed, where that would be in vain; "" where it would not."""
    if recipe.backend != "cuda" or any(gpu.kind == recipe.backend for gpu in facts.gpus):
        return ""
    return f"{host} shows no NVIDIA card: write `backend: auto` for it, or install the card's driver first; then "


def check_room(host: str, facts: HostFacts, needed_bytes: int) -> None:
    """EngineError when what is to be put there does not fit on the host's disk."""
    if facts.disk_free_bytes < needed_bytes:
        free = bytes_text(facts.disk_free_bytes)
        raise EngineError(
            f"{host}: the engine needs {bytes_text(needed_bytes)} of disk in {facts.root}, {free} are free",
            hint=f"free at least {bytes_text(needed_bytes)} there",
        )


async def build_on_host(
    shell: Shell, agent: str, facts: HostFacts, tools: BuildTools, folder: str, offer: Offer, report: Report
) -> int:
    """Make the engine `folder` there, whole or not at all; the bytes that were sent for it. EngineError."""
    work = f"{folder}.tmp-build-{secrets.token_hex(4)}"
    one = _Building(shell, agent, facts, tools, folder, work, offer.recipe, report)
    archive = await offer.pack()
    try:
        progress = report.bytes_of(f"{shell.host}: source")
        sent_bytes = await send_archive(shell, agent, archive, folder, f"{one.work}/source", progress)
        await one.build()
    finally:
        with suppress(HostError):  # a lost connection is reported by what failed first
            await shell.run(("rm", "-rf", one.work), deadline_s=_REMOVE_S)
    return sent_bytes


@dataclass(frozen=True)
class _Building:
    """One build on one host. Source and build lie in `work`, whose name is tidied away when nobody writes there any
    more; it is a new one each time, since what an earlier build has started may still be about to end."""

    shell: Shell
    agent: str
    facts: HostFacts
    tools: BuildTools
    folder: str
    work: str
    recipe: Recipe
    report: Report

    async def build(self) -> None:
        host, began = self.shell.host, time.monotonic()
        jobs = jobs_for(self.facts, self.recipe.backend)
        processes = "1 process" if jobs == 1 else f"{jobs} processes"
        self.report.say(f"{host}: building the engine there with {self.tools.compiler} in {processes}, takes minutes")
        tree, build = f"{self.work}/source", f"{self.work}/build"
        configure = configure_command(self.tools, tree, build, self.recipe, self.facts.platform)
        await self._run("configuring", configure)
        await self._run("compiling", compile_command(self.tools, build, self.recipe.programs, jobs))
        await collect(
            self.shell,
            self.agent,
            f"{build}/bin",
            self.folder,
            self._manifest().to_json().decode(),
            self.recipe.programs,
        )
        self.report.say(f"{host}: built in {duration_text(time.monotonic() - began)}")

    def _manifest(self) -> Manifest:
        """What is known before the files are."""
        return Manifest(
            engine=PurePosixPath(self.folder).name,
            commit=SOURCE.commit,
            protocol=SOURCE.protocol,
            backend=self.recipe.backend,
            platform=self.facts.platform,
            libc="",
            files=(),
            built_on_host=True,
            capabilities=self.recipe.capabilities,
        )

    async def _run(self, step: str, words: Words) -> None:
        """One program to its end; EngineError with the end of its log when that is not well."""
        what, log = f"{step} the engine", f"{self.shell.root}/logs/engine/{step}.log"
        held = await start_leashed(
            self.shell,
            self.agent,
            words,
            name=what,
            log=log,
            environment=BUILD_ENVIRONMENT,
            heartbeat_s=_HEARTBEAT_S,
            may_end=True,
            on_line=self._on_line,
        )
        try:
            async with asyncio.timeout(_STEP_DEADLINE_S):
                ended = await held.wait()
        except TimeoutError as error:
            raise EngineError(
                f"{self.shell.host}: {what} was not done after {_STEP_DEADLINE_S / 3600:.0f} h",
                hint=f"its log is {log} there",
            ) from error
        finally:
            await held.stop()
        if ended.status != 0:
            hint = f"the whole log is {log} on {self.shell.host}"
            raise EngineError(f"{self.shell.host}: {what} failed there: {ended}", hint=hint, details=ended.tail)

    def _on_line(self, line: str) -> None:
        counter = read_counter(line)
        if counter is not None:
            self.report.progress(f"{self.shell.host}: compiled", *counter)
