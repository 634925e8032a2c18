"""From a host of the inventory to a shell on it."""

from pathlib import Path

from platformdirs import user_cache_path

from orchestrator.inventory import Host
from orchestrator.shell.local import LocalShell
from orchestrator.shell.protocol import Shell
from orchestrator.shell.ssh import open_ssh_shell
from orchestrator.shell.ssh_config import SshFiles, account_home


async def connect(host: Host, ssh: SshFiles, *, local_root: Path | None = None) -> Shell:
    """Open a shell; the caller closes it. HostKeyError or ConnectError say why not.

    `local_root` is the folder for our files on this machine, the user's cache folder unless given.
    """
    if host.connection == "local":
        return LocalShell(host.name, local_root or user_cache_path("meshctl"), account_home())
    return await open_ssh_shell(host, ssh)
