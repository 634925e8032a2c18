"""Gather a survey: devices and budgets from facts, then links and speeds measured on every host."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime

from orchestrator.errors import BringUpError, DeadlineError, EngineError, MeshctlError
from orchestrator.fanout import all_or_raise, each_host
from orchestrator.hosts import OpenHost
from orchestrator.plan.company import machine_by
from orchestrator.plan.costs import transfer_s
from orchestrator.processes import ended_by_itself, start_worker
from orchestrator.report import Report
from orchestrator.survey.depths import Timings, keep_timings, kept_timings, time_both, time_in_context, time_more
from orchestrator.survey.gather_links import gather_links
from orchestrator.survey.links import is_alike
from orchestrator.survey.plausible import DECODE
from orchestrator.survey.slices import Slices
from orchestrator.survey.speeds import (
    HURRIED_REPETITIONS,
    SHORT_PROMPT,
    context_cost,
    likely_context_cost,
    native_speed,
    passes_for,
    rpc_speed,
    rpc_speed_without_output,
    short_passes,
    speed_key,
)
from orchestrator.survey.timing import (
    Measuring,
    Placed,
    Timing,
    always,
    is_to_be_renewed,
    on_host,
    stopping,
    time_passes,
)
from orchestrator.survey.values import NOT_MEASURED, Device, DeviceSpec, HostSurvey, Link, Speed, Survey
from orchestrator.view.sizes import bytes_text
from workers.budget import MIB, Budget, budget, reserve_of
from workers.devices import EngineGpu
from workers.engine_commands import OnGpu, Placement, Where
from workers.facts import HostFacts
from workers.pass_bench import REPETITIONS

LONGEST_PASS = 512
"""The largest micro-batch that is planned with."""

BESIDE_MODEL_BYTES = 32 * MIB
"""A device whose budget is less than the weights and this cannot hold the whole model: it is not timed natively, unless
it is the controller's own, on which the head of a split may compute layers itself."""


class MachineLocks:
    """Hosts that are one machine are timed one after the other: beside each other they are slower than alone.

    Of 1.2 B on a worker with 0.6 of a core, prompts were predicted at 51 tokens per second (62 measured) where another
    worker with 0.2 was timed beside it, and at 59 (61 measured) where it was timed after it.
    """

    def __init__(self) -> None:
        self._by_machine = defaultdict[str, asyncio.Lock](asyncio.Lock)

    def of(self, host: OpenHost) -> asyncio.Lock:
        return self._by_machine[machine_by(host.facts, host.name, local=host.is_local)]


async def gather_survey(measuring: Measuring, report: Report, now: datetime) -> Survey:
    """Measure links, then the controller and every host, local ones first: whoever sends slices needs a processor here.

    Those on one machine are timed one after the other, since they share its processors; so is what goes over the
    controller's network, since that is shared, too. What hosts compute natively is timed side by side.
    """
    controller, opened = measuring.hosts.controller, measuring.hosts.by_name
    locks = MachineLocks()
    report.step("Measuring links", "preparing")
    links = await gather_links(measuring.hosts, measuring.logs, measuring.kept, again=measuring.recalibrate)
    report.step("Measuring speeds", "preparing")
    if measuring.recalibrate:
        measuring.slices.try_again()
    head = await _controller_speed(measuring, report)
    found = dict[str, HostSurvey | MeshctlError]()
    for local in (True, False):
        some = {name: host for name, host in opened.items() if host.is_local is local}
        found |= await each_host(
            {name: _survey_host(measuring, host, links[name], head, locks, report) for name, host in some.items()}
        )
    surveyed = all_or_raise(found)
    return Survey(
        cluster=measuring.cluster,
        taken_at=now.isoformat(timespec="seconds"),
        engine=measuring.engine.manifest.engine,
        controller=controller.facts,
        hosts=tuple(surveyed[name] for name in opened),
        model=measuring.model,
        controller_speed=head,
        shape=measuring.slices.digest,
        cache_type=measuring.cache_type,
        flash_attention=measuring.flash_attention,
    )


def default_threads(facts: HostFacts) -> int:
    """One thread per physical core, but no more than the CPU time that a cgroup allows."""
    allowed = facts.cores_physical if facts.cpu_quota is None else int(facts.cpu_quota + 0.999)
    return max(1, min(facts.cores_physical, allowed))


@dataclass(frozen=True)
class Target:
    """A device that is about to be measured; `available_bytes` is what slices may take of its memory, `where` what the
    engine is told to compute on it natively."""

    spec: DeviceSpec
    kind: str
    description: str
    budget: Budget
    available_bytes: int
    where: OnGpu | None = None
    shares_memory: bool = False

    @property
    def name(self) -> str:
        return self.spec.name


def targets_of(host: OpenHost, gpus: Sequence[EngineGpu]) -> tuple[Target, ...]:
    """The host's CPU and its GPUs. The cap of the inventory goes for the memory of each."""
    facts = host.facts
    threads, available = host.host.threads or default_threads(facts), facts.memory_available_bytes
    cpu = DeviceSpec(f"{host.name}/cpu", threads)
    on_cpu = Target(cpu, "cpu", facts.cpu_name, budget(host.host.memory, available), available)
    return (on_cpu, *(_gpu_target(host, gpu, threads) for gpu in gpus))


def _gpu_target(host: OpenHost, gpu: EngineGpu, threads: int) -> Target:
    facts = host.facts
    alike = [one for one in facts.gpus if one.kind == gpu.kind]
    named = [one for one in alike if one.name == gpu.description]  # drivers may call it otherwise
    shares = gpu.in_software or (bool(alike) and all(one.shares_memory for one in named or alike))
    free = min(gpu.memory_free_bytes, facts.memory_available_bytes) if shares else gpu.memory_free_bytes
    return Target(
        spec=DeviceSpec(f"{host.name}/{gpu.kind}{gpu.number}", threads, gpu.name, gpu.environment),
        kind=gpu.kind,
        description=gpu.description,
        budget=budget(host.host.memory, free, reserve_of(in_main_memory=shares)),
        available_bytes=free,
        where=OnGpu(gpu.name),
        shares_memory=shares,
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
    if slices.why_synthetic:
        report.warn(f"slices of this model cannot be timed, others of like shapes are: {slices.why_synthetic}")
    try:
        return await _native(measuring, controller, targets_of(controller, ())[0], slices, NOT_MEASURED, report)
    except EngineError as error:
        if slices.why_synthetic or not error.logged:
            raise
        await asyncio.to_thread(measuring.slices.use_synthetic, error.logged)
        return await _controller_speed(measuring, report)


async def _survey_host(
    measuring: Measuring, host: OpenHost, link: Link, head: Speed, locks: MachineLocks, report: Report
) -> HostSurvey:
    devices = []
    for target in targets_of(host, measuring.gpus.get(host.name, ())):
        async with locks.of(host):
            measured = await _measured(measuring, host, target, link, head, report)
        devices.append(_device(host, target, link, measured))
    return HostSurvey(host.name, host.is_local, host.facts, tuple(devices))


def _device(host: OpenHost, target: Target, link: Link, measured: _Paths) -> Device:
    return Device(
        name=target.name,
        host=host.name,
        kind=target.kind,
        description=target.description,
        threads=target.spec.threads,
        budget=target.budget,
        link=link,
        speed=measured.speed,
        native=measured.native,
        note=measured.note,
        engine_name=target.spec.engine_name,
        environment=target.spec.environment,
        shares_memory=target.shares_memory,
    )


async def _measured(
    measuring: Measuring, host: OpenHost, target: Target, link: Link, head: Speed, report: Report
) -> _Paths:
    """Speeds; a GPU that fails is left out of the plan, with the reason: its host has others."""
    try:
        return await _measure(measuring, host, target, link, head, report)
    except (EngineError, BringUpError, DeadlineError) as error:
        if target.kind == "cpu":
            raise
        report.warn(f"{target.name} is not used: {error}")
        return _Paths(NOT_MEASURED, NOT_MEASURED, f"it failed when its speed was measured: {error}")


async def _measure(
    measuring: Measuring, host: OpenHost, target: Target, link: Link, head: Speed, report: Report
) -> _Paths:
    """Speeds; none, and the reason, for a device that could not hold the smallest slices."""
    available = target.available_bytes
    slices = await asyncio.to_thread(measuring.slices.slices, available)
    if slices is None:
        needed = bytes_text(measuring.slices.needed_bytes())
        note = f"{bytes_text(available)} of memory available, {needed} needed to measure its speed"
        report.warn(f"{target.name}: {note}")
        return _Paths(NOT_MEASURED, NOT_MEASURED, note)
    speed = await _through_rpc(measuring, host, target, slices, head, link, report)
    native = NOT_MEASURED
    if slices.output_fits and may_be_of_head(target, measuring.model_bytes, local=host.is_local):
        native = await _native(measuring, host, target, slices, head, report)
    return _Paths(speed, native, "")


def may_be_of_head(target: Target, model_bytes: int, *, local: bool) -> bool:
    """Whether a head may compute on this device itself: all of the model, or, on the controller, layers of a split."""
    return local or target.budget.usable_bytes >= model_bytes + BESIDE_MODEL_BYTES


async def _native(
    measuring: Measuring, host: OpenHost, target: Target, slices: Slices, head: Speed, report: Report
) -> Speed:
    passes, cpu = _passes(measuring, target), target.kind == "cpu"
    key = _key(measuring, host, target, "native", slices)
    known = _known(measuring, key)
    if known is None or known.missing(passes):
        if not host.is_local:
            async with measuring.line:
                for one in (slices.shallow, slices.deep):
                    await on_host(host, one.path)
        report.say(f"{target.name}: timing {_what(slices, known, passes)} natively")
        at = Timing(measuring, host, target.spec.threads, always(target.where), target.name, target.spec.environment)
        known = await _timed(at, slices, known, passes, head, processor=cpu, has_room=True)
        _keep(measuring, key, known)
    timings = known.of(passes)
    speed = native_speed(slices, timings.shallow, timings.deep, processor=cpu)
    return _with_context(speed, slices, timings)


async def _through_rpc(
    measuring: Measuring, host: OpenHost, target: Target, slices: Slices, head: Speed, link: Link, report: Report
) -> Speed:
    passes, cpu = _passes(measuring, target), target.kind == "cpu"
    if not slices.output_fits:
        passes = short_passes(passes)
    key = _key(measuring, host, target, f"rpc {link.kind}", slices)
    known = _known(measuring, key)
    if known and known.missing(passes) and not _went_over(known, slices, link):
        known = None
    if known and not known.missing(passes):
        report.say(f"{target.name}: speed known from an earlier calibration")
    else:
        async with measuring.of_the_line(link), workers_of(measuring, host, target) as worker:
            report.say(f"{target.name}: timing {_what(slices, known, passes)} through RPC")
            controller, output_on_head = measuring.hosts.controller, not slices.output_fits
            own = default_threads(controller.facts)
            placed = on_worker(worker, slices.output_tied, output_on_head=output_on_head)
            at = Timing(measuring, controller, own, placed, target.name, one_by_one=not cpu)
            timed = await _timed(at, slices, known, passes, head, processor=cpu, has_room=slices.output_fits)
            if slices.output_fits and timed.output_on_head is None:
                on_head = replace(at, placed=on_worker(worker, slices.output_tied, output_on_head=True))
                repetitions = HURRIED_REPETITIONS if timed.hurried else REPETITIONS
                apart = await time_passes(on_head, slices.shallow, (DECODE,), repetitions)
                timed = replace(timed, output_on_head=apart[DECODE])
        known = replace(timed, link=timed.link or link)
        _keep(measuring, key, known)
    timings = known.of(passes)
    both, went_over = (slices, timings.shallow, timings.deep), timings.link or link
    if timings.output_on_head is None:
        speed = rpc_speed_without_output(*both, timings.head, went_over)
    else:
        speed = rpc_speed(*both, timings.output_on_head, timings.head, went_over, processor=cpu)
    return _with_context(speed, slices, timings)


def _went_over(known: Timings, slices: Slices, link: Link) -> bool:
    """Whether it was a link like this one: a pass over another one cannot be told apart from the rest with it. Within a
    machine all are alike, however much what is measured of them scatters."""
    if known.link is not None and known.link.kind == link.kind == "loopback":
        return True
    exchange = (slices.hidden_bytes, slices.logits_bytes)
    return known.link is not None and is_alike(transfer_s(known.link, *exchange), transfer_s(link, *exchange))


def _known(measuring: Measuring, key: str) -> Timings | None:
    """What was timed before, unless it is to be timed again and was not yet."""
    return None if is_to_be_renewed(measuring, key) else kept_timings(measuring.kept, key)


def _keep(measuring: Measuring, key: str, timings: Timings) -> None:
    keep_timings(measuring.kept, key, timings)
    measuring.renewed.add(key)


def _what(slices: Slices, known: Timings | None, passes: Sequence[int]) -> str:
    """What is about to be timed, in words."""
    depths = f"{slices.shallow.layers} and {slices.deep.layers} layers"
    if known is None:
        return depths
    counts = " and ".join(map(str, known.missing(passes)))
    return f"steps of {counts} conversations in {depths}"


async def _timed(
    at: Timing,
    slices: Slices,
    known: Timings | None,
    passes: Sequence[int],
    head: Speed,
    *,
    processor: bool,
    has_room: bool,
) -> Timings:
    """All passes, or those that are not known yet; with a short prompt in a context, if there `has_room` and, but for
    the controller itself, it does not take too long."""
    if known is not None:
        return await time_more(at, slices, known, known.missing(passes), processor=processor)
    timings = replace(await time_both(at, slices, passes, processor=processor), head=head)
    if not has_room or (timings.hurried and head.measured):
        return timings
    return replace(timings, in_context=await time_in_context(at, slices, timings))


Workers = Callable[[], AbstractAsyncContextManager[str]]
"""Gives the endpoint of a worker for one bench."""


@asynccontextmanager
async def workers_of(measuring: Measuring, host: OpenHost, target: Target) -> AsyncIterator[Workers]:
    """The same worker for every bench of a CPU; for a GPU, as when a cluster starts, a fresh one for every load.

    A worker's Vulkan backend outlives what heads load: with Mesa's software driver it crashes at the third load.
    """

    @asynccontextmanager
    async def fresh() -> AsyncIterator[str]:
        async with stopping() as started:
            engine = measuring.engine_folders[host.name]
            worker = await start_worker(started, measuring.hosts, measuring.logs, target.spec, host, engine)
            try:
                yield worker.endpoint
            except EngineError as error:
                if all(process.running for process in worker.processes):
                    raise
                raise await ended_by_itself(worker.processes, "while its speed was measured") from error

    if target.kind != "cpu":
        yield fresh
        return
    async with fresh() as endpoint:

        @asynccontextmanager
        async def same() -> AsyncIterator[str]:
            yield endpoint

        yield same


def on_worker(worker: Workers, output_tied: bool, *, output_on_head: bool) -> Placed:
    """All layers on that worker, and the output layer too or on the head."""

    @asynccontextmanager
    async def placed() -> AsyncIterator[Where]:
        async with worker() as endpoint:
            yield Placement((endpoint,), (1,), output_on_head, output_tied)

    return placed


def _key(measuring: Measuring, host: OpenHost, target: Target, path: str, slices: Slices) -> str:
    gpu = () if target.where is None else (target.where.name, target.description)
    engine = measuring.engine_name(host)
    return speed_key(
        *(host, target.spec.threads, path, engine, slices, gpu),
        cache_type=measuring.cache_type,
        flash_attention=measuring.flash_attention,
    )


def _passes(measuring: Measuring, target: Target) -> tuple[int, ...]:
    """Those to time; a GPU gains by larger micro-batches than a CPU does."""
    passes = passes_for(measuring.parallel)
    return passes if target.kind == "cpu" else (*passes, LONGEST_PASS)


def _with_context(speed: Speed, slices: Slices, timings: Timings) -> Speed:
    """With what a context costs: as timed, else by what it costs the controller."""
    if timings.in_context is None:
        return replace(speed, context_s=likely_context_cost(speed, timings.head))
    in_context = {SHORT_PROMPT: timings.in_context}
    return replace(speed, context_s=context_cost(slices, timings.shallow, in_context))
