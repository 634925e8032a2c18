"""What is said of heads that answer: to the gateway, and in the state that `status` shows."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from orchestrator import cluster
from orchestrator.announce import group_speed, head_addresses
from orchestrator.cluster import RunningGroup
from orchestrator.gateway.routing import HeadAddress
from orchestrator.head_checks import Answer, HeadSpeed
from orchestrator.plan.experience import Experience, Measured, record_of
from orchestrator.plan.values import Group
from orchestrator.report import silent
from orchestrator.state import GroupSpeed
from tests.orchestrator.groups import make_group, make_share
from tests.orchestrator.test_cluster import make_head

PREDICTED = make_group(make_share("a/cpu"), make_share("b/cpu"), parallel=4)  # 0.1 s, 0.2 s, 2.0 s for 1,024 tokens
SLOWER = HeadSpeed(token_s=0.125, step_s=0.25, prefill_s=4.0)
MEASURED = Experience((record_of(PREDICTED, Measured(0.125, 0.25, 4.0)),)).correct(PREDICTED)


def running(group: Group, speed: HeadSpeed = SLOWER, **how: bool) -> RunningGroup:
    return RunningGroup(group, "head2", make_head(), (), Answer("text", 16, 8.0), speed, **how)


def test_the_gateway_routes_by_what_was_measured_not_by_what_was_predicted() -> None:
    assert head_addresses([running(PREDICTED)], 4096) == (
        HeadAddress(
            "head2",
            "http://127.0.0.1:1",
            "secret",
            parallel=4,
            token_s=0.125,
            step_s=0.25,
            prefill_token_s=4 / 1024,
            context=4096,
        ),
    )


def test_the_state_has_the_prediction_beside_what_was_measured() -> None:
    assert group_speed(running(PREDICTED)) == GroupSpeed("head2", "desk", "layers", 10.0, 8.0, 20.0, 16.0, 512.0, 256.0)


def test_a_head_that_was_measured_while_others_rest_is_compared_with_what_is_predicted_then() -> None:
    crowded = replace(PREDICTED, step_s=4 * PREDICTED.step_s, beside=4.0)
    assert group_speed(running(crowded)) == group_speed(running(PREDICTED))


def test_what_was_not_measured_is_not_said_to_be() -> None:
    told = group_speed(running(PREDICTED, measured=False))
    assert (told.predicted_decode_tokens_per_s, told.measured_decode_tokens_per_s) == (10.0, None)
    assert told.measured_aggregate_tokens_per_s is told.measured_prefill_tokens_per_s is None


def test_a_group_that_ran_before_is_still_compared_with_its_prediction() -> None:
    """Planned at 8.0 tokens/s, as it was measured at an earlier start: that is no prediction that came true."""
    assert MEASURED.decode_tokens_per_s == pytest.approx(8.0)
    loading = SimpleNamespace(group=MEASURED, place=SimpleNamespace(name="head2"), head=make_head(), workers=())
    known = cluster._as_known(cast(Any, loading), Answer("text", 16, 8.0), silent())
    assert known is not None
    told = group_speed(known)
    assert told.earlier
    assert told.predicted_decode_tokens_per_s == pytest.approx(10.0)
    assert told.measured_decode_tokens_per_s == pytest.approx(8.0)
    assert told.predicted_aggregate_tokens_per_s == pytest.approx(20.0)
    assert told.predicted_prefill_tokens_per_s == pytest.approx(512.0)


def test_what_other_groups_have_corrected_is_the_prediction() -> None:
    corrected = Experience((record_of(replace(PREDICTED, micro_batch=512), Measured(0.125, 0.25, 4.0)),))
    told = group_speed(running(corrected.correct(PREDICTED)))
    assert told.predicted_decode_tokens_per_s == pytest.approx(8.0)
    assert not told.earlier
