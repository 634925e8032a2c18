"""What holds of every ranking, over seeded random surveys and models."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import permutations
from math import inf
from random import Random

import pytest

from orchestrator.errors import PlanError
from orchestrator.plan import heads
from orchestrator.plan.asked import Asked
from orchestrator.plan.choose import rank_plans
from orchestrator.plan.conversations import with_kv
from orchestrator.plan.costs import layers_seconds, needed_bytes, output_seconds
from orchestrator.plan.cut import part_bytes
from orchestrator.plan.noise import LEAST_NOISE, ORDER_NOISE
from orchestrator.plan.pools import find_candidates
from orchestrator.plan.reasons import gains_too_little
from orchestrator.plan.single import find_singles
from orchestrator.plan.values import GOALS, MODES, ModelMemory, Plan, Ranking
from orchestrator.survey.values import Device, HostSurvey, Link, Speed, Survey
from orchestrator.view.sizes import bytes_text, in_unit, unit_for
from tests.orchestrator.plan.examples import (
    FAST_LINK,
    LOOPBACK,
    make_device,
    make_gpu,
    make_memories,
    make_memory,
    make_speed,
    make_survey,
)
from workers.budget import MIB

SLOW = Link("tunnel", round_trip_s=0.0031, up_bytes_per_s=12 * MIB, down_bytes_per_s=12 * MIB)

SEEDS = range(60)

WORSE = (1 + ORDER_NOISE) * (1 + LEAST_NOISE)
"""A plan may be slower than another by what counts as a tie, and layers are placed as if like speeds were one."""

TIE_BREAK = 1.0001
"""Of placements of the same time the more even one is taken, by a weight far below this (`stage_tables.BALANCE`)."""


def a_survey(random: Random) -> Survey:
    return make_survey([a_device(random, k) for k in range(random.randint(1, 5))])


def a_device(random: Random, number: int) -> Device:
    return make_device(
        f"h{number}/cpu",
        random.randint(50, 2000),
        gib_per_s=random.choice([1, 2.5, 10, random.uniform(1, 20)]),
        native_gib_per_s=random.choice([None, 0, 12]),
        link=random.choice([LOOPBACK, FAST_LINK, SLOW]),
    )


def a_model(random: Random) -> ModelMemory:
    uneven = [random.randint(20, 200) for _ in range(random.randint(2, 8))]
    layers = uneven if random.random() < 0.5 else random.randint(1, 12)
    return make_memory(
        layers, parallel=random.choice([1, 2, 4, 8]), kv_heads=random.choice([1, 2, 3, 8]), tied=random.random() < 0.3
    )


def ranking(survey: Survey, memory: ModelMemory, goal: str = "latency", mode: str | None = None) -> Ranking | None:
    """None where there is no plan."""
    try:
        return rank_plans(survey, (memory,), Asked(goal, mode=mode))
    except PlanError:
        return None


def cases() -> Iterator[tuple[Survey, ModelMemory, str]]:
    for seed in SEEDS:
        random = Random(seed)
        yield a_survey(random), a_model(random), random.choice(GOALS)


def seconds(plan: Plan) -> float:
    return plan.token_s if plan.goal == "latency" else 1 / plan.aggregate_tokens_per_s


def with_devices(survey: Survey, change: dict[str, Device]) -> Survey:
    hosts = tuple(
        replace(host, devices=tuple(change.get(one.name, one) for one in host.devices)) for host in survey.hosts
    )
    return replace(survey, hosts=hosts)


def test_every_layer_is_placed_once_no_budget_is_exceeded_and_every_device_is_named() -> None:
    for survey, memory, goal in cases():
        found = ranking(survey, memory, goal)
        for plan in found.plans if found else ():
            used = [share.device for share in plan.shares]
            assert len(used) == len(set(used))
            assert all(needed_bytes(share.total_bytes) <= share.budget_bytes for share in plan.shares)
            assert sum(group.parallel for group in plan.groups) == memory.parallel
            assert plan.reasons
            assert_whole(plan, memory)
        if found:
            named = [*(one.device for one in found.chosen.left_out), *(one.device for one in found.chosen.shares)]
            assert sorted(named) == [one.name for one in survey.devices]


def test_no_machine_is_asked_for_more_than_it_has() -> None:
    """Local hosts and the heads on the controller share one memory, at every micro-batch; a head on a card takes of its
    machine's too."""
    for seed in range(150):
        random = Random(seed)
        controller_mib, host_mib = random.randint(2000, 4000), random.randint(300, 1500)
        devices = [within(a_device(random, k), host_mib) for k in range(random.randint(2, 4))]
        cards = [a_card(random, k) for k in range(len(devices)) if random.random() < 0.4]
        local = [one.host for one in devices if random.random() < 0.7]
        survey = make_survey([*devices, *cards], local=local, controller_mib=controller_mib, host_mib=host_mib)
        machines = {one.name: "" if host.local else host.name for host in survey.hosts for one in host.devices}
        try:
            found = rank_plans(survey, make_memories(a_model(random)), Asked(random.choice(GOALS)))
        except PlanError:
            continue
        for plan in found.plans:
            for machine, taken in main_memory(plan, machines).items():
                assert taken <= (host_mib if machine else controller_mib) * MIB, seed


def within(device: Device, most_mib: int) -> Device:
    return replace(device, budget=replace(device.budget, capped_bytes=min(device.budget.capped_bytes, most_mib * MIB)))


def a_card(random: Random, host: int) -> Device:
    budget_mib, gib_per_s = random.randint(500, 3000), random.uniform(5, 40)
    return make_gpu(f"h{host}/cuda0", budget_mib, gib_per_s=gib_per_s, native_gib_per_s=2 * gib_per_s)


def main_memory(plan: Plan, machines: dict[str, str]) -> Counter[str]:
    """What each machine needs for this plan, with margins; a head with native layers is one process with them."""
    taken = Counter[str]()
    for group in plan.groups:
        native = sum(share.total_bytes for share in group.shares if share.native and not share.own_memory)
        head = machines[group.shares[0].device] if group.mode == "single" else ""
        if native + group.head_bytes:
            taken[head] += needed_bytes(native + group.head_bytes)
        for share in group.workers:
            taken[machines[share.device]] += 0 if share.own_memory else needed_bytes(share.total_bytes)
    return taken


def assert_whole(plan: Plan, memory: ModelMemory) -> None:
    for group in plan.groups:
        if group.mode == "tensor":
            assert sum(group.tensor_split) == memory.kv_heads
            assert all(share.layers == memory.blocks for share in group.shares)
        else:
            placed = [layer for one in group.shares for layer in range(one.first_layer, one.first_layer + one.layers)]
            assert placed == list(range(memory.blocks))


def test_the_chosen_plan_is_within_a_tie_of_the_best() -> None:
    for survey, memory, goal in cases():
        found = ranking(survey, memory, goal)
        if found:
            worth_it = [plan for plan in found.plans if not is_a_lone_worker(plan, found)]
            assert seconds(found.chosen) <= min(map(seconds, worth_it)) * (1 + ORDER_NOISE)


def is_a_lone_worker(plan: Plan, found: Ranking) -> bool:
    """One worker for all layers beside a head at the same device that it gains too little over."""
    return any(gains_too_little(plan, other, seconds(plan) / seconds(other)) for other in found.plans)


def test_a_forced_mode_gives_that_mode_only_and_fails_only_where_it_is_in_no_ranking() -> None:
    for survey, memory, goal in cases():
        found = ranking(survey, memory, goal)
        modes = {plan.mode for plan in found.plans} if found else set()
        for mode in MODES:
            forced = ranking(survey, memory, goal, mode)
            assert {plan.mode for plan in forced.plans} == {mode} if forced else mode not in modes


def test_the_order_of_hosts_changes_nothing() -> None:
    for seed, (survey, memory, goal) in enumerate(cases()):
        hosts: list[HostSurvey] = Random(seed).sample(survey.hosts, len(survey.hosts))
        assert ranking(replace(survey, hosts=tuple(hosts)), memory, goal) == ranking(survey, memory, goal)


def test_more_budget_is_never_a_worse_plan() -> None:
    for seed, (survey, memory, goal) in enumerate(cases()):
        random = Random(seed)
        more = {one.name: with_budget(one, random.randint(0, 800)) for one in survey.devices}
        assert_no_worse(ranking(survey, memory, goal), ranking(with_devices(survey, more), memory, goal))


def with_budget(device: Device, more_mib: int) -> Device:
    budget = device.budget
    more = replace(
        budget, free_bytes=budget.free_bytes + more_mib * MIB, capped_bytes=device.budget.usable_bytes + more_mib * MIB
    )
    return replace(device, budget=more)


def faster_worker(device: Device) -> Device:
    return replace(device, speed=twice_as_fast(device.speed))


def faster_natively(device: Device) -> Device:
    return replace(device, native=twice_as_fast(device.native))


def faster_link(device: Device) -> Device:
    link = device.link
    up, down = 2 * link.up_bytes_per_s, 2 * link.down_bytes_per_s
    return replace(
        device, link=replace(link, round_trip_s=link.round_trip_s / 2, up_bytes_per_s=up, down_bytes_per_s=down)
    )


def twice_as_fast(speed: Speed) -> Speed:
    passes = tuple(replace(one, layers_s=tuple(s / 2 for s in one.layers_s)) for one in speed.passes)
    return replace(speed, passes=passes, output_s=speed.output_s / 2)


def richer(device: Device) -> Device:
    return with_budget(device, 200)


FASTER = (faster_worker, faster_natively, faster_link)


@pytest.mark.parametrize("faster", FASTER)
def test_a_faster_device_is_never_a_worse_plan(faster: Callable[[Device], Device]) -> None:
    for seed, (survey, memory, goal) in enumerate(cases()):
        one = Random(seed).choice(survey.devices)
        changed = with_devices(survey, {one.name: faster(one)})
        assert_no_worse(ranking(survey, memory, goal), ranking(changed, memory, goal))


def assert_no_worse(before: Ranking | None, after: Ranking | None) -> None:
    if before is not None:
        assert after is not None
        assert seconds(after.chosen) <= seconds(before.chosen) * WORSE


@pytest.mark.parametrize("better", [*FASTER, richer])
def test_where_speeds_differ_by_more_than_noise_the_best_of_all_plans_is_never_worse_at_all(
    better: Callable[[Device], Device],
) -> None:
    """Nothing is placed as if speeds were one, also when one of them doubles; some hosts are this machine itself."""
    for seed in SEEDS:
        random = Random(seed)
        speeds = random.sample([1.7**k for k in range(6)], random.randint(1, 5))
        devices = [replace(a_device(random, k), speed=make_speed(speed)) for k, speed in enumerate(speeds)]
        survey, memory = (
            make_survey(devices, local=[one.host for one in devices if random.random() < 0.4]),
            a_model(random),
        )
        one = random.choice(survey.devices)
        before, after = ranking(survey, memory), ranking(with_devices(survey, {one.name: better(one)}), memory)
        if before is not None:
            assert after is not None
            assert min(map(seconds, after.plans)) <= min(map(seconds, before.plans)) * TIE_BREAK, seed


CROWDED = range(200)


def a_crowd(random: Random) -> tuple[Survey, ModelMemory]:
    """Some of the devices are this machine, whose memory does not hold all of their budgets; no two are as fast."""
    speeds = random.sample([1.7**k for k in range(6)], random.randint(2, 4))
    devices = [replace(a_device(random, k), speed=make_speed(speed)) for k, speed in enumerate(speeds)]
    local = [one.host for one in devices[: random.randint(2, len(devices))]]
    budgets = sum(one.budget.usable_bytes for one in devices if one.host in local) // MIB
    return make_survey(devices, local=local, controller_mib=random.randint(200, max(200, budgets))), a_model(random)


def best_s(survey: Survey, memory: ModelMemory, asked: Asked) -> float:
    """Of the best of all plans, infinite where there is none."""
    try:
        return min(map(seconds, rank_plans(survey, (memory,), asked).plans))
    except PlanError:
        return inf


def test_a_device_more_is_never_a_worse_plan_also_on_a_machine_whose_memory_it_shares() -> None:
    for seed in CROWDED:
        random = Random(seed)
        survey, memory = a_crowd(random)
        names, goal = [one.name for one in survey.devices], random.choice(GOALS)
        fewer = frozenset(random.sample(names, random.randint(1, len(names) - 1)))
        without = best_s(survey, memory, Asked(goal, devices=fewer))
        assert best_s(survey, memory, Asked(goal)) <= without * TIE_BREAK, seed


@pytest.mark.parametrize("goal", GOALS)
def test_more_budget_on_a_machine_whose_memory_is_shared_is_never_a_worse_plan(goal: str) -> None:
    for seed in CROWDED:
        random = Random(seed)
        survey, memory = a_crowd(random)
        one = random.choice(survey.devices)
        more = with_devices(survey, {one.name: with_budget(one, random.choice([50, 200, 1000]))})
        assert best_s(more, memory, Asked(goal)) <= best_s(survey, memory, Asked(goal)) * TIE_BREAK, seed


def test_more_budget_is_never_a_worse_latency_where_no_device_serves_all_conversations(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What fits only for some of them is fastest in a group that serves few, whatever the others would gain by more.

    Here a worker need not gain a fifth to be taken instead of a head.
    """
    monkeypatch.setattr(heads, "WORTH_WORKERS", -inf)
    for seed in range(70):
        random = Random(seed)
        memory = make_memory(random.randint(4, 12), layer_mib=20, kv_mib=20, parallel=random.choice([3, 4]))
        first, *others = (
            make_device(f"h{k}/cpu", random.randint(100, 600), gib_per_s=random.choice([1, 2, 4]), link=link)
            for k, link in enumerate(random.choices([FAST_LINK, SLOW], k=3))
        )
        before = best_s(make_survey([first, *others]), memory, Asked("latency"))
        more = make_survey([with_budget(first, random.choice([20, 50, 100])), *others])
        assert best_s(more, memory, Asked("latency")) <= before * TIE_BREAK, seed


def test_single_devices_are_all_that_hold_the_model_fastest_first() -> None:
    """Brute force over 500 surveys: what a device must hold and how fast it is, written out again."""
    for seed in range(500):
        random = Random(seed)
        survey, memory = a_survey(random), a_model(random)
        weights = sum(memory.layer_weights_bytes)
        inputs = 0 if memory.output_tied else memory.input_bytes
        needed = needed_bytes(memory.total_bytes + inputs)
        times = {
            one.name: layers_seconds(one.native, weights, 1) + output_seconds(one.native, memory.output_bytes)
            for one in survey.devices
            if one.native.measured and one.budget.usable_bytes >= needed
        }
        found = find_singles(survey, (memory,), find_candidates(survey, None))
        assert {group.shares[0].device: group.token_s for group in found} == pytest.approx(times)
        assert [group.token_s for group in found] == sorted(group.token_s for group in found)


def errors(kv: int = 1, beside: Device | None = None) -> Iterator[tuple[str, Survey, ModelMemory, str, PlanError]]:
    """Every mode that has no plan, over all cases, the cache so many times as large as there, with one device more."""
    for alone, memory, goal in cases():
        survey = make_survey([*alone.devices, beside]) if beside else alone
        memory = replace(memory, layer_kv_bytes=tuple(kv * size for size in memory.layer_kv_bytes))
        for mode in MODES:
            try:
                rank_plans(survey, (memory,), Asked(goal, mode=mode))
            except PlanError as error:
                yield mode, survey, memory, goal, error


def test_without_a_plan_a_device_that_could_not_be_measured_is_in_the_error_of_every_mode() -> None:
    """It might be the one that holds the model. Not where no device is to blame: see below."""
    failed, seen = replace(make_device("x/cuda0", 9000, gib_per_s=0), note="out of memory"), set()
    for mode, _, memory, _, error in errors(beside=failed):
        if not (mode == "replicas" and memory.parallel < 2) and not (mode == "tensor" and memory.kv_heads < 2):
            seen.add(mode)
            assert "\nx/cuda0: out of memory" in str(error)
    assert seen == {*MODES}


def test_without_a_plan_every_device_its_budget_and_a_way_out_are_in_the_error() -> None:
    """But where no budget is to blame: of tensor one device or KV head, of replicas one conversation."""
    seen = set()
    for mode, survey, memory, _, error in errors():
        assert error.hint
        if mode == "replicas" and memory.parallel < 2:
            assert "parallel is 1" in str(error)
        elif mode != "tensor" or min(memory.kv_heads, len(survey.devices)) > 1:
            seen.add(mode)
            for one in survey.devices:
                assert one.name in str(error)
                assert budget_told(mode, survey, memory, one) in str(error)
    assert seen == {*MODES}


def budget_told(mode: str, survey: Survey, memory: ModelMemory, device: Device) -> str:
    """In mode layers a summand of what all have; of heads alone, that of a device that holds none."""
    budget_bytes = device.budget.usable_bytes
    if mode == "layers":
        return in_unit(budget_bytes, unit_for(sum(one.budget.usable_bytes for one in survey.devices))[1])
    if mode == "tensor" or budget_bytes < alone_bytes(memory, memory.parallel if mode == "single" else 1):
        return bytes_text(budget_bytes)
    return ""


def alone_bytes(memory: ModelMemory, conversations: int) -> int:
    """The budget that so many conversations need on one device."""
    inputs = 0 if memory.output_tied else memory.input_bytes
    return needed_bytes(with_kv(memory, memory.context, conversations).total_bytes + inputs)


def test_a_lower_context_or_parallel_is_proposed_exactly_where_there_is_a_plan_then() -> None:
    """Of contexts the largest power of two."""
    proposed = set()
    for mode, survey, memory, goal, error in errors(kv=16):
        fewer = range(memory.parallel - 1, 0, -1)
        most = next((n for n in fewer if ranking(survey, with_kv(memory, memory.context, n), goal, mode)), None)
        told = re.search(r"lower parallel to (\d+)", error.hint)
        assert (int(told[1]) if told else None) == most, error
        contexts = (memory.context >> step for step in range(1, 5))
        shorter = (one for one in contexts if ranking(survey, with_kv(memory, one, memory.parallel), goal, mode))
        told = re.search(r"lower context to (\d+)", error.hint)
        largest = next(shorter, None)
        assert (int(told[1]) if told else None) == largest, error
        proposed.add((mode, told is not None))
    assert proposed == {(mode, told) for mode in MODES for told in (False, True)}


def test_a_mode_has_a_plan_exactly_where_brute_force_finds_room_for_the_model() -> None:
    """Of replicas only what heads alone can do: groups form in too many ways."""
    for survey, memory, goal in cases():
        budgets = [one.budget.usable_bytes for one in survey.devices]
        room = holds_layers(memory, budgets, output=True) or holds_layers(memory, budgets, output=False)
        assert (ranking(survey, memory, goal, "layers") is not None) is room
        assert (ranking(survey, memory, goal, "tensor") is not None) is holds_parts(memory, budgets)
        if heads_hold(memory, survey.devices):
            assert ranking(survey, memory, goal, "replicas") is not None


def test_the_layers_that_the_devices_hold_are_counted_as_brute_force_has_them() -> None:
    """With the output layer, or without it where they then hold more: the head has room for it here."""
    seen = set()
    for mode, survey, memory, _, error in errors():
        if mode == "layers":
            (told,) = re.findall(r"they hold (\d+) of (\d+) layers(,| and) (?:with )?the output layer", str(error))
            held, blocks, on_head = int(told[0]), int(told[1]), told[2] == ","
            seen.add(on_head)
            budgets = [one.budget.usable_bytes for one in survey.devices]
            assert blocks == memory.blocks
            assert held == 0 or holds_layers(first_layers(memory, held), budgets, output=not on_head)
            for output in (True, False):
                assert not holds_layers(first_layers(memory, held + 1), budgets, output=output)
            assert not on_head or not holds_layers(first_layers(memory, held), budgets, output=True)
    assert seen == {True, False}


def first_layers(memory: ModelMemory, count: int) -> ModelMemory:
    weights, kv = memory.layer_weights_bytes[:count], memory.layer_kv_bytes[:count]
    return replace(memory, layer_weights_bytes=weights, layer_kv_bytes=kv)


def holds_layers(memory: ModelMemory, budgets: Sequence[int], *, output: bool) -> bool:
    """Whether some devices, in some order, hold all layers, the last one the output layer too where `output`: it takes
    as many of the last layers as it can, the others as many of the first."""
    orders = (order for count in range(len(budgets)) for order in permutations(range(len(budgets)), count + 1))
    return any(fills(memory, [budgets[k] for k in order], output=output) for order in orders)


def fills(memory: ModelMemory, budgets: Sequence[int], *, output: bool) -> bool:
    begin, end = 0, memory.blocks
    for budget in budgets[:-1]:
        begin = max(one for one in range(begin, end) if one == begin or stage_bytes(memory, begin, one) <= budget)
    more = memory.output_bytes + memory.compute_last_bytes - memory.compute_bytes if output else 0
    return any(stage_bytes(memory, one, end, more) <= budgets[-1] for one in range(begin + 1))


def stage_bytes(memory: ModelMemory, begin: int, end: int, more: int = 0) -> int:
    held = memory.layer_weights_bytes[begin:end] + memory.layer_kv_bytes[begin:end]
    return needed_bytes(sum(held) + memory.compute_bytes + more)


def holds_parts(memory: ModelMemory, budgets: Sequence[int]) -> bool:
    """Whether two devices or more hold all parts, one per KV head, each of them at least one."""
    heads = memory.kv_heads
    needs = [needed_bytes(part_bytes(memory, part, heads).total_bytes) for part in range(1, heads + 1)]
    most = sorted((sum(need <= budget for need in needs) for budget in budgets), reverse=True)[:heads]
    return len([one for one in most if one]) > 1 and sum(most) >= heads


def heads_hold(memory: ModelMemory, devices: Sequence[Device]) -> bool:
    """Whether two devices or more hold a copy each with memory for all conversations among them."""
    needs = [alone_bytes(memory, count) for count in range(1, memory.parallel + 1)]
    held = [sum(need <= one.budget.usable_bytes for need in needs) for one in devices if one.native.measured]
    return memory.parallel > 1 and len([one for one in held if one]) > 1 and sum(held) >= memory.parallel
