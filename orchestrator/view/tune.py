"""What `meshctl tune` ran, as a table and as JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from orchestrator.plan.experience import as_predicted
from orchestrator.plan.values import Plan, plan_key
from orchestrator.tune import Trial, TuneResult, threads_text
from orchestrator.view.ranking import plan_text


def tune_view(result: TuneResult) -> RenderableType:
    """A table of every trial with what was predicted and measured, the winner bold, and what becomes of it."""
    table = Table(title=f"{result.model}, goal {result.goal}", title_justify="left", title_style="", box=box.SIMPLE)
    table.add_column("plan", ratio=1)
    table.add_column("threads")
    for title in _titles(result):
        table.add_column(title, justify="right")
    for trial in result.trials:
        style = "bold" if trial is result.best else ""
        table.add_row(*(Text(cell, style) for cell in _cells(result, trial)))
    return Group(table, Text(winner_text(result)))


def winner_text(result: TuneResult) -> str:
    """What is used from now on."""
    valid = result.tuned.valid
    goal = f" --goal {result.asked_goal}" if result.asked_goal else ""
    mode = f" --mode {valid.mode}" if valid.mode else ""
    devices = f" --devices {','.join(valid.devices)}" if valid.devices else ""
    cache_type = f" --cache-type {valid.cache_type}" if valid.cache_type != "f16" else ""
    options = f"{goal}{mode}{devices}{cache_type}"
    return (
        f"Kept: {plan_text(result.best.plan)}, threads {threads_text(result.tuned.threads)}: for goal {valid.goal}, "
        f"as long as inventory, model and engine stay as they are, to be used by `meshctl up{options}`. "
        f"Drop it: `meshctl tune --forget`."
    )


def tune_json(result: TuneResult) -> str:
    """Every trial and the winner; speeds in tokens per second."""
    told = {
        "model": result.model,
        "goal": result.goal,
        "trials": [_trial(result, trial) for trial in result.trials],
        "tuned": asdict(result.tuned),
    }
    return json.dumps(told, indent=2)


def _titles(result: TuneResult) -> Sequence[str]:
    together = [f"{result.best.plan.parallel} at once tokens/s"] if result.best.plan.parallel > 1 else []
    return ("decode tokens/s", *together, "prefill tokens/s")


def _cells(result: TuneResult, trial: Trial) -> tuple[str, ...]:
    name = plan_text(trial.plan) if trial.varied == "plan" else f"{trial.varied}: {_varied_to(trial)}"
    threads = ", ".join(str(count) for count in trial.threads.values())
    if trial.measured is None:
        return (f"{name} ({trial.note})", threads, *("-" for _ in _titles(result)))
    pairs = zip(_rates(trial.measured), _rates(_predicted(trial.plan)), strict=True)
    cells = [f"{real:.1f} ({real / hoped - 1:+.0%})" for real, hoped in pairs]
    if trial.plan.parallel == 1:
        del cells[1]
    return (name, threads, *cells)


def _varied_to(trial: Trial) -> str:
    if trial.varied == "threads":
        return threads_text(trial.threads)
    return str(trial.plan.groups[0].micro_batch)


def _predicted(plan: Plan) -> Plan:
    """Also of a plan that ran before, which has its own figures."""
    return replace(plan, groups=tuple(as_predicted(group) for group in plan.groups))


def _rates(plan: Plan) -> tuple[float, float, float]:
    return plan.decode_tokens_per_s, plan.aggregate_tokens_per_s, plan.prefill_tokens_per_s


def _trial(result: TuneResult, trial: Trial) -> dict[str, object]:
    return {
        "varied": trial.varied,
        "plan": plan_key(trial.plan),
        "threads": dict(trial.threads),
        "predicted": _named_rates(_predicted(trial.plan)),
        "measured": None if trial.measured is None else _named_rates(trial.measured),
        "note": trial.note,
        "best": trial is result.best,
    }


def _named_rates(plan: Plan) -> dict[str, float]:
    names = ("decode_tokens_per_s", "aggregate_tokens_per_s", "prefill_tokens_per_s")
    return dict(zip(names, _rates(plan), strict=True))
