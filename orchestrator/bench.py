"""The honest comparison: every device alone, natively, against the cluster's plan, all by the engine's own programs.

"Alone, natively" is what a user would run instead of a cluster: the engine on that machine by itself, with the
kernels that only exist without RPC. A device that cannot hold the model says so; that is an answer too. The bench
starts workers of its own and ends them; a cluster that runs is left alone. What was measured of a device alone, or of a
plan with one head, is kept for the plans to come.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from orchestrator.errors import REPORTED
from orchestrator.folders import Folders
from orchestrator.group_bench import Bench, BenchSize, Predicted, Rate, Rates, learn, measure_groups, predicted_of
from orchestrator.hosts import OpenHosts
from orchestrator.plan.conversations import for_context
from orchestrator.plan.pools import find_candidates, why_unusable
from orchestrator.plan.single import find_singles, why_not_alone
from orchestrator.plan.values import Group, Plan, Ranking
from orchestrator.prepare import Prepared
from orchestrator.processes import Started
from orchestrator.report import Report
from orchestrator.state import requests_of

CLUSTER = "cluster"
EQUAL_WITHIN = 0.05
"""A difference smaller than this is not told from noise."""

QUICK = BenchSize(prompt=256, generate=32, repetitions=3)
FULL = BenchSize(prompt=1024, generate=128, repetitions=5)


@dataclass(frozen=True)
class Measured:
    """One line of the comparison: a device alone or a plan. Without `rates`, `note` says why."""

    name: str
    how: str
    rates: Rates | None = None
    predicted: Predicted | None = None
    note: str = ""

    @property
    def decode(self) -> Rate | None:
        return self.rates.decode if self.rates else None

    @property
    def prefill(self) -> Rate | None:
        return self.rates.prefill if self.rates else None

    @property
    def aggregate(self) -> Rate | None:
        """All conversations at once; with only one that is its decoding."""
        return (self.rates.aggregate or self.rates.decode) if self.rates else None


@dataclass(frozen=True)
class Comparison:
    """The whole bench. Ratios are the cluster's median by the best single device's; None when there is none."""

    model: str
    size: BenchSize
    goal: str
    parallel: int
    alone: tuple[Measured, ...]
    cluster: Measured
    others: tuple[Measured, ...] = ()  # further plans of the ranking, best predicted first
    single_on: str = ""  # the device of a plan of mode `single`, which is then no other measurement than its own

    @property
    def lines(self) -> tuple[Measured, ...]:
        return (*self.alone, self.cluster, *self.others)

    @property
    def decode_ratio(self) -> float | None:
        return self._ratio(lambda one: one.decode)

    @property
    def prefill_ratio(self) -> float | None:
        return self._ratio(lambda one: one.prefill)

    @property
    def aggregate_ratio(self) -> float | None:
        return self._ratio(lambda one: one.aggregate)

    @property
    def best_alone(self) -> Measured | None:
        """The single device that is best for the goal."""
        return max((one for one in self.alone if one.rates), key=self._worth, default=None)

    @property
    def verdict(self) -> str:
        """One plain sentence: which to use."""
        best = self.best_alone
        ratio = self.aggregate_ratio if self._for_all else self.decode_ratio
        if self.cluster.rates is None:
            return f"The cluster was not measured: {self.cluster.note}"
        if best is None or ratio is None:
            return "Use the cluster: no single device holds this model."
        if self.single_on:
            better = "" if best.name == self.single_on else f", although the plan is {self.single_on}"
            return f"Use {best.name} alone{better}: no plan with several was predicted to be faster."
        does = f"answers {self.parallel} conversations" if self._for_all else "decodes"
        if abs(ratio - 1) < EQUAL_WITHIN:
            return f"Use {best.name} alone: the cluster {does} just as fast (ratio {ratio:.2f}), and one is simpler."
        if ratio > 1:
            return f"Use the cluster: it {does} {ratio:.2f} times as fast as {best.name} alone."
        return f"Use {best.name} alone: it {does} {1 / ratio:.2f} times as fast as the cluster."

    @property
    def _for_all(self) -> bool:
        return self.goal == "throughput" and self.parallel > 1

    def _worth(self, one: Measured) -> float:
        rate = one.aggregate if self._for_all else one.decode
        return rate.median if rate else 0.0

    def _ratio(self, rate_of: Callable[[Measured], Rate | None]) -> float | None:
        rates = [rate for one in self.alone if (rate := rate_of(one)) is not None]
        mine = rate_of(self.cluster)
        return mine.median / max(rate.median for rate in rates) if rates and mine else None


async def run_bench(
    prepared: Prepared,
    ranking: Ranking,
    hosts: OpenHosts,
    folders: Folders,
    size: BenchSize,
    started: Started,
    report: Report,
    *,
    top: int = 0,
) -> Comparison:
    """Measure all devices alone, one after the other, then the chosen plan, then the `top` best other ones.

    The caller stops `started`.
    """
    bench = Bench(prepared, hosts, size, started, report)
    plan = ranking.chosen
    at_context = replace(prepared, memories=for_context(prepared.memories, plan.context))
    alone = [await _alone(bench, folders, one) for one in _devices_alone(at_context, size)]
    comparison = Comparison(
        model=plan.model,
        size=size,
        goal=plan.goal,
        parallel=plan.parallel,
        alone=tuple(alone),
        cluster=_line(CLUSTER, plan, size),
    )
    if plan.mode == "single":
        comparison = _same_as_alone(comparison, plan.shares[0].device)
    else:
        report.step("Measuring the cluster")
        comparison = replace(comparison, cluster=await _measured(bench, folders, comparison.cluster, plan.groups))
    others = []
    for number, other in enumerate(other_plans(ranking, top), 2):
        line = _line(f"plan {number}", other, size)
        report.step(f"Measuring {line.name}: {line.how}")
        others.append(await _or_note(bench, folders, line, other.groups))
    return replace(comparison, others=tuple(others))


def other_plans(ranking: Ranking, top: int) -> tuple[Plan, ...]:
    """The best plans beside the chosen one; those of one device alone are measured in any case."""
    return tuple(plan for plan in ranking.plans[1:] if plan.mode != "single")[:top]


def how_text(groups: Sequence[Group]) -> str:
    """Such as "layers on 2", or "single on a/cpu + layers on 2"."""
    parts = [
        f"single on {group.shares[0].device}" if group.mode == "single" else f"{group.mode} on {len(group.shares)}"
        for group in groups
    ]
    return " + ".join(parts)


@dataclass(frozen=True)
class _Alone:
    line: Measured
    group: Group | None


def _devices_alone(prepared: Prepared, size: BenchSize) -> list[_Alone]:
    """A line for every device, and its group where it holds the model."""
    candidates = {one.device.name: one for one in find_candidates(prepared.survey, None)}
    singles = find_singles(prepared.survey, prepared.memories, tuple(candidates.values()))
    groups = {group.shares[0].device: group for group in singles}
    found = []
    for device in prepared.survey.devices:
        if group := groups.get(device.name):
            line = Measured(device.name, "alone", predicted=predicted_of([group], size.prompt))
        else:
            candidate = candidates.get(device.name)
            why = why_not_alone(prepared.memory, candidate) if candidate else why_unusable(device)
            line = Measured(device.name, "alone", note=why)
        found.append(_Alone(line, group))
    return found


async def _alone(bench: Bench, folders: Folders, one: _Alone) -> Measured:
    if one.group is None:
        return one.line
    bench.report.step(f"Measuring {one.line.name} alone, natively")
    return await _or_note(bench, folders, one.line, [one.group])


async def _or_note(bench: Bench, folders: Folders, line: Measured, groups: Sequence[Group]) -> Measured:
    """A measurement beside the cluster's own that fails is noted: the rest of the comparison is still worth having."""
    try:
        return await _measured(bench, folders, line, groups)
    except REPORTED as error:
        bench.report.warn(str(error))
        await bench.started.stop()
        return replace(line, note=f"could not be measured: {error}")


async def _measured(bench: Bench, folders: Folders, line: Measured, groups: Sequence[Group]) -> Measured:
    """Of several groups it is not known what each took. What is measured while the cluster is at work is not kept."""
    folder = folders.cluster(bench.prepared.inventory.cluster)
    before = requests_of(folder)
    rates = await measure_groups(bench, groups)
    running, _ = before
    if running or requests_of(folder) != before:
        bench.report.say(f"{line.name}: the cluster answered requests meanwhile, so later plans do not count on this")
    elif len(groups) == 1:
        learn(bench, folders, groups[0], rates)
    return replace(line, rates=rates)


def _line(name: str, plan: Plan, size: BenchSize) -> Measured:
    return Measured(name, how_text(plan.groups), predicted=predicted_of(plan.groups, size.prompt))


def _same_as_alone(comparison: Comparison, device: str) -> Comparison:
    """A plan of mode `single` is that device alone: measuring it again would only compare noise."""
    alone = next(one for one in comparison.alone if one.name == device)
    cluster = replace(comparison.cluster, rates=alone.rates, note=alone.note)
    return replace(comparison, cluster=cluster, single_on=device)
