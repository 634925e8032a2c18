"""Fetch the last lines of what a cluster's processes on one host wrote."""

from collections.abc import Mapping

from orchestrator.errors import UsageError
from orchestrator.folders import Folders
from orchestrator.host_agent import ensure_agent, log_tail
from orchestrator.inventory import CONTROLLER, Host, Inventory
from orchestrator.processes import BENCH_LOGS, SURVEY_LOGS
from orchestrator.shell.connect import connect
from orchestrator.shell.ssh_config import write_ssh_files
from workers.head_log import plain_log


async def host_logs(inventory: Inventory, folders: Folders, name: str, lines: int) -> dict[str, str]:
    """Log texts by file name; UsageError for a host the inventory does not have, or one without logs."""
    hosts = {host.name: host for host in inventory.hosts} | {CONTROLLER: Host(CONTROLLER, "local")}
    if name not in hosts:
        raise UsageError(f"{inventory.path} has no host {name}", hint=f"hosts: {', '.join(hosts)}")
    shell = await connect(hosts[name], write_ssh_files(folders.state, inventory.path), local_root=folders.cache)
    try:
        agent = await ensure_agent(shell)
        kinds = {kind: f"{shell.root}/logs/{inventory.cluster}{kind}/" for kind in ("", SURVEY_LOGS, BENCH_LOGS)}
        words = ("find", *(f"{folder}{name}" for folder in kinds.values()), "-name", "*.log", "-type", "f")
        found = await shell.run(words, deadline_s=15, check=False)
        paths = sorted(found.stdout.decode().split("\n")[:-1])
        if not paths:
            raise UsageError(f"{name} has no logs of cluster {inventory.cluster}", hint="has it ever been up?")
        tails = {path: await log_tail(shell, agent, path, lines) for path in paths}
        return {_title(path, kinds): plain_log(text) for path, text in tails.items()}
    finally:
        await shell.close()


def _title(path: str, kinds: Mapping[str, str]) -> str:
    """The file's name, and for a survey or bench that too."""
    kind = next(kind for kind, folder in kinds.items() if path.startswith(folder))
    file = path.rpartition("/")[2]
    return f"{file} ({kind.removeprefix('.')})" if kind else file
