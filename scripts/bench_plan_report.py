"""What the benchmark's records say: a table, the targets, a chart. Pure, but for writing the chart."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench_plan_cells import LOCAL, MODELS, SETUPS
from bench_plan_record import CellRecord, Rates, Run

METRICS = ("decode", "prefill", "aggregate")

MOST_BY_SPLITTING = 1.2
"""Layers split over more workers are worked through one worker after the other: decoding is not faster than on one of
them. Where it was by more than this, the quotas that make the devices slow did not, since those that wait may burst."""

DOUBTFUL = " †"
DOUBT = (
    f"the default split decoded more than {MOST_BY_SPLITTING:g} times as fast as one worker, which no layer split does "
    "on machines of their own: devices that wait for one another came out too fast there. Its speeds are in no target."
)

MOST_CHANGED = 1.2
"""The same passes that take this many times as long at one time than at another are of a machine that has changed."""

CHANGED = " ‡"
CHANGE = (
    f"the same passes in a cgroup of their own took more than {MOST_CHANGED:g} times as long at one time than at "
    "another while the cell was run: the machine has changed, and what was predicted is of another one than what was "
    "measured. Its speeds are in no target."
)
HEADINGS = (
    "devices, goal, model, link",
    "chosen",
    "decode predicted / measured",
    "prefill",
    "aggregate",
    "best measured",
    "by best single, native",
    "by default split",
    "decode, prefill by one worker",
    "memory by planned",
)


@dataclass(frozen=True)
class Target:
    """One line of the summary; `value` None: nothing was measured that tells."""

    name: str
    value: float | None
    wanted: float
    at_most: bool = False
    count: int = 0

    @property
    def met(self) -> bool | None:
        if self.value is None:
            return None
        return self.value <= self.wanted if self.at_most else self.value >= self.wanted


def goal_metric(record: CellRecord) -> str:
    return "aggregate" if record.goal == "throughput" else "decode"


def rate_of(run: Run | None, metric: str) -> float | None:
    """A measured rate."""
    return None if run is None or run.measured is None else _rate(run.measured, metric)


def best_plan(record: CellRecord) -> Run | None:
    """The plan that was measured to be best for the goal."""
    return _fastest((run for run in record.runs if run.role == "plan"), goal_metric(record))


def best_single(record: CellRecord, metric: str) -> Run | None:
    return _fastest((run for run in record.runs if run.mode == "single"), metric)


def errors_of(runs: Iterable[Run]) -> list[float]:
    """|predicted / measured - 1| of every rate that has both."""
    found = []
    for run in runs:
        for metric in METRICS:
            measured, predicted = rate_of(run, metric), run.predicted and _rate(run.predicted, metric)
            if measured and predicted:
                found.append(abs(predicted / measured - 1))
    return found


def ratio(record: CellRecord, metric: str, other: Run | None) -> float | None:
    """The chosen plan by another run."""
    mine, theirs = rate_of(record.runs[0] if record.runs else None, metric), rate_of(other, metric)
    return mine / theirs if mine and theirs else None


def run_of_role(record: CellRecord, role: str) -> Run | None:
    return next((run for run in record.runs if run.role == role), None)


def nearness(record: CellRecord) -> float | None:
    """The chosen plan by the best measured one, for the goal; 1 is the best there is."""
    return ratio(record, goal_metric(record), best_plan(record))


def is_doubtful(record: CellRecord) -> bool:
    """Whether its devices were not as slow as they should have been while they waited for one another."""
    split, one = (rate_of(run_of_role(record, role), "decode") for role in ("default split", "one worker"))
    return split is not None and one is not None and split > MOST_BY_SPLITTING * one


def has_changed(record: CellRecord) -> bool:
    """Whether the machine was faster or slower at one time than at another."""
    return bool(record.yardstick_s) and max(record.yardstick_s) > MOST_CHANGED * min(record.yardstick_s)


def counts(record: CellRecord) -> bool:
    """Whether its speeds say anything of the planner."""
    return not is_doubtful(record) and not has_changed(record)


def standing(records: Iterable[CellRecord]) -> tuple[CellRecord, ...]:
    """One record of each cell: the newest whose speeds count, or the newest of all where none does."""
    found: dict[str, CellRecord] = {}
    for record in records:
        before = found.get(record.key)
        if before is None or counts(record) or not counts(before):
            found[record.key] = record
    return tuple(found.values())


def targets(all_records: Sequence[CellRecord]) -> tuple[Target, ...]:
    """The figures that the planner is held to, without the speeds of cells that are doubtful or whose machine has
    changed; ratios of two and four equal devices to one worker over fast links only."""
    records = [record for record in all_records if counts(record)]
    fast = [record for record in records if record.link == LOCAL]
    errors = errors_of(run for record in records for run in record.runs[:1])
    near = [one for record in records if (one := nearness(record)) is not None]
    memory = [
        abs(one.grown_bytes / one.planned_bytes - 1)
        for record in all_records
        for one in record.memory
        if one.planned_bytes
    ]
    good = sum(one >= 0.95 for one in near) / len(near) if near else None
    return (
        Target("prediction error, median", _median(errors), 0.10, True, len(errors)),
        Target("prediction error, worst", max(errors, default=None), 0.25, True, len(errors)),
        Target("cells whose plan is within 5 % of the best measured", good, 0.95, False, len(near)),
        Target("memory against planned, worst", max(memory, default=None), 0.05, True, len(memory)),
        _against(fast, "two-equal", "latency", "decode", 1.7, "one worker", "two equal slow, decode by one worker"),
        _against(fast, "four-equal", "latency", "decode", 2.6, "one worker", "four equal slow, decode by one worker"),
        _unequal(records),
        _streams(records),
        _against(fast, "two-equal", "latency", "prefill", 1.45, "one worker", "prefill of 1,024 on two by one worker"),
    )


def markdown(records: Sequence[CellRecord]) -> str:
    """The table of all cells and the summary."""
    lines = [_row(HEADINGS), _row(["---", "---", *["--:"] * (len(HEADINGS) - 2)])]
    lines += [_row(_cells(record)) for record in sorted(records, key=_place)]
    lines += ["", _row(("target", "wanted", "measured", "over", "met")), _row(["---", "--:", "--:", "--:", "---"])]
    lines += [_row(_target_cells(one)) for one in targets(records)]
    if any(map(is_doubtful, records)):
        lines += ["", f"†: {DOUBT}"]
    if any(map(has_changed, records)):
        lines += ["", f"‡: {CHANGE}"]
    notes = [f"- {record.key}: {run.key}: {_missing(run)}" for record in records for run in record.runs if run.note]
    notes += [f"- {record.key}: {record.note}" for record in records if record.note]
    return "\n".join([*lines, *(["", "Not measured:", "", *notes] if notes else [])]) + "\n"


def _missing(run: Run) -> str:
    """What was not measured, and why: a prompt is read when the rest has been."""
    return run.note if run.measured is None else f"its prompt: {run.note}"


def write_chart(records: Sequence[CellRecord], path: Path) -> None:
    """For each cell the chosen plan, the best measured, the best device alone and the default split, as bars."""
    from matplotlib.figure import Figure

    shown = [record for record in sorted(records, key=_place, reverse=True) if nearness(record)]
    bars: dict[str, Callable[[CellRecord], Run | None]] = {
        "default split": lambda record: run_of_role(record, "default split"),
        "best device alone": lambda record: best_single(record, goal_metric(record)),
        "best measured plan": best_plan,
        "chosen plan": lambda record: record.runs[0],
    }
    figure = Figure(figsize=(9, 1.5 + 0.6 * len(shown)), layout="constrained")
    axes = figure.subplots()
    for number, (name, run_of) in enumerate(bars.items()):
        rates = [(rate_of(run_of(record), goal_metric(record)) or 0.0) for record in shown]
        of_chosen = [
            rate / (rate_of(record.runs[0], goal_metric(record)) or 1.0)
            for rate, record in zip(rates, shown, strict=True)
        ]
        axes.barh([place + 0.2 * number for place in range(len(shown))], of_chosen, height=0.18, label=name)
    axes.set_yticks([place + 0.3 for place in range(len(shown))], [record.key for record in shown])
    axes.set_xlabel("tokens per second for the cell's goal, the chosen plan = 1")
    axes.legend()
    figure.savefig(path)


def _against(
    records: Sequence[CellRecord], setup: str, goal: str, metric: str, wanted: float, role: str, name: str
) -> Target:
    """The median over models of the chosen plan by what has this role; prefill of whole prompts only."""
    ratios = [
        one
        for record in records
        if (record.setup, record.goal) == (setup, goal)
        and (metric != "prefill" or record.prompt >= 1024)
        and (one := ratio(record, metric, run_of_role(record, role))) is not None
    ]
    return Target(name, _median(ratios), wanted, False, len(ratios))


def _unequal(records: Sequence[CellRecord]) -> Target:
    unequal = {setup.name for setup in SETUPS if len(set(setup.cores)) > 1}
    ratios = [
        one
        for record in records
        if record.setup in unequal
        and (one := ratio(record, goal_metric(record), run_of_role(record, "default split"))) is not None
    ]
    return Target("unequal devices by the default split", _median(ratios), 1.5, False, len(ratios))


def _streams(records: Sequence[CellRecord]) -> Target:
    ratios = [
        one
        for record in records
        if (record.setup, record.goal) == ("two-equal", "throughput")
        and (one := ratio(record, "aggregate", best_single(record, "aggregate"))) is not None
    ]
    return Target("8 streams on two equal by the better device", _median(ratios), 1.9, False, len(ratios))


def _cells(record: CellRecord) -> list[str]:
    signs = f"{DOUBTFUL if is_doubtful(record) else ''}{CHANGED if has_changed(record) else ''}"
    name = f"{record.setup}, {record.goal}, {record.model}, {record.link}{signs}"
    if not record.runs:
        return [name, record.note or "nothing ran", *["-"] * (len(HEADINGS) - 2)]
    chosen, best, metric = record.runs[0], best_plan(record), goal_metric(record)
    memory = [f"{one.grown_bytes / one.planned_bytes:.2f}" for one in record.memory if one.planned_bytes]
    return [
        name,
        f"{chosen.mode} on {len(chosen.devices)}",
        *(_pair(chosen, one) for one in METRICS),
        "-" if best is None else f"{best.mode} on {len(best.devices)}: {_number(rate_of(best, metric))}",
        _number(ratio(record, metric, best_single(record, metric)), 2),
        _number(ratio(record, metric, run_of_role(record, "default split")), 2),
        ", ".join(_number(ratio(record, one, run_of_role(record, "one worker")), 2) for one in ("decode", "prefill")),
        " ".join(memory) or "-",
    ]


def _target_cells(target: Target) -> list[str]:
    bound = "≤" if target.at_most else "≥"
    met = {None: "not measured", True: "yes", False: "no"}[target.met]
    return [target.name, f"{bound} {target.wanted:g}", _number(target.value, 3), str(target.count), met]


def _pair(run: Run, metric: str) -> str:
    predicted = None if run.predicted is None else _rate(run.predicted, metric)
    measured = rate_of(run, metric)
    return "-" if predicted is None and measured is None else f"{_number(predicted)} / {_number(measured)}"


def _fastest(runs: Iterable[Run], metric: str) -> Run | None:
    return max((run for run in runs if rate_of(run, metric)), key=lambda run: rate_of(run, metric) or 0.0, default=None)


def _rate(rates: Rates, metric: str) -> float | None:
    return {"decode": rates.decode, "prefill": rates.prefill, "aggregate": rates.aggregate}[metric]


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def _number(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _place(record: CellRecord) -> tuple[str, int, int, str]:
    models, setups = [one.name for one in MODELS], [one.name for one in SETUPS]
    return record.link, models.index(record.model), setups.index(record.setup), record.goal
