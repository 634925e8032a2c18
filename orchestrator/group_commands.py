"""What the processes of a group are told: devices, placement, where its head runs and under which name. Starts nothing.

The same for `up`, its dry run and the bench, so that what is shown and measured is what will run.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path

from orchestrator.folders import Folders
from orchestrator.hosts import OpenHost, OpenHosts
from orchestrator.plan.values import Group, Plan, Share
from orchestrator.prepare import Prepared
from orchestrator.survey.gather import default_threads
from orchestrator.survey.values import Device
from workers.agent import VISIBLE_CARDS
from workers.engine_commands import ENVIRONMENT, HeadSettings, OnGpu, Placement, Where


@dataclass(frozen=True)
class HeadPlace:
    """Where a head runs and what it finds there; `name` tells the heads of a plan apart in logs and states."""

    name: str
    host: OpenHost
    engine: str
    threads: int
    environment: tuple[tuple[str, str], ...] = ()

    @property
    def variables(self) -> dict[str, str]:
        """For every program of the engine that runs there."""
        return {**ENVIRONMENT, **dict(self.environment)}


def devices_of(prepared: Prepared, group: Group) -> tuple[Device, ...]:
    """The group's devices in the order of its shares."""
    by_name = {device.name: device for device in prepared.survey.devices}
    return tuple(by_name[share.device] for share in group.shares)


def worker_devices(prepared: Prepared, group: Group) -> tuple[Device, ...]:
    """Those that have a worker, in the order of the engine's devices."""
    having = {share.device for share in group.workers}
    return tuple(device for device in devices_of(prepared, group) if device.name in having)


def placement_of(prepared: Prepared, group: Group, endpoints: Sequence[str]) -> Where:
    """What the engine is told about where layers go."""
    if group.mode == "single":
        (device,) = devices_of(prepared, group)
        return None if device.kind == "cpu" else OnGpu(_seen_as(prepared, group).get(device.name, device.engine_name))
    return Placement(
        endpoints=tuple(endpoints),
        tensor_split=group.tensor_split,
        output_on_head=group.output_on_head,
        output_tied=prepared.memory.output_tied,
        mode=group.mode,
        block_count=prepared.memory.blocks,
        head_layers=group.head_layers,
        names=_engine_names(prepared, group),
    )


def _engine_names(prepared: Prepared, group: Group) -> tuple[str, ...]:
    """What the engine calls the group's devices, in its order: workers are RPC0, RPC1 and so on."""
    number, seen_as = count(), _seen_as(prepared, group)
    return tuple(seen_as.get(share.device, share.gpu) if share.gpu else f"RPC{next(number)}" for share in group.placed)


def _seen_as(prepared: Prepared, group: Group) -> Mapping[str, str]:
    """What the head calls NVIDIA's cards that it computes on, of which it sees no others: they are counted anew."""
    own, cards = _own_cards(prepared, group), _card_numbers(prepared, group)
    return {device.name: f"CUDA{cards.index(_card_number(device))}" for device in own}


def _card_numbers(prepared: Prepared, group: Group) -> tuple[str, ...]:
    """By which the engine knows the cards that the head computes on where it sees all, ascending."""
    return tuple(sorted({_card_number(device) for device in _own_cards(prepared, group)}, key=int))


def _own_cards(prepared: Prepared, group: Group) -> list[Device]:
    shares = zip(devices_of(prepared, group), group.shares, strict=True)
    return [device for device, share in shares if share.native and device.kind == "cuda"]


def _card_number(device: Device) -> str:
    return device.engine_name.removeprefix("CUDA")


def own_gpus(prepared: Prepared, group: Group) -> Mapping[str, Share]:
    """What the head computes on GPUs itself, by what the engine calls these there."""
    seen_as, shares = _seen_as(prepared, group), zip(devices_of(prepared, group), group.shares, strict=True)
    return {
        seen_as.get(device.name, device.engine_name): share
        for device, share in shares
        if share.native and device.kind != "cpu"
    }


def head_names(plan: Plan, taken: Collection[str] = ()) -> tuple[str, ...]:
    """One per group, none of those `taken`; the processes of a head are stopped first, which their name tells."""
    if len(plan.groups) == 1 and not taken:
        return ("head",)
    free = (name for name in (f"head{number}" for number in count(1)) if name not in taken)
    return tuple(islice(free, len(plan.groups)))


def head_place(prepared: Prepared, hosts: OpenHosts, group: Group, name: str = "head") -> HeadPlace:
    """The host of the devices that the head itself computes on, with their threads; else the controller."""
    shares = zip(devices_of(prepared, group), group.shares, strict=True)
    native = sorted((device for device, share in shares if share.native), key=lambda device: device.kind == "cpu")
    if native:  # a GPU first, since it is to be seen
        host = hosts.by_name[native[0].host]
        engine, cards = prepared.engine_folders[host.name], _card_numbers(prepared, group)
        environment = (*native[0].environment, *_only_cards(cards, prepared, host.name, engine))
        return HeadPlace(name, host, engine, native[0].threads, environment)
    host = hosts.of_head(group.head)
    engine = prepared.engine_folders[group.head] if group.head else str(prepared.engine.folder)
    threads = host.host.threads or default_threads(host.facts)
    return HeadPlace(name, host, engine, threads, _only_cards((), prepared, host.name, engine))


def _only_cards(cards: Sequence[str], prepared: Prepared, host: str, engine: str) -> tuple[tuple[str, str], ...]:
    """NVIDIA's cards that a head sees: at log level 4 it asks every card it sees for its memory, and so holds a context
    there, hundreds of MiB that no plan counts."""
    with_cards = any(device.host == host and device.kind == "cuda" for device in prepared.survey.devices)
    if not with_cards and not Path(engine).name.startswith("cuda-"):
        return ()
    return ((VISIBLE_CARDS, ",".join(cards)),)


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
        cache_type=plan.cache_type,
        flash_attention=plan.flash_attention,
    )


def key_path(prepared: Prepared, folders: Folders, place: HeadPlace) -> Path:
    """Where a head's API key lies, on the controller or under the same name on its own host."""
    cluster = prepared.inventory.cluster
    if place.host.is_local:
        return folders.cluster(cluster).head_key.with_name(f"{place.name}.key")
    return Path(place.host.shell.root, "clusters", cluster, f"{place.name}.key")
