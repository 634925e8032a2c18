"""Fetch the last lines of what a cluster's processes on one host wrote."""

from orchestrator.errors import UsageError
from orchestrator.folders import Folders
from orchestrator.host_agent import ensure_agent, log_tail
from orchestrator.inventory import CONTROLLER, Host, Inventory
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
        folder = f"{shell.root}/logs/{inventory.cluster}/{name}"
        words = ("find", folder, "-name", "*.log", "-type", "f")
        found = await shell.run(words, deadline_s=15, check=False)
        paths = sorted(found.stdout.decode().split("\n")[:-1])
        if not paths:
            raise UsageError(f"{name} has no logs of cluster {inventory.cluster}", hint="has it ever been up?")
        tails = {path.rpartition("/")[2]: await log_tail(shell, agent, path, lines) for path in paths}
        return {file: plain_log(text) for file, text in tails.items()}
    finally:
        await shell.close()
