"""How a ranking looks: the chosen plan's picture, and the others beside it as a small table. Pure; prints nothing."""

from collections.abc import Sequence
from itertools import islice

from rich import box
from rich.console import Group as Lines
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from orchestrator.plan.mirrored import of_kinds, without_mirrored
from orchestrator.plan.values import Group, Plan, Ranking
from orchestrator.survey.values import Survey
from orchestrator.view.plan import count_text, picture, why
from orchestrator.view.sizes import duration_text, tokens_text

RUNNERS_UP_SHOWN = 6
WORSE_DIGITS = 6
"""Below that is the rounding of sums."""

EQUAL_WITHIN = 0.005
"""Half of the last figure shown."""


def ranking_view(ranking: Ranking, survey: Survey) -> RenderableType:
    """The chosen plan's picture, the best of the others, each unused device's reason, and why this plan."""
    others = _runners_up(ranking, survey) if len(ranking.plans) > 1 else Text()
    return Lines(picture(ranking.chosen, survey), others, why(ranking.chosen))


def plan_text(plan: Plan) -> str:
    """Which devices do what, where the output layer is, and the micro-batch."""
    return f"{plan_name(plan)} ({_details(plan)})"


def worse_by(plan: Plan, chosen: Plan) -> float:
    """How much worse than the chosen one, for its goal: the part of time per token more, or of aggregate less."""
    if chosen.goal == "throughput":
        worse = 1 - plan.aggregate_tokens_per_s / chosen.aggregate_tokens_per_s
    else:
        worse = plan.token_s / chosen.token_s - 1
    return round(worse, WORSE_DIGITS) or 0.0  # never -0.0


def _runners_up(ranking: Ranking, survey: Survey) -> RenderableType:
    """Of plans that do the same on devices that are alike, only the best."""
    shown = list(islice(without_mirrored(survey, ranking.plans), 1 + RUNNERS_UP_SHOWN))[1:]
    hidden = len(ranking.plans) - 1 - len(shown)
    rest = f"{count_text(hidden, 'more plan')} in --json" if hidden else ""
    if not shown:
        return Lines(Text(f"{rest}: the same on devices that are alike", style="dim"), Text())
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("runners-up", overflow="fold")
    for title in ("decode", "prefill", "first token", "aggregate", "worse"):
        table.add_column(title, justify="right", no_wrap=True)
    for plan, name in zip(shown, _told_apart([ranking.chosen, *shown], survey)[1:], strict=True):
        table.add_row(*(Text(cell) for cell in _runner_up(plan, name, ranking.chosen)))
    worse = "aggregate lost" if ranking.chosen.goal == "throughput" else "time per token"
    return Lines(
        table,
        Text(f"{rest}{'; ' if rest else ''}decode, prefill and aggregate in tokens/s; worse: {worse}", style="dim"),
        Text(),
    )


def _runner_up(plan: Plan, name: str, chosen: Plan) -> tuple[str, ...]:
    worse = worse_by(plan, chosen)
    return (
        name,
        _number(plan.decode_tokens_per_s),
        _number(plan.prefill_tokens_per_s),
        duration_text(plan.first_token_s),
        _number(plan.aggregate_tokens_per_s),
        "equal" if abs(worse) < EQUAL_WITHIN else f"{worse:.0%}",
    )


def _number(tokens_per_s: float) -> str:
    return tokens_text(tokens_per_s).removesuffix(" tok/s")


def _told_apart(plans: Sequence[Plan], survey: Survey) -> list[str]:
    """Mode and devices of each plan, and what else it takes to tell those apart that have the same of both, on devices
    that are alike."""
    kinds = [plan_name(plan) for plan in of_kinds(survey, plans)]
    return [
        f"{plan_name(plan)}, {_details(plan)}" if kinds.count(kind) > 1 else plan_name(plan)
        for kind, plan in zip(kinds, plans, strict=True)
    ]


def plan_name(plan: Plan) -> str:
    """Such as "single desktop/cpu" or "layers left/cpu 14, right/cpu 16"."""
    return " + ".join(f"{group.mode} {_devices_text(group)}" for group in plan.groups)


def _devices_text(group: Group) -> str:
    if group.mode == "single":
        return group.shares[0].device
    sizes = ((share, share.part if group.mode == "tensor" else share.layers) for share in group.shares)
    return ", ".join(f"{share.device} {size}{' native' if share.native else ''}" for share, size in sizes)


def _details(plan: Plan) -> str:
    """Output place and micro-batch of each group."""
    return " + ".join(
        f"output on the {'head' if group.output_on_head else 'last'}, micro-batch {group.micro_batch}"
        for group in plan.groups
    )
