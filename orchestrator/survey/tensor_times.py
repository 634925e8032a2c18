"""Time layers cut across several devices, on slices over the links that will be used: mode `tensor` is all exchange.

For another number of conversations only their steps are timed and join what is kept, as of devices (`survey.depths`).
"""

import asyncio
import hashlib
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from pydantic import TypeAdapter

from orchestrator.errors import EngineError, MeshctlError
from orchestrator.fanout import all_or_raise, each_host
from orchestrator.hosts import OpenHost
from orchestrator.plan.costs import layers_seconds, transfer_s
from orchestrator.plan.pools import CONTROLLER
from orchestrator.plan.tensor import TensorSet
from orchestrator.processes import Worker, start_worker
from orchestrator.report import Report
from orchestrator.survey.depths import BASE
from orchestrator.survey.gather import default_threads
from orchestrator.survey.kept import read_kept, write_kept
from orchestrator.survey.plausible import DECODE, last_block, plausible_shallow
from orchestrator.survey.slices import BESIDE_LAYERS_BYTES, Slice, Slices
from orchestrator.survey.speeds import passes_for, repetitions_for, rising
from orchestrator.survey.timing import Measuring, Timing, always, stopping, time_passes
from orchestrator.survey.values import Device, DeviceSpec, Link, PassTime, Speed, Survey, TensorTime, kept_as
from workers.engine_commands import Placement
from workers.pass_bench import REPETITIONS, Timed

_TIME = TypeAdapter(TensorTime)
FORMAT = "tensor 2"
"""Part of what times are kept under: raised when they are worked out in another way."""

DOUBTFUL = 1.2
"""A time that is so many times off the formula more or less than others are is measured once more."""

Off = Callable[[Survey], Mapping[TensorSet, float]]
"""How many times the time of each set is off what the others let expect."""


async def measure_tensor(
    measuring: Measuring, survey: Survey, sets: Sequence[TensorSet], report: Report, off: Off
) -> Survey:
    """The survey with the times of these sets of devices, measured one after the other, with those that failed, or with
    why the engine refuses. One whose memory is too small for slices is neither, and remains predicted by the formula.

    What was measured now and is `off` by `DOUBTFUL` is measured twice, and the time that is off by less counts.
    """
    times: list[TensorTime] = []
    failed = []
    known = [_as_cut(one) for one in sets if _known(measuring, survey, one) is not None]
    for one in sets:
        try:
            time = await _kept_or_measured(measuring, survey, one, report)
        except MeshctlError as error:
            report.warn(f"mode tensor over {', '.join(one.devices)}: {error}")
            failed.append(one.devices)
            if not times and isinstance(error, EngineError) and (refusal := await _refusal(measuring)):
                return replace(survey, tensor_refused=refusal)
        else:
            if time is None:
                why = "they have too little memory for slices of the model"
                report.warn(f"mode tensor over {', '.join(one.devices)} is not timed: {why}")
            else:
                times.append(time)
    timed = replace(survey, tensor=tuple(times), tensor_failed=tuple(failed))
    for one, by in off(timed).items():
        if by > DOUBTFUL and _as_cut(one) not in known:
            timed = await _again(measuring, timed, one, report, off)
    return timed


async def _again(measuring: Measuring, survey: Survey, one: TensorSet, report: Report, off: Off) -> Survey:
    """With the time of the set measured once more, if that is off by less."""
    report.say(f"timing layers cut across {', '.join(one.devices)} again: the first time does not agree with others")
    try:
        time = await _measure_set(measuring, _devices(survey, one), one, passes_for(measuring.parallel))
    except MeshctlError as error:
        report.say(f"that failed: {error}")
        return survey
    if time is None:
        return survey
    times = tuple(time if _as_cut(before) == _as_cut(one) else before for before in survey.tensor)
    other = replace(survey, tensor=times)
    if off(other)[one] >= off(survey)[one]:
        return survey
    file = _kept_file(measuring, survey, one)
    known = _read(file)
    write_kept(file, _TIME, _joined(time, known) if known else time)
    return other


def with_kept(measuring: Measuring, survey: Survey, sets: Sequence[TensorSet]) -> Survey:
    """The survey with the times that are known of these sets from earlier runs too; nothing is measured."""
    there, failed = {_as_cut(one) for one in survey.tensor}, {frozenset(devices) for devices in survey.tensor_failed}
    wanted = [one for one in sets if _as_cut(one) not in there and frozenset(one.devices) not in failed]
    known = [time for one in wanted if (time := _kept(measuring, survey, one)) is not None]
    return replace(survey, tensor=(*survey.tensor, *known))


def _as_cut(one: TensorSet | TensorTime) -> frozenset[tuple[str, int]]:
    """Each device with its part; their order plays no part in a time, nor in where it is kept (`_key`)."""
    return frozenset(zip(one.devices, one.parts, strict=True))


async def _refusal(measuring: Measuring) -> str:
    """Why the engine cannot cut this model's layers, asked over two workers of the controller; "" when it can.

    A bench over other devices may fail for reasons of theirs, such as their memory. One that is killed here leaves no
    word of the engine's.
    """
    controller = measuring.hosts.controller
    slices = await asyncio.to_thread(measuring.slices.slices, controller.facts.memory_available_bytes // 2)
    if slices is None:
        return ""
    try:
        two = [(DeviceSpec(name, 1), controller) for name in ("a/cpu", "b/cpu")]
        await _time_over(measuring, two, (1, 1), slices.shallow)
    except EngineError as error:
        return error.logged
    return ""


async def _kept_or_measured(measuring: Measuring, survey: Survey, one: TensorSet, report: Report) -> TensorTime | None:
    """As it was timed before, if nothing that counts has changed since, with the steps that were not timed then; None
    where memory is too small for that."""
    passes, known = passes_for(measuring.parallel), _known(measuring, survey, one)
    missing = passes if known is None else _missing(known, passes)
    if missing:
        steps = "" if known is None else f"steps of {' and '.join(map(str, missing))} conversations in "
        report.say(f"timing {steps}layers cut across {', '.join(one.devices)}")
        time = await _measure_set(measuring, _devices(survey, one), one, tuple(sorted({*BASE, *missing})))
        if time is None:
            return None
        known = time if known is None else _joined(known, time)
        write_kept(_kept_file(measuring, survey, one), _TIME, known)
    return None if known is None else _of(known, passes)


def _kept(measuring: Measuring, survey: Survey, one: TensorSet) -> TensorTime | None:
    """What is known of all passes of this number of conversations."""
    passes, known = passes_for(measuring.parallel), _known(measuring, survey, one)
    return None if known is None or _missing(known, passes) else _of(known, passes)


def _known(measuring: Measuring, survey: Survey, one: TensorSet) -> TensorTime | None:
    """With the steps of whatever numbers of conversations were timed."""
    return None if measuring.recalibrate else _read(_kept_file(measuring, survey, one))


def _read(file: Path) -> TensorTime | None:
    """What is kept there, if it has what all is worked out from."""
    known = read_kept(file, _TIME)
    return None if known is None or _missing(known, tuple(BASE)) else known


def _missing(known: TensorTime, passes: Sequence[int]) -> tuple[int, ...]:
    there = {timed.tokens for timed in known.passes}
    return tuple(tokens for tokens in passes if tokens not in there)


def _of(known: TensorTime, passes: Collection[int]) -> TensorTime:
    return replace(known, passes=tuple(timed for timed in known.passes if timed.tokens in passes))


def _joined(known: TensorTime, more: TensorTime) -> TensorTime:
    """What is known with the passes that only the other has, as long as they would have taken when decoding took what
    is known: on another day all may be slower or faster."""
    at_bytes = more.passes[0].layers_bytes[-1]
    known_s, more_s = (
        each.output_s + layers_seconds(Speed(each.passes, each.output_s), at_bytes, DECODE) for each in (known, more)
    )

    def as_then(timed: PassTime) -> PassTime:
        """Its time but for the output layer, which every pass has once."""
        layers_s = (known_s / more_s * (seconds + more.output_s) - known.output_s for seconds in timed.layers_s)
        fixed_s = known_s / more_s * (timed.fixed_s + more.output_s) - known.output_s
        return replace(timed, fixed_s=max(0.0, fixed_s), layers_s=tuple(layers_s))

    others = [as_then(timed) for timed in more.passes if timed.tokens in _missing(known, (timed.tokens,))]
    return replace(known, passes=tuple(sorted((*known.passes, *others), key=lambda timed: timed.tokens)))


def _kept_file(measuring: Measuring, survey: Survey, one: TensorSet) -> Path:
    return measuring.kept / f"tensor-{_key(measuring, _devices(survey, one), one.parts)}.json"


def _devices(survey: Survey, one: TensorSet) -> list[Device]:
    by_name = {device.name: device for device in survey.devices}
    return [by_name[name] for name in one.devices]


def _key(measuring: Measuring, devices: Sequence[Device], parts: tuple[int, ...]) -> str:
    """What a time is good for: these processors, their parts and threads, links, engine, model and cache type; those of
    weights that are made up are told apart.

    Links count to a factor of about four, and not at all within this machine, where all are alike;
    devices in any order.
    """
    slices, engine_id = measuring.slices, measuring.engine.manifest.engine
    kept = kept_as(measuring.cache_type, measuring.flash_attention)
    facts = [FORMAT, engine_id, slices.digest, *kept]
    facts += ["made up"] if slices.made_up else []
    for device, part in sorted(zip(devices, parts, strict=True), key=lambda one: one[0].name):
        host = measuring.hosts.by_name[device.host]
        facts += [
            device.name,
            str(part),
            *_gpu(device),
            host.facts.hostname,
            host.facts.cpu_name,
            str(host.facts.cpu_quota),
        ]
        facts += [str(device.threads), *host.host.own_words, device.link.kind, *_link_facts(device.link)]
    return hashlib.sha256("\0".join(facts).encode()).hexdigest()[:24]


def _gpu(device: Device) -> tuple[str, ...]:
    return () if device.kind == "cpu" else (device.engine_name, device.description)


def _link_facts(link: Link) -> tuple[str, ...]:
    if link.kind == "loopback":
        return ()
    about = (link.round_trip_s * 1e6, min(link.up_bytes_per_s, link.down_bytes_per_s))
    return tuple(str(round(math.log2(max(1.0, value)) / 2)) for value in about)


async def _measure_set(
    measuring: Measuring, devices: Sequence[Device], one: TensorSet, passes: Sequence[int]
) -> TensorTime | None:
    """`passes`: decoding and a short prompt (`BASE`) among them. None where memory is too small for slices."""
    here = {device.host for device in devices if measuring.hosts.by_name[device.host].is_local}
    slices = await asyncio.to_thread(measuring.slices.slices, room_bytes(devices, one.parts, here))
    if slices is None or not slices.output_fits:
        return None
    hosts = [(device.spec, measuring.hosts.by_name[device.host]) for device in devices]
    shallow = await _time_over(measuring, hosts, one.parts, slices.shallow, passes)
    repetitions = repetitions_for(shallow)
    # Also the long pass: what passes cost beside the layers is much here, and not in proportion to their tokens.
    deep = await _time_over(measuring, hosts, one.parts, slices.deep, passes, repetitions)
    shallow, deep = rising(shallow), rising(deep)
    if all(device.kind == "cpu" for device in devices):
        shallow = rising(plausible_shallow(slices, shallow, deep, partial(_link_s, slices, devices)))
    return tensor_time(one, slices, shallow, deep)


def room_bytes(devices: Sequence[Device], parts: Sequence[int], here: Collection[str]) -> int:
    """What one device would have to have free for slices as large as these hold together, each its part of every
    tensor. Those of hosts that are `here`, and those of one host, work in one memory, but for cards of their own."""
    free: dict[str, list[tuple[int, int]]] = {}
    for device, part in zip(devices, parts, strict=True):
        machine = CONTROLLER if device.host in here else device.host
        memory = machine if device.in_main_memory else f"{machine}/{device.engine_name}"
        free.setdefault(memory, []).append((device.budget.free_bytes, part))
    return BESIDE_LAYERS_BYTES + min(
        (min(size for size, _ in its) - len(its) * BESIDE_LAYERS_BYTES) * sum(parts) // sum(part for _, part in its)
        for its in free.values()
    )


def _link_s(slices: Slices, devices: Sequence[Device], tokens: int) -> float:
    """What a pass takes on the slowest link at no layer."""
    return max(transfer_s(one.link, slices.hidden_bytes * tokens, slices.logits_bytes) for one in devices)


def tensor_time(one: TensorSet, slices: Slices, shallow: Mapping[int, Timed], deep: Mapping[int, Timed]) -> TensorTime:
    """What the timings of both slices, which rise with the tokens, say of these devices."""
    output_s = _output_s(slices, _pass_time(slices, shallow, deep, DECODE, 0.0))
    return TensorTime(
        devices=one.devices,
        parts=one.parts,
        passes=tuple(_pass_time(slices, shallow, deep, tokens, output_s) for tokens in sorted(shallow)),
        output_s=output_s,
    )


async def _time_over(
    measuring: Measuring,
    workers: Sequence[tuple[DeviceSpec, OpenHost]],
    parts: tuple[int, ...],
    one: Slice,
    passes: Sequence[int] = (DECODE,),
    repetitions: int = REPETITIONS,
) -> Mapping[int, Timed]:
    """Over workers, each a device and its host; fresh ones: a used one may read what nobody wrote."""
    controller = measuring.hosts.controller
    async with stopping() as started:

        async def start(device: DeviceSpec, host: OpenHost) -> Worker:
            return await start_worker(started, measuring.hosts, measuring.logs, device, host, measuring.engine_on(host))

        running = all_or_raise(await each_host({device.name: start(device, host) for device, host in workers}))
        endpoints = tuple(running[device.name].endpoint for device, _ in workers)
        placement = Placement(endpoints, parts, output_on_head=False, output_tied=False, mode="tensor")
        threads = default_threads(controller.facts)
        at = Timing(measuring, controller, threads, always(placement), "tensor")
        return await time_passes(at, one, passes, repetitions)


def _output_s(slices: Slices, decode: PassTime) -> float:
    """The output layer for one row, which is cut like the layers: by its bytes, within what is left at no layer."""
    slope_s = (decode.layers_s[1] - decode.layers_s[0]) / (decode.layers_bytes[1] - decode.layers_bytes[0])
    return min(slope_s * slices.output_like_bytes, decode.fixed_s)


def _pass_time(
    slices: Slices,
    shallow: Mapping[int, Timed],
    deep: Mapping[int, Timed],
    tokens: int,
    output_s: float,
) -> PassTime:
    """The line through both depths, one row of the output layer taken off."""
    pairs = ((slices.shallow, shallow), (slices.deep, deep))
    at_bytes = tuple(one.pass_bytes(last_block(shallow, deep, tokens)) for one, _ in pairs)
    at_s = tuple(max(0.1 * t[tokens].seconds, t[tokens].seconds - output_s) for one, t in pairs)
    if at_s[1] <= at_s[0]:
        at_s = (at_s[1] * at_bytes[0] / at_bytes[1], at_s[1])
    slope_s = (at_s[1] - at_s[0]) / (at_bytes[1] - at_bytes[0])
    spread = max(shallow[tokens].spread, deep[tokens].spread)
    return PassTime(tokens, max(0.0, at_s[0] - slope_s * at_bytes[0]), at_bytes, at_s, spread)
