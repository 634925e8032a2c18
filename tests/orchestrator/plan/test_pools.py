"""Devices that share one machine's memory."""

from dataclasses import replace

from orchestrator.plan.pools import Pooled, find_candidates, pool_budgets
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
        "mac/metal0": 500,
        "mac/cpu": 500,
        "pc/cuda0": 9000,
        "pc/cpu": 900,
    }
    assert pooled.reasons == (
        "budgets of mac/cpu and mac/metal0 cut to 83%: their machine has 1000 MiB, they add up to 1.2 GiB",
    )


def test_a_head_larger_than_the_controller_leaves_nothing_to_pool() -> None:
    candidates = find_candidates(make_survey([make_device("a/cpu", 700)]), None)
    assert pool_budgets(candidates, controller_bytes=GIB, head_bytes=GIB + 1) is None


def test_candidates_are_fastest_first_whatever_the_order_of_hosts() -> None:
    devices = [make_device("b/cpu", 700, gib_per_s=5), make_device("a/cpu", 700, gib_per_s=5), make_device("c/cpu", 9)]
    survey = make_survey(devices)
    names = [one.device.name for one in find_candidates(survey, None)]
    assert names == ["c/cpu", "a/cpu", "b/cpu"]
    assert find_candidates(replace(survey, hosts=survey.hosts[::-1]), None) == find_candidates(survey, None)
