"""`meshctl doctor` and `meshctl trust`: make sure that every host can be used."""

from collections.abc import Collection
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.arguments import DEFAULT_INVENTORY, AsJson, Inventory

if TYPE_CHECKING:
    from rich.console import Console

    from orchestrator.inventory import Inventory as InventoryValue
    from orchestrator.shell.ssh_config import SshFiles
    from orchestrator.trust import Comparison, Scan


def doctor(inventory: Inventory = DEFAULT_INVENTORY, json: AsJson = False) -> None:
    """Examine every host: reachable, key, Python, engine, memory, disk, clock; with the fix for each failure."""
    from orchestrator.cli.run import answer, run
    from orchestrator.doctor import examine_all
    from orchestrator.folders import user_folders
    from orchestrator.inventory_file import load_inventory
    from orchestrator.view.doctor import doctor_json, doctor_view

    examined = run(examine_all(load_inventory(inventory), user_folders()))
    if json:
        typer.echo(doctor_json(examined))
    else:
        answer().print(doctor_view(examined), soft_wrap=True)
    if not all(one.well for one in examined):
        raise typer.Exit(1)


def trust(
    inventory: Inventory = DEFAULT_INVENTORY,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Trust what is offered without asking.")] = False,
    replace: Annotated[
        list[str] | None,
        typer.Option("--replace", metavar="HOST", help="Replace the key of this host, which has changed."),
    ] = None,
) -> None:
    """Show the host keys of all machines and, after you agree, remember them in meshctl's own known-hosts file.

    Compare the fingerprints with what the machine itself says: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub
    """
    from orchestrator.cli.run import talk
    from orchestrator.errors import UsageError
    from orchestrator.folders import user_folders
    from orchestrator.inventory_file import load_inventory
    from orchestrator.shell.ssh_config import write_ssh_files

    wanted = load_inventory(inventory)
    unknown = set(replace or ()) - {host.name for host in wanted.hosts}
    if unknown:
        raise UsageError(f"--replace {', '.join(sorted(unknown))}: no such host in {inventory}")
    _trust(wanted, write_ssh_files(user_folders().state, inventory), talk(), yes, replace or ())


def _trust(wanted: "InventoryValue", ssh: "SshFiles", console: "Console", yes: bool, replace: Collection[str]) -> None:
    """A jump must be trusted before what lies behind it can be seen: scan again until nothing waits."""
    from orchestrator.cli.run import run
    from orchestrator.trust import compare
    from orchestrator.trust import trust as remember

    while True:
        scans = run(_scan_all(wanted, ssh))
        compared = compare([key for scan in scans for key in scan.keys], ssh)
        _show(compared, console)
        if compared.new or compared.changed:
            if compared.new and not yes and not typer.confirm("Trust the new keys?", err=True):
                raise typer.Exit(1)
            written = remember(compared, ssh, replace=replace)
            count = f"{len(written)} key{'' if len(written) == 1 else 's'}"
            console.print(f"{count} trusted, kept in {ssh.known_hosts}", markup=False, soft_wrap=True)
        elif compared.known:
            console.print("every key is trusted already")
        else:
            console.print("no host of this inventory is reached over SSH: nothing to trust")
        if not any(scan.waits_for for scan in scans):
            return


async def _scan_all(wanted: "InventoryValue", ssh: "SshFiles") -> "tuple[Scan, ...]":
    from orchestrator.fanout import all_or_raise, each_host
    from orchestrator.trust import scan_keys

    return tuple(all_or_raise(await each_host({host.name: scan_keys(host, ssh) for host in wanted.hosts})).values())


def _show(compared: "Comparison", console: "Console") -> None:
    from rich.text import Text

    for what, keys in (("known", compared.known), ("new", compared.new)):
        for key in keys:
            console.print(Text(f"{key.host} ({key.address})  {key.type:<20} {key.fingerprint}  {what}"), soft_wrap=True)
    for changed in compared.changed:
        key = changed.offered
        line = (
            f"{key.host} ({key.address})  {key.type:<20} {key.fingerprint}  CHANGED, was {', '.join(changed.trusted)}"
        )
        console.print(Text(line, "bold red"), soft_wrap=True)
