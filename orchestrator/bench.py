"""The honest comparison: every device alone, natively, against the cluster's plan, all by `llama-bench`.

"Alone, natively" is what a user would run instead of a cluster: the engine on that machine by itself, with the
kernels that only exist without RPC. A device that cannot hold the model says so; that is an answer too. The bench
starts workers of its own and ends them; a cluster that runs is left alone.
"""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass, replace

from orchestrator.cluster import model_on_host, placement_of, start_workers
from orchestrator.errors import EngineError, MeshctlError
from orchestrator.hosts import OpenHost, OpenHosts
from orchestrator.leash import run_leashed
from orchestrator.plan.costs import needed_bytes
from orchestrator.plan.pools import Candidate, find_candidates
from orchestrator.plan.single import fits, run_alone
from orchestrator.plan.values import Plan
from orchestrator.prepare import Prepared
from orchestrator.processes import BENCH_LOGS, Started, log_path
from orchestrator.report import Report
from orchestrator.survey.gather import default_threads
from orchestrator.view.sizes import bytes_text
from workers.bench_output import BenchRow, read_bench
from workers.engine_commands import ENVIRONMENT, Placement, bench_command

DEADLINE_S = 1800.0
CLUSTER = "cluster"
EQUAL_WITHIN = 0.05
"""A difference smaller than this is not told from noise."""


@dataclass(frozen=True)
class BenchSize:
    """Tokens of prefill and decode, and how often each is repeated."""

    prompt: int
    generate: int
    repetitions: int


QUICK = BenchSize(prompt=128, generate=32, repetitions=3)
FULL = BenchSize(prompt=512, generate=128, repetitions=5)


@dataclass(frozen=True)
class Rate:
    """Tokens per second: the median of the repetitions, the slowest and the fastest."""

    median: float
    lowest: float
    highest: float


@dataclass(frozen=True)
class Measured:
    """One line of the comparison: a device alone or the cluster. Rates are None when `note` says why."""

    name: str
    how: str
    prefill: Rate | None
    decode: Rate | None
    note: str = ""


@dataclass(frozen=True)
class Comparison:
    """The whole bench. Ratios are the cluster's median by the best single device's; None when there is none."""

    model: str
    size: BenchSize
    alone: tuple[Measured, ...]
    cluster: Measured
    predicted_decode_tokens_per_s: float
    single_on: str = ""  # the device of a plan of mode `single`, which is then no other measurement than its own

    @property
    def decode_ratio(self) -> float | None:
        return _ratio(self.cluster.decode, (one.decode for one in self.alone))

    @property
    def prefill_ratio(self) -> float | None:
        return _ratio(self.cluster.prefill, (one.prefill for one in self.alone))

    @property
    def best_alone(self) -> Measured | None:
        """The single device that decodes fastest."""
        fit = [one for one in self.alone if one.decode is not None]
        return max(fit, key=lambda one: one.decode.median if one.decode else 0.0, default=None)

    @property
    def verdict(self) -> str:
        """One plain sentence: which to use."""
        best, ratio = self.best_alone, self.decode_ratio
        if best is None or ratio is None:
            return "Use the cluster: no single device holds this model."
        if self.single_on:
            better = "" if best.name == self.single_on else f", although the plan is {self.single_on}"
            return f"Use {best.name} alone{better}: no split over several was predicted to be faster."
        if abs(ratio - 1) < EQUAL_WITHIN:
            return f"Use {best.name} alone: the cluster decodes just as fast (ratio {ratio:.2f}), and one is simpler."
        if ratio > 1:
            return f"Use the cluster: it decodes {ratio:.2f} times as fast as {best.name} alone."
        return f"Use {best.name} alone: it decodes {1 / ratio:.2f} times as fast as the cluster."


async def run_bench(
    prepared: Prepared, plan: Plan, hosts: OpenHosts, size: BenchSize, started: Started, report: Report
) -> Comparison:
    """Measure all devices alone, one after the other, then the plan; the caller stops `started`."""
    alone = []
    for candidate in find_candidates(prepared.survey, None):
        report.step(f"Measuring {candidate.device.name} alone, natively")
        alone.append(await _alone(prepared, candidate, hosts, size, report))
    comparison = Comparison(
        model=prepared.memory.model,
        size=size,
        alone=tuple(alone),
        cluster=Measured(CLUSTER, f"single on {plan.shares[0].device}", None, None),
        predicted_decode_tokens_per_s=plan.decode_tokens_per_s,
    )
    if plan.mode == "single":
        return _same_as_alone(comparison, plan.shares[0].device)
    return replace(comparison, cluster=await _together(prepared, plan, hosts, size, started, report))


def _same_as_alone(comparison: Comparison, device: str) -> Comparison:
    """A plan of mode `single` is that device alone: measuring it again would only compare noise."""
    alone = next(one for one in comparison.alone if one.name == device)
    cluster = replace(comparison.cluster, prefill=alone.prefill, decode=alone.decode, note=alone.note)
    return replace(comparison, cluster=cluster, single_on=device)


async def _together(
    prepared: Prepared, plan: Plan, hosts: OpenHosts, size: BenchSize, started: Started, report: Report
) -> Measured:
    workers = await start_workers(prepared, plan, hosts, started, report, logs=BENCH_LOGS)
    report.step(f"Measuring the cluster (mode {plan.mode})")
    placement = placement_of(prepared, plan, workers)
    host = hosts.of_head(plan.head)
    rows = await _bench(prepared, host, size, plan.micro_batch, placement, report)
    return Measured(CLUSTER, f"{plan.mode} on {len(plan.shares)}", _rate(rows[0]), _rate(rows[1]))


async def _alone(
    prepared: Prepared, candidate: Candidate, hosts: OpenHosts, size: BenchSize, report: Report
) -> Measured:
    device = candidate.device
    alone = run_alone(prepared.memory, candidate)
    if not fits(alone):
        needs, has = bytes_text(needed_bytes(alone.share.total_bytes)), bytes_text(candidate.budget_bytes)
        return Measured(device.name, "alone", None, None, f"does not fit: needs {needs}, budget {has}")
    host = hosts.by_name[device.host]
    try:
        rows = await _bench(prepared, host, size, prepared.memory.micro_batch, None, report)
    except MeshctlError as error:
        report.warn(str(error))
        return Measured(device.name, "alone", None, None, f"could not be measured: {error}")
    return Measured(device.name, "alone", _rate(rows[0]), _rate(rows[1]))


async def _bench(
    prepared: Prepared,
    host: OpenHost,
    size: BenchSize,
    micro_batch: int,
    placement: Placement | None,
    report: Report,
) -> tuple[BenchRow, BenchRow]:
    model = await model_on_host(prepared, host, report)
    folder = prepared.engine_folders.get(host.name, str(prepared.engine.folder))
    words = bench_command(
        f"{folder}/llama-bench",
        models=[model],
        prompt=size.prompt,
        generate=size.generate,
        repetitions=size.repetitions,
        threads=host.host.threads or default_threads(host.facts),
        micro_batch=micro_batch,
        placement=placement,
    )
    done = await run_leashed(
        host.shell,
        host.agent,
        words,
        log=log_path(host, f"{prepared.inventory.cluster}{BENCH_LOGS}", "bench-0"),
        environment={**ENVIRONMENT, "LC_ALL": "C"},
        name="llama-bench",
        deadline_s=DEADLINE_S,
    )
    if done.status != 0:
        raise EngineError(
            f"{host.name}: llama-bench ended with status {done.status}",
            hint="not enough memory is the usual reason; lower `context` or `memory` in inventory.yaml",
            details=done.stderr.decode(errors="replace")[-2000:],
        )
    return read_bench(done.stdout)


def _rate(row: BenchRow) -> Rate:
    rates = row.tokens_per_s
    return Rate(statistics.median(rates), min(rates), max(rates))


def _ratio(cluster: Rate | None, alone: Iterable[Rate | None]) -> float | None:
    best = max((rate.median for rate in alone if rate is not None), default=None)
    return None if best is None or cluster is None else cluster.median / best
