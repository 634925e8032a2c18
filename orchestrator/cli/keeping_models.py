"""`meshctl model list`, `remove` and `quota`: which models lie where, and how much they may take."""

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from orchestrator.cli.arguments import DEFAULT_INVENTORY, AsJson

if TYPE_CHECKING:
    from orchestrator.errors import MeshctlError
    from orchestrator.folders import Folders
    from orchestrator.inventory import Inventory

    Work = Callable[[Inventory | None, Folders, Callable[[str], None]], Awaitable[Mapping[str, "T | MeshctlError"]]]

T = TypeVar("T")

Hosts = Annotated[Path | None, typer.Option("--inventory", "-i", help="Also the hosts of this inventory.")]


def list_command(inventory: Hosts = None, json: AsJson = False) -> None:
    """Show which models lie here and, with an inventory, what of them lies on its hosts; sizes and when last used."""
    from time import time

    from orchestrator.cli.run import print_whole, talk
    from orchestrator.errors import MeshctlError
    from orchestrator.fanout import all_or_raise
    from orchestrator.folders import user_folders
    from orchestrator.kept_models import list_models
    from orchestrator.models_quota import read_quota
    from orchestrator.view.kept_models import models_json, models_table, quota_text

    listed, quota = _ask(inventory, list_models), read_quota(user_folders())
    folder = str(user_folders().cache / "models")
    if json:
        typer.echo(models_json(listed, quota, folder))
    else:
        kept = [one for found in listed.values() if not isinstance(found, MeshctlError) for one in found]
        print_whole(models_table(kept, time()))
        talk().print(quota_text(kept, quota, folder), markup=False, soft_wrap=True)
    all_or_raise(listed)


def remove(
    name: Annotated[str, typer.Argument(help="A model as `meshctl model list` shows it, or its path.")],
    host: Annotated[str | None, typer.Option("--host", help="What this host of the inventory has of it.")] = None,
    everywhere: Annotated[
        bool, typer.Option("--everywhere", help="The model, and what every host of the inventory has of it.")
    ] = False,
    inventory: Annotated[
        Path, typer.Option("--inventory", "-i", help="The inventory that names the hosts.")
    ] = DEFAULT_INVENTORY,
    json: AsJson = False,
) -> None:
    """Remove a model from this machine, or what hosts have of it, without asking. What is in use stays: exit code 1."""
    from orchestrator.errors import MeshctlError, UsageError
    from orchestrator.fanout import all_or_raise
    from orchestrator.inventory import CONTROLLER
    from orchestrator.kept_models import remove_model
    from orchestrator.view.cache import caches_json, cleaned_lines

    if host is not None and everywhere:
        raise UsageError("--host and --everywhere exclude each other", hint="leave one of them out")
    hosts = None if everywhere else (host or CONTROLLER,)
    of_hosts = inventory if everywhere or host is not None else None
    removed = _ask(of_hosts, lambda wanted, folders, tell: remove_model(name, hosts, wanted, folders, tell))
    found = [one for one in removed.values() if not isinstance(one, MeshctlError)]
    if json:
        typer.echo(caches_json(removed))
    else:
        for one in found:
            for line in cleaned_lines(one, dry_run=False):
                typer.echo(line)
    all_or_raise(removed)
    in_use = [f"{one.host}: {item.place}" for one in found for item in one.left]
    if in_use:
        raise MeshctlError(f"{', '.join(in_use)}: in use, and stays", hint="stop what uses it: meshctl down")


def quota(
    size: Annotated[str | None, typer.Argument(help="Such as 40GiB; `off` for none. Without it: show.")] = None,
) -> None:
    """Set how much the models on this machine may take; those used longest ago go when another one comes."""
    from orchestrator.cli.run import run, talk
    from orchestrator.errors import UsageError
    from orchestrator.folders import user_folders
    from orchestrator.models_quota import keep_to_quota, read_quota, write_quota
    from orchestrator.sizes import parse_bytes
    from orchestrator.view.sizes import bytes_text

    folders = user_folders()
    if size is not None:
        try:
            write_quota(folders, None if size == "off" else parse_bytes(size))
        except ValueError as error:
            problem, _, fix = str(error).partition("; ")
            raise UsageError(problem, hint=f"{fix}, or `off`") from error
        run(keep_to_quota(folders, lambda text: talk().print(text, markup=False, soft_wrap=True)))
    now = read_quota(folders)
    typer.echo("off" if now is None else bytes_text(now))


def _ask(inventory: Path | None, work: "Work[T]") -> "Mapping[str, T | MeshctlError]":
    from orchestrator.cli.run import run, talk
    from orchestrator.folders import user_folders
    from orchestrator.inventory_file import load_inventory

    wanted = None if inventory is None else load_inventory(inventory)

    def tell(text: str) -> None:
        talk().print(text, markup=False, soft_wrap=True)

    async def ask() -> "Mapping[str, T | MeshctlError]":
        return await work(wanted, user_folders(), tell)

    return run(ask())
