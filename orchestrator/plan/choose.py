"""Rank every way to run a model on the surveyed devices, best first for the goal, and say why.

Pure: a survey and the model's memory in, a `Ranking` or a `PlanError` out. The same survey with its hosts in another
order gives the same ranking.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from orchestrator.errors import PlanError
from orchestrator.plan.asked import Asked
from orchestrator.plan.company import in_company
from orchestrator.plan.experience import NO_EXPERIENCE, Experience
from orchestrator.plan.left_out import left_out_of
from orchestrator.plan.noise import ORDER_NOISE
from orchestrator.plan.pools import Candidate, find_candidates
from orchestrator.plan.reasons import gains_too_little, reasons_for, runner_up_reasons
from orchestrator.plan.replicas import find_replicas
from orchestrator.plan.shortfall import no_device, no_forced_split, no_replicas, no_single, no_split, no_tensor
from orchestrator.plan.single import find_singles, why_not_alone
from orchestrator.plan.split import find_splits, holds_a_head
from orchestrator.plan.tensor import find_tensors
from orchestrator.plan.values import GOALS, MODES, Group, ModelMemory, Plan, PlanMode, Ranking, plan_key
from orchestrator.plan.ways_out import Question
from orchestrator.survey.values import Survey


def rank_plans(
    survey: Survey, memories: Sequence[ModelMemory], asked: Asked, experience: Experience = NO_EXPERIENCE
) -> Ranking:
    """Every plan worth considering, best first, each with its reasons; the best also with what it leaves out.

    Goal "latency": the least predicted time per token of one conversation; "throughput": the most tokens per second of
    all conversations together. Of plans within `ORDER_NOISE` of the best the one that reads prompts faster comes first,
    then the simpler mode, then the one of fewer devices, then what was measured; for latency, copies of a plan come
    after it. One worker for all layers comes after a head at the same device that is slower by less than the noise
    between two timings.
    `memories`: the model at one context and parallel, by ascending micro-batch; layers are placed at the first.
    PlanError: an unknown device, goal or mode, no usable device, or nothing that fits, with every shortfall.
    """
    check_asked(survey, asked)
    survey = _in_company(survey, memories[0], asked)
    candidates = find_candidates(survey, asked.only_devices)
    if not candidates:
        raise no_device(survey, asked.only_devices)
    every = _every_plan(survey, memories, candidates, asked, experience)
    allowed = [plan for plan in every if asked.only_mode in (None, plan.mode)]
    not_asked_for = [plan for plan in every if asked.only_mode not in (None, plan.mode)]
    if not allowed:
        raise _no_plan(survey, memories[0], candidates, asked, not_asked_for)
    best, *others = in_order(allowed, asked.goal)
    compared = [*others, *in_order(not_asked_for, asked.goal)]
    return explained(survey, memories[0], asked, best, others, compared)


def explained(
    survey: Survey, memory: ModelMemory, asked: Asked, best: Plan, others: Sequence[Plan], compared: Sequence[Plan]
) -> Ranking:
    """The best plan with why it is and what it leaves out, then the others with why not. `compared`, best first, are
    all that the best one is compared with, also what was not asked for."""
    survey = _in_company(survey, memory, asked)
    candidates = find_candidates(survey, asked.only_devices)
    why = reasons_for(survey, memory, candidates, best, compared, asked)
    left_out = left_out_of(survey, memory, best, others, asked.only_devices)
    chosen = replace(best, reasons=why, left_out=left_out)
    return Ranking(
        (chosen, *(replace(one, reasons=runner_up_reasons(one, best), left_out=()) for one in others)),
    )


def _in_company(survey: Survey, memory: ModelMemory, asked: Asked) -> Survey:
    return in_company(survey, sum(memory.layer_weights_bytes), asked.only_devices)


def in_order(plans: Sequence[Plan], goal: str) -> tuple[Plan, ...]:
    """Best first; what counts as a tie is measured from the best of those that are left."""
    left = [_Ranked.of(plan, goal) for plan in plans]
    ordered = []
    while left:
        best = _best(left)
        left.remove(best)
        ordered.append(best.plan)
    return tuple(ordered)


def check_asked(survey: Survey, asked: Asked) -> None:
    """PlanError for a word that is none of those allowed, and for a split in another mode."""
    if asked.goal not in GOALS:
        raise PlanError(f"unknown goal {asked.goal!r}", hint=f"the goals are {' and '.join(GOALS)}")
    if asked.mode is not None and asked.mode not in MODES:
        raise PlanError(f"unknown mode {asked.mode!r}", hint=f"the modes are {', '.join(MODES[:-1])} and {MODES[-1]}")
    if asked.split is not None and asked.mode not in (None, "layers"):
        raise PlanError(f"a split is of mode layers, not {asked.mode}", hint="leave out --mode or --split")
    known = sorted(device.name for device in survey.devices)
    unknown = sorted({*(asked.devices or ()), *(asked.split or ())} - set(known))
    if unknown:
        raise PlanError(
            f"the survey has no device {', '.join(unknown)}",
            hint=f"name one of {', '.join(known)}" if known else "survey again: it has none at all",
        )


@dataclass(frozen=True)
class _Ranked:
    """A plan and what it is ranked by, worked out once; less is better in each. Compared by identity of the plan."""

    plan: Plan
    copies: bool
    seconds: float
    prefill_s: float
    rest: tuple[int, int, bool, float, float, str]

    @classmethod
    def of(cls, plan: Plan, goal: str) -> "_Ranked":
        seconds = plan.token_s if goal == "latency" else 1 / plan.aggregate_tokens_per_s
        simpler = (MODES.index(plan.mode), len(plan.shares))
        untried = any(group.known != "measured" for group in plan.groups)
        rest = (*simpler, untried, seconds, 1 / plan.aggregate_tokens_per_s, plan_key(plan))
        return cls(plan, goal == "latency" and plan.mode == "replicas", seconds, 1 / plan.prefill_tokens_per_s, rest)


def _best(plans: Sequence[_Ranked]) -> _Ranked:
    tied = _near_best(plans, lambda one: one.seconds)
    tied = [one for one in tied if not one.copies] or tied
    best = min(_near_best(tied, lambda one: one.prefill_s), key=lambda one: one.rest)
    if any(gains_too_little(best.plan, one.plan, best.seconds / one.seconds) for one in plans):
        return _best([one for one in plans if one is not best])
    return best


def _near_best(plans: Sequence[_Ranked], metric: Callable[[_Ranked], float]) -> list[_Ranked]:
    least = min(metric(one) for one in plans)
    return [one for one in plans if metric(one) <= least * (1 + ORDER_NOISE)]


def _every_plan(
    survey: Survey,
    memories: Sequence[ModelMemory],
    candidates: Sequence[Candidate],
    asked: Asked,
    experience: Experience,
) -> list[Plan]:
    """All modes, also where one was asked for: the others are what it is compared with."""
    splits = find_splits(survey, memories, candidates, goal=asked.goal, split=asked.split)
    singles, tensors = find_singles(survey, memories, candidates), find_tensors(survey, memories, candidates)
    replicas = find_replicas(survey, memories, splits, tensors, candidates, goal=asked.goal)
    alone: list[tuple[PlanMode, tuple[Group, ...]]] = [(one.mode, (one,)) for one in (*singles, *splits, *tensors)]
    found = [*alone, *(("replicas", groups) for groups in replicas)]
    return [
        Plan(
            mode=mode,
            goal=asked.goal,
            model=memories[0].model,
            context=memories[0].context,
            parallel=memories[0].parallel,
            groups=tuple(experience.correct(group) for group in groups),
            cache_type=memories[0].cache_type,
            flash_attention=memories[0].flash_attention,
        )
        for mode, groups in found
    ]


def _no_plan(
    survey: Survey, memory: ModelMemory, candidates: Sequence[Candidate], asked: Asked, others: Sequence[Plan]
) -> PlanError:
    """`others` are plans of modes that were not asked for."""
    modes = frozenset(plan.mode for plan in others)
    question = Question(survey, memory, candidates, asked, modes, _has_plan)
    if asked.split is not None:
        return no_forced_split(question, asked.split)
    if asked.mode == "single":
        return no_single(question)
    if asked.mode == "tensor":
        return no_tensor(question)
    return no_replicas(question) if asked.mode == "replicas" else no_split(question)


def _has_plan(survey: Survey, memory: ModelMemory, asked: Asked) -> bool:
    """Whether there is one of what is asked for; without a mode, replicas are only looked for where the controller
    holds no head of a split: else nothing takes more."""
    candidates, mode = find_candidates(survey, asked.only_devices), asked.only_mode
    if mode in (None, "single") and any(not why_not_alone(memory, one) for one in candidates):
        return True
    if mode in (None, "tensor") and find_tensors(survey, (memory,), candidates):
        return True
    if mode in (None, "layers") and find_splits(survey, (memory,), candidates, goal=asked.goal, split=asked.split):
        return True
    no_head = mode is None and not holds_a_head(survey, memory)
    return (mode == "replicas" or no_head) and _has_replicas(survey, memory, candidates)


def _has_replicas(survey: Survey, memory: ModelMemory, candidates: Sequence[Candidate]) -> bool:
    splits = find_splits(survey, (memory,), candidates, goal="throughput")
    tensors = find_tensors(survey, (memory,), candidates)
    return bool(find_replicas(survey, (memory,), splits, tensors, candidates))
