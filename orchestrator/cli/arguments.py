"""Arguments and options that several commands take, said once."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from orchestrator.inventory import Inventory as InventoryValue

Inventory = Annotated[Path, typer.Argument(help="The inventory file.", show_default=True)]
AsJson = Annotated[bool, typer.Option("--json", help="Print only JSON on stdout.")]
Cluster = Annotated[str | None, typer.Option("--cluster", help="Which cluster, when more than one runs.")]
Recalibrate = Annotated[bool, typer.Option("--recalibrate", help="Measure speeds again even where they are known.")]
Mode = Annotated[Literal["single", "layers"] | None, typer.Option("--mode", help="Force a mode.")]
Devices = Annotated[
    str | None, typer.Option("--devices", help="Use only these devices, separated by commas: desktop/cpu,laptop/cpu.")
]

DEFAULT_INVENTORY = Path("inventory.yaml")


def device_set(devices: str | None, inventory: "InventoryValue | None") -> frozenset[str] | None:
    """The names in a comma-separated list; None when the option was not given.

    UsageError when it has no name, or names of hosts that `inventory` does not have: said before any host is measured.
    `inventory` is None where its hosts do not matter, since a saved survey has its own.
    """
    from orchestrator.errors import UsageError

    if devices is None:
        return None
    names = frozenset(name.strip() for name in devices.split(",") if name.strip())
    if not names:
        raise UsageError(f'--devices "{devices}" names no device', hint="name some, such as desktop/cpu,laptop/cpu")
    if inventory is not None:
        hosts = [host.name for host in inventory.hosts]
        unknown = sorted(name for name in names if name.split("/")[0] not in hosts)
        if unknown:
            raise UsageError(
                f"--devices {', '.join(unknown)}: no such host in {inventory.path}",
                hint=f"a device is named HOST/cpu; the hosts are {', '.join(hosts)}",
            )
    return names
