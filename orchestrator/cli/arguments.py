"""Arguments and options that several commands take, said once, and what they ask of the planner."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from orchestrator.inventory import Inventory as InventoryValue
    from orchestrator.wishes import Wishes
    from workers.engine_commands import CacheType as CacheTypeValue

Inventory = Annotated[Path, typer.Argument(help="The inventory file.", show_default=True)]
OfInventory = Annotated[Path | None, typer.Argument(help="The inventory whose cluster is meant.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print only JSON on stdout.")]
Cluster = Annotated[str | None, typer.Option("--cluster", help="Which cluster, when more than one runs.")]
Recalibrate = Annotated[bool, typer.Option("--recalibrate", help="Measure speeds again even where they are known.")]
Mode = Annotated[
    Literal["single", "layers", "tensor", "replicas"] | None, typer.Option("--mode", help="Only plans of this mode.")
]
Devices = Annotated[
    str | None, typer.Option("--devices", help="Use only these devices, separated by commas: desktop/cpu,laptop/cpu.")
]
Split = Annotated[
    str | None,
    typer.Option("--split", help="Exactly these layers on these devices, in this order: desktop/cpu=20,laptop/cpu=12."),
]
Goal = Annotated[
    Literal["latency", "throughput"] | None,
    typer.Option("--goal", help="Plan for one conversation's speed or for all of them; else as the inventory says."),
]
CacheType = Annotated[
    str | None,
    typer.Option("--cache-type", help="Keep the context as f16, q8_0 or q4_0; else as the inventory says."),
]

Since = Annotated[str | None, typer.Option("--since", help="Only what was written within this time: 90s, 10m, 2h, 1d.")]

DEFAULT_INVENTORY = Path("inventory.yaml")

_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhd]?)")
_UNITS_S = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DEVICE = re.compile(r"[^/]+/(cpu|(cuda|metal|vulkan)[0-9]+)")


@dataclass(frozen=True)
class KnownHosts:
    """The hosts whose devices options may name, and where they are from: a file's name, for messages."""

    names: tuple[str, ...]
    place: str

    @staticmethod
    def of(inventory: "InventoryValue") -> "KnownHosts":
        return KnownHosts(tuple(host.name for host in inventory.hosts), str(inventory.path))


def read_wishes(
    hosts: KnownHosts,
    *,
    mode: str | None,
    devices: str | None,
    split: str | None,
    goal: str | None,
    recalibrate: bool,
    cache_type: str | None = None,
) -> "Wishes":
    """What the options ask of a plan for these hosts; UsageError for what cannot be meant, before a host is reached."""
    from orchestrator.wishes import Wishes

    named = None if devices is None else device_set(devices, hosts)
    kept_as = None if cache_type is None else read_cache_type(cache_type)
    if split is None:
        return Wishes(named, mode, None, goal, recalibrate, cache_type=kept_as)
    layers = device_layers(split, hosts)
    _check_split(mode, named, layers)
    return Wishes(frozenset(layers), "layers", layers, goal, recalibrate, cache_type=kept_as)


def named_cluster(inventory: Path | None, cluster: str | None) -> str | None:
    """The cluster of this inventory, or the one that is named; None where neither is given.

    UsageError where they are two, InventoryError for an inventory that cannot be read.
    """
    from orchestrator.errors import UsageError
    from orchestrator.inventory_file import load_inventory

    if inventory is None:
        return cluster
    name = load_inventory(inventory).cluster
    if cluster not in (None, name):
        raise UsageError(
            f"{inventory} is of the cluster {name}, not {cluster}", hint="name the cluster in one way only"
        )
    return name


def wish_options(wishes: "Wishes") -> tuple[str, ...]:
    """The words that `read_wishes` makes these wishes of again."""
    words: list[str] = []
    if wishes.split is not None:
        words += ["--split", wishes.split_text]
    elif wishes.devices is not None:
        words += ["--devices", ",".join(sorted(wishes.devices))]
    if wishes.mode is not None:
        words += ["--mode", wishes.mode]
    if wishes.goal is not None:
        words += ["--goal", wishes.goal]
    if wishes.cache_type is not None:
        words += ["--cache-type", wishes.cache_type]
    return (*words, *(("--recalibrate",) if wishes.recalibrate else ()))


def read_cache_type(text: str) -> "CacheTypeValue":
    """As for `cache_type` in the inventory."""
    from orchestrator import inventory_fields
    from orchestrator.errors import UsageError

    try:
        return inventory_fields.cache_type(text)
    except ValueError as error:
        what, _, fix = str(error).partition("; ")
        raise UsageError(f"--cache-type: {what}", hint=fix) from error


def device_set(devices: str, hosts: KnownHosts) -> frozenset[str]:
    """The names in a comma-separated list; UsageError when it has none, or not of devices on these hosts."""
    from orchestrator.errors import UsageError

    names = _parts(devices)
    if not names:
        raise UsageError(f'--devices "{devices}" names no device', hint="name some, such as desktop/cpu,laptop/cpu")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"--devices: {', '.join(twice)} is there twice", hint="name each device once")
    _check_devices("--devices", names, hosts)
    return frozenset(names)


def device_layers(split: str, hosts: KnownHosts) -> dict[str, int]:
    """`DEVICE=LAYERS,...` in the order it is written; UsageError when it is not that, for devices on these hosts."""
    from orchestrator.errors import UsageError

    hint = "write each device once with its number of layers, such as desktop/cpu=20,laptop/cpu=12"
    layers: dict[str, int] = {}
    for part in _parts(split):
        device, _, number = (word.strip() for word in part.partition("="))
        if not device or not number.isdecimal() or not 1 <= int(number) <= 9999:
            raise UsageError(f'--split: "{part}" is not a device and its layers', hint=hint)
        if device in layers:
            raise UsageError(f"--split: {device} is there twice", hint=hint)
        layers[device] = int(number)
    if not layers:
        raise UsageError(f'--split "{split}" names no device', hint=hint)
    _check_devices("--split", list(layers), hosts)
    return layers


def read_duration_s(option: str, text: str | None) -> float | None:
    """Seconds of a time such as 90s, 10m, 2h or 1d (a bare number: seconds); UsageError for what is none."""
    from orchestrator.errors import UsageError

    if text is None:
        return None
    found = _DURATION.fullmatch(text.strip())
    if found is None:
        raise UsageError(f"{option} {text}: not a time", hint="write it as 90s, 10m, 2h or 1d")
    return float(found[1]) * _UNITS_S[found[2]]


def _check_split(mode: str | None, devices: frozenset[str] | None, layers: Collection[str]) -> None:
    from orchestrator.errors import UsageError

    if mode not in (None, "layers"):
        raise UsageError(
            f"--split and --mode {mode} exclude each other", hint="a split is of mode layers: leave --mode out"
        )
    if devices not in (None, frozenset(layers)):
        raise UsageError("--split and --devices name other devices", hint="--split says it all: leave --devices out")


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _check_devices(option: str, names: Sequence[str], hosts: KnownHosts) -> None:
    from orchestrator.errors import UsageError

    hint = f"write HOST/cpu, the host one of {', '.join(hosts.names)}"
    if unknown := sorted(name for name in names if name.split("/")[0] not in hosts.names):
        raise UsageError(f"{option} {', '.join(unknown)}: no such host in {hosts.place}", hint=hint)
    if wrong := sorted(name for name in names if not _DEVICE.fullmatch(name)):
        raise UsageError(f"{option} {', '.join(wrong)}: not the name of a device", hint=hint)
