"""How fast each device's kernels are for each mixture of tensor types: small models of random weights, timed on each
path.

So that speeds are known of quantisations that were never timed (`plan.retyped`). Measured once for a device, engine,
path, mixture and model of these proportions, and kept.
"""

import asyncio
import hashlib
import statistics
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter

from orchestrator.engine.lock import exclusive
from orchestrator.errors import BringUpError, EngineError, HostError
from orchestrator.fanout import all_or_raise, each_host
from orchestrator.hosts import OpenHost
from orchestrator.plan.costs import transfer_s
from orchestrator.plan.retyped import Work
from orchestrator.report import Report
from orchestrator.survey.gather import MachineLocks, Target, default_threads, on_worker, targets_of, workers_of
from orchestrator.survey.kept import read_kept, write_kept
from orchestrator.survey.slices import KernelModel, SliceStore
from orchestrator.survey.speeds import (
    FEW_REPETITIONS,
    HURRIED_REPETITIONS,
    SHORT_PROMPT,
    VERY_SLOW_S,
    rising,
)
from orchestrator.survey.timing import Measuring, Timing, always, is_to_be_renewed, time_passes
from orchestrator.survey.values import Device, HostSurvey, KernelRate, Link, Speed, Survey
from quant.errors import NoRoomError
from workers.pass_bench import Timed

PASSES = (1, 8, SHORT_PROMPT)
"""Decoding of one and of several conversations, and a prompt; between them rates change in proportion."""

TURNS = 3
"""How often all are timed, one after the other: a busy minute of a machine shall not slow one of them, nor where its
weights happen to lie in memory. Of each pass the fastest repetition counts."""

TURNS_OVER_NETWORK = 2
"""Each time all weights travel to the worker."""

DISTURBED = 1.5
"""Decoding that took this much longer in one turn than in another was not alone on its machine."""

ODD = 2.0
"""A processor that seems this much slower natively than through RPC on its own machine was not alone all the time."""

FORMAT = "rates 6"
_FLOAT_BYTES = 4


@dataclass(frozen=True)
class Wanted:
    """What is compared, by what it is called."""

    works: Mapping[str, Work]

    def models(self, slices: SliceStore, available_bytes: int) -> dict[str, KernelModel]:
        """By rate those that a device with this much memory holds, and whose types meshctl knows."""
        found: dict[str, KernelModel] = {}
        for work in self.works.values():
            with suppress(ValueError):
                one = slices.of_types(work.mixture, work.output_type, available_bytes)
                if one is not None:
                    found[work.rate] = one
        return found

    def called(self, rate: str) -> str:
        """What to call it by: the first that has it."""
        return next((name for name, work in self.works.items() if work.rate == rate), rate)


async def measure_rates(measuring: Measuring, survey: Survey, works: Mapping[str, Work], report: Report) -> Survey:
    """The survey with the rates of these works, which have names, on every path that it has a speed of, known ones from
    earlier runs.

    Hosts side by side, those on one machine one after the other. What a device cannot compute, or has no memory for,
    is left out, and said.
    """
    wanted, measuring = Wanted(works), replace(measuring, cache_type="f16", flash_attention="auto")
    async with exclusive(
        measuring.kept / "rates.lock", lambda: report.say("another meshctl is timing kernels: waiting")
    ):
        return await _all_rates(measuring, survey, wanted, report)


async def _all_rates(measuring: Measuring, survey: Survey, wanted: Wanted, report: Report) -> Survey:
    locks = MachineLocks()
    controller = measuring.hosts.controller
    alone = _Path(measuring, controller, targets_of(controller, ())[0], None)
    head = survey.controller_speed
    if head.measured:
        head = await _with_rates(alone, head, wanted, report)

    async def of_host(host: HostSurvey) -> HostSurvey:
        opened = measuring.hosts.by_name[host.name]
        targets = {one.name: one for one in targets_of(opened, measuring.gpus.get(host.name, ()))}
        async with locks.of(opened):
            return await _host(measuring, host, opened, targets, wanted, report)

    hosts = all_or_raise(await each_host({host.name: of_host(host) for host in survey.hosts}))
    return replace(survey, controller_speed=head, hosts=tuple(hosts[host.name] for host in survey.hosts))


async def _host(
    measuring: Measuring,
    host: HostSurvey,
    opened: OpenHost,
    targets: dict[str, Target],
    wanted: Wanted,
    report: Report,
) -> HostSurvey:
    devices = [await _device(measuring, opened, targets[one.name], one, wanted, report) for one in host.devices]
    return replace(host, devices=tuple(devices))


async def _device(
    measuring: Measuring, host: OpenHost, target: Target, device: Device, wanted: Wanted, report: Report
) -> Device:
    speed, native = device.speed, device.native
    if speed.measured:
        speed = await _with_rates(_Path(measuring, host, target, device.link), speed, wanted, report)
    if native.measured:
        native = await _with_rates(_Path(measuring, host, target, None), native, wanted, report)
        if device.link.kind == "loopback" and (times := times_slower(native, speed)) > ODD:
            report.warn(
                f"{device.name}: natively it seems {times:.1f} times as slow as through RPC, so something else ran "
                f"when that was timed; {_AGAIN}"
            )
    return replace(device, speed=speed, native=native)


_AGAIN = "measure again when it has nothing else to do: --recalibrate"


def times_slower(one: Speed, other: Speed) -> float:
    """How many times longer decoding takes with the same types, on the median; 0 where none are the same."""
    others = {rate.of: rate.weight_s[0] for rate in other.rates}
    found = [rate.weight_s[0] / others[rate.of] for rate in one.rates if rate.of in others]
    return statistics.median(found) if found else 0.0


@dataclass(frozen=True)
class _Path:
    """A device, and how it is reached: natively where there is no link."""

    measuring: Measuring
    host: OpenHost
    target: Target
    link: Link | None

    @property
    def name(self) -> str:
        return "natively" if self.link is None else f"through RPC ({self.link.kind})"

    @property
    def turns(self) -> int:
        """How often all are timed."""
        return TURNS if self.link is None or self.link.kind == "loopback" else TURNS_OVER_NETWORK

    def kept_file(self, one: KernelModel) -> Path:
        """Under all that the rate depends on."""
        facts, host, target = self.host.facts, self.host, self.target
        parts = (
            *(FORMAT, facts.hostname, facts.cpu_name, str(facts.cores_logical), str(facts.cpu_quota)),
            *host.host.own_words,
            *("|", self.name, str(target.spec.threads), self.measuring.engine_name(host), one.slice.path.name),
            *(() if target.where is None else (target.where.name, target.description)),
        )
        key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]
        return self.measuring.kept / f"rate-{key}.json"


@dataclass(frozen=True)
class Timings:
    """What is kept: the rate, of how many turns it is the fastest, and how long decoding took in the slowest."""

    rate: KernelRate
    turns: int
    slowest_s: float

    def and_one(self, rate: KernelRate) -> "Timings":
        """With one turn more."""
        return Timings(faster(self.rate, rate), self.turns + 1, max(self.slowest_s, rate.weight_s[0]))

    @property
    def disturbed(self) -> bool:
        """Whether something else went on in one of the turns at least, so perhaps in all."""
        return self.slowest_s > DISTURBED * self.rate.weight_s[0]


_TIMINGS = TypeAdapter(Timings)


async def _with_rates(path: _Path, speed: Speed, wanted: Wanted, report: Report) -> Speed:
    """With the rates that are kept, and the others measured; also those whose turns were cut short."""
    measuring = path.measuring
    models = wanted.models(measuring.slices, path.target.available_bytes)
    kept = {key: _kept(measuring, path.kept_file(one)) for key, one in models.items()}
    known = {key: timings for key, timings in kept.items() if timings is not None}
    missing = {key: one for key, one in models.items() if key not in known or known[key].turns < path.turns}
    if missing:
        known |= await _measure(path, wanted, missing, known, _repetitions(speed), report)
    if disturbed := [wanted.called(key) for key, timings in known.items() if timings.disturbed]:
        report.warn(
            f"{path.target.name}: something else ran when {', '.join(disturbed)} was timed {path.name}, which makes "
            f"the table wrong by as much; {_AGAIN}"
        )
    return replace(speed, rates=tuple(known[key].rate for key in models if key in known))


def faster(one: KernelRate, other: KernelRate) -> KernelRate:
    """Of each pass the shorter time: what else a machine does only ever adds to it."""
    return replace(one, weight_s=tuple(map(min, one.weight_s, other.weight_s)))


def _keep(measuring: Measuring, file: Path, timings: Timings) -> None:
    write_kept(file, _TIMINGS, timings)
    measuring.renewed.add(file.name)


def _kept(measuring: Measuring, file: Path) -> Timings | None:
    """What was timed before, unless it is to be timed again and was not yet."""
    return None if is_to_be_renewed(measuring, file.name) else read_kept(file, _TIMINGS)


def _repetitions(speed: Speed) -> int:
    """Of each turn, fewer where a short prompt through the device's deeper slice takes long."""
    short_s = next((one.layers_s[-1] for one in speed.passes if one.tokens >= SHORT_PROMPT), 0.0)
    return HURRIED_REPETITIONS if short_s > VERY_SLOW_S else FEW_REPETITIONS


async def _measure(
    path: _Path,
    wanted: Wanted,
    missing: Mapping[str, KernelModel],
    known: Mapping[str, Timings],
    repetitions: int,
    report: Report,
) -> dict[str, Timings]:
    """The smallest first, each turn kept as soon as it is over; of what is known already the turns that it lacks. One
    that fails is left out; where a host is late or lost, those after it, too."""
    name, found = path.target.name, {key: known[key] for key in missing if key in known}
    left = sorted(missing, key=lambda key: missing[key].size_bytes)
    for turn in range(1, path.turns + 1):
        for key in tuple(left):
            if key in found and found[key].turns >= turn:
                continue
            report.say(f"{name}: timing {wanted.called(key)} {path.name}, turn {turn} of {path.turns}")
            try:
                async with path.measuring.of_the_line(path.link), _timing(path) as at:
                    rate = await _rate(at, missing[key], repetitions, path.link)
            except (EngineError, BringUpError, HostError, NoRoomError, OSError) as error:
                gone = left[left.index(key) :] if isinstance(error, HostError) else [key]
                left = [one for one in left if one not in gone]
                if unknown := [wanted.called(one) for one in gone if one not in found]:
                    report.warn(f"{name}: the speed of {', '.join(unknown)} is worked out by its bytes: {error}")
                if isinstance(error, HostError):
                    break
                continue
            found[key] = found[key].and_one(rate) if key in found else Timings(rate, 1, rate.weight_s[0])
            _keep(path.measuring, path.kept_file(missing[key]), found[key])
    return found


@asynccontextmanager
async def _timing(path: _Path) -> AsyncIterator[Timing]:
    """For one model: a worker does not give back all that it has loaded, and a small host has not much."""
    measuring, target = path.measuring, path.target
    if path.link is None:
        placed = always(target.where)
        yield Timing(measuring, path.host, target.spec.threads, placed, target.name, target.spec.environment)
        return
    controller = measuring.hosts.controller
    async with workers_of(measuring, path.host, target) as worker:
        placed, own = on_worker(worker, False, output_on_head=False), default_threads(controller.facts)
        yield Timing(measuring, controller, own, placed, target.name, one_by_one=target.kind != "cpu")


async def _rate(at: Timing, one: KernelModel, repetitions: int, link: Link | None) -> KernelRate:
    await asyncio.to_thread(at.measuring.slices.write, one)
    fastest = {
        tokens: Timed(timed.least_s, timed.spread)
        for tokens, timed in (await time_passes(at, one.slice, PASSES, repetitions)).items()
    }
    timed, shape = rising(fastest), one.shape

    def weight_s(tokens: int) -> float:
        seconds, hidden_bytes = timed[tokens].seconds, shape.embedding * _FLOAT_BYTES
        link_s = transfer_s(link, hidden_bytes * tokens, shape.vocabulary * _FLOAT_BYTES) if link else 0.0
        return max(0.1 * seconds, seconds - link_s) / one.weights

    return KernelRate(one.rate, PASSES, tuple(weight_s(tokens) for tokens in PASSES))
