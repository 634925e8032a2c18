"""From a host of the inventory to a shell on it."""

from pathlib import Path

from platformdirs import user_cache_path

from orchestrator.errors import CommandError, DeadlineError, HostError
from orchestrator.inventory import Host
from orchestrator.shell.local import LocalShell
from orchestrator.shell.protocol import Shell
from orchestrator.shell.ssh import open_ssh_shell
from orchestrator.shell.ssh_config import SshFiles, account_home
from orchestrator.shell.words import shown

LAUNCH_S = 20.0


async def connect(host: Host, ssh: SshFiles, *, local_root: Path | None = None) -> Shell:
    """Open a shell; the caller closes it. HostKeyError or ConnectError say why not, HostError when `run_with` fails.

    `local_root` is the folder for our files on this machine, the user's cache folder unless given.
    """
    shell = await _open(host, ssh, local_root)
    try:
        if host.run_with:
            await _try_launcher(host, shell)
    except BaseException:
        await shell.close()
        raise
    return shell


async def _open(host: Host, ssh: SshFiles, local_root: Path | None) -> Shell:
    if host.connection == "local":
        return LocalShell(host.name, local_root or user_cache_path("meshctl"), account_home(), host.run_with)
    return await open_ssh_shell(host, ssh)


async def _try_launcher(host: Host, shell: Shell) -> None:
    """Once, with a command that does nothing: later its failure would look like that of our own programs."""
    try:
        await shell.run(("true",), deadline_s=LAUNCH_S)
    except (CommandError, DeadlineError) as error:
        if isinstance(error, CommandError) and error.status is None:
            raise
        raise HostError(
            host.name,
            f"`run_with` does not work: `{shown((*host.run_with, 'true'))}` fails there",
            hint=f"install {host.run_with[0]} on {host.name}, or correct `run_with` of that host in the inventory",
            details=getattr(error, "details", "") or str(error),
        ) from error
