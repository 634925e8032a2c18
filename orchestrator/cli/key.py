"""`meshctl key`: who may ask the gateway. Keys are made, shown once, and revoked, also while the cluster runs."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.arguments import AsJson

if TYPE_CHECKING:
    from orchestrator.folders import ClusterFolder

app = typer.Typer(name="key", help="Make, list and revoke the gateway's API keys.", no_args_is_help=True)

Of = Annotated[str | None, typer.Option("--cluster", help="Whose keys, where there are several clusters.")]
Name = Annotated[str, typer.Argument(help="Whom or what the key is for, such as phone or ada.")]


@app.command()
def add(name: Name, cluster: Of = None) -> None:
    """Make a key of this name and print it, this once. It opens the gateway at once, also while the cluster runs."""
    from orchestrator.cli.run import talk
    from orchestrator.gateway.keys import add_key

    folder = _folder(cluster)
    key = add_key(folder.gateway_keys, name)
    talk().print(f"a key for {name}, shown this once (`meshctl key revoke {name}` ends it):", markup=False)
    typer.echo(key)


@app.command("list")
def list_command(cluster: Of = None, as_json: AsJson = False) -> None:
    """Show every key's name, its last four characters, and when it was made."""
    from dataclasses import asdict

    from rich.table import Table
    from rich.text import Text

    from orchestrator.cli.run import answer, talk
    from orchestrator.gateway.keys import read_keys

    keys = read_keys(_folder(cluster).gateway_keys).keys
    if as_json:
        shown = ({name: value for name, value in asdict(key).items() if name != "sha256"} for key in keys)
        typer.echo(json.dumps([*shown], indent=2))
        return
    if not keys:
        talk().print("there is no key: meshctl key add NAME")
        return
    table = Table("name", "ends with", "made at", box=None, pad_edge=False)
    for key in keys:
        table.add_row(Text(key.name), Text(f"…{key.end}"), key.made_at)
    answer().print(table)


@app.command()
def revoke(name: Name, cluster: Of = None) -> None:
    """End the key of this name: from now on it opens nothing. Answers that are under way go on."""
    from orchestrator.cli.run import talk
    from orchestrator.gateway.keys import OWN_NAME, revoke_key

    folder = _folder(cluster)
    revoke_key(folder.gateway_keys, name, folder.gateway_key)
    more = "; `meshctl chat` has none until the next `meshctl up` makes one" if name == OWN_NAME else ""
    talk().print(f"the key for {name} opens nothing any more{more}", markup=False)


def _folder(name: str | None) -> "ClusterFolder":
    """The named cluster's, that of the only one that runs, or the only one there is."""
    from orchestrator.errors import UsageError
    from orchestrator.folders import user_folders
    from orchestrator.state import check_known, known_clusters, running_clusters

    folders = user_folders()
    if name is None:
        running = running_clusters(folders)
        candidates = running or known_clusters(folders)
        if not candidates:
            raise UsageError("there is no cluster yet", hint="`meshctl up inventory.yaml` makes one, and its first key")
        if len(candidates) > 1:
            raise UsageError(f"which cluster? There are {', '.join(candidates)}", hint="name one: --cluster NAME")
        (name,) = candidates
    check_known(folders, name)
    return folders.cluster(name)
