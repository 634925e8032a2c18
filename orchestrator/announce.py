"""What is said of a cluster: to the gateway, in the state file, and to the user who brings it up. Pure."""

from collections.abc import Iterable
from io import StringIO
from pathlib import Path

from rich.console import Console

from orchestrator.cluster import RunningGroup
from orchestrator.gateway.routing import HeadAddress
from orchestrator.gateway.tls import Tls
from orchestrator.plan.experience import as_predicted
from orchestrator.plan.values import Plan
from orchestrator.state import GroupSpeed
from orchestrator.survey.values import Survey
from orchestrator.view.plan import plan_view

PLAN_WIDTH = 78
"""Two columns less than a terminal's 80: remarks are indented."""


def head_addresses(heads: Iterable[RunningGroup], context: int) -> tuple[HeadAddress, ...]:
    """What the gateway routes among, each with its measured speed; `context` is that of their plan."""
    return tuple(
        HeadAddress(
            name=one.name,
            url=one.head.url,
            key=one.head.key,
            parallel=one.group.parallel,
            token_s=one.speed.token_s,
            step_s=one.speed.step_s,
            prefill_token_s=one.speed.prefill_s / one.group.prompt_tokens,
            context=context,
        )
        for one in heads
    )


def group_speed(one: RunningGroup, *, awaited: bool = False) -> GroupSpeed:
    """Predicted against measured, as the state file keeps it; what was measured before is no prediction of itself.
    Heads are measured while the others rest, so that is what the prediction is of, too.

    `awaited`: that it is measured is still to come.
    """
    predicted = as_predicted(one.group)
    return GroupSpeed(
        name=one.name,
        host=one.head.host,
        mode=predicted.mode,
        predicted_decode_tokens_per_s=predicted.decode_tokens_per_s,
        measured_decode_tokens_per_s=one.decode_tokens_per_s if one.measured else None,
        predicted_aggregate_tokens_per_s=predicted.aggregate_alone_tokens_per_s,
        measured_aggregate_tokens_per_s=one.aggregate_tokens_per_s if one.measured else None,
        predicted_prefill_tokens_per_s=predicted.prefill_tokens_per_s,
        measured_prefill_tokens_per_s=one.prefill_tokens_per_s if one.measured else None,
        earlier=one.earlier,
        awaited=awaited,
    )


def plan_lines(plan: Plan, survey: Survey) -> tuple[str, ...]:
    """The plan as `meshctl plan` shows it, line by line, for the talk of `up`."""
    console = Console(width=PLAN_WIDTH, color_system=None, record=True, file=StringIO())
    console.print(plan_view(plan, survey))
    lines = (line.rstrip() for line in console.export_text().splitlines())
    return tuple(line for line in lines if line)


def ready_text(cluster: str, url: str, key_file: Path, tls: Tls | None) -> str:
    """What the user sees when the cluster answers. Events are kept in a file, so the key itself is never in here."""
    shown = "" if tls is None else f"Certificate: in {tls.certificate}, SHA-256 {tls.fingerprint}\n"
    return f"{cluster} answers at {url}/v1\nAPI key: in {key_file}\n{shown}Talk to it: meshctl chat"
