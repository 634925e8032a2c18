"""Plans at a smaller context, and for the loss of a host."""

from dataclasses import replace
from functools import cache

import pytest

from orchestrator.errors import PlanError
from orchestrator.plan.asked import Asked
from orchestrator.plan.choose import rank_plans
from orchestrator.plan.robust import CONTEXT_STEP, rank_within
from orchestrator.survey.values import Survey
from tests.orchestrator.plan.examples import make_device, make_memory, make_survey
from workers.budget import MIB

LATENCY = Asked("latency")
MEMORY = make_memory()


def survey_of(**budgets_mib: int) -> Survey:
    return make_survey([make_device(f"{name}/cpu", size) for name, size in budgets_mib.items()])


def whole_mib() -> int:
    """What one device needs for everything, and a margin."""
    return MEMORY.total_bytes // MIB * 2


@cache
def least_mib() -> int:
    """The smallest budget of one device that holds everything."""
    return next(size for size in range(1, whole_mib()) if fits(size, MEMORY.context))


def kv_mib() -> int:
    return sum(MEMORY.layer_kv_bytes) // MIB


def test_where_it_fits_nothing_is_given_up() -> None:
    survey = survey_of(a=whole_mib())
    assert rank_within(survey, (MEMORY,), replace(LATENCY, minimum_context=256)) == rank_plans(
        survey, (MEMORY,), LATENCY
    )


def test_the_largest_context_that_fits_is_taken_down_to_the_least_that_is_allowed() -> None:
    """One step more does not fit, and below the least it is refused as if nothing had been allowed."""
    budget = least_mib() - kv_mib() // 2
    assert not fits(budget, MEMORY.context)
    found = rank_within(survey_of(a=budget), (MEMORY,), replace(LATENCY, minimum_context=256)).chosen.context
    assert found % CONTEXT_STEP == 0
    assert 256 <= found < MEMORY.context
    assert fits(budget, found)
    assert not fits(budget, found + CONTEXT_STEP)
    with pytest.raises(PlanError, match=f"context {MEMORY.context}"):
        rank_within(survey_of(a=budget), (MEMORY,), replace(LATENCY, minimum_context=found + CONTEXT_STEP))


def test_a_smaller_context_does_not_save_what_windows_and_recurrent_states_take() -> None:
    budget = least_mib() - kv_mib() // 2
    survey, asked = survey_of(a=budget), replace(LATENCY, minimum_context=256)
    assert rank_within(survey, (MEMORY,), asked).chosen.context < MEMORY.context
    with pytest.raises(PlanError) as refused:
        rank_within(survey, (replace(MEMORY, layer_kv_fixed_bytes=MEMORY.layer_kv_bytes),), asked)
    assert "lower context" not in refused.value.hint


def fits(budget_mib: int, context: int) -> bool:
    """By asking for exactly that context."""
    try:
        asked = replace(LATENCY, minimum_context=context)
        found = rank_within(survey_of(a=budget_mib), (MEMORY,), asked).chosen.context
    except PlanError:
        return False
    return found >= context


def test_with_survive_there_is_a_fallback_for_each_host_that_is_used() -> None:
    survey = survey_of(a=whole_mib(), b=whole_mib())
    chosen = rank_within(survey, (MEMORY,), replace(LATENCY, survive=1, mode="layers")).chosen
    used = {share.device.partition("/")[0] for share in chosen.shares}
    assert {fallback.host for fallback in chosen.fallbacks} == used
    for fallback in chosen.fallbacks:
        assert fallback.host not in {share.device.partition("/")[0] for share in fallback.plan.shares}
        assert fallback.plan.context == MEMORY.context


def test_a_loss_that_cannot_be_survived_is_refused_with_the_host_and_the_numbers() -> None:
    half = whole_mib() * 2 // 5
    survey = survey_of(a=half, b=half)
    assert rank_plans(survey, (MEMORY,), LATENCY).chosen.fallbacks == ()
    with pytest.raises(PlanError, match=r"`survive: 1` cannot be kept: without a, .* needs .*") as refused:
        rank_within(survey, (MEMORY,), replace(LATENCY, survive=1))
    assert "add memory or a host" in refused.value.hint
    with pytest.raises(PlanError, match="without a, there is no other host"):
        rank_within(survey_of(a=whole_mib()), (MEMORY,), replace(LATENCY, survive=1))


def test_a_loss_may_be_survived_at_a_smaller_context() -> None:
    least = least_mib()
    survey = survey_of(a=least, b=least - kv_mib() // 2)
    asked = replace(LATENCY, survive=1, minimum_context=256, devices=frozenset({"a/cpu", "b/cpu"}))
    chosen = rank_within(survey, (MEMORY,), asked).chosen
    contexts = {fallback.host: fallback.plan.context for fallback in chosen.fallbacks}
    assert chosen.context == MEMORY.context
    assert contexts.get("a", 256) < MEMORY.context


def test_a_mode_that_cannot_be_kept_is_given_up_where_that_is_allowed() -> None:
    survey = survey_of(a=whole_mib())
    tensor = replace(LATENCY, mode="tensor")
    with pytest.raises(PlanError, match="mode tensor needs 2 devices"):
        rank_within(survey, (MEMORY,), tensor)
    assert rank_within(survey, (MEMORY,), replace(tensor, lenient=True)).chosen.mode == "single"
    gone = replace(LATENCY, split={"a/cpu": 5, "b/cpu": 5}, devices=frozenset({"a/cpu", "b/cpu"}))
    with pytest.raises(PlanError, match="the survey has no device b/cpu"):
        rank_within(survey, (MEMORY,), gone)
    assert rank_within(survey, (MEMORY,), replace(gone, lenient=True)).chosen.mode == "single"
    both = survey_of(a=whole_mib(), b=whole_mib())
    assert rank_within(both, (MEMORY,), replace(LATENCY, mode="layers", lenient=True)).chosen.mode == "layers"
