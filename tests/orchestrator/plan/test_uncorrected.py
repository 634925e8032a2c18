"""Corrections are taken off again."""

from dataclasses import replace

import pytest

from orchestrator.plan.experience import NO_EXPERIENCE, Experience, Measured, record_of
from orchestrator.plan.uncorrected import uncorrected
from orchestrator.plan.values import Group
from tests.orchestrator.groups import make_group, make_share

GROUP = make_group(make_share("a/cpu", 4), make_share("b/cpu", 6), token_s=0.1, prefill_s=2.0)
OTHER = replace(GROUP, shares=(make_share("a/cpu", 5), make_share("b/cpu", 5)), token_s=0.2, prefill_s=4.0)
SLOWER = Measured(token_s=0.15, step_s=0.15, prefill_s=2.5)


def test_what_nothing_has_corrected_stays() -> None:
    assert uncorrected(GROUP, NO_EXPERIENCE) is GROUP


@pytest.mark.parametrize("asked", [GROUP, OTHER], ids=["that has run before", "like one that has"])
def test_a_corrected_group_has_its_predictions_back(asked: Group) -> None:
    experience = Experience((record_of(GROUP, SLOWER),))
    corrected = experience.correct(asked)
    assert corrected.token_s > asked.token_s
    back = uncorrected(corrected, experience)
    assert (back.token_s, back.step_s, back.prefill_s) == pytest.approx((asked.token_s, asked.step_s, asked.prefill_s))
