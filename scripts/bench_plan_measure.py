"""Measure one cell: rank by the product's own functions, then really run what was ranked and what it is compared with.

Every round runs each way once, so that whatever disturbs the machine disturbs all of them; medians are taken over the
rounds. Workers are fresh for every run, and every run has a time limit.
"""

import asyncio
import statistics
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from bench_plan_cells import Cell
from bench_plan_record import Memory, Rates, Role, Run
from orchestrator.cluster import start_workers
from orchestrator.errors import EngineError, MeshctlError
from orchestrator.fanout import all_or_raise, each_host
from orchestrator.group_bench import Bench, BenchSize, measure_groups, predicted_of
from orchestrator.group_commands import head_place, placement_of, worker_devices
from orchestrator.hosts import OpenHost, OpenHosts
from orchestrator.leash import run_leashed
from orchestrator.model_copies import model_on_host
from orchestrator.plan.pools import find_candidates
from orchestrator.plan.single import find_singles
from orchestrator.plan.values import Group, ModelMemory, Plan, Ranking, plan_key
from orchestrator.prepare import Prepared
from orchestrator.processes import BENCH_LOGS, Started, Worker, log_path, start_worker
from orchestrator.report import Report
from orchestrator.survey.gather import default_threads
from orchestrator.survey.values import Device
from workers.batched_output import read_batched
from workers.bench_output import read_bench
from workers.engine_commands import ENVIRONMENT, KV_CELLS, bench_command

SHORT_PROMPT = 16
PROMPTS = (1024, 512, 256)
REPETITIONS = 2
FIRST_SIGN_S = 6.0


@dataclass(frozen=True)
class Limits:
    """How much is measured: rounds, the longest a prompt and a run may take, in seconds; how many plans beside the
    chosen one, and how many devices alone, the fastest first."""

    rounds: int = 2
    prompt_s: float = 90.0
    run_s: float = 420.0
    others: int = 5
    singles: int = 8


QUICK = Limits(rounds=1, prompt_s=25.0, run_s=100.0, others=2, singles=1)


@dataclass(frozen=True)
class Result:
    """What of a cell was measured."""

    prompt: int
    runs: tuple[Run, ...]
    memory: tuple[Memory, ...]


@dataclass
class _Way:
    """One way to run the model while it is measured: `round_of` gives decode and aggregate, `prompt_of` prefill."""

    run: Run
    round_of: Callable[[], Awaitable[Rates]]
    prompt_of: Callable[[], Awaitable[float]] | None
    rounds: list[Rates] = field(default_factory=list)
    prefill: float | None = None
    note: str = ""

    def record(self) -> Run:
        if not self.rounds:
            return replace(self.run, note=self.note)
        measured = Rates(
            decode=_median(one.decode for one in self.rounds),
            prefill=self.prefill,
            aggregate=_median(one.aggregate for one in self.rounds),
        )
        return replace(self.run, measured=measured, note=self.note)


async def measure_cell(
    cell: Cell, prepared: Prepared, ranking: Ranking, hosts: OpenHosts, report: Report, limits: Limits
) -> Result:
    """Measure the chosen plan, the best of the others, every device alone, the default split and one worker."""
    started = Started()
    bench = Bench(prepared, hosts, BenchSize(SHORT_PROMPT, cell.model.generate, REPETITIONS), started, report)
    measuring = _Measuring(cell, bench, prompt_for(ranking.chosen, limits.prompt_s), limits)
    try:
        ways = list(measuring.ways(ranking))
        for number in range(limits.rounds):
            for way in ways:
                await measuring.take_round(way, number)
        memory = await measuring.memory(ranking.plans) if cell.goal.parallel == 1 else ()
        return Result(measuring.prompt, tuple(way.record() for way in ways), memory)
    finally:
        await asyncio.shield(started.stop())


def prompt_for(plan: Plan, limit_s: float) -> int:
    """The longest of `PROMPTS` that the plan is predicted to read within the limit; else the shortest."""
    fitting = (tokens for tokens in PROMPTS if tokens / predicted_of(plan.groups, tokens).prefill <= limit_s)
    return min(next(fitting, PROMPTS[-1]), plan.groups[0].prompt_tokens)


def others_worth_running(ranking: Ranking, most: int) -> tuple[Plan, ...]:
    """The best plan of each mode and set of devices beside the chosen one; those of one device are all run anyway."""
    seen = {_kind(ranking.chosen)}
    found = []
    for plan in ranking.plans[1:]:
        if plan.mode != "single" and _kind(plan) not in seen:
            seen.add(_kind(plan))
            found.append(plan)
    return tuple(found[:most])


def distinct_singles(prepared: Prepared, cores: dict[str, float]) -> tuple[Group, ...]:
    """Every device that holds the model alone; one of those that are equally fast (by the cores of their hosts)."""
    groups = find_singles(prepared.survey, prepared.memories, find_candidates(prepared.survey, None))
    by_cores: dict[float, Group] = {}
    for group in groups:
        by_cores.setdefault(cores[group.head or group.shares[0].device.partition("/")[0]], group)
    return tuple(by_cores.values())


class _Measuring:
    """One cell's runs."""

    def __init__(self, cell: Cell, bench: Bench, prompt: int, limits: Limits) -> None:
        self.prompt = prompt
        self._cell = cell
        self._bench = bench
        self._limits = limits
        self._references = _References(bench)

    def ways(self, ranking: Ranking) -> Iterator[_Way]:
        """The chosen plan first. Prompts are read by it, the best other plan, the best device and what is no plan."""
        chosen, others = ranking.chosen, others_worth_running(ranking, self._limits.others)
        yield self._plan(chosen.mode, chosen.groups, plan_key(chosen), prompt=True)
        for number, plan in enumerate(others):
            yield self._plan(plan.mode, plan.groups, plan_key(plan), prompt=number == 0 or plan.mode == "layers")
        found = distinct_singles(self._bench.prepared, self._cores())
        singles = sorted(found, key=lambda group: group.token_s)[: self._limits.singles]
        alone = [one for one in singles if not (chosen.mode == "single" and one.shares == chosen.groups[0].shares)]
        for number, group in enumerate(alone):
            key = f"single {group.shares[0].device}"
            yield self._plan("single", (group,), key, prompt=number == 0)
        survey, memory = self._bench.prepared.survey, self._bench.prepared.memory
        yield self._reference("default split", survey.devices)
        holding = [one for one in survey.devices if one.budget.usable_bytes >= memory.total_bytes]
        if holding:
            yield self._reference("one worker", (max(holding, key=self._speed),))

    async def take_round(self, way: _Way, number: int) -> None:
        """One run, and the prompt in the first round. What fails or takes too long is noted and not tried again."""
        if way.note:
            return
        self._bench.report.step(f"{self._cell.key}, round {number + 1}: {way.run.key}")
        try:
            async with asyncio.timeout(self._limits.run_s):
                way.rounds.append(await way.round_of())
                if number == 0 and way.prompt_of is not None:
                    way.prefill = await way.prompt_of()
        except (MeshctlError, TimeoutError) as error:
            await self._bench.started.stop()
            way.note = _reason(error, self._limits.run_s)
            self._bench.report.warn(f"{way.run.key}: {way.note}")

    async def memory(self, plans: Sequence[Plan]) -> tuple[Memory, ...]:
        """Of the best plan that has workers in one group: their growth while a whole prompt is read."""
        group = next((plan.groups[0] for plan in plans if len(plan.groups) == 1 and plan.groups[0].workers), None)
        if group is None:
            return ()
        self._bench.report.step(f"{self._cell.key}: memory of {group.mode}")
        try:
            async with asyncio.timeout(self._limits.run_s):
                return await self._growth(group)
        except (MeshctlError, TimeoutError) as error:
            self._bench.report.warn(f"memory: {_reason(error, self._limits.run_s)}")
            return ()
        finally:
            await self._bench.started.stop()

    async def _growth(self, group: Group) -> tuple[Memory, ...]:
        workers = await start_workers(
            self._bench.prepared, [group], self._bench.hosts, self._bench.started, logs=BENCH_LOGS
        )
        before = {name: await _idle_rss(worker) for name, worker in workers.items()}
        await self._read_prompt(group, workers, group.prompt_tokens)
        await self._bench.started.stop()
        return tuple(
            Memory(share.device, share.total_bytes, _peak(workers[share.device]) - before[share.device])
            for share in group.workers
        )

    def _plan(self, mode: str, groups: tuple[Group, ...], key: str, *, prompt: bool) -> _Way:
        devices = tuple(dict.fromkeys(share.device for group in groups for share in group.shares))
        foretold = predicted_of(groups, self.prompt)
        aggregate = foretold.aggregate if sum(group.parallel for group in groups) > 1 else None
        run = Run("plan", key, mode, devices, Rates(foretold.decode, foretold.prefill, aggregate))

        async def round_of() -> Rates:
            rates = await measure_groups(self._bench, groups)
            return Rates(rates.decode.median, None, rates.aggregate.median if rates.aggregate else None)

        async def prompt_of() -> float:
            fastest = min(groups, key=lambda group: group.token_s)
            started = self._bench.started
            workers = await start_workers(self._bench.prepared, [fastest], self._bench.hosts, started, logs=BENCH_LOGS)
            rate = await self._read_prompt(fastest, workers, self.prompt)
            await started.stop()
            return rate

        return _Way(run, round_of, prompt_of if prompt else None)

    async def _read_prompt(self, group: Group, workers: dict[str, Worker], prompt: int) -> float:
        """Tokens per second of one prompt, without a first one to warm up."""
        prepared, hosts = self._bench.prepared, self._bench.hosts
        place = head_place(prepared, hosts, group)
        endpoints = [workers[device.name].endpoint for device in worker_devices(prepared, group)]
        words = bench_command(
            f"{place.engine}/llama-bench",
            models=[await model_on_host(prepared.model, place.host)],
            prompt=prompt,
            generate=1,
            repetitions=1,
            threads=place.threads,
            micro_batch=group.micro_batch,
            placement=placement_of(prepared, group, endpoints),
        )
        prefill, _ = read_bench(await run_program(self._bench, place.host, (*words, "--no-warmup")))
        return 1 / prefill.token_s

    def _reference(self, role: Role, devices: Sequence[Device]) -> _Way:
        names = tuple(device.name for device in devices)
        run = Run(role, role if len(names) > 1 else f"{role} {names[0]}", "", names)

        async def round_of() -> Rates:
            return await self._references.rates(devices, self._cell.goal.parallel)

        async def prompt_of() -> float:
            return await self._references.prefill(devices, self.prompt)

        return _Way(run, round_of, prompt_of)

    def _cores(self) -> dict[str, float]:
        return dict(zip(self._bench.hosts.by_name, self._cell.setup.cores, strict=True))

    def _speed(self, device: Device) -> float:
        return self._cores()[device.host]


class _References:
    """llama.cpp's own way: workers named by `--rpc`, everything else as it comes."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench

    async def rates(self, devices: Sequence[Device], conversations: int) -> Rates:
        """One conversation, and `conversations` at once where that is more than one."""
        size = self._bench.size
        done = await self._run(devices, "llama-bench", _single_words(size.prompt, size.generate, size.repetitions))
        decode = 1 / read_bench(done)[1].token_s
        if conversations == 1:
            return Rates(decode)
        words = _batched_words(size.prompt, size.generate, conversations, size.repetitions)
        rows = read_batched(await self._run(devices, "llama-batched-bench", words))
        return Rates(decode, None, statistics.median(row.aggregate_tokens_per_s for row in rows))

    async def prefill(self, devices: Sequence[Device], prompt: int) -> float:
        words = (*_single_words(prompt, 1, 1), "--no-warmup")
        return 1 / read_bench(await self._run(devices, "llama-bench", words))[0].token_s

    async def _run(self, devices: Sequence[Device], program: str, words: tuple[str, ...]) -> bytes:
        bench, controller = self._bench, self._bench.hosts.controller
        endpoints = await self._workers(devices)
        model = await model_on_host(bench.prepared.model, controller)
        done = await run_program(
            bench,
            controller,
            (
                *(f"{bench.prepared.engine.folder}/{program}", "--model", model, *words),
                *("--rpc", ",".join(endpoints), "--n-gpu-layers", "99"),
                *("--threads", str(default_threads(controller.facts))),
            ),
        )
        await bench.started.stop()
        return done

    async def _workers(self, devices: Sequence[Device]) -> list[str]:
        """Their endpoints in the order of the devices."""
        bench = self._bench
        answers = await each_host({device.name: self._worker(device) for device in devices})
        workers = all_or_raise(answers)
        bench.report.say(f"{len(workers)} workers")
        return [workers[device.name].endpoint for device in devices]

    async def _worker(self, device: Device) -> Worker:
        bench = self._bench
        host, engine = bench.hosts.by_name[device.host], bench.prepared.engine_folders[device.host]
        cluster = f"{bench.prepared.inventory.cluster}{BENCH_LOGS}"
        return await start_worker(bench.started, bench.hosts, cluster, device.spec, host, engine)


async def run_program(bench: Bench, host: OpenHost, words: tuple[str, ...]) -> bytes:
    """A program of the engine run to its end: its stdout. EngineError with the end of its log when it fails."""
    name = words[0].rpartition("/")[2]
    done = await run_leashed(
        host.shell,
        host.agent,
        words,
        log=log_path(host, f"{bench.prepared.inventory.cluster}{BENCH_LOGS}", "measured-0"),
        environment={**ENVIRONMENT, "LC_ALL": "C"},
        name=name,
        network=await bench.hosts.network.words() if host.is_local else (),
        deadline_s=3600.0,
    )
    if done.status != 0:
        said = done.stderr.decode(errors="replace")[-2000:]
        raise EngineError(f"{host.name}: {name} ended with status {done.status}", details=said)
    return done.stdout


def memory_limit(memory: ModelMemory, part: float) -> int:
    """Bytes of a device that may hold this part of the model."""
    return int(memory.total_bytes * part)


def _single_words(prompt: int, generate: int, repetitions: int) -> tuple[str, ...]:
    counts = ("--n-prompt", str(prompt), "--n-gen", str(generate), "--repetitions", str(repetitions))
    return (*counts, "--output", "json")


def _batched_words(prompt: int, generate: int, conversations: int, repetitions: int) -> tuple[str, ...]:
    cells = -(-(prompt + generate) // KV_CELLS) * KV_CELLS * conversations
    repeated = ",".join([str(conversations)] * repetitions)
    return (
        *("--output-format", "jsonl", "-npp", str(prompt), "-ntg", str(generate), "-npl", repeated),
        *("--ctx-size", str(cells), "--no-kv-unified", "--fit", "off"),
    )


def _kind(plan: Plan) -> tuple[str, frozenset[str]]:
    return plan.mode, frozenset(share.device for share in plan.shares)


def _median(rates: Iterator[float | None]) -> float | None:
    known = [rate for rate in rates if rate is not None]
    return statistics.median(known) if known else None


def _reason(error: MeshctlError | TimeoutError, limit_s: float) -> str:
    return f"took more than {limit_s:.0f} s" if isinstance(error, TimeoutError) else str(error)


async def _idle_rss(worker: Worker) -> int:
    """What the worker takes before it is used: its first life sign comes after two seconds."""
    async with asyncio.timeout(FIRST_SIGN_S):
        while worker.process.rss_bytes is None:
            await asyncio.sleep(0.1)
    return worker.process.rss_bytes


def _peak(worker: Worker) -> int:
    return worker.process.on_exit.result().rss_peak_bytes
