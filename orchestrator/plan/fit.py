"""Which quantisation of a model to take on what one owns: each planned at each context and cache type, the best
marked.

Pure. The planner decides of every one alone; here is only what tells them apart. How good an answer is goes by measured
perplexities where there are some, else by bits per weight: of one model, more bits are a better model, with less and
less gained.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import Literal

from orchestrator.errors import PlanError
from orchestrator.plan.asked import Asked
from orchestrator.plan.costs import needed_bytes
from orchestrator.plan.experience import NO_EXPERIENCE, Experience
from orchestrator.plan.pools import find_candidates
from orchestrator.plan.retyped import Work, is_measured, retyped_memory, retyped_survey
from orchestrator.plan.robust import rank_within
from orchestrator.plan.values import ModelMemory, Plan
from orchestrator.survey.values import Survey
from orchestrator.view.sizes import tokens_text
from quant.model import Model
from workers.engine_commands import CACHE_TYPES, CacheType

Where = Literal["here", "hub", "make"]
"""It lies on this machine, is published, or can be made of a file that does or is."""

Prefer = Literal["speed", "balance", "quality"]
PREFERENCES: tuple[Prefer, ...] = ("speed", "balance", "quality")

SOUND_BITS = 4.0
"""With fewer bits per weight models lose visibly: such quantisations are taken only where no other fits."""

ENOUGH_BITS = 8.5
"""Those of Q8_0, whose perplexity is that of the original within 1 %: from here on all are taken to be as good."""

ALIKE = 1.02
"""Models whose perplexities on one text differ by less than this factor are taken to be as good as each other."""

PACE = 0.8
"""How much of the fastest one's speed a better one may cost."""


@dataclass(frozen=True)
class OnText:
    """What a perplexity was measured on: those on the same can be compared, whatever the text's file was called."""

    text_digest: str
    context: int
    chunks: int
    engine: str
    text: str = field(default="", compare=False)

    def __str__(self) -> str:
        chunks = f"{self.chunks} chunk{'s' if self.chunks > 1 else ''}"
        return f"{self.text}, {chunks} of {self.context} tokens"


@dataclass(frozen=True)
class Option:
    """A quantisation of the model. `model` has its tensors in the types that they have or would have.

    `quality_bits`: those per weight that it is taken to be as good as. `lost`: the types in which what it is or would
    be made of had lost precision before. `origin`: what it would be made of, as `meshctl model quantise` takes it.
    `experience`: what runs have shown, by cache type.
    """

    name: str
    where: Where
    model: Model
    file_bytes: int
    bits_per_weight: float
    quality_bits: float
    work: Work
    lost: tuple[str, ...] = ()
    origin: str = ""
    perplexities: Mapping[OnText, float] = field(default_factory=dict)
    experience: Mapping[CacheType, Experience] = field(default_factory=dict)


@dataclass(frozen=True)
class Short:
    """Why there is no plan, and the next move: the bytes needed and those that all devices have, or, where it is not
    these that it lacks, 0. `refused`: the engine does not take that context or cache type."""

    reason: str
    hint: str = ""
    needed_bytes: int = 0
    there_bytes: int = 0
    refused: bool = False


@dataclass(frozen=True)
class Fit:
    """A row: an option at one context and cache type, and the plan that would run it.

    `unmeasured`: some device in use was not timed with weights of its types, there speeds are worked out by bytes.
    `timed`: this very quantisation was timed; `timed_as`: what keys and values were kept as then.
    """

    option: Option
    context: int
    cache_type: CacheType
    plan: Plan | None
    short: Short | None = None
    timed: bool = False
    timed_as: CacheType = "f16"
    unmeasured: bool = False
    best: bool = False

    @property
    def speed_from(self) -> str:
        """Where its speed is from, in a word; `measured` and `corrected` are of runs of the plan itself."""
        known = "" if self.plan is None else self.plan.fastest.known
        if known == "measured":
            return known
        by = "timed" if self.timed else "bytes" if self.unmeasured else "kernels"
        as_another = "" if self.timed_as == self.cache_type else f" with {self.timed_as}"
        return f"{by}{as_another}{', corrected' if known == 'corrected' else ''}"


Memories = Mapping[tuple[int, CacheType], Sequence[ModelMemory] | str]
"""By context and cache type the memory of the source, by ascending micro-batch; or why the engine refuses it."""


def fit_all(
    survey: Survey, surveyed: Work, options: Sequence[Option], memories: Memories, asked: Asked, prefer: Prefer
) -> tuple[Fit, ...]:
    """Every option at every context and cache type, the most bits first; at each context the best one is marked.

    `surveyed`: the work of the model that `survey` was taken with.
    """
    surveys = {option.name: retyped_survey(survey, surveyed, option.work) for option in options}
    rows = [
        _fit(surveys[option.name], survey, surveyed, option, at, memory, asked)
        for option in sorted(options, key=lambda one: (-one.bits_per_weight, one.name))
        for at, memory in memories.items()
    ]
    best = best_rows(rows, prefer)
    return tuple(replace(row, best=any(row is one for one in best)) for row in rows)


def _fit(
    retyped: Survey,
    survey: Survey,
    surveyed: Work,
    option: Option,
    at: tuple[int, CacheType],
    memories: Sequence[ModelMemory] | str,
    asked: Asked,
) -> Fit:
    timed, (context, cache_type) = option.work == surveyed, at
    unmeasured = not timed and not is_measured(survey, option.work)
    row = Fit(option, context, cache_type, None, timed=timed, timed_as=survey.cache_type, unmeasured=unmeasured)
    if isinstance(memories, str):
        return replace(row, short=Short(memories, refused=True))
    own = [retyped_memory(memory, option.model) for memory in memories]
    retyped = replace(retyped, tensor_refused=own[0].tensor_refused or retyped.tensor_refused)
    asked = replace(asked, minimum_context=0)
    try:
        plan = rank_within(retyped, own, asked, option.experience.get(cache_type, NO_EXPERIENCE)).chosen
    except PlanError as error:
        return replace(row, short=_short(retyped, own, asked, error))
    return replace(row, plan=plan)


def _short(survey: Survey, memories: Sequence[ModelMemory], asked: Asked, error: PlanError) -> Short:
    """In numbers where it is memory that lacks."""
    usable = find_candidates(survey, asked.only_devices)
    if not usable or (asked.survive and _fits(survey, memories, replace(asked, survive=0))):
        return Short(str(error), error.hint)
    there = sum(one.budget_bytes for one in usable)
    return Short(str(error), error.hint, needed_bytes(memories[0].total_bytes), there)


def _fits(survey: Survey, memories: Sequence[ModelMemory], asked: Asked) -> bool:
    try:
        rank_within(survey, memories, asked)
    except PlanError:
        return False
    return True


def best_rows(rows: Iterable[Fit], prefer: Prefer) -> tuple[Fit, ...]:
    """At each context the one to take, of those that are `considered`.

    With `prefer` "balance": the best quality at `PACE` or more of the speed of the fastest. "quality": the best.
    "speed": the fastest. Quality goes by perplexities on one text where they were measured and tell models apart, else
    by `quality_bits`; of those as good as each other the fastest is taken.
    """
    rows = list(rows)
    contexts = dict.fromkeys(row.context for row in rows)
    found = (_best([row for row in rows if row.context == context], prefer) for context in contexts)
    return tuple(row for row in found if row is not None)


def considered(rows: Iterable[Fit]) -> list[Fit]:
    """Those of one context that the choice is made from: of what fits the better kinds, if there are any: not with a
    speed that is worked out by bytes only; not made of what had lost precision; with `SOUND_BITS` or more; then with
    the most precise cache type that is left, so that each option is there once."""
    fitting = [row for row in rows if row.plan is not None]
    fitting = [row for row in fitting if not _is_guessed(row)] or fitting
    fitting = [row for row in fitting if not row.option.lost] or fitting
    fitting = [row for row in fitting if _is_sound(row)] or fitting
    first = min(map(_cache_rank, fitting), default=0)
    return [row for row in fitting if _cache_rank(row) == first]


def _is_guessed(row: Fit) -> bool:
    return row.speed_from.startswith("bytes")


def _is_sound(row: Fit) -> bool:
    return row.option.quality_bits >= SOUND_BITS


def _cache_rank(row: Fit) -> int:
    """The most precise first."""
    return CACHE_TYPES.index(row.cache_type)


def _best(rows: Iterable[Fit], prefer: Prefer) -> Fit | None:
    from_these = considered(rows)
    if not from_these:
        return None
    if prefer == "speed":
        return min(from_these, key=lambda row: (goal_s(row), -_quality(row)))
    if prefer == "balance":
        from_these = _keeping_pace(from_these)
    return max(_not_measured_worse(from_these), key=lambda row: (_quality(row), -goal_s(row)))


def _quality(row: Fit) -> float:
    return min(ENOUGH_BITS, row.option.quality_bits)


def _keeping_pace(rows: Sequence[Fit]) -> list[Fit]:
    limit = min(map(goal_s, rows)) / PACE
    return [row for row in rows if goal_s(row) <= limit]


def _not_measured_worse(rows: Sequence[Fit]) -> list[Fit]:
    """Without those that are worse by perplexity than another one."""
    known = _measured(rows)
    limit = ALIKE * min(known.values(), default=inf)
    return [row for row in rows if known.get(row.option.name, 0.0) <= limit]


def _measured(rows: Sequence[Fit]) -> dict[str, float]:
    """By option the perplexities that can be compared."""
    on = compared_on(rows)
    measured = [row.option for row in rows if on in row.option.perplexities]
    return {} if on is None else {option.name: option.perplexities[on] for option in measured}


def compared_on(rows: Iterable[Fit]) -> OnText | None:
    """What the perplexities of most options are of, as others do not compare with them; the longest where there are
    several."""
    options = {row.option.name: row.option for row in rows}
    counted = Counter(on for option in options.values() for on in option.perplexities)
    return max(counted, key=lambda on: (counted[on], on.chunks * on.context), default=None)


def goal_s(row: Fit) -> float:
    """What speeds are compared by, as plans are."""
    assert row.plan is not None
    return row.plan.goal_s


def why_best(best: Fit, rows: Sequence[Fit], prefer: Prefer) -> str:
    """In a sentence."""
    at = [row for row in rows if row.context == best.context and row.plan is not None]
    from_these, name = considered(at), best.option.name
    if len(from_these) == 1:
        return f"{name} is the only one that fits{_passed_over(best, at)}"
    fastest = min(from_these, key=goal_s)
    speed = tokens_text(1 / goal_s(fastest))
    sound = f" with {SOUND_BITS:g} bits or more" if _is_sound(best) else ""
    if prefer == "speed":
        return f"{name} is the fastest that fits{sound}: {speed}"
    if prefer == "quality":
        return f"{name} is the most precise that fits{_precise(best, from_these)}"
    precise = _precise(best, _keeping_pace(from_these))
    if name == fastest.option.name:
        return f"{name} is the fastest that fits{sound} ({speed}); none more precise keeps {PACE:.0%} of that{precise}"
    return (
        f"{name} is the most precise of those that keep {PACE:.0%} or more of the speed of {fastest.option.name}, "
        f"the fastest{sound} ({speed}){precise}"
    )


def _precise(best: Fit, others: Sequence[Fit]) -> str:
    """What "precise" goes by, where it is not bits alone."""
    known = _measured(others)
    if best.option.name in known and len(known) > 1:
        return f", by perplexity ({known[best.option.name]:.2f})"
    enough = [row for row in others if _quality(row) == ENOUGH_BITS]
    return f", where from {ENOUGH_BITS:g} bits on all count alike" if best in enough and len(enough) > 1 else ""


def _passed_over(best: Fit, rows: Iterable[Fit]) -> str:
    """What else fits, and is worse."""
    others = [row for row in rows if row is not best]
    kinds = {
        "whose speed is worked out by bytes": not _is_guessed(best) and any(map(_is_guessed, others)),
        "made of what had lost precision": not best.option.lost and any(row.option.lost for row in others),
        f"with less than {SOUND_BITS:g} bits": _is_sound(best) and not all(map(_is_sound, others)),
        "with a less precise KV cache": any(_cache_rank(row) > _cache_rank(best) for row in others),
    }
    told = [kind for kind, are_there in kinds.items() if are_there]
    return f", but for those {' or '.join(told)}" if told else ""
