"""What the processes of a group are told: devices, placement, where its head runs and under which name. Starts nothing.

The same for `up`, its dry run and the bench, so that what is shown and measured is what will run.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from orchestrator.folders import Folders
from orchestrator.hosts import OpenHost, OpenHosts
from orchestrator.plan.values import Group, Plan
from orchestrator.prepare import Prepared
from orchestrator.survey.gather import default_threads
from orchestrator.survey.values import Device
from workers.engine_commands import HeadSettings, Placement


@dataclass(frozen=True)
class HeadPlace:
    """Where a head runs and what it finds there; `name` tells the heads of a plan apart in logs and states."""

    name: str
    host: OpenHost
    engine: str
    threads: int


def devices_of(prepared: Prepared, group: Group) -> tuple[Device, ...]:
    """The group's devices in the order of its shares."""
    by_name = {device.name: device for device in prepared.survey.devices}
    return tuple(by_name[share.device] for share in group.shares)


def worker_devices(prepared: Prepared, group: Group) -> tuple[Device, ...]:
    """Those that have a worker, in the order of the engine's devices."""
    having = {share.device for share in group.workers}
    return tuple(device for device in devices_of(prepared, group) if device.name in having)


def placement_of(prepared: Prepared, group: Group, endpoints: Sequence[str]) -> Placement | None:
    """What the engine is told about where layers go; None when the head computes natively."""
    if group.mode == "single":
        return None
    return Placement(
        endpoints=tuple(endpoints),
        tensor_split=group.tensor_split,
        output_on_head=group.output_on_head,
        output_tied=prepared.memory.output_tied,
        mode=group.mode,
        block_count=prepared.memory.blocks,
        head_layers=group.head_layers,
    )


def head_names(plan: Plan, taken: Collection[str] = ()) -> tuple[str, ...]:
    """One per group, none of those `taken`; the processes of a head are stopped first, which their name tells."""
    count = len(plan.groups)
    if count == 1 and not taken:
        return ("head",)
    free = (name for name in (f"head{number}" for number in range(1, count + len(taken) + 1)) if name not in taken)
    return tuple(islice(free, count))


def head_place(prepared: Prepared, hosts: OpenHosts, group: Group, name: str = "head") -> HeadPlace:
    """The host of the device that the head itself computes on, with that device's threads; else the controller."""
    native = [device for device, share in zip(devices_of(prepared, group), group.shares, strict=True) if share.native]
    if native:
        host = hosts.by_name[native[0].host]
        return HeadPlace(name, host, prepared.engine_folders[host.name], native[0].threads)
    host = hosts.of_head(group.head)
    engine = prepared.engine_folders[group.head] if group.head else str(prepared.engine.folder)
    return HeadPlace(name, host, engine, host.host.threads or default_threads(host.facts))


def head_settings(
    prepared: Prepared, plan: Plan, group: Group, place: HeadPlace, *, model: str, key_file: str, socket: str
) -> HeadSettings:
    """`model`, `key_file` and `socket` are paths on the head's host."""
    return HeadSettings(
        model=model,
        alias=prepared.memory.model,
        socket=socket,
        key_file=key_file,
        context=plan.context,
        parallel=group.parallel,
        micro_batch=group.micro_batch,
        threads=place.threads,
    )


def key_path(prepared: Prepared, folders: Folders, place: HeadPlace) -> Path:
    """Where a head's API key lies, on the controller or under the same name on its own host."""
    cluster = prepared.inventory.cluster
    if place.host.is_local:
        return folders.cluster(cluster).head_key.with_name(f"{place.name}.key")
    return Path(place.host.shell.root, "clusters", cluster, f"{place.name}.key")
