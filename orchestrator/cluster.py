"""Bring a plan up: workers, links, head, checks. Whatever is started is in `Started`, so that a failure ends it all."""

import hashlib
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from orchestrator.fanout import all_or_raise, each_host
from orchestrator.folders import Folders
from orchestrator.hosts import OpenHost, OpenHosts
from orchestrator.plan.values import Plan
from orchestrator.prepare import Prepared
from orchestrator.processes import (
    Answer,
    Head,
    Started,
    Worker,
    check_answer,
    start_head,
    start_worker,
    wait_loaded,
)
from orchestrator.report import Report
from orchestrator.state import write_private
from orchestrator.survey.gather import default_threads
from orchestrator.survey.values import Device, Link
from workers.engine_commands import HeadSettings, Placement
from workers.head_log import read_buffers

MIB = 1024 * 1024
LOAD_PATIENCE_S = 120.0
SLOWEST_READ_BYTES_PER_S = 20_000_000.0
"""A memory card: the head reads every byte of the model from its disk, also what a fast link then carries."""

ANSWER_PATIENCE_S = 60.0
MEMORY_TOLERANCE = 0.05
MEMORY_SLACK_BYTES = 8 * MIB
SLOW_PART = 0.5
LOG_LINES = 20_000


@dataclass(frozen=True)
class Running:
    """A cluster that answers: its head, its workers in pipeline order, and the check's own answer."""

    plan: Plan
    head: Head
    workers: tuple[Worker, ...]
    answer: Answer


async def bring_up(
    prepared: Prepared, plan: Plan, hosts: OpenHosts, folders: Folders, started: Started, report: Report
) -> Running:
    """Start everything the plan names and check it; on any error the caller stops `started`."""
    workers = await start_workers(prepared, plan, hosts, started, report)
    report.step("Starting the head and loading the model")
    head = await start_planned_head(prepared, plan, hosts, folders, started, workers, report)
    await _load(prepared, plan, head, workers, started, report)
    report.step("Checking an answer and the memory")
    answer = await check_answer(head, started, deadline_s=ANSWER_PATIENCE_S + 40 * plan.token_s)
    await compare_memory(plan, head, workers, report)
    compare_speed(plan, answer, report)
    return Running(plan, head, workers, answer)


async def start_workers(
    prepared: Prepared, plan: Plan, hosts: OpenHosts, started: Started, report: Report, *, logs: str = ""
) -> tuple[Worker, ...]:
    """One worker per share, all hosts side by side; none in mode `single`, where the head computes by itself."""
    if plan.mode == "single":
        return ()
    report.step("Starting workers and links")
    devices = devices_of(prepared, plan)
    answers = await each_host(
        {
            device.name: start_worker(
                started,
                hosts,
                f"{prepared.inventory.cluster}{logs}",
                device.name,
                hosts.by_name[device.host],
                prepared.engine_folders[device.host],
                device.threads,
            )
            for device in devices
        }
    )
    workers = all_or_raise(answers)
    return tuple(workers[device.name] for device in devices)


def devices_of(prepared: Prepared, plan: Plan) -> tuple[Device, ...]:
    """The plan's devices in pipeline order."""
    by_name = {device.name: device for device in prepared.survey.devices}
    return tuple(by_name[share.device] for share in plan.shares)


def placement_of(prepared: Prepared, plan: Plan, workers: Iterable[Worker]) -> Placement | None:
    """What the engine is told about where layers go; None when the head computes natively."""
    if plan.mode == "single":
        return None
    return Placement(
        endpoints=tuple(worker.endpoint for worker in workers),
        tensor_split=plan.tensor_split,
        output_on_head=plan.output_on_head,
        output_tied=prepared.memory.output_tied,
    )


async def start_planned_head(
    prepared: Prepared,
    plan: Plan,
    hosts: OpenHosts,
    folders: Folders,
    started: Started,
    workers: tuple[Worker, ...],
    report: Report,
) -> Head:
    """The head of the plan, on the controller or on the one host of mode `single`, with a key made for this start."""
    host = hosts.of_head(plan.head)
    key = secrets.token_urlsafe(32)
    key_file = await _put_key(prepared.inventory.cluster, host, folders, key)
    model = await model_on_host(prepared, host, report)

    def settings(port: int) -> HeadSettings:
        return HeadSettings(
            model=model,
            alias=prepared.memory.model,
            port=port,
            key_file=key_file,
            context=plan.context,
            parallel=plan.parallel,
            micro_batch=plan.micro_batch,
            threads=host.host.threads or default_threads(host.facts),
        )

    engine = prepared.engine_folders[plan.head] if plan.head else str(prepared.engine.folder)
    placement = placement_of(prepared, plan, workers)
    return await start_head(started, hosts, prepared.inventory.cluster, host, engine, settings, placement, key)


async def model_on_host(prepared: Prepared, host: OpenHost, report: Report) -> str:
    """The path of the model on that host; all its shards are put there first when it is not the controller."""
    if host.is_local:
        return str(prepared.model.path)
    folder = remote_model_folder(host.shell.root, prepared.model.shards)
    for shard in prepared.model.shards:
        target = f"{folder}/{shard.name}"
        seen = await host.shell.run(("test", "-f", target), deadline_s=30, check=False)
        if seen.status != 0:
            await host.shell.put(shard, target, progress=report.bytes_of(f"{host.name}: {shard.name}"))
    return f"{folder}/{prepared.model.path.name}"


def remote_model_folder(root: str, shards: Iterable[Path]) -> str:
    """A folder for exactly these files: another size or time of change leads to another one.

    Files appear there whole or not at all, so that one which is there is the right one.
    """
    facts = [f"{shard.name} {shard.stat().st_size} {shard.stat().st_mtime_ns}" for shard in shards]
    return f"{root}/models/{hashlib.sha256(chr(10).join(facts).encode()).hexdigest()[:12]}"


def load_deadline_s(weights_bytes: int, links: Iterable[Link]) -> float:
    """How long loading may take: four times the weights' way over the slowest link, or from a slow disk if longer."""
    on_the_way_s = max((4 * weights_bytes / link.up_bytes_per_s for link in links), default=0.0)
    return LOAD_PATIENCE_S + max(on_the_way_s, weights_bytes / SLOWEST_READ_BYTES_PER_S)


async def compare_memory(plan: Plan, head: Head, workers: tuple[Worker, ...], report: Report) -> None:
    """Set what the engine says it allocated beside the plan; a warning for each device that holds more than planned."""
    buffers = read_buffers((await head.process.log_tail(lines=LOG_LINES)).splitlines())
    for share, worker in zip(plan.shares, workers, strict=True) if workers else ():
        held = buffers.get(worker.endpoint)
        if held is None:
            report.warn(f"{share.device}: the engine has not said what it holds there")
            continue
        sizes = f"engine reports {held.total_bytes / MIB:.0f} MiB, planned {share.total_bytes / MIB:.0f} MiB"
        text = f"{share.device}: {sizes}"
        if held.total_bytes > share.total_bytes * (1 + MEMORY_TOLERANCE) + MEMORY_SLACK_BYTES:
            report.warn(f"{text}: more than planned")
        else:
            report.say(text)


def compare_speed(plan: Plan, answer: Answer, report: Report) -> None:
    """Set the measured speed beside the prediction; a warning with the likely causes when it is far below."""
    measured, predicted = answer.decode_tokens_per_s, plan.decode_tokens_per_s
    text = f"decode {measured:.1f} tokens/s measured, {predicted:.1f} predicted"
    if measured >= SLOW_PART * predicted:
        report.say(text)
        return
    report.warn(
        f"{text}: far slower. Other programs on a host (then set `threads` lower than its idle cores), or speeds "
        "that were measured at another time (then try `--recalibrate`)"
    )


async def _put_key(cluster: str, host: OpenHost, folders: Folders, key: str) -> str:
    if host.is_local:
        path = folders.cluster(cluster).head_key
        write_private(path, key + "\n")
        return str(path)
    target = f"{host.shell.root}/clusters/{cluster}/head.key"
    await host.shell.put_bytes(f"{key}\n".encode(), target, mode=0o600)
    return target


async def _load(
    prepared: Prepared, plan: Plan, head: Head, workers: tuple[Worker, ...], started: Started, report: Report
) -> None:
    """Wait for the model; progress is what the processes that hold the weights have grown to."""
    links = [device.link for device in devices_of(prepared, plan)]
    weights = sum(share.weights_bytes for share in plan.shares)
    holders = [worker.process for worker in workers] or [head.process]

    def on_wait(passed_s: float) -> None:
        held = sum(process.rss_bytes or 0 for process in holders)
        report.progress("weights", min(held, weights), weights, "bytes")

    await wait_loaded(head, started, deadline_s=load_deadline_s(weights, links), on_wait=on_wait)
