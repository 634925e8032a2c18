"""Devices that share one machine's memory."""

from dataclasses import replace

from orchestrator.plan.pools import Pooled, find_candidates, pool_budgets, pools
from tests.orchestrator.plan.examples import GIB, make_device, make_survey
from workers.budget import MIB


def test_budgets_that_fit_their_machines_stay_as_they_are() -> None:
    candidates = find_candidates(make_survey([make_device("a/cpu", 700), make_device("b/cpu", 800)]), None)
    pooled = pool_budgets(candidates, controller_bytes=GIB, head_bytes=100 * MIB)
    assert pooled == Pooled(candidates, ())


def test_a_cpu_and_a_metal_gpu_share_their_host_memory_but_a_cuda_gpu_has_its_own() -> None:
    devices = [
        make_device("mac/metal0", 600, kind="metal"),
        make_device("mac/cpu", 600),
        make_device("pc/cuda0", 9000, kind="cuda"),
        make_device("pc/cpu", 900),
    ]
    candidates = find_candidates(make_survey(devices, host_mib=1000), None)
    pooled = pool_budgets(candidates, controller_bytes=GIB, head_bytes=0)
    assert pooled is not None
    assert {one.device.name: one.budget_bytes // MIB for one in pooled.candidates} == {
        "mac/metal0": 300,
        "mac/cpu": 300,
        "pc/cuda0": 9000,
        "pc/cpu": 900,
    }
    assert pooled.reasons == (
        "budgets of mac/cpu and mac/metal0 cut to 50%: they share 600 MiB, they add up to 1.2 GiB",
    )


def test_a_gpu_without_memory_of_its_own_shares_that_of_its_host() -> None:
    integrated = replace(make_device("laptop/vulkan0", 600, kind="vulkan"), shares_memory=True)
    candidates = find_candidates(make_survey([integrated, make_device("laptop/cpu", 600)], host_mib=1000), None)
    pooled = pool_budgets(candidates, controller_bytes=GIB, head_bytes=0)
    assert pooled is not None
    assert {one.device.name: one.budget_bytes // MIB for one in pooled.candidates} == {
        "laptop/vulkan0": 300,
        "laptop/cpu": 300,
    }


def test_the_fastest_of_a_host_may_keep_its_budget_and_leave_the_others_the_rest() -> None:
    devices = [make_device("mac/cpu", 900), make_device("mac/metal0", 600, gib_per_s=50, kind="metal")]
    candidates = find_candidates(make_survey([*devices, make_device("pc/cpu", 500)], host_mib=1000), None)
    found = [
        {one.device.name: one.budget_bytes // MIB for one in pooled.candidates}
        for pooled in pools(candidates, controller_bytes=GIB, head_bytes=0)
    ]
    assert found == [
        {"mac/metal0": 360, "mac/cpu": 540, "pc/cpu": 500},
        {"mac/metal0": 600, "mac/cpu": 300, "pc/cpu": 500},
    ]
    alone = find_candidates(make_survey(devices[:1]), None)
    assert [pooled.candidates for pooled in pools(alone, controller_bytes=GIB, head_bytes=0)] == [alone]
    assert pools(alone, controller_bytes=GIB, head_bytes=GIB + 1) == ()


def test_a_head_larger_than_the_controller_leaves_nothing_to_pool() -> None:
    candidates = find_candidates(make_survey([make_device("a/cpu", 700)]), None)
    assert pool_budgets(candidates, controller_bytes=GIB, head_bytes=GIB + 1) is None


def test_candidates_are_fastest_first_whatever_the_order_of_hosts() -> None:
    devices = [make_device("b/cpu", 700, gib_per_s=5), make_device("a/cpu", 700, gib_per_s=5), make_device("c/cpu", 9)]
    survey = make_survey(devices)
    names = [one.device.name for one in find_candidates(survey, None)]
    assert names == ["c/cpu", "a/cpu", "b/cpu"]
    assert find_candidates(replace(survey, hosts=survey.hosts[::-1]), None) == find_candidates(survey, None)
