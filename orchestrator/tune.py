"""Really run the best plans, vary the best one's threads and micro-batch, and keep what was fastest.

Every measurement is kept as soon as it is there, and the winner so far with it, so that stopping at any time loses
nothing: a former winner gives way only to what it was compared with, or at the end. Whatever was started is ended. A
trial that fails is noted, and the next one is tried.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from orchestrator.errors import REPORTED, EngineError
from orchestrator.folders import Folders
from orchestrator.group_bench import Bench, BenchSize, Rates, learn, measure_each
from orchestrator.hosts import open_hosts
from orchestrator.inventory import Inventory
from orchestrator.plan.asked import Asked
from orchestrator.plan.choose import in_order
from orchestrator.plan.experience import Experience, record_of, uncorrected
from orchestrator.plan.mirrored import without_mirrored
from orchestrator.plan.values import PROMPT_TOKENS, Group, Plan, Ranking, alike_key, plan_key
from orchestrator.prepare import Prepared, prepare_ranking
from orchestrator.processes import Started
from orchestrator.report import Report
from orchestrator.state import is_held, measuring
from orchestrator.survey.gather import default_threads
from orchestrator.survey.values import Survey
from orchestrator.tuned import (
    Tuned,
    asked_again,
    find_plan,
    load_tuned,
    memory_at,
    save_tuned,
    split_of,
    tuned_of,
    valid_for,
    with_micro_batch,
    with_threads,
)
from orchestrator.view.ranking import plan_text
from orchestrator.wishes import Wishes

SIZE = BenchSize(prompt=PROMPT_TOKENS, generate=32, repetitions=3)
"""Whole prompts, since how well stages overlap depends on their length."""

MICRO_BATCHES = (32, 64, 128, 256)
BETTER = 0.98
"""A variant counts as better when it takes less than this part of the time: the rest is noise."""

NO_ROOM = "does not fit"


@dataclass(frozen=True)
class Trial:
    """One run: of a `plan`, or of the best one with other "threads" or another "micro-batch".

    `measured` is the plan with what its groups took; None when it did not run, and `note` says why.
    """

    varied: str
    plan: Plan
    threads: Mapping[str, int]
    measured: Plan | None = None
    note: str = ""


@dataclass(frozen=True)
class TuneResult:
    """All trials in the order they were made, and the winner, which is one of them and has been kept. `asked_goal`: the
    one that was asked for instead of the inventory's."""

    model: str
    goal: str
    trials: tuple[Trial, ...]
    best: Trial
    tuned: Tuned
    asked_goal: str | None = None


async def tune(inventory: Inventory, folders: Folders, report: Report, wishes: Wishes, *, top: int = 3) -> TuneResult:
    """Run the `top` best plans that differ in more than which of two like devices they use, and variants of the winner.

    EngineError when no plan could be run at all; ClusterStateError while another one, or a bench, measures it.
    """
    folder = folders.cluster(inventory.cluster)
    with measuring(folder):
        if is_held(folder):
            report.warn(f"{inventory.cluster} is up: what it does on these machines makes what is measured slower")
        return await _tune(inventory, folders, report, wishes, top)


async def _tune(inventory: Inventory, folders: Folders, report: Report, wishes: Wishes, top: int) -> TuneResult:
    report.step("Connecting")
    async with open_hosts(inventory, folders, report) as hosts:
        prepared, ranking = await prepare_ranking(inventory, hosts, folders, report, wishes, winner=True)
        started = Started()
        asked = Asked(ranking.chosen.goal, wishes.devices, wishes.mode)
        tuning = _Tuning(Bench(prepared, hosts, SIZE, started, report), folders, asked)
        try:
            return replace(await tuning.run(ranking, top), asked_goal=wishes.goal)
        except asyncio.CancelledError:
            report.say(tuning.when_stopped())
            raise
        finally:
            await asyncio.shield(started.stop())


def thread_profiles(inventory: Inventory, survey: Survey, devices: Sequence[str]) -> tuple[dict[str, int], ...]:
    """Other numbers of threads for these devices than they have: all cores, all but one, half of them.

    Devices whose host has its `threads` in the inventory keep them, and so does anything but a CPU.
    """
    fixed = {host.name for host in inventory.hosts if host.threads is not None}
    known = {device.name: device for device in survey.devices}
    cores = {host.name: default_threads(host.facts) for host in survey.hosts}
    free = [name for name in devices if known[name].kind == "cpu" and known[name].host not in fixed]
    now = {name: known[name].threads for name in devices}
    wanted = [{**now, **{name: _reduced(cores[known[name].host])[which] for name in free}} for which in range(3)]
    return tuple(one for number, one in enumerate(wanted) if one != now and one not in wanted[:number])


def _reduced(cores: int) -> tuple[int, int, int]:
    return cores, max(1, cores - 1), max(1, cores // 2)


class _Tuning:
    """The trials made so far, and the best of them."""

    def __init__(self, bench: Bench, folders: Folders, asked: Asked) -> None:
        self._bench = bench
        self._folders = folders
        self._goal = asked.goal
        self._trials = list[Trial]()
        self._measured = dict[tuple[str, tuple[int, ...]], tuple[Group, ...]]()
        prepared = bench.prepared
        self._valid = valid_for(prepared.inventory, prepared.model, prepared.engine.manifest.engine, asked)
        self._kept: Trial | None = None
        self._former = load_tuned(folders.cluster(prepared.inventory.cluster), self._valid)

    async def run(self, ranking: Ranking, top: int) -> TuneResult:
        unlike = islice(without_mirrored(self._prepared.survey, ranking.plans), top)
        best = await self._best_plan(tuple(unlike))
        best = await self._best_threads(best)
        best = await self._best_micro_batch(best)
        return TuneResult(best.plan.model, self._goal, tuple(self._trials), best, self._keep(best))

    def when_stopped(self) -> str:
        """What stays of it when it is stopped now."""
        ran = sum(1 for trial in self._trials if trial.measured is not None)
        runs = f"{ran} {'run' if ran == 1 else 'runs'}"
        if self._kept is not None:
            best = f"{plan_text(self._kept.plan)}, threads {threads_text(self._kept.threads)}"
            return f"stopped: the best of {runs} is kept, {best}"
        if self._former is not None:
            former = "the winner kept before stays, which was not run yet"
        else:
            former = "no winner is kept before two have run"
        if not ran:
            return f"stopped before anything was measured: {former}"
        return f"stopped: {runs} measured for the plans to come; {former}"

    async def _best_plan(self, plans: Sequence[Plan]) -> Trial:
        """By the very order that plans are ranked in, but of what was measured."""
        threads = {device.name: device.threads for device in self._prepared.survey.devices}
        ran = dict[str, Trial]()
        for number, plan in enumerate(plans, 1):
            self._bench.report.step(f"Running plan {number} of {len(plans)}: {plan_text(plan)}")
            trial = await self._try("plan", plan, {share.device: threads[share.device] for share in plan.shares})
            if trial.measured is not None:
                ran[plan_key(plan)] = trial
            if ran and (number > 1 or len(plans) == 1):
                self._keep_so_far(_first(ran, self._goal))
        if not ran:
            raise EngineError("none of the best plans could be run", hint="the remarks above say why; `meshctl doctor`")
        return _first(ran, self._goal)

    async def _best_threads(self, best: Trial) -> Trial:
        devices = [share.device for share in best.plan.shares]
        for threads in thread_profiles(self._prepared.inventory, self._prepared.survey, devices):
            self._bench.report.step(f"Running it with threads {threads_text(threads)}")
            trial = await self._try("threads", best.plan, threads)
            best = self._better(best, trial, lambda plan: plan.goal_s)
        return best

    async def _best_micro_batch(self, best: Trial) -> Trial:
        """By the time that a prompt takes. Decoding hardly depends on it, but must not have been measured slower: such
        a winner would be put aside for the plan that it came of."""
        assert best.measured is not None, "only what ran can be the best"
        started_with, started_with_s = best.plan, best.measured.goal_s
        for micro_batch in MICRO_BATCHES:
            if all(group.micro_batch == micro_batch for group in started_with.groups):
                continue
            self._bench.report.step(f"Running it with micro-batches of {micro_batch} tokens")
            plan = await self._at_micro_batch(started_with, micro_batch)
            if plan is None:
                unfit = with_micro_batch(started_with, micro_batch)
                self._trials.append(Trial("micro-batch", unfit, best.threads, note=NO_ROOM))
                continue
            trial = await self._try("micro-batch", plan, best.threads)
            if trial.measured is None or BETTER * trial.measured.goal_s <= started_with_s:
                best = self._better(best, trial, _seconds_per_prompt)
        return best

    async def _at_micro_batch(self, plan: Plan, micro_batch: int) -> Plan | None:
        """As the planner has it, with the bytes that this micro-batch takes; None when it does not fit."""
        prepared = self._prepared
        like = replace(prepared.memory, context=plan.context)
        memory = await memory_at(micro_batch, like, prepared.engine.folder, prepared.model, self._folders)
        asked = asked_again(self._goal, plan.mode, split_of(plan))
        key = plan_key(with_micro_batch(plan, micro_batch))
        return find_plan(prepared.survey, (memory,), asked, key, prepared.experience)

    def _better(self, best: Trial, trial: Trial, seconds_of: Callable[[Plan], float]) -> Trial:
        """The better one."""
        if trial.measured is None or best.measured is None:
            return best
        if seconds_of(trial.measured) >= BETTER * seconds_of(best.measured):
            return best
        self._keep_so_far(trial)
        return trial

    async def _try(self, varied: str, plan: Plan, threads: Mapping[str, int]) -> Trial:
        """Run the whole plan; a failure is noted, and nothing of it is left running."""
        trial = Trial(varied, plan, threads)
        try:
            trial = replace(trial, measured=replace(plan, groups=await self._measure(plan, threads)))
        except REPORTED as error:
            self._bench.report.warn(str(error))
            await self._bench.started.stop()
            trial = replace(trial, note=f"could not be run: {error}")
        self._trials.append(trial)
        return trial

    async def _measure(self, plan: Plan, threads: Mapping[str, int]) -> tuple[Group, ...]:
        """Its groups with what they took, all at work at the same time; the same with the same threads is run once."""
        key = plan_key(plan), tuple(threads[share.device] for share in plan.shares)
        if key not in self._measured:
            prepared = replace(self._prepared, survey=with_threads(self._prepared.survey, threads))
            bench = replace(self._bench, prepared=prepared)
            rates = await measure_each(bench, plan.groups)
            self._measured[key] = tuple(
                self._learnt(bench, group, its) for group, its in zip(plan.groups, rates, strict=True)
            )
        return self._measured[key]

    def _learnt(self, bench: Bench, group: Group, rates: Rates) -> Group:
        """The group as it was measured, which is kept for later plans too."""
        measured = learn(bench, self._folders, group, rates)
        return Experience((record_of(group, measured),)).correct(uncorrected(group))

    def _keep_so_far(self, best: Trial) -> None:
        """Should the tuning be stopped now; a former winner stays, unless it was run as well."""
        if self._former is None or any(_is_run_of(self._former, trial) for trial in self._trials):
            self._keep(best)

    def _keep(self, best: Trial) -> Tuned:
        assert best.measured is not None, "only what ran can be the best"
        tuned = tuned_of(best.measured, best.threads, self._valid)
        save_tuned(self._folders.cluster(self._prepared.inventory.cluster), tuned)
        self._kept = best
        return tuned

    @property
    def _prepared(self) -> Prepared:
        return self._bench.prepared


def threads_text(threads: Mapping[str, int]) -> str:
    """Such as "a/cpu 4, b/cpu 3"."""
    return ", ".join(f"{device} {count}" for device, count in threads.items())


def _is_run_of(tuned: Tuned, trial: Trial) -> bool:
    """Whether this was measured in the trial: its processes, at its threads."""
    same = alike_key(plan_key(trial.plan)) == alike_key(tuned.plan) and trial.threads == tuned.threads
    return same and trial.measured is not None


def _first(ran: Mapping[str, Trial], goal: str) -> Trial:
    best = in_order([trial.measured for trial in ran.values() if trial.measured is not None], goal)[0]
    return ran[plan_key(best)]


def _seconds_per_prompt(plan: Plan) -> float:
    return plan.fastest.prefill_s
