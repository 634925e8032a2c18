"""What heads on one machine take from each other's processors; figures as they were measured (see the module)."""

from dataclasses import replace

import pytest

from orchestrator.plan.asked import Asked
from orchestrator.plan.choose import rank_plans
from orchestrator.plan.contention import contended
from orchestrator.plan.conversations import for_conversations
from orchestrator.plan.pools import find_candidates
from orchestrator.plan.replicas import find_replicas
from orchestrator.plan.single import run_alone
from orchestrator.plan.split import find_splits
from orchestrator.plan.values import Group
from orchestrator.survey.values import HostSurvey, Survey
from tests.orchestrator.plan.examples import make_device, make_gpu, make_memory, make_survey


def a_machine(*threads: int, cores: int = 2, quota: float | None = None) -> Survey:
    """Local hosts with so many threads on one machine of so many cores."""
    devices = [replace(make_device(f"h{k}/cpu", 4000), threads=one) for k, one in enumerate(threads)]
    survey = make_survey(devices, local=[one.host for one in devices])
    facts = replace(survey.controller, cores_physical=cores)
    of_hosts = replace(facts, cpu_quota=quota)
    return replace(survey, controller=facts, hosts=tuple(replace(host, facts=of_hosts) for host in survey.hosts))


def heads_of(survey: Survey, conversations: int = 2) -> tuple[Group, ...]:
    """One on each device, in their order."""
    memories = for_conversations((make_memory(8, parallel=8),), conversations)
    heads = {one.device.name: run_alone(memories, one) for one in find_candidates(survey, None)}
    return tuple(heads[one.name] for one in survey.devices)


def slower(survey: Survey) -> list[float]:
    """How many times as long as alone a step of each head takes."""
    heads = heads_of(survey)
    return [one.step_s / alone.step_s for one, alone in zip(contended(survey, heads), heads, strict=True)]


def test_heads_on_machines_of_their_own_take_nothing_from_each_other() -> None:
    survey = make_survey([make_device("a/cpu", 4000), make_device("b/cpu", 4000)])
    heads = heads_of(survey)
    assert contended(survey, heads) is heads


@pytest.mark.parametrize(
    ("threads", "times"),
    [
        ((1, 1), [1.0, 1.0]),
        ((1, 1, 1), [1.5, 1.5, 1.5]),
        ((1, 1, 1, 1), [2.0] * 4),
        ((2, 1), [1.5**2, 1.5]),
        ((2, 2), [4.0, 4.0]),
    ],
)
def test_threads_that_are_more_than_the_cores_share_them(threads: tuple[int, ...], times: list[float]) -> None:
    assert slower(a_machine(*threads)) == pytest.approx(times)


def test_what_one_conversation_takes_alone_stays() -> None:
    survey = a_machine(2, 2)
    heads = heads_of(survey)
    assert [one.token_s for one in contended(survey, heads)] == [one.token_s for one in heads]


def test_threads_that_were_too_many_when_they_were_timed_are_not_counted_twice() -> None:
    assert slower(a_machine(4, cores=2)) == [1.0]
    assert slower(a_machine(4, 4, cores=4)) == pytest.approx([4.0, 4.0])
    assert slower(a_machine(4, 4, cores=2)) == pytest.approx([4.0, 4.0])


def test_a_quota_lets_no_more_threads_run() -> None:
    assert slower(a_machine(1, 1, 1, 1, quota=0.25)) == [1.0] * 4
    assert slower(a_machine(1, 1, 1, 1, quota=0.75)) == pytest.approx([1.5] * 4)


def with_processors(survey: Survey, *processors: tuple[int, ...]) -> Survey:
    def bound(host: HostSurvey, mine: tuple[int, ...]) -> HostSurvey:
        return replace(host, facts=replace(host.facts, processors=mine, cores_physical=len(mine)))

    return replace(survey, hosts=tuple(bound(*one) for one in zip(survey.hosts, processors, strict=True)))


def test_hosts_that_are_bound_to_other_processors_do_not_meet() -> None:
    survey = a_machine(4, 4, cores=8)
    assert slower(with_processors(survey, (0, 1, 2, 3), (4, 5, 6, 7))) == [1.0, 1.0]
    assert slower(with_processors(survey, (0, 1, 2, 3), (0, 1, 2, 3))) == pytest.approx([4.0, 4.0])


def test_of_a_host_with_more_processors_only_what_may_run_on_the_same_ones_counts() -> None:
    """Two threads on two of eight processors: two of the other host's eight are there, too."""
    overlapping = with_processors(a_machine(2, 8, cores=8), (0, 1), tuple(range(8)))
    assert slower(overlapping) == pytest.approx([4.0, 1.25**2])


def test_a_survey_that_knows_of_no_cores_is_planned_with() -> None:
    assert slower(a_machine(0, 0, cores=0)) == [1.0, 1.0]


def test_hosts_behind_ssh_that_are_one_kernel_share_it() -> None:
    survey = make_survey([make_device("a/cpu", 4000), make_device("b/cpu", 4000)])
    one = replace(survey, hosts=tuple(replace(each, facts=replace(each.facts, boot="1")) for each in survey.hosts))
    assert slower(one) == pytest.approx([4.0, 4.0])


def test_output_layers_on_the_controller_take_from_each_other_what_they_are_of_a_step() -> None:
    """Each keeps its eight threads busy for a third of a step or so: the other is then that much slower."""
    survey = make_survey([make_device("a/cpu", 4000), make_device("b/cpu", 4000)])
    memories = (make_memory(8, parallel=1),)
    heads = tuple(
        next(
            one
            for one in find_splits(survey, memories, [candidate], goal="throughput")
            if one.output_on_head and len(one.shares) == 1
        )
        for candidate in find_candidates(survey, None)
    )
    part = heads[0].head_time_s / heads[0].token_s
    assert 0.1 < part < 0.9
    beside = contended(survey, heads)
    assert [one.step_s for one in beside] == [beside[0].step_s] * 2
    assert heads[0].step_s * (1 + part * part) < beside[0].step_s < heads[0].step_s * (1 + 3 * part)


def test_the_output_layer_of_a_head_with_a_card_of_its_own_host_is_computed_on_the_controller() -> None:
    card = make_gpu("desk/cuda0", 600, gib_per_s=40, native_gib_per_s=40)
    survey = make_survey([card, make_device("far/cpu", 4000), make_device("other/cpu", 4000)], local=["desk"])
    memories, candidates = (make_memory(8, parallel=1),), find_candidates(survey, None)[:2]
    one = next(
        group
        for group in find_splits(survey, memories, candidates, goal="throughput")
        if group.output_on_head and group.head == "desk" and not group.head_layers
    )
    others = {"far/cpu": "other/cpu"}
    two = replace(one, shares=tuple(replace(each, device=others.get(each.device, each.device)) for each in one.shares))
    beside = contended(survey, (one, two))
    assert beside[0].step_s > one.step_s
    assert beside[0].step_alone_s == pytest.approx(one.step_s)


def replicas(survey: Survey, parallel: int) -> tuple[tuple[Group, ...], ...]:
    memories = (make_memory(8, parallel=parallel),)
    candidates = find_candidates(survey, None)
    return find_replicas(survey, memories, find_splits(survey, memories, candidates, goal="throughput"), (), candidates)


def test_of_heads_that_cost_more_than_they_bring_fewer_are_used() -> None:
    """Two local hosts with all threads each, beside one of its own."""
    survey = a_machine(2, 2)
    own = make_survey([make_device("own/cpu", 4000)])
    best = replicas(replace(survey, hosts=(*survey.hosts, *own.hosts)), parallel=4)[0]
    heads = [{share.device for share in one.shares} for one in best]
    assert len(heads) == 2
    assert {"own/cpu"} in heads


def test_what_would_take_the_place_of_a_head_on_its_machine_is_no_better() -> None:
    """Five local hosts with all threads each, four of which would have a conversation: without one of them the fifth
    has it."""
    survey = a_machine(*[2] * 5)
    best = find_replicas(survey, (make_memory(8, parallel=4),), (), (), find_candidates(survey, None))[0]
    assert [one.parallel for one in best] == [2, 2]


def test_of_a_head_that_its_machine_is_too_small_for_that_is_said() -> None:
    survey, own = a_machine(2, 2), make_survey([make_device("own/cpu", 4000)])
    survey = replace(survey, hosts=(*survey.hosts, *own.hosts), tensor_refused="no")
    asked = Asked("throughput", mode="replicas", devices=frozenset({"h0/cpu", "h1/cpu", "own/cpu"}))
    (left,) = rank_plans(survey, (make_memory(8, parallel=4),), asked).chosen.left_out
    assert "; beside what computes on its machine a step of it would take 4.0 times as long" in left.reason


def test_what_heads_take_from_each_other_is_said_and_no_fault_of_their_conversations() -> None:
    asked = Asked("throughput", mode="replicas")
    plan = rank_plans(replace(a_machine(2, 2), tensor_refused="no"), (make_memory(8, parallel=2),), asked).chosen
    told = [one for one in plan.reasons if one.startswith(("h0/cpu:", "h1/cpu:"))]
    assert {group.mode for group in plan.groups} == {"single"}
    assert told == [f"h{k}/cpu: a step takes 4.0 times as long while all heads on its machine are busy" for k in (0, 1)]


def test_a_machine_that_is_two_hosts_is_better_off_with_one_head_of_all_threads() -> None:
    memories, goal = (make_memory(8, parallel=4),), Asked("throughput")
    of_two, of_one = (replace(a_machine(*threads), tensor_refused="no") for threads in ((2, 2), (1, 1)))
    assert rank_plans(of_two, memories, goal).chosen.mode != "replicas"
    assert rank_plans(of_one, memories, goal).chosen.mode == "replicas"
