"""Gather a survey: devices and budgets from facts, then links and speeds measured on every host."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from orchestrator.engine.store import Engine
from orchestrator.errors import UsageError
from orchestrator.fanout import all_or_raise, each_host
from orchestrator.host_agent import start_link_server
from orchestrator.hosts import OpenHost, OpenHosts
from orchestrator.processes import SURVEY_LOGS, Started, open_link, start_worker
from orchestrator.report import Report
from orchestrator.survey.links import measure_link
from orchestrator.survey.speeds import (
    CalibrationModel,
    calibration_models,
    keep_speed,
    kept_speed,
    measure_speed,
    speed_key,
    too_little_memory,
)
from orchestrator.survey.values import Device, HostSurvey, Link, Speed, Survey
from workers.budget import budget
from workers.facts import HostFacts

NOT_MEASURED = Speed(0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Measuring:
    """What measuring needs: the open hosts, the engine here and on each host, and where speeds are kept."""

    cluster: str
    hosts: OpenHosts
    engine: Engine
    engine_folders: dict[str, str]
    tensor_type: str
    kept: Path
    recalibrate: bool


async def gather_survey(measuring: Measuring, report: Report, now: datetime) -> Survey:
    """Measure every host; local ones one after the other, since they share a processor, others side by side."""
    models = await asyncio.to_thread(calibration_models, measuring.kept, measuring.tensor_type)
    opened = measuring.hosts.by_name
    local = asyncio.Lock()
    surveyed = all_or_raise(
        await each_host({name: _survey_host(measuring, host, models, local, report) for name, host in opened.items()})
    )
    return Survey(
        cluster=measuring.cluster,
        taken_at=now.isoformat(timespec="seconds"),
        engine=measuring.engine.manifest.engine,
        controller=measuring.hosts.controller.facts,
        hosts=tuple(surveyed[name] for name in opened),
    )


def default_threads(facts: HostFacts) -> int:
    """One thread per physical core, but no more than the CPU time that a cgroup allows."""
    allowed = facts.cores_physical if facts.cpu_quota is None else int(facts.cpu_quota + 0.999)
    return max(1, min(facts.cores_physical, allowed))


def check_backend(host: OpenHost) -> None:
    """UsageError for a backend this version cannot run yet."""
    if host.host.backend not in ("auto", "cpu"):
        raise UsageError(
            f"{host.name}: backend {host.host.backend} cannot be run by this version",
            hint="set `backend: cpu` (or leave it out) in inventory.yaml; GPU engines come with a later version",
        )


async def _survey_host(
    measuring: Measuring,
    host: OpenHost,
    models: tuple[CalibrationModel, CalibrationModel],
    local: asyncio.Lock,
    report: Report,
) -> HostSurvey:
    check_backend(host)
    threads = host.host.threads or default_threads(host.facts)
    if host.is_local:
        async with local:
            link, speed, note = await _measure(measuring, host, threads, models, report)
    else:
        link, speed, note = await _measure(measuring, host, threads, models, report)
    device = Device(
        name=f"{host.name}/cpu",
        host=host.name,
        kind="cpu",
        description=host.facts.cpu_name,
        threads=threads,
        budget=budget(host.host.memory, host.facts.memory_available_bytes),
        link=link,
        speed=speed,
        note=note,
    )
    return HostSurvey(host.name, host.is_local, host.facts, (device,))


async def _measure(
    measuring: Measuring,
    host: OpenHost,
    threads: int,
    models: tuple[CalibrationModel, CalibrationModel],
    report: Report,
) -> tuple[Link, Speed, str]:
    """Link and speed; no speed, and the reason, for a device that could not hold the calibration model."""
    link = await _measured_link(measuring, host)
    key = speed_key(host, link.kind, threads, measuring.engine.manifest.engine, measuring.tensor_type)
    speed = None if measuring.recalibrate else kept_speed(measuring.kept, key)
    if speed is not None:
        report.say(f"{host.name}: speed known from an earlier calibration")
        return link, speed, ""
    if note := too_little_memory(host.facts.memory_available_bytes, models[1]):
        report.warn(f"{host.name}: {note}")
        return link, NOT_MEASURED, note
    report.say(f"{host.name}: calibrating")
    async with _stopping() as started:
        worker = await start_worker(
            started,
            measuring.hosts,
            f"{measuring.cluster}{SURVEY_LOGS}",
            f"{host.name}/cpu",
            host,
            measuring.engine_folders[host.name],
            threads,
        )
        speed = await measure_speed(measuring.hosts, measuring.engine, worker, link, models)
    keep_speed(measuring.kept, key, speed)
    return link, speed, ""


async def _measured_link(measuring: Measuring, host: OpenHost) -> Link:
    """Through a tunnel of the very kind that carries the tensors, or plain loopback on this machine."""
    server = await start_link_server(host.shell, host.agent)
    try:
        async with _stopping() as started:
            if host.is_local:
                return await measure_link(host.name, "loopback", server.port)
            near = await open_link(started, measuring.hosts, f"{measuring.cluster}{SURVEY_LOGS}", host, server.port)
            return await measure_link(host.name, "tunnel", near)
    finally:
        await server.close()


@asynccontextmanager
async def _stopping() -> AsyncIterator[Started]:
    started = Started()
    try:
        yield started
    finally:
        await started.stop()
