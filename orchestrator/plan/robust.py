"""Plans for when there is less than was hoped for: at a smaller context, and without any one of the hosts. Pure."""

from collections.abc import Sequence
from dataclasses import replace

from orchestrator.errors import PlanError
from orchestrator.plan.asked import Asked
from orchestrator.plan.choose import rank_plans
from orchestrator.plan.conversations import for_context
from orchestrator.plan.experience import NO_EXPERIENCE, Experience
from orchestrator.plan.values import Fallback, ModelMemory, Plan, Ranking
from orchestrator.survey.values import Survey
from orchestrator.what_if import what_if

CONTEXT_STEP = 256
"""The engine rounds each conversation's part of the KV cache up to a multiple of this."""


def rank_within(
    survey: Survey, memories: Sequence[ModelMemory], asked: Asked, experience: Experience = NO_EXPERIENCE
) -> Ranking:
    """`rank_plans`, at the largest context down to `asked.minimum_context` at which the model fits.

    With `asked.survive` the chosen plan has a fallback for the loss of each host, and the context is one at which there
    are such. PlanError as of `rank_plans`, or with the first host whose loss nothing survives.
    """
    if asked.lenient and (asked.mode or asked.split or asked.devices):
        try:
            return rank_within(survey, memories, replace(asked, lenient=False), experience)
        except PlanError:
            return rank_within(survey, memories, _anyhow(asked, survey), experience)
    try:
        return _rank_at(memories[0].context, survey, memories, asked, experience)
    except PlanError:
        least = asked.minimum_context
        if not 0 < least < memories[0].context:
            raise
        found = _largest(survey, memories, asked, experience)
        if found is None:
            raise
        return found


def _anyhow(asked: Asked, survey: Survey) -> Asked:
    """Whichever way, with what is left of the devices that were asked for."""
    left = None if asked.devices is None else asked.devices & {device.name for device in survey.devices}
    return replace(asked, mode=None, split=None, devices=left, lenient=False)


def _largest(survey: Survey, memories: Sequence[ModelMemory], asked: Asked, experience: Experience) -> Ranking | None:
    """By bisection: what fits at one context fits at every smaller one."""
    least, most = -(-asked.minimum_context // CONTEXT_STEP), (memories[0].context - 1) // CONTEXT_STEP
    found = None
    while least <= most:
        middle = (least + most) // 2 if found is not None else least
        try:
            found = _rank_at(middle * CONTEXT_STEP, survey, memories, asked, experience)
            least = middle + 1
        except PlanError:
            if found is None:
                return None
            most = middle - 1
    return found


def _rank_at(
    context: int, survey: Survey, memories: Sequence[ModelMemory], asked: Asked, experience: Experience
) -> Ranking:
    ranking = rank_plans(survey, for_context(memories, context), asked, experience)
    if not asked.survive:
        return ranking
    fallbacks = find_fallbacks(survey, memories, asked, experience, ranking.chosen)
    return replace(ranking, plans=(replace(ranking.chosen, fallbacks=fallbacks), *ranking.plans[1:]))


def find_fallbacks(
    survey: Survey, memories: Sequence[ModelMemory], asked: Asked, experience: Experience, plan: Plan
) -> tuple[Fallback, ...]:
    """For the loss of each host that the plan uses, what the others would do; PlanError naming a host that cannot be
    spared. `survive` asks for no more than one loss at a time."""
    used = {_host(share.device) for share in plan.shares}
    return tuple(
        _without(host.name, survey, memories, replace(asked, survive=0, lenient=True), experience)
        for host in survey.hosts
        if host.name in used
    )


def _without(
    host: str, survey: Survey, memories: Sequence[ModelMemory], asked: Asked, experience: Experience
) -> Fallback:
    try:
        if len(survey.hosts) < 2:
            raise PlanError("there is no other host")
        left = what_if(survey, memories[0], [host], [])
        chosen = rank_within(left, memories, _still_there(asked, host), experience).chosen
    except PlanError as error:
        raise PlanError(
            f"`survive: 1` cannot be kept: without {host}, {error}",
            hint="add memory or a host, set `minimum_context` lower, or remove `survive`",
        ) from error
    return Fallback(host, replace(chosen, reasons=(), left_out=()))


def _still_there(asked: Asked, host: str) -> Asked:
    """The same but for a split, which has no meaning without one of its devices, and for that host's devices."""
    devices = None if asked.devices is None else frozenset(name for name in asked.devices if _host(name) != host)
    return replace(asked, devices=devices, split=None)


def _host(device: str) -> str:
    return device.partition("/")[0]
