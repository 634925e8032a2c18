"""Several heads: how conversations are shared among them, and which groups stand beside single devices."""

from itertools import product
from random import Random

import numpy as np
import pytest

from orchestrator.plan.costs import needed_bytes
from orchestrator.plan.pools import find_candidates
from orchestrator.plan.replicas import best_counts, find_replicas
from orchestrator.plan.single import find_singles
from orchestrator.plan.split import find_splits
from orchestrator.plan.tensor import find_tensors
from orchestrator.plan.values import Group, ModelMemory
from orchestrator.survey.values import Survey
from tests.orchestrator.plan.examples import make_device, make_memory, make_survey


def replicas(survey: Survey, memory: ModelMemory) -> tuple[tuple[Group, ...], ...]:
    memories, candidates = (memory,), find_candidates(survey, None)
    singles, tensors = find_singles(survey, memories, candidates), find_tensors(survey, memories, candidates)
    splits = find_splits(survey, memories, candidates, goal="throughput")
    return find_replicas(survey, memories, singles, splits, tensors, candidates)


def heads(groups: tuple[Group, ...]) -> list[str]:
    return [f"{one.mode} {'+'.join(share.device for share in one.shares)} {one.parallel}" for one in groups]


def test_two_equal_devices_share_the_conversations_equally() -> None:
    survey = make_survey([make_device("a/cpu", 2000), make_device("b/cpu", 2000)])
    best = replicas(survey, make_memory(parallel=8))[0]
    assert heads(best) == ["single a/cpu 4", "single b/cpu 4"]
    assert [share.kv_bytes for group in best for share in group.shares] == [50 * 2**20] * 2


def test_a_device_holds_as_many_conversations_as_its_memory_allows() -> None:
    """1,310 MiB and 52 of margin for all of 8 conversations; 100 MiB of KV cache are 12.5 for each."""
    survey = make_survey([make_device("a/cpu", 1290), make_device("b/cpu", 2000, gib_per_s=2)])
    assert heads(replicas(survey, make_memory(parallel=8))[0]) == ["single a/cpu 2", "single b/cpu 6"]


def test_devices_that_hold_no_copy_form_a_group_beside_those_that_do() -> None:
    survey = make_survey([make_device("a/cpu", 2000), make_device("b/cpu", 800), make_device("c/cpu", 800)])
    found = replicas(survey, make_memory(parallel=8))
    assert {"+".join(sorted(share.device for group in plan for share in group.shares)) for plan in found} == {
        "a/cpu+b/cpu+c/cpu"
    }
    assert {group.mode for plan in found for group in plan} == {"single", "layers", "tensor"}


def test_each_device_is_used_once_and_every_conversation_has_a_head() -> None:
    random = Random(1)
    for _ in range(30):
        devices = [
            make_device(f"h{k}/cpu", random.randint(300, 2000), gib_per_s=random.uniform(1, 20)) for k in range(4)
        ]
        for plan in replicas(make_survey(devices), make_memory(parallel=5)):
            names = [share.device for group in plan for share in group.shares]
            assert len(names) == len(set(names))
            assert sum(group.parallel for group in plan) == 5
            assert len(plan) >= 2
            shares = [share for group in plan for share in group.shares if not share.native or group.mode == "single"]
            assert all(needed_bytes(share.total_bytes) <= share.budget_bytes for share in shares)


@pytest.mark.parametrize(
    ("survey", "parallel"),
    [
        (make_survey([make_device("a/cpu", 2000), make_device("b/cpu", 2000)]), 1),
        (make_survey([make_device("a/cpu", 2000)]), 8),
        (make_survey([make_device("a/cpu", 900), make_device("b/cpu", 900)]), 8),
    ],
)
def test_one_conversation_one_device_or_no_copy_give_no_replicas(survey: Survey, parallel: int) -> None:
    assert replicas(survey, make_memory(parallel=parallel)) == ()


def test_two_hosts_on_one_machine_share_its_memory() -> None:
    survey = make_survey(
        [make_device("a/cpu", 2000), make_device("b/cpu", 2000)], local=["a", "b"], controller_mib=2200
    )
    assert replicas(survey, make_memory(parallel=8)) == ()


@pytest.mark.parametrize("seed", range(600))
def test_conversations_are_distributed_as_the_best_of_all_ways(seed: int) -> None:
    random = Random(seed)
    total, count = random.randint(1, 7), random.randint(1, 4)
    rates = np.array(
        [[0.0, *(random.choice([random.random() * 10, -np.inf]) for _ in range(total))] for _ in range(count)]
    )
    ways = [way for way in product(range(total + 1), repeat=count) if sum(way) == total and sum(map(bool, way)) >= 2]
    best = max((sum(rates[head, p] for head, p in enumerate(way)) for way in ways), default=-np.inf)
    found = best_counts(rates)
    if not np.isfinite(best):
        assert found == ()
        return
    assert found in ways
    assert sum(rates[head, p] for head, p in enumerate(found)) == pytest.approx(best)
