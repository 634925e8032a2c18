"""The winner of a tuning is found again where it holds, and becomes the plan it was."""

from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.folders import ClusterFolder
from orchestrator.plan.asked import Asked
from orchestrator.plan.choose import rank_plans
from orchestrator.plan.experience import NO_EXPERIENCE
from orchestrator.plan.values import Known, Ranking, plan_key
from orchestrator.tuned import (
    ANEW,
    BEST_MEASURED,
    Valid,
    forget_tuned,
    is_beaten,
    load_tuned,
    prefer,
    save_tuned,
    tuned_of,
    tuned_plan,
    with_micro_batch,
    with_threads,
)
from tests.orchestrator.groups import make_group, make_plan_of, make_share
from tests.orchestrator.plan.examples import make_device, make_memories, make_memory, make_survey

HERE = Valid("inventory", "shape", "engine", "latency")
PLAN = make_plan_of(make_group(make_share("a/cpu", 12), make_share("b/cpu", 8)))
TUNED = tuned_of(PLAN, {"a/cpu": 4, "b/cpu": 2, "c/cpu": 8}, HERE)
SURVEY = make_survey([make_device("a/cpu", 4000), make_device("b/cpu", 4000), make_device("c/cpu", 4000)])
MEMORIES = make_memories(make_memory())
RANKING = rank_plans(SURVEY, MEMORIES, Asked("latency"))


def test_a_winner_names_its_devices_their_layers_and_their_threads() -> None:
    assert TUNED.plan == plan_key(PLAN)
    assert (TUNED.split, TUNED.threads) == ({"a/cpu": 12, "b/cpu": 8}, {"a/cpu": 4, "b/cpu": 2})


def test_a_winner_comes_back_where_it_holds(tmp_path: Path) -> None:
    folder = ClusterFolder(tmp_path / "demo")
    assert load_tuned(folder, HERE) is None
    save_tuned(folder, TUNED)
    assert load_tuned(folder, HERE) == TUNED


@pytest.mark.parametrize(
    "other",
    [
        replace(HERE, inventory_sha256="another"),
        replace(HERE, shape="another"),
        replace(HERE, engine_id="another"),
        replace(HERE, goal="throughput"),
        replace(HERE, mode="single"),
        replace(HERE, devices=("a/cpu",)),
    ],
)
def test_a_winner_holds_nowhere_else(tmp_path: Path, other: Valid) -> None:
    folder = ClusterFolder(tmp_path / "demo")
    save_tuned(folder, TUNED)
    assert load_tuned(folder, other) is None


def test_winners_of_other_questions_stay_and_those_of_an_older_inventory_go(tmp_path: Path) -> None:
    folder = ClusterFolder(tmp_path)
    single = replace(TUNED, valid=replace(HERE, mode="single"))
    newer = replace(TUNED, valid=replace(HERE, inventory_sha256="changed"))
    save_tuned(folder, TUNED)
    save_tuned(folder, single)
    assert [load_tuned(folder, one.valid) for one in (TUNED, single)] == [TUNED, single]
    save_tuned(folder, newer)
    assert [load_tuned(folder, one.valid) for one in (TUNED, single, newer)] == [None, None, newer]


def test_a_winner_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    (tmp_path / "tuned.json").write_text('{"valid":')
    assert load_tuned(ClusterFolder(tmp_path), HERE) is None


def test_threads_are_those_of_the_winner_where_it_names_a_device() -> None:
    threads = {device.name: device.threads for device in with_threads(SURVEY, TUNED.threads).devices}
    assert threads == {"a/cpu": 4, "b/cpu": 2, "c/cpu": 8}


def test_every_plan_of_a_ranking_is_found_again() -> None:
    for plan in RANKING.plans:
        winner = tuned_of(plan, {device.name: 8 for device in SURVEY.devices}, HERE)
        assert tuned_plan(RANKING, SURVEY, MEMORIES[0], winner, NO_EXPERIENCE) == plan


@pytest.mark.parametrize("mode", ["single", "layers"])
def test_a_winner_with_another_micro_batch_is_planned_with_its_own_bytes(mode: str) -> None:
    plan = next(plan for plan in RANKING.plans if plan.mode == mode)
    memory = replace(MEMORIES[0], micro_batch=128, compute_bytes=50_000_000, compute_last_bytes=70_000_000)
    winner = tuned_of(with_micro_batch(plan, 128), {device.name: 8 for device in SURVEY.devices}, HERE)
    found = tuned_plan(RANKING, SURVEY, memory, winner, NO_EXPERIENCE)
    assert found is not None
    assert plan_key(found) == winner.plan
    assert max(share.compute_bytes for share in found.shares) in (50_000_000, 70_000_000)


def test_a_winner_that_does_not_fit_any_more_is_none() -> None:
    small = make_survey([make_device("a/cpu", 100), make_device("b/cpu", 100)])
    assert tuned_plan(replace(RANKING, plans=()), small, MEMORIES[0], TUNED, NO_EXPERIENCE) is None


def test_winners_are_forgotten_when_asked(tmp_path: Path) -> None:
    folder = ClusterFolder(tmp_path / "demo")
    assert forget_tuned(folder) == 0
    save_tuned(folder, TUNED)
    save_tuned(folder, replace(TUNED, valid=replace(HERE, goal="throughput")))
    assert forget_tuned(folder) == 2
    assert load_tuned(folder, HERE) is None


@pytest.mark.parametrize(("faster", "beaten"), [(0.9, True), (0.97, False)])
def test_a_winner_is_beaten_by_what_was_measured_to_be_better_only(faster: float, beaten: bool) -> None:
    """A prediction, however good, does not put it aside."""
    winner = replace(PLAN, groups=(replace(PLAN.groups[0], known="measured"),))
    token_s = faster * winner.token_s
    other = make_plan_of(replace(make_group(make_share("c/cpu")), token_s=token_s, known="measured"))
    guessed = make_plan_of(replace(make_group(make_share("a/cpu")), token_s=token_s / 10))
    assert is_beaten(winner, Ranking((winner, guessed, other))) is beaten
    assert not is_beaten(winner, Ranking((winner, guessed)))


def test_a_winner_is_not_beaten_by_what_plans_are_not_ranked_for() -> None:
    """Two heads that are a tenth faster for one conversation and starve another came after the winner, and still do."""
    winner = make_plan_of(replace(make_group(make_share("c/cpu"), parallel=2), known="measured"))
    fast, starved = (replace(make_group(make_share(f"{name}/cpu"), mode="single"), known="measured") for name in "ab")
    heads = make_plan_of(replace(fast, token_s=0.09, step_s=0.09), replace(starved, token_s=0.9, step_s=0.9))
    assert not is_beaten(winner, Ranking((winner, heads)))
    assert is_beaten(winner, Ranking((winner, make_plan_of(heads.groups[0], heads.groups[0]))))


def test_a_winner_whose_devices_stand_in_another_order_is_found() -> None:
    group = make_group(make_share("b/cpu", 8), make_share("a/cpu", 12))
    ranking = Ranking((make_plan_of(make_group(make_share("c/cpu"))), make_plan_of(group)))
    found = tuned_plan(ranking, SURVEY, MEMORIES[0], TUNED, NO_EXPERIENCE)
    assert found is not None
    assert found.groups == (group,)


@pytest.mark.parametrize(("known", "since"), [("measured", ""), ("corrected", ANEW), ("predicted", ANEW)])
def test_the_preferred_plan_comes_first_once_and_says_why(known: Known, since: str) -> None:
    last = RANKING.plans[-1]
    last = replace(last, groups=tuple(replace(group, known=known) for group in last.groups))
    preferred = prefer(RANKING, last, SURVEY, MEMORIES[0], Asked("latency"))
    assert preferred.chosen.groups == last.groups
    assert preferred.chosen.reasons[0] == f"{BEST_MEASURED}{since}"
    assert len(preferred.plans) == len(RANKING.plans)


@pytest.mark.parametrize("micro_batch", [None, 128], ids=["in the ranking", "made anew"])
def test_the_preferred_plan_is_explained_by_what_the_user_asked_for(micro_batch: int | None) -> None:
    """It was found by asking for its mode and devices; the user asked for nothing."""
    plan = next(one for one in RANKING.plans if one.mode == "single" and one.shares[0].device == "b/cpu")
    plan = plan if micro_batch is None else with_micro_batch(plan, micro_batch)
    winner = tuned_of(plan, {device.name: 8 for device in SURVEY.devices}, HERE)
    found = tuned_plan(RANKING, SURVEY, MEMORIES[0], winner, NO_EXPERIENCE)
    preferred = prefer(RANKING, found or plan, SURVEY, MEMORIES[0], Asked("latency")).chosen
    assert [one.device for one in preferred.left_out] == ["a/cpu", "c/cpu"]
    assert not any("asked for" in text for text in (*preferred.reasons, *(one.reason for one in preferred.left_out)))
    assert any(reason.startswith("layers (") for reason in preferred.reasons)
