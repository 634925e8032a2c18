"""Bring a plan up: workers, links, heads, checks. Whatever is started is in `Started`, so that a failure ends it all.

All groups of a plan come up side by side. Every load gets fresh worker processes: a head that cuts layers across a
worker that served another one before reads memory that was never written.
"""

import secrets
from collections.abc import Awaitable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TypeVar

from orchestrator.errors import MeshctlError
from orchestrator.experience_store import remember
from orchestrator.fanout import all_or_raise, each_host
from orchestrator.folders import Folders
from orchestrator.group_commands import (
    HeadPlace,
    devices_of,
    head_names,
    head_place,
    head_settings,
    key_path,
    own_gpus,
    placement_of,
    worker_devices,
)
from orchestrator.head_checks import Answer, HeadSpeed, check_answer, measure_head, wait_loaded
from orchestrator.hosts import OpenHosts
from orchestrator.leash import Leashed
from orchestrator.model_copies import model_on_host
from orchestrator.packs import bring_packs
from orchestrator.plan.costs import largest_of_each
from orchestrator.plan.experience import Measured, as_predicted
from orchestrator.plan.values import Group, Plan, Share
from orchestrator.prepare import Prepared
from orchestrator.processes import Head, Started, Worker, start_head, start_worker
from orchestrator.report import Report
from orchestrator.state import write_private
from orchestrator.survey.values import Link
from quant.model import Model, device_tensors
from quant.piece import Piece, device_pieces, whole
from workers.engine_commands import HeadSettings
from workers.head_log import read_buffers

MIB = 1024 * 1024
LOAD_PATIENCE_S = 120.0
SLOWEST_READ_BYTES_PER_S = 20_000_000.0
"""A memory card: the head reads every byte of the model from its disk, also what a fast link then carries."""

QUICK_S = 30.0
ANSWER_PATIENCE_S = 60.0
MEMORY_TOLERANCE = 0.05
MEMORY_SLACK_BYTES = 8 * MIB
SLOW_PART = 0.5
SAME_SPEED = 1.25
LOG_LINES = 20_000
ALL_DEVICES = "Meta()"
"""What the engine calls the devices that it cuts layers across, all of them together."""

NO_PACKS: Mapping[str, str] = MappingProxyType({})

T = TypeVar("T")


@dataclass(frozen=True)
class RunningGroup:
    """A head that answers, its workers in the order of the engine's devices, and what it showed after its start."""

    group: Group
    name: str
    head: Head
    workers: tuple[Worker, ...]
    answer: Answer
    speed: HeadSpeed
    measured: bool = True  # else `speed` is as planned
    earlier: bool = False  # measured at an earlier start of this very group, which is as fast now

    @property
    def processes(self) -> tuple[Leashed, ...]:
        """All that it stands or falls with."""
        return (*self.head.processes, *(process for worker in self.workers for process in worker.processes))

    @property
    def decode_tokens_per_s(self) -> float:
        return 1 / self.speed.token_s

    @property
    def aggregate_tokens_per_s(self) -> float:
        """All conversations of this head together."""
        return self.group.parallel / self.speed.step_s

    @property
    def prefill_tokens_per_s(self) -> float:
        return self.group.prompt_tokens / self.speed.prefill_s


@dataclass(frozen=True)
class Running:
    """A cluster that answers; `heads` in the order of the plan's groups."""

    plan: Plan
    heads: tuple[RunningGroup, ...]


@dataclass(frozen=True)
class _Loading:
    """A group whose head has been started."""

    group: Group
    place: HeadPlace
    head: Head
    workers: tuple[Worker, ...]
    key_file: str


async def bring_up(
    prepared: Prepared,
    plan: Plan,
    hosts: OpenHosts,
    folders: Folders,
    started: Started,
    report: Report,
    *,
    measure: bool = True,
    taken: Collection[str] = (),
) -> Running:
    """Start everything the plan names and check it; on any error the caller stops `started`.

    A group that has been measured at an earlier start is measured again only where it now is slower or faster. Without
    `measure` none is, since somebody waits for an answer: speeds that are not known are taken to be as planned, until
    there is time (`measure_group`). `taken` are names of heads that run already.
    """
    packed = packed_pieces(prepared, plan.groups, hosts)
    if packed:
        report.step("Bringing weights to the workers", "loading")
    packs = await bring_packs(prepared.model, packed, hosts, every_byte=measure, rates=rates_from_here(prepared))
    if any(group.workers for group in plan.groups):
        report.step("Starting workers and links", "loading")
    workers = await start_workers(prepared, plan.groups, hosts, started, packs)
    report.step("Starting the head and loading the model" if len(plan.groups) == 1 else _HEADS_STEP, "loading")
    names = head_names(plan, taken)
    loading = await _start_heads(prepared, plan, names, hosts, folders, started, workers)
    await _load(prepared, loading, started, report)
    report.step("Checking an answer and the memory", "checking")
    answers = await _check_answers(loading, started)
    for one in loading:
        await compare_memory(one.group, one.head, one.workers, own_gpus(prepared, one.group), report)
    heads = [_as_known(one, answers[one.place.name], report) for one in loading]
    if measure and not all(one.measured for one in heads):
        report.step("Measuring its speed", "checking")
        heads = [
            one if one.measured else await measure_group(one, prepared, plan, started, folders, report) for one in heads
        ]
    return Running(plan, tuple(heads))


_HEADS_STEP = "Starting the heads and loading the model"


async def start_workers(
    prepared: Prepared,
    groups: Iterable[Group],
    hosts: OpenHosts,
    started: Started,
    packs: Mapping[str, str] = NO_PACKS,
    *,
    logs: str = "",
) -> dict[str, Worker]:
    """A fresh worker, with its link, for every device that needs one, all side by side; by the device's name.

    `packs`: by host the folder that its workers look for weights in.
    """
    devices = [device for group in groups for device in worker_devices(prepared, group)]
    answers = await each_host(
        {
            device.name: start_worker(
                started,
                hosts,
                f"{prepared.inventory.cluster}{logs}",
                device.spec,
                hosts.by_name[device.host],
                prepared.engine_folders[device.host],
                pack=packs.get(device.host, ""),
            )
            for device in devices
        }
    )
    return all_or_raise(answers)


def packed_pieces(prepared: Prepared, groups: Iterable[Group], hosts: OpenHosts) -> dict[str, tuple[Piece, ...]]:
    """By host, what its workers need of the model as files, but for those of this machine."""
    wanted: dict[str, dict[str, Piece]] = {}
    for group in groups:
        for number, device in enumerate(worker_devices(prepared, group)):
            if not hosts.by_name[device.host].is_local:
                pieces = _worker_pieces(prepared.model, group, number)
                wanted.setdefault(device.host, {}).update({piece.name: piece for piece in pieces})
    return {host: tuple(pieces.values()) for host, pieces in wanted.items() if pieces}


def rates_from_here(prepared: Prepared) -> dict[str, float]:
    """Bytes per second to the hosts that may get weights from other hosts instead."""
    if prepared.inventory.weights_from == "controller":
        return {}
    return {device.host: device.link.up_bytes_per_s for device in prepared.survey.devices}


def _worker_pieces(model: Model, group: Group, number: int) -> tuple[Piece, ...]:
    share = group.workers[number]
    if group.mode == "tensor":
        return device_pieces(model, group.tensor_split, number)
    output = share.output and not group.output_on_head
    return tuple(map(whole, device_tensors(model, share.first_layer, share.layers, output)))


def load_deadline_s(weights_bytes: int, links: Iterable[Link]) -> float:
    """How long loading may take: four times the weights' way over the slowest link, or from a slow disk if longer."""
    on_the_way_s = max((4 * weights_bytes / link.up_bytes_per_s for link in links), default=0.0)
    return LOAD_PATIENCE_S + max(on_the_way_s, weights_bytes / SLOWEST_READ_BYTES_PER_S)


async def compare_memory(
    group: Group, head: Head, workers: Sequence[Worker], own: Mapping[str, Share], report: Report
) -> None:
    """Set what the engine says it allocated beside the plan; a warning where that is more.

    `own` are the head's GPUs by what the engine calls them. Of mode `tensor` it tells the largest buffer of each kind
    on any device. What a head holds for its CPU it does not tell: it counts weights twice that it has laid out anew.
    """
    buffers = read_buffers((await head.process.log_tail(lines=LOG_LINES)).splitlines())
    if group.mode == "tensor":
        names = " and ".join(share.device for share in group.shares)
        planned = {ALL_DEVICES: (f"the fullest of {names}", largest_of_each(group.shares).total_bytes)}
    else:
        shares = zip(group.workers, workers, strict=True)
        planned = {worker.endpoint: (share.device, share.total_bytes) for share, worker in shares}
        planned |= {name: (share.device, share.total_bytes) for name, share in own.items()}
    for name, (device, planned_bytes) in planned.items():
        held = buffers.get(name)
        _compare_bytes(device, None if held is None else held.total_bytes, planned_bytes, report)


def compare_speed(running: RunningGroup, report: Report) -> None:
    """Set the measured speeds beside the predicted ones and those of earlier starts; a warning with the likely causes
    when one is far below what the plan has, which is the latter where there are any."""
    planned, predicted = running.group, as_predicted(running.group)
    together = {
        f"{planned.parallel} conversations": (
            running.aggregate_tokens_per_s,
            planned.aggregate_alone_tokens_per_s,
            predicted.aggregate_alone_tokens_per_s,
        )
    }
    speeds = {
        "decode": (running.decode_tokens_per_s, planned.decode_tokens_per_s, predicted.decode_tokens_per_s),
        **(together if planned.parallel > 1 else {}),
        "prefill": (running.prefill_tokens_per_s, planned.prefill_tokens_per_s, predicted.prefill_tokens_per_s),
    }
    texts = [
        f"{what} {real:.1f} tokens/s measured, {f'{before:.1f} before, ' if planned.known == 'measured' else ''}"
        f"{hoped:.1f} predicted"
        for what, (real, before, hoped) in speeds.items()
    ]
    text = f"{running.name} on {running.head.host}: {'; '.join(texts)}"
    if all(real >= SLOW_PART * expected for real, expected, _ in speeds.values()):
        report.say(text)
        return
    report.warn(
        f"{text}: far slower. Other programs on a host (then set `threads` lower than its idle cores), or speeds "
        "that were measured at another time (then try `--recalibrate`)"
    )


async def measure_group(
    running: RunningGroup, prepared: Prepared, plan: Plan, started: Started, folders: Folders, report: Report
) -> RunningGroup:
    """The same with the speed that it has, which is kept for the plans to come, as slow beside other heads as planned.
    Nothing else may be asked meanwhile, of another head neither: they would slow each other down."""
    group = running.group
    alone = replace(group, step_s=group.step_alone_s, beside=1.0)
    speed = await measure_head(running.head, started, alone, plan.context)
    running = replace(running, speed=speed, measured=True)
    compare_speed(running, report)
    measured = Measured(speed.token_s, speed.step_s * group.beside, speed.prefill_s)
    remember(folders, prepared.circumstances, group, measured, prepared.experience.outdated)
    return running


def is_as_known(group: Group, answer: Answer) -> bool:
    """Whether this very group has been measured at an earlier start and is as fast now, by the known answer."""
    ratio = answer.decode_tokens_per_s / group.decode_tokens_per_s
    return group.known == "measured" and 1 / SAME_SPEED <= ratio <= SAME_SPEED


def _compare_bytes(device: str, held_bytes: int | None, planned_bytes: int, report: Report) -> None:
    if held_bytes is None:
        report.warn(f"{device}: the engine has not said what it holds there")
        return
    text = f"{device}: engine reports {held_bytes / MIB:.0f} MiB, planned {planned_bytes / MIB:.0f} MiB"
    if held_bytes > planned_bytes * (1 + MEMORY_TOLERANCE) + MEMORY_SLACK_BYTES:
        report.warn(f"{text}: more than planned")
    else:
        report.say(text)


async def _start_heads(
    prepared: Prepared,
    plan: Plan,
    names: Sequence[str],
    hosts: OpenHosts,
    folders: Folders,
    started: Started,
    workers: Mapping[str, Worker],
) -> list[_Loading]:
    """One head per group, after the model has been put on every host that needs it."""
    places = [head_place(prepared, hosts, group, name) for group, name in zip(plan.groups, names, strict=True)]
    needing = {place.host.name: place.host for place in places}
    copies = {name: model_on_host(prepared.model, host) for name, host in needing.items()}
    models = all_or_raise(await each_host(copies))
    starts = {
        place.name: _start_head(
            prepared,
            plan,
            group,
            place,
            models[place.host.name],
            hosts,
            folders,
            started,
            tuple(workers[device.name] for device in worker_devices(prepared, group)),
        )
        for group, place in zip(plan.groups, places, strict=True)
    }
    return list((await _all(starts)).values())


async def _start_head(
    prepared: Prepared,
    plan: Plan,
    group: Group,
    place: HeadPlace,
    model: str,
    hosts: OpenHosts,
    folders: Folders,
    started: Started,
    workers: tuple[Worker, ...],
) -> _Loading:
    """The head of one group with a key made for this start."""
    key = secrets.token_urlsafe(32)
    path = key_path(prepared, folders, place)
    # Of this start alone: the leash of an earlier head that is out of reach may still take its own away.
    key_file = path.with_name(f"{path.stem}-{secrets.token_hex(4)}.key")

    async def put_key() -> None:
        if place.host.is_local:
            write_private(key_file, key + "\n")
        else:
            await place.host.shell.put_bytes(f"{key}\n".encode(), str(key_file), mode=0o600)

    def settings(door: str) -> HeadSettings:
        return head_settings(prepared, plan, group, place, model=model, key_file=str(key_file), socket=door)

    placement = placement_of(prepared, group, [worker.endpoint for worker in workers])
    cluster = prepared.inventory.cluster
    head = await start_head(
        started,
        hosts,
        cluster,
        place.host,
        place.engine,
        settings,
        placement,
        key,
        put_key,
        place.name,
        place.variables,
    )
    return _Loading(group, place, head, workers, str(key_file))


async def _load(prepared: Prepared, loading: Sequence[_Loading], started: Started, report: Report) -> None:
    """Wait for every head's model; progress is what the processes that hold the weights have grown to."""
    weights = sum(share.weights_bytes for one in loading for share in one.group.shares)
    holders = [process for one in loading for process in _holders(one)]

    def on_wait(passed_s: float) -> None:
        held = sum(process.rss_bytes or 0 for process in holders)
        report.progress("weights", min(held, weights), weights, "bytes")

    waits = {}
    for one in loading:
        links = [device.link for device in devices_of(prepared, one.group)]
        group_weights = sum(share.weights_bytes for share in one.group.shares)
        deadline_s = load_deadline_s(group_weights, links)
        waits[one.place.name] = wait_loaded(one.head, started, deadline_s=deadline_s, on_wait=on_wait)
    await _all(waits)
    await _all({one.place.name: _remove_key(one) for one in loading})


async def _remove_key(one: _Loading) -> None:
    """A head reads its key when it starts; from then on nobody needs the file."""
    await one.place.host.shell.run(("rm", "-f", one.key_file), deadline_s=QUICK_S)


def _holders(one: _Loading) -> list[Leashed]:
    """The processes that a group's weights go to."""
    native = any(share.native for share in one.group.shares)
    return [*(worker.process for worker in one.workers), *([one.head.process] if native else [])]


async def _check_answers(loading: Sequence[_Loading], started: Started) -> dict[str, Answer]:
    """Every head's answer to the known prompt, by the head's name."""
    return await _all(
        {
            one.place.name: check_answer(
                one.head, started, deadline_s=ANSWER_PATIENCE_S + 40 * one.group.token_s * len(loading)
            )
            for one in loading
        }
    )


def _as_known(one: _Loading, answer: Answer, report: Report) -> RunningGroup:
    """With the speed that it had at an earlier start; as planned where that is not known or not so any more."""
    speed = HeadSpeed(one.group.token_s, one.group.step_alone_s, one.group.prefill_s)
    planned = RunningGroup(one.group, one.place.name, one.head, one.workers, answer, speed, measured=False)
    if not is_as_known(one.group, answer):
        return planned
    then = f"decode {one.group.decode_tokens_per_s:.1f} tokens/s, as measured at an earlier start"
    report.say(f"{one.place.name} on {one.head.host}: {then}")
    return replace(planned, measured=True, earlier=True)


async def _all(items: Mapping[str, Awaitable[T]]) -> dict[str, T]:
    """What every head gave, all waited for at once; one error when they all fail from the same cause."""
    answers = await each_host(items, limit=len(items))
    errors = {str(answer): answer for answer in answers.values() if isinstance(answer, MeshctlError)}
    if len(errors) == 1:
        raise next(iter(errors.values()))
    return all_or_raise(answers)
