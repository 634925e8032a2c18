"""Gather a survey: devices and budgets from facts, then links and speeds measured on every host."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from orchestrator.errors import EngineError, UsageError
from orchestrator.fanout import all_or_raise, each_host
from orchestrator.host_agent import LOOPBACK, start_link_server
from orchestrator.hosts import OpenHost
from orchestrator.processes import open_link, start_worker
from orchestrator.report import Report
from orchestrator.survey.links import measure_link
from orchestrator.survey.slices import Slice, Slices
from orchestrator.survey.speeds import (
    CONTEXT_TOKENS,
    DECODE,
    SHORT_PROMPT,
    calmer,
    context_cost,
    is_noisy,
    keep_speed,
    kept_speed,
    native_speed,
    passes_for,
    repetitions_for,
    rpc_speed,
    rpc_speed_without_output,
    short_passes,
    speed_key,
    with_long_passes,
)
from orchestrator.survey.timing import Measuring, stopping, time_passes
from orchestrator.survey.values import NOT_MEASURED, Device, HostSurvey, Link, Speed, Survey
from orchestrator.view.sizes import bytes_text
from workers.budget import MIB, Budget, budget
from workers.engine_commands import Placement
from workers.facts import HostFacts
from workers.pass_bench import REPETITIONS, Timed

LINKS_AT_ONCE = 2
BESIDE_MODEL_BYTES = 32 * MIB
"""A device whose budget is less than the weights and this cannot hold the whole model: it is not timed natively, unless
it is the controller's own, on which a head may compute the first layers of a split."""


async def gather_survey(measuring: Measuring, report: Report, now: datetime) -> Survey:
    """Measure links, few at a time, since they meet in this machine's own, then the controller and every host; local
    ones one after the other, since they share a processor."""
    controller, opened = measuring.hosts.controller, measuring.hosts.by_name
    local = asyncio.Lock()
    report.step("Measuring links", "preparing")
    asked = {name: _link_of(measuring, host, local) for name, host in opened.items()}
    links = all_or_raise(await each_host(asked, limit=LINKS_AT_ONCE))
    report.step("Measuring speeds", "preparing")
    if measuring.recalibrate:
        measuring.slices.try_again()
    head = await _controller_speed(measuring, report)
    surveyed = all_or_raise(
        await each_host(
            {name: _survey_host(measuring, host, links[name], head, local, report) for name, host in opened.items()}
        )
    )
    return Survey(
        cluster=measuring.cluster,
        taken_at=now.isoformat(timespec="seconds"),
        engine=measuring.engine.manifest.engine,
        controller=controller.facts,
        hosts=tuple(surveyed[name] for name in opened),
        model=measuring.model,
        controller_speed=head,
        shape=measuring.slices.digest,
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


@dataclass(frozen=True)
class _Paths:
    """How fast one device is, through RPC and natively."""

    speed: Speed
    native: Speed
    note: str


async def _controller_speed(measuring: Measuring, report: Report) -> Speed:
    """Its CPU natively: the head computes there what is not placed on devices."""
    controller = measuring.hosts.controller
    slices = await asyncio.to_thread(measuring.slices.slices, controller.facts.memory_available_bytes)
    if slices is None:
        report.warn("the controller has too little memory to be timed: its output layer is predicted as on a device")
        return NOT_MEASURED
    threads = default_threads(controller.facts)
    try:
        return await _native(measuring, controller, threads, slices, report)
    except EngineError as error:
        if "synthetic" in (slices.shallow.source, slices.deep.source):
            raise
        report.warn(f"the engine refuses slices of this model, others of like shapes are timed: {error.engine_words}")
        await asyncio.to_thread(measuring.slices.use_synthetic)
        return await _controller_speed(measuring, report)


async def _survey_host(
    measuring: Measuring, host: OpenHost, link: Link, head: Speed, local: asyncio.Lock, report: Report
) -> HostSurvey:
    threads = host.host.threads or default_threads(host.facts)
    budgeted = budget(host.host.memory, host.facts.memory_available_bytes)
    if host.is_local:
        async with local:
            measured = await _measure(measuring, host, link, threads, budgeted, head, report)
    else:
        measured = await _measure(measuring, host, link, threads, budgeted, head, report)
    device = Device(
        name=f"{host.name}/cpu",
        host=host.name,
        kind="cpu",
        description=host.facts.cpu_name,
        threads=threads,
        budget=budgeted,
        link=link,
        speed=measured.speed,
        native=measured.native,
        note=measured.note,
    )
    return HostSurvey(host.name, host.is_local, host.facts, (device,))


async def _measure(
    measuring: Measuring, host: OpenHost, link: Link, threads: int, budgeted: Budget, head: Speed, report: Report
) -> _Paths:
    """Speeds; none, and the reason, for a device that could not hold the smallest slices."""
    available = host.facts.memory_available_bytes
    slices = await asyncio.to_thread(measuring.slices.slices, available)
    if slices is None:
        needed = bytes_text(measuring.slices.needed_bytes())
        note = f"{bytes_text(available)} of memory available, {needed} needed to measure its speed"
        report.warn(f"{host.name}: {note}")
        return _Paths(NOT_MEASURED, NOT_MEASURED, note)
    speed = await _through_rpc(measuring, host, threads, slices, head, link, report)
    native = NOT_MEASURED
    holds_all = budgeted.usable_bytes >= measuring.model_bytes + BESIDE_MODEL_BYTES
    if slices.output_fits and (holds_all or host.is_local):
        native = await _native(measuring, host, threads, slices, report)
    return _Paths(speed, native, "")


async def _native(measuring: Measuring, host: OpenHost, threads: int, slices: Slices, report: Report) -> Speed:
    passes = passes_for(measuring.parallel)
    key = speed_key(host, "native", threads, measuring.engine.manifest.engine, slices, passes)
    if not measuring.recalibrate and (kept := kept_speed(measuring.kept, key)):
        return kept
    report.say(f"{host.name}: timing {slices.shallow.layers} and {slices.deep.layers} layers natively")
    shallow, deep = await _at_both_depths(measuring, host, slices, passes, threads, None, host.name)
    in_context = await _in_context(measuring, host, slices, shallow, threads, None, host.name)
    speed = replace(native_speed(slices, shallow, deep), context_s=context_cost(slices, shallow, in_context))
    keep_speed(measuring.kept, key, speed)
    return speed


async def _through_rpc(
    measuring: Measuring, host: OpenHost, threads: int, slices: Slices, head: Speed, link: Link, report: Report
) -> Speed:
    passes = passes_for(measuring.parallel)
    if not slices.output_fits:
        passes = short_passes(passes)
    key = speed_key(host, f"rpc {link.kind}", threads, measuring.engine.manifest.engine, slices, passes)
    if not measuring.recalibrate and (kept := kept_speed(measuring.kept, key)):
        report.say(f"{host.name}: speed known from an earlier calibration")
        return kept
    report.say(f"{host.name}: timing {slices.shallow.layers} and {slices.deep.layers} layers through RPC")
    controller, engine = measuring.hosts.controller, measuring.engine_folders[host.name]
    async with stopping() as started:
        worker = await start_worker(started, measuring.hosts, measuring.logs, f"{host.name}/cpu", host, engine, threads)
        one = Placement((worker.endpoint,), (1,), output_on_head=False, output_tied=slices.output_tied)
        on_head = Placement((worker.endpoint,), (1,), output_on_head=True, output_tied=slices.output_tied)
        own = default_threads(controller.facts)
        placed = one if slices.output_fits else on_head
        shallow, deep = await _at_both_depths(measuring, controller, slices, passes, own, placed, host.name)
        if slices.output_fits:
            apart = await time_passes(measuring, controller, slices.shallow, (DECODE,), own, on_head, host.name)
            speed = rpc_speed(slices, shallow, deep, apart[DECODE], head, link)
            in_context = await _in_context(measuring, controller, slices, shallow, own, placed, host.name)
            speed = replace(speed, context_s=context_cost(slices, shallow, in_context))
        else:
            speed = rpc_speed_without_output(slices, shallow, deep, head, link)
    keep_speed(measuring.kept, key, speed)
    return speed


async def _at_both_depths(
    measuring: Measuring,
    host: OpenHost,
    slices: Slices,
    passes: Sequence[int],
    threads: int,
    placement: Placement | None,
    name: str,
) -> tuple[Mapping[int, Timed], Mapping[int, Timed]]:
    """The shallow and the deep slice; of the latter the long passes are worked out.

    Only a device with room to spare is timed again: a worker does not give back all that it has freed.
    """
    timing = _calmly if slices.output_fits else time_passes
    shallow = await timing(measuring, host, slices.shallow, passes, threads, placement, name)
    repetitions = repetitions_for(shallow)
    deep = await timing(measuring, host, slices.deep, short_passes(passes), threads, placement, name, repetitions)
    return shallow, with_long_passes(deep, shallow)


async def _calmly(
    measuring: Measuring,
    host: OpenHost,
    one: Slice,
    passes: Sequence[int],
    threads: int,
    placement: Placement | None,
    name: str,
    repetitions: int = REPETITIONS,
) -> Mapping[int, Timed]:
    """Once more where the repetitions are far apart."""
    timed = await time_passes(measuring, host, one, passes, threads, placement, name, repetitions)
    if not is_noisy(timed):
        return timed
    return calmer(timed, await time_passes(measuring, host, one, passes, threads, placement, name, repetitions))


async def _in_context(
    measuring: Measuring,
    host: OpenHost,
    slices: Slices,
    shallow: Mapping[int, Timed],
    threads: int,
    placement: Placement | None,
    name: str,
) -> Mapping[int, Timed]:
    passes, repetitions = (SHORT_PROMPT,), repetitions_for(shallow)
    return await time_passes(
        measuring, host, slices.shallow, passes, threads, placement, name, repetitions, CONTEXT_TOKENS
    )


async def _link_of(measuring: Measuring, host: OpenHost, local: asyncio.Lock) -> Link:
    check_backend(host)
    if not host.is_local:
        return await _measured_link(measuring, host)
    async with local:
        return await _measured_link(measuring, host)


async def _measured_link(measuring: Measuring, host: OpenHost) -> Link:
    """On the very path that carries the tensors: a tunnel, the network itself, or plain loopback on this machine."""
    address, door = host.worker_address, host.new_socket() if host.is_private else ""
    async with stopping() as started:
        # The name of a socket is known before anybody listens there.
        opening = asyncio.create_task(open_link(started, measuring.hosts, measuring.logs, host, door)) if door else None
        try:
            server = await start_link_server(host.shell, host.agent, address=address, socket=door)
            try:
                if host.is_local:
                    return await measure_link(host.name, "loopback", (LOOPBACK, server.port))
                if not host.is_linked:
                    return await measure_link(host.name, "direct", (address, server.port), medium=host.facts.medium)
                far = f"{LOOPBACK}:{server.port}"
                link = await (opening or open_link(started, measuring.hosts, measuring.logs, host, far))
                return await measure_link(host.name, "tunnel", link.near, medium=host.facts.medium)
            finally:
                await server.close()
        finally:
            if opening is not None:
                opening.cancel()
                await asyncio.gather(opening, return_exceptions=True)
