"""`meshctl cache`: what meshctl keeps on every host, whether it is whole, and cleaning it up."""

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from orchestrator.cli.arguments import DEFAULT_INVENTORY, AsJson, Inventory

if TYPE_CHECKING:
    from orchestrator.errors import MeshctlError
    from orchestrator.folders import Folders
    from orchestrator.inventory import Inventory as InventoryValue

    Work = Callable[[InventoryValue, Folders, Callable[[str], None]], Awaitable[Mapping[str, "T | MeshctlError"]]]

T = TypeVar("T")

app = typer.Typer(
    name="cache", help="See, check and clean what is kept on the hosts and on this machine.", no_args_is_help=True
)


@app.command("list")
def list_command(inventory: Inventory = DEFAULT_INVENTORY, json: AsJson = False) -> None:
    """Show what lies on every host and here, how large it is, and when it was last used."""
    from time import time

    from orchestrator.cache import list_caches
    from orchestrator.cli.run import answer
    from orchestrator.errors import MeshctlError
    from orchestrator.view.cache import caches_json, caches_view

    listed = _ask(inventory, list_caches)
    if json:
        typer.echo(caches_json(listed))
    else:
        answer().print(caches_view([one for one in listed.values() if not isinstance(one, MeshctlError)], time()))
    _raise_failed(listed)


@app.command()
def check(
    inventory: Inventory = DEFAULT_INVENTORY,
    hashes: Annotated[bool, typer.Option("--hashes", help="Compare every byte (SHA-256), not only sizes.")] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Remove what is damaged, so that the next start puts it there again.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Compare engines, models and slices on every host with what was put there. Exits with 1 when one is damaged."""
    from orchestrator.cache import check_caches
    from orchestrator.errors import MeshctlError
    from orchestrator.view.cache import caches_json, checked_lines

    checked = _ask(
        inventory, lambda wanted, folders, tell: check_caches(wanted, folders, tell, hashes=hashes, repair=repair)
    )
    found = [one for one in checked.values() if not isinstance(one, MeshctlError)]
    if json:
        typer.echo(caches_json(checked))
    else:
        for one in found:
            for line in checked_lines(one):
                typer.echo(line)
    _raise_failed(checked)
    if not all(one.well for one in found):
        raise typer.Exit(1)


@app.command()
def clean(
    inventory: Inventory = DEFAULT_INVENTORY,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be removed.")] = False,
    everything: Annotated[
        bool,
        typer.Option("--all", help="Also what takes long to get again: engines, fetched models, measured speeds."),
    ] = False,
    json: AsJson = False,
) -> None:
    """Remove, on every host and here, what no cluster that runs uses, without asking; prints what it removes."""
    from orchestrator.cache import clean_caches
    from orchestrator.errors import MeshctlError
    from orchestrator.view.cache import caches_json, cleaned_lines

    cleaned = _ask(
        inventory,
        lambda wanted, folders, tell: clean_caches(wanted, folders, tell, dry_run=dry_run, everything=everything),
    )
    if json:
        typer.echo(caches_json(cleaned))
    else:
        for one in cleaned.values():
            if not isinstance(one, MeshctlError):
                for line in cleaned_lines(one, dry_run=dry_run):
                    typer.echo(line)
    _raise_failed(cleaned)


def _ask(inventory: Inventory, work: "Work[T]") -> "Mapping[str, T | MeshctlError]":
    from orchestrator.cli.run import run, talk
    from orchestrator.folders import user_folders
    from orchestrator.inventory_file import load_inventory

    wanted, folders = load_inventory(inventory), user_folders()

    def tell(text: str) -> None:
        talk().print(text, markup=False, soft_wrap=True)

    async def ask() -> "Mapping[str, T | MeshctlError]":
        return await work(wanted, folders, tell)

    return run(ask())


def _raise_failed(answers: "Mapping[str, T | MeshctlError]") -> None:
    """The hosts that could not be asked, after what the others have answered."""
    from orchestrator.fanout import all_or_raise

    all_or_raise(answers)
