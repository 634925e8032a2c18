"""What a cluster's processes wrote on its hosts: the last lines of each log, or all of them as they grow.

A log is followed by the agent on its host, which ends when our heartbeats do; a host that is lost meanwhile is asked
again until it answers.
"""

import asyncio
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from pydantic import TypeAdapter

from orchestrator.errors import REPORTED, HostError, UsageError
from orchestrator.fanout import all_or_raise, each_host
from orchestrator.folders import Folders
from orchestrator.host_agent import Wanted, log_tail, read_object, read_part
from orchestrator.host_door import ensure_agent
from orchestrator.inventory import CONTROLLER, Host, Inventory
from orchestrator.processes import BENCH_LOGS, SURVEY_LOGS
from orchestrator.shell.connect import connect
from orchestrator.shell.protocol import Process, Shell
from orchestrator.shell.ssh_config import SshFiles, write_ssh_files
from workers import commands
from workers.head_log import plain_log

HEARTBEAT_S = 10.0
AGAIN_S = 5.0
EVERY_LINE = 1_000_000
FOUND_S = 15.0


@dataclass(frozen=True)
class LogLine:
    """One line that a process wrote; `log` is its role there, such as "worker-cpu"."""

    host: str
    log: str
    text: str


@dataclass(frozen=True)
class _Told:
    """What the agent tells of the logs that it follows: lines of one of them, and its host's clock."""

    clock_s: float
    log: str = ""
    lines: tuple[str, ...] = ()


_TOLD = TypeAdapter(_Told)


def hosts_named(inventory: Inventory, names: Collection[str]) -> dict[str, Host]:
    """These hosts of the inventory, all and the controller when none is named; UsageError for one it does not have."""
    hosts = {CONTROLLER: Host(CONTROLLER, "local")} | {host.name: host for host in inventory.hosts}
    for name in names:
        if name not in hosts:
            raise UsageError(f"{inventory.path} has no host {name}", hint=f"hosts: {', '.join(hosts)}")
    return {name: hosts[name] for name in dict.fromkeys(names or hosts)}


async def host_logs(
    inventory: Inventory, folders: Folders, names: Collection[str], lines: int, since_s: float | None = None
) -> dict[str, dict[str, str]]:
    """Log texts by host and file name, of the last `since_s` seconds if that is said; hosts without logs are left out.

    UsageError for a host the inventory does not have, or when none of them has logs.
    """
    hosts, ssh = hosts_named(inventory, names), write_ssh_files(folders.state, inventory.path)
    asked = {name: _logs_of(host, inventory.cluster, folders, ssh, lines, since_s) for name, host in hosts.items()}
    found = {name: texts for name, texts in all_or_raise(await each_host(asked)).items() if texts}
    if not found:
        who = f"{', '.join(hosts)} {'has' if len(hosts) == 1 else 'have'}"
        raise UsageError(
            f"{who} no logs of cluster {inventory.cluster}", hint="has it been up, and were its logs not cleaned away?"
        )
    return found


async def _logs_of(
    host: Host, cluster: str, folders: Folders, ssh: SshFiles, lines: int, since_s: float | None
) -> dict[str, str]:
    shell = await connect(host, ssh, local_root=folders.cache)
    try:
        agent = await ensure_agent(shell)
        kinds = {kind: _folder(shell, f"{cluster}{kind}", host.name) for kind in ("", SURVEY_LOGS, BENCH_LOGS)}
        words = ("find", *kinds.values(), "-name", "*.log", "-type", "f")
        found = await shell.run(words, deadline_s=FOUND_S, check=False)
        paths = sorted(found.stdout.decode().split("\n")[:-1])
        tails = {path: await log_tail(shell, agent, path, lines, since_s) for path in paths}
        return {_title(path, kinds): plain_log(text) for path, text in tails.items()}
    finally:
        await shell.close()


def _folder(shell: Shell, cluster: str, host: str) -> str:
    return f"{shell.root}/logs/{cluster}/{host}"


def _title(path: str, kinds: Mapping[str, str]) -> str:
    """The file's name, and for a survey or bench that too."""
    kind = next(kind for kind, folder in kinds.items() if path.startswith(f"{folder}/"))
    file = path.rpartition("/")[2]
    return f"{file} ({kind.removeprefix('.')})" if kind else file


async def follow_logs(
    inventory: Inventory,
    folders: Folders,
    names: Collection[str],
    lines: int,
    since_s: float | None,
    show: Callable[[LogLine], None],
    warn: Callable[[str], None],
) -> None:
    """Call `show` for the last lines of every log of the cluster there, then for each that is written; without an end.

    `warn` is told when a host cannot be reached, or not any more; it is then asked again and again.
    """
    hosts, ssh = hosts_named(inventory, names), write_ssh_files(folders.state, inventory.path)
    async with asyncio.TaskGroup() as group:
        for host in hosts.values():
            one = _HostFollower(host, inventory.cluster, folders, ssh, show)
            group.create_task(one.run(lines, since_s, warn))


class _HostFollower:
    """Follows all logs of one host, over one connection after the other."""

    def __init__(
        self, host: Host, cluster: str, folders: Folders, ssh: SshFiles, show: Callable[[LogLine], None]
    ) -> None:
        self._host = host
        self._cluster = cluster
        self._folders = folders
        self._ssh = ssh
        self._show = show
        self._clock_s: float | None = None

    async def run(self, lines: int, since_s: float | None, warn: Callable[[str], None]) -> None:
        told = ""
        while True:
            try:
                await self._follow(lines, since_s)
                why = f"{self._host.name}: the connection was lost"
            except REPORTED as error:
                why = str(error)
            if self._clock_s is not None or why != told:
                warn(f"{why}; it is tried again")
            told = why
            await asyncio.sleep(AGAIN_S)

    async def _follow(self, lines: int, since_s: float | None) -> None:
        """Until the agent there, or the connection to it, has ended; from where it was heard last, if it was."""
        shell = await connect(self._host, self._ssh, local_root=self._folders.cache)
        try:
            agent = await ensure_agent(shell)
            folder = _folder(shell, self._cluster, self._host.name)
            words = commands.follow_words(
                agent,
                folder,
                lines=lines if self._clock_s is None else EVERY_LINE,
                since_s=since_s,
                from_clock_s=self._clock_s,
                heartbeat_s=HEARTBEAT_S,
            )
            process = await shell.start(words)
            wanted = Wanted(process, HEARTBEAT_S / 4)
            try:
                await self._read(process)
            finally:
                await wanted.close()
        finally:
            await shell.close()

    async def _read(self, process: Process) -> None:
        async for line in process.lines():
            event = read_object(self._host.name, line)
            if "error" in event:
                raise HostError(self._host.name, str(event["error"]))
            told = read_part(self._host.name, _TOLD, event)
            self._clock_s = told.clock_s
            for text in told.lines:
                self._show_text(told.log.removesuffix(".log"), text)

    def _show_text(self, log: str, text: str) -> None:
        """A head writes JSON, of which one message may be several lines, or none."""
        for part in plain_log(text).splitlines():
            if part.strip():
                self._show(LogLine(self._host.name, log, part))
