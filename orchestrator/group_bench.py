"""Measure groups by the engine's own programs: one conversation by `llama-bench`, several by `llama-batched-bench`.

Every program is a load of the model, and every load gets fresh workers, as in `cluster`.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.cluster import packed_pieces, rates_from_here, start_workers
from orchestrator.errors import EngineError
from orchestrator.experience_store import remember
from orchestrator.fanout import all_or_raise, each_host
from orchestrator.folders import Folders
from orchestrator.group_commands import HeadPlace, head_place, placement_of, worker_devices
from orchestrator.head_checks import prompt_scale
from orchestrator.hosts import OpenHosts
from orchestrator.leash import run_leashed
from orchestrator.model_copies import model_on_host
from orchestrator.packs import bring_packs
from orchestrator.plan.experience import Measured, as_predicted
from orchestrator.plan.values import Group
from orchestrator.prepare import Prepared
from orchestrator.processes import BENCH_LOGS, Started, Worker, log_path
from orchestrator.report import Report
from workers.batched_output import read_batched
from workers.bench_output import BenchRow, read_bench
from workers.engine_commands import Where, batched_bench_command, bench_command

DEADLINE_S = 1800.0
SHORT_PROMPT = 16
"""Tokens that each of several conversations begins with: what is measured is how they go on."""


@dataclass(frozen=True)
class BenchSize:
    """Tokens of prefill and decode, and how often each is repeated."""

    prompt: int
    generate: int
    repetitions: int


@dataclass(frozen=True)
class Rate:
    """Tokens per second: the median of the repetitions, the slowest and the fastest."""

    median: float
    lowest: float
    highest: float


@dataclass(frozen=True)
class Rates:
    """Of one plan or device: a prompt, one conversation, and all conversations at once (None: there is only one)."""

    prefill: Rate
    decode: Rate
    aggregate: Rate | None


@dataclass(frozen=True)
class Predicted:
    """The same in tokens per second, as planned; `prefill` for a prompt of the bench's length."""

    prefill: float
    decode: float
    aggregate: float


@dataclass(frozen=True)
class Bench:
    """What measuring needs; `started` is empty between two programs, and stopped by the caller when one fails."""

    prepared: Prepared
    hosts: OpenHosts
    size: BenchSize
    started: Started
    report: Report


async def measure_groups(bench: Bench, groups: Sequence[Group]) -> Rates:
    """One conversation and prompt on the fastest group; all conversations on all groups at the same time."""
    fastest = min(groups, key=lambda group: group.token_s)
    prefill, decode = await _one_conversation(bench, fastest)
    aggregate = None
    if sum(group.parallel for group in groups) > 1:
        by_group = await _all_conversations(bench, groups)
        aggregate = _rate([sum(together) for together in zip(*by_group, strict=False)])
    return Rates(_rate(prefill.tokens_per_s), _rate(decode.tokens_per_s), aggregate)


async def measure_each(bench: Bench, groups: Sequence[Group]) -> tuple[Rates, ...]:
    """For each group: one conversation and prompt while the others rest, all its conversations while all others have
    theirs."""
    alone = [await _one_conversation(bench, group) for group in groups]
    together: list[Rate | None] = [None for _ in groups]
    if sum(group.parallel for group in groups) > 1:
        together = [_rate(rates) for rates in await _all_conversations(bench, groups)]
    return tuple(
        Rates(_rate(prefill.tokens_per_s), _rate(decode.tokens_per_s), aggregate)
        for (prefill, decode), aggregate in zip(alone, together, strict=True)
    )


def predicted_of(groups: Sequence[Group], prompt: int) -> Predicted:
    """What was predicted for what `measure_groups` measures, on the group that is fastest as planned."""
    fastest = as_predicted(min(groups, key=lambda group: group.token_s))
    tokens = bench_prompt(fastest, prompt)
    return Predicted(
        prefill=tokens * prompt_scale(fastest, tokens) / fastest.prefill_s,
        decode=fastest.decode_tokens_per_s,
        aggregate=sum(as_predicted(group).aggregate_tokens_per_s for group in groups),
    )


def bench_prompt(group: Group, prompt: int) -> int:
    """No longer than what was predicted and what a conversation may hold."""
    return min(prompt, group.prompt_tokens)


def measured_of(group: Group, rates: Rates, prompt: int) -> Measured:
    """What a bench of this one group with prompts of `prompt` tokens measured, in the terms of a `Group`."""
    tokens = bench_prompt(group, prompt)
    token_s = 1 / rates.decode.median
    return Measured(
        token_s=token_s,
        step_s=group.parallel / rates.aggregate.median if rates.aggregate else token_s,
        prefill_s=tokens * prompt_scale(group, tokens) / rates.prefill.median,
    )


def learn(bench: Bench, folders: Folders, group: Group, rates: Rates) -> Measured:
    """What was measured of this one group, which is kept for the plans to come."""
    prepared, measured = bench.prepared, measured_of(group, rates, bench.size.prompt)
    remember(folders, prepared.circumstances, group, measured, prepared.experience.outdated)
    return measured


async def _one_conversation(bench: Bench, group: Group) -> tuple[BenchRow, BenchRow]:
    """The prefill and the decode."""
    place = head_place(bench.prepared, bench.hosts, group)
    workers = await _start_workers(bench, [group])
    model = await model_on_host(bench.prepared.model, place.host)
    words = bench_command(
        f"{place.engine}/llama-bench",
        models=[model],
        prompt=bench_prompt(group, bench.size.prompt),
        generate=bench.size.generate,
        repetitions=bench.size.repetitions,
        threads=place.threads,
        micro_batch=group.micro_batch,
        placement=_placement(bench, group, workers),
        cache_type=bench.prepared.memory.cache_type,
        flash_attention=bench.prepared.memory.flash_attention,
    )
    rows = read_bench(await _run(bench, place, words, model, "bench"))
    await bench.started.stop()
    return rows


async def _all_conversations(bench: Bench, groups: Sequence[Group]) -> list[list[float]]:
    """Tokens per second of each group for every repetition, while all groups run at the same time.

    One may have a repetition less: the program was seen to end without its last line, on a quarter of a core.
    """
    workers = await _start_workers(bench, groups)
    answers = await each_host(
        {str(number): _conversations(bench, group, workers, number) for number, group in enumerate(groups, 1)},
        limit=len(groups),
    )
    rates = all_or_raise(answers)
    await bench.started.stop()
    return [rates[str(number)] for number, _ in enumerate(groups, 1)]


async def _conversations(bench: Bench, group: Group, workers: dict[str, Worker], number: int) -> list[float]:
    """Tokens per second of all conversations of one group, for every repetition."""
    place = head_place(bench.prepared, bench.hosts, group, f"batched{number}")
    model = await model_on_host(bench.prepared.model, place.host)
    words = batched_bench_command(
        f"{place.engine}/llama-batched-bench",
        model=model,
        prompt=SHORT_PROMPT,
        generate=bench.size.generate,
        conversations=group.parallel,
        repetitions=bench.size.repetitions,
        threads=place.threads,
        micro_batch=group.micro_batch,
        placement=_placement(bench, group, workers),
        cache_type=bench.prepared.memory.cache_type,
        flash_attention=bench.prepared.memory.flash_attention,
    )
    return [row.aggregate_tokens_per_s for row in read_batched(await _run(bench, place, words, model, place.name))]


async def _start_workers(bench: Bench, groups: Sequence[Group]) -> dict[str, Worker]:
    packed = packed_pieces(bench.prepared, groups, bench.hosts)
    packs = await bring_packs(bench.prepared.model, packed, bench.hosts, rates=rates_from_here(bench.prepared))
    return await start_workers(bench.prepared, groups, bench.hosts, bench.started, packs, logs=BENCH_LOGS)


def _placement(bench: Bench, group: Group, workers: dict[str, Worker]) -> Where:
    endpoints = [workers[device.name].endpoint for device in worker_devices(bench.prepared, group)]
    return placement_of(bench.prepared, group, endpoints)


async def _run(bench: Bench, place: HeadPlace, words: tuple[str, ...], model: str, log: str) -> bytes:
    """The program's stdout; EngineError with the end of what it wrote when it fails. Where workers are on this machine
    it joins them in their network."""
    program = words[0].rpartition("/")[2]
    done = await run_leashed(
        place.host.shell,
        place.host.agent,
        words,
        log=log_path(place.host, f"{bench.prepared.inventory.cluster}{BENCH_LOGS}", f"{log}-0"),
        environment={**place.variables, "LC_ALL": "C"},
        name=program,
        uses=place.host.items(place.engine, model),
        network=await bench.hosts.network.words() if place.host.is_local else (),
        deadline_s=DEADLINE_S,
    )
    if done.status != 0:
        raise EngineError(
            f"{place.host.name}: {program} ended with status {done.status}",
            hint="not enough memory is the usual reason; lower `context` or `memory` in inventory.yaml",
            details=done.stderr.decode(errors="replace")[-2000:],
        )
    return done.stdout


def _rate(rates: Sequence[float]) -> Rate:
    return Rate(statistics.median(rates), min(rates), max(rates))
