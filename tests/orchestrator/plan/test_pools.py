"""Devices that share one machine's memory."""

from collections.abc import Iterable
from dataclasses import replace

import pytest

from orchestrator.plan.pools import Candidate, Pooled, find_candidates, pool_budgets
from orchestrator.survey.values import Device
from tests.orchestrator.plan.examples import FACTS, GIB, make_device, make_gpu, make_survey
from workers.budget import MIB


def pool(
    devices: Iterable[Device], *, local: Iterable[str] = (), controller_mib: int = 1024, head_mib: int = 0
) -> Pooled:
    candidates = find_candidates(make_survey([*devices], host_mib=1000, local=[*local]), None)
    pooled = pool_budgets(candidates, controller_bytes=controller_mib * MIB, head_bytes=head_mib * MIB)
    assert pooled is not None
    return pooled


def mib(candidates: Iterable[Candidate]) -> dict[str, int]:
    return {one.device.name: one.budget_bytes // MIB for one in candidates}


def needs(**devices: int) -> dict[str, int]:
    return {f"{name}/cpu": size * MIB for name, size in devices.items()}


TWO_HERE = pool([make_device("a/cpu", 800, gib_per_s=20), make_device("b/cpu", 700)], local="ab", controller_mib=1000)


def test_budgets_that_fit_their_machines_stay_as_they_are() -> None:
    candidates = find_candidates(make_survey([make_device("a/cpu", 700), make_device("b/cpu", 800)]), None)
    pooled = pool_budgets(candidates, controller_bytes=GIB, head_bytes=100 * MIB)
    assert pooled == Pooled(candidates, ())
    assert pooled.ways() == (candidates,)


def test_a_cpu_and_a_metal_gpu_share_their_host_memory_but_a_cuda_gpu_has_its_own() -> None:
    pooled = pool(
        [
            make_device("mac/metal0", 600, kind="metal"),
            make_device("mac/cpu", 600),
            make_device("pc/cuda0", 9000, kind="cuda"),
            make_device("pc/cpu", 900),
        ]
    )
    assert mib(pooled.in_equal_parts()) == {"mac/metal0": 300, "mac/cpu": 300, "pc/cuda0": 9000, "pc/cpu": 900}
    assert pooled.reasons == (
        "budgets of mac/cpu and mac/metal0 cut to 50% together: they share 600 MiB, they add up to 1.2 GiB",
    )


def test_a_gpu_without_memory_of_its_own_shares_that_of_its_host() -> None:
    integrated = replace(make_device("laptop/vulkan0", 600, kind="vulkan"), shares_memory=True)
    pooled = pool([integrated, make_device("laptop/cpu", 600)])
    assert mib(pooled.in_equal_parts()) == {"laptop/vulkan0": 300, "laptop/cpu": 300}


def test_two_local_hosts_with_the_same_card_share_its_memory() -> None:
    cards = [make_gpu(f"{host}/cuda0", 700, gib_per_s=10, native_gib_per_s=10) for host in "ab"]
    pooled = pool([replace(one, budget=replace(one.budget, free_bytes=1000 * MIB)) for one in cards], local="ab")
    assert mib(pooled.in_equal_parts()) == {"a/cuda0": 500, "b/cuda0": 500}


@pytest.mark.parametrize(("limited", "together"), [("", True), ("/sys/fs/cgroup", False)])
def test_hosts_on_one_kernel_have_its_memory_together_unless_each_is_held_to_its_own(
    limited: str, together: bool
) -> None:
    """Two names of one machine, or containers without a limit: what one takes the other has no more."""
    one, two = (replace(FACTS, boot="the-same", memory_limited_by=limited) for _ in range(2))
    survey = make_survey([make_device("a/cpu", 40 * 1024), make_device("b/cpu", 40 * 1024)])
    survey = replace(survey, hosts=tuple(map(lambda host, facts: replace(host, facts=facts), survey.hosts, (one, two))))
    pooled = pool_budgets(find_candidates(survey, None), controller_bytes=GIB, head_bytes=0)
    assert pooled is not None
    assert bool(pooled.memories) == together


def test_a_device_that_takes_nothing_leaves_all_of_it_to_the_others() -> None:
    assert mib(TWO_HERE.alone) == {"a/cpu": 800, "b/cpu": 700}
    assert TWO_HERE.hold(needs(a=800))
    assert TWO_HERE.hold(needs(a=600, b=400))
    assert not TWO_HERE.hold(needs(a=700, b=400))
    assert not TWO_HERE.hold(needs(b=701))


def test_the_head_takes_its_part_of_the_controller() -> None:
    here = pool([make_device("a/cpu", 1000)], local="a", head_mib=100)
    assert mib(here.alone) == {"a/cpu": 924}
    assert here.reasons == (
        "budgets of a/cpu cut to 92%: their machine has 924 MiB beside 100 MiB of heads, they add up to 1000 MiB",
    )


def test_what_devices_do_not_need_is_the_others_the_fastest_first() -> None:
    assert mib(TWO_HERE.beside(needs(b=100))) == {"a/cpu": 800, "b/cpu": 200}
    assert mib(TWO_HERE.beside(needs(a=100, b=600))) == {"a/cpu": 400, "b/cpu": 600}


def test_for_several_heads_memory_is_shared_out_in_equal_parts_the_fastest_first_and_by_what_each_wants() -> None:
    devices = [make_device("mac/cpu", 900), make_device("mac/metal0", 600, gib_per_s=50, kind="metal")]
    pooled = pool([*devices, make_device("pc/cpu", 500)])
    want = dict.fromkeys(("mac/cpu", "mac/metal0", "pc/cpu"), 400 * MIB)
    assert [mib(way) for way in pooled.ways([want])] == [
        {"mac/metal0": 360, "mac/cpu": 540, "pc/cpu": 500},
        {"mac/metal0": 600, "mac/cpu": 300, "pc/cpu": 500},
        {"mac/metal0": 500, "mac/cpu": 400, "pc/cpu": 500},
    ]


def test_where_needs_are_too_large_every_device_is_served_first_once() -> None:
    assert [mib(way) for way in TWO_HERE.ways_for(needs(a=600, b=600))] == [
        {"a/cpu": 533, "b/cpu": 466},
        {"a/cpu": 600, "b/cpu": 400},
        {"a/cpu": 800, "b/cpu": 200},
        {"a/cpu": 300, "b/cpu": 700},
    ]


def test_what_is_not_needed_has_nothing_of_equal_parts() -> None:
    three = pool([make_device(f"{name}/cpu", 800) for name in "abc"], local="abc", controller_mib=1000)
    assert mib(three.ways_for(needs(a=600, b=600))[0]) == {"a/cpu": 500, "b/cpu": 500, "c/cpu": 0}


def test_heads_on_cards_take_main_memory() -> None:
    card = make_gpu("pc/cuda0", 2000, gib_per_s=20, native_gib_per_s=20)
    candidates = find_candidates(make_survey([card, make_device("pc/cpu", 1000)], host_mib=1000), None)
    pooled = pool_budgets(candidates, controller_bytes=GIB, head_bytes=0, on_cards_bytes={"pc/cuda0": 100 * MIB})
    assert pooled is not None
    assert mib(pooled.alone) == {"pc/cuda0": 2000, "pc/cpu": 900}


def test_a_head_larger_than_the_controller_leaves_nothing_to_pool() -> None:
    candidates = find_candidates(make_survey([make_device("a/cpu", 700)]), None)
    assert pool_budgets(candidates, controller_bytes=GIB, head_bytes=GIB + 1) is None


def test_candidates_are_fastest_first_whatever_the_order_of_hosts() -> None:
    devices = [make_device("b/cpu", 700, gib_per_s=5), make_device("a/cpu", 700, gib_per_s=5), make_device("c/cpu", 9)]
    survey = make_survey(devices)
    names = [one.device.name for one in find_candidates(survey, None)]
    assert names == ["c/cpu", "a/cpu", "b/cpu"]
    assert find_candidates(replace(survey, hosts=survey.hosts[::-1]), None) == find_candidates(survey, None)
