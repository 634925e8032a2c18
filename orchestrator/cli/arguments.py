"""Arguments and options that several commands take, said once."""

from pathlib import Path
from typing import Annotated

import typer

Inventory = Annotated[Path, typer.Argument(help="The inventory file.", show_default=True)]
AsJson = Annotated[bool, typer.Option("--json", help="Print only JSON on stdout.")]
Cluster = Annotated[str | None, typer.Option("--cluster", help="Which cluster, when more than one runs.")]
Recalibrate = Annotated[bool, typer.Option("--recalibrate", help="Measure speeds again even where they are known.")]
Mode = Annotated[str | None, typer.Option("--mode", help="Force a mode: single or layers.")]
Devices = Annotated[
    str | None, typer.Option("--devices", help="Use only these devices, separated by commas: desktop/cpu,laptop/cpu.")
]

DEFAULT_INVENTORY = Path("inventory.yaml")


def device_set(devices: str | None) -> frozenset[str] | None:
    """The names in a comma-separated list; None when the option was not given."""
    return None if devices is None else frozenset(name.strip() for name in devices.split(",") if name.strip())
