"""Rankings of whole surveys: which plan is best for which goal, why, and the errors when there is none."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest

from orchestrator.errors import PlanError
from orchestrator.plan.asked import Asked
from orchestrator.plan.choose import in_order, rank_plans
from orchestrator.plan.conversations import with_kv
from orchestrator.plan.experience import NO_EXPERIENCE, Experience, Measured, record_of
from orchestrator.plan.pools import find_candidates
from orchestrator.plan.reasons import reasons_for
from orchestrator.plan.values import Group, GroupMode, Known, LeftOut, ModelMemory, Plan, PlanMode
from orchestrator.survey.values import Device, Link, Survey
from tests.orchestrator.plan.examples import LOOPBACK, make_device, make_gpu, make_memories, make_memory, make_survey
from workers.budget import MIB, Budget

FAR = Link("tunnel", round_trip_s=0.0031, up_bytes_per_s=12 * MIB, down_bytes_per_s=12 * MIB)

LATENCY = Asked("latency")
REFUSED = "unknown architecture"

ONE_HOLDS_IT = (make_device("a/cpu", 2000), make_device("b/cpu", 1000, gib_per_s=2))
SLOW_HOLDS_IT = (make_device("a/cpu", 2000, gib_per_s=1), make_device("b/cpu", 700), make_device("c/cpu", 700))
TWO_NEAR = (make_device("a/cpu", 2000, link=LOOPBACK), make_device("b/cpu", 2000, link=LOOPBACK))
TWO_FAR = (make_device("a/cpu", 2000, link=FAR), make_device("b/cpu", 2000, link=FAR))
TOO_SMALL = (make_device("a/cpu", 700), make_device("b/cpu", 100))


@dataclass(frozen=True)
class Case:
    """A survey and what its best plan must be: shares as "DEVICE LAYERS" or "DEVICE PART/ALL", all or some reasons."""

    name: str
    devices: tuple[Device, ...]
    mode: str
    shares: tuple[str, ...]
    reasons: tuple[str, ...] = ()
    asked: Asked = LATENCY
    parallel: int = 1
    tensor_refused: str = ""


CASES = (
    Case(
        "one device that holds everything, when nothing is faster",
        ONE_HOLDS_IT,
        "single",
        ("a/cpu 10",),
        (
            "a/cpu holds the whole model and runs it natively: 107 ms per token",
            "tensor (a/cpu and b/cpu): 107 ms per token, by a formula alone (1 hop, 20 synchronisations, 861 KiB per "
            "token), as fast within 1%; single (a/cpu) reads prompts 51% faster",
        ),
    ),
    Case(
        "layers over two when the one that holds everything is slow and the engine cannot cut layers",
        SLOW_HOLDS_IT,
        "layers",
        ("b/cpu 5", "c/cpu 5"),
        (
            "b/cpu and c/cpu one after the other, each with some of the layers: 108 ms per token",
            "single (a/cpu): 1.1 s per token; this is 9.93 times as fast",
            "no tensor: the engine cannot cut this model's layers (unknown architecture)",
            "output layer on the head: 108 ms per token, on the last device 198 ms per token; "
            "195 KiB of logits per token stay off the link",
        ),
        tensor_refused=REFUSED,
    ),
    Case(
        "every layer over two on a fast link",
        TWO_NEAR,
        "tensor",
        ("a/cpu 4/8", "b/cpu 4/8"),
        (
            "a/cpu and b/cpu each with a part of every layer: 54.4 ms per token",
            "single (a/cpu): 107 ms per token; this is 1.97 times as fast",
            "layers (a/cpu and b/cpu): 107 ms per token (2 hops, 2 synchronisations, 32.0 KiB per token); this is 1.98 "
            "times as fast",
        ),
    ),
    Case("one of them on a slow link, for one conversation", TWO_FAR, "single", ("a/cpu 10",), parallel=8),
    Case(
        "both of them with a copy each on a slow link, for many conversations",
        TWO_FAR,
        "replicas",
        ("a/cpu 10", "b/cpu 10"),
        (
            "2 heads share 8 conversations (a/cpu 4, b/cpu 4): 52.1 tokens per second with 8 conversations",
            "single (a/cpu): 37.2 tokens per second with 8 conversations; this is 1.40 times as fast",
        ),
        asked=Asked("throughput"),
        parallel=8,
    ),
    Case(
        "a mode that is asked for, although others are faster",
        SLOW_HOLDS_IT,
        "single",
        ("a/cpu 10",),
        (
            "mode single was asked for",
            "a/cpu holds the whole model and runs it natively: 1.1 s per token",
            "layers (b/cpu and c/cpu): 108 ms per token (2 hops, 2 synchronisations, 32.0 KiB per token), "
            "9.93 times as fast as this",
            "tensor (b/cpu and c/cpu): 66.4 ms per token, by a formula alone (1 hop, 20 synchronisations, 861 KiB per "
            "token), "
            "16.19 times as fast as this",
        ),
        asked=Asked("latency", mode="single"),
    ),
    Case(
        "a split that is asked for, in its order",
        TWO_NEAR,
        "layers",
        ("b/cpu 3", "a/cpu 7"),
        ("this split was asked for",),
        asked=Asked("latency", split={"b/cpu": 3, "a/cpu": 7}),
    ),
    Case(
        "only the devices that are asked for",
        TWO_NEAR,
        "single",
        ("b/cpu 10",),
        asked=Asked("latency", devices=frozenset({"b/cpu"})),
    ),
    Case(
        "layers shared evenly where speeds differ by noise",
        (make_device("left/cpu", 700, link=FAR), make_device("right/cpu", 700, gib_per_s=10.3, link=FAR)),
        "layers",
        ("right/cpu 5", "left/cpu 5"),
        (
            "no single device holds the whole model: it needs 1.3 GiB, the largest budget is 700 MiB (right/cpu)",
            "left/cpu and right/cpu differ by 3%, within what counts as noise: layers shared evenly",
        ),
    ),
    Case(
        "one more to the last worker, of whose last layer a prompt needs little and which sends next to nothing back",
        (make_device("left/cpu", 1000, link=FAR), make_device("right/cpu", 1000, gib_per_s=10.3, link=FAR)),
        "layers",
        ("left/cpu 4", "right/cpu 6"),
        (
            "left/cpu and right/cpu differ by 3%, within what counts as noise: layers shared as evenly as their sizes, "
            "the budgets and the prefill speeds allow",
        ),
    ),
    Case(
        "as one worker what was not timed natively",
        (make_device("a/cpu", 2000, native_gib_per_s=0),),
        "layers",
        ("a/cpu 10",),
        ("no single device: a/cpu would hold the whole model but was not timed natively",),
    ),
)


def chosen(
    survey: Survey, memories: Sequence[ModelMemory], asked: Asked, experience: Experience = NO_EXPERIENCE
) -> Plan:
    return rank_plans(survey, memories, asked, experience).chosen


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_best_plan_of_each_case(case: Case) -> None:
    survey = make_survey(case.devices, tensor_refused=case.tensor_refused)
    plan = chosen(survey, (make_memory(parallel=case.parallel),), case.asked)
    assert (plan.mode, shares(plan)) == (case.mode, case.shares)
    assert [reason for reason in plan.reasons if reason in case.reasons] == list(case.reasons)


def shares(plan: Plan) -> tuple[str, ...]:
    return tuple(f"{one.device} {f'{one.part}/8' if one.part else one.layers}" for one in plan.shares)


def test_all_candidates_are_ranked_and_each_says_how_the_best_compares() -> None:
    ranking = rank_plans(make_survey(TWO_NEAR), make_memories(make_memory(parallel=8)), Asked("throughput"))
    assert ranking.plans[0] == ranking.chosen
    assert {plan.mode for plan in ranking.plans} == {"single", "layers", "tensor", "replicas"}
    assert all(plan.reasons[-1].startswith("tensor (a/cpu and b/cpu): ") for plan in ranking.plans[1:])


def test_the_best_plan_says_why_it_leaves_devices_out() -> None:
    survey = make_survey([*ONE_HOLDS_IT, make_device("c/cpu", 0)])
    plan = chosen(survey, (make_memory(),), Asked("latency", devices=frozenset({"a/cpu", "c/cpu"})))
    assert plan.left_out == (
        LeftOut("b/cpu", "not among the devices asked for"),
        LeftOut("c/cpu", "it has no budget"),
    )


def a_plan(mode: PlanMode, token_s: float, prefill_s: float = 1.0, goal: str = "latency") -> Plan:
    """A plan of one group with these times; replicas of two such groups."""
    survey = make_survey([make_device("a/cpu", 2000)])
    (group,) = chosen(survey, (make_memory(),), Asked("latency", mode="single")).groups
    timed: Group = replace(group, token_s=token_s, step_s=token_s, prefill_s=prefill_s)
    groups = (timed, timed) if mode == "replicas" else (timed,)
    return Plan(mode, goal, "llama.gguf", 4096, 1, groups)


@pytest.mark.parametrize(
    ("name", "plans", "order"),
    [
        ("the faster token", (a_plan("single", 0.2), a_plan("layers", 0.1, 9.0)), (1, 0)),
        ("the faster prompt of equals", (a_plan("single", 0.1, 2.0), a_plan("tensor", 0.1005, 1.0)), (1, 0)),
        ("the head itself before a worker that gains 4 %", (a_plan("layers", 0.1), a_plan("single", 0.104)), (1, 0)),
        ("a worker that gains 6 % before the head", (a_plan("single", 0.106), a_plan("layers", 0.1)), (1, 0)),
        (
            "the simpler mode of equals",
            (a_plan("tensor", 0.1), a_plan("layers", 0.1005), a_plan("single", 0.1)),
            (2, 1, 0),
        ),
        (
            "what is faster than the head itself before it, when a worker is not worth it",
            (a_plan("layers", 0.1), a_plan("tensor", 0.102), a_plan("single", 0.104)),
            (1, 2, 0),
        ),
        ("copies after what they copy", (a_plan("replicas", 0.1, 1.0), a_plan("single", 0.1, 2.0)), (1, 0)),
    ],
)
def test_for_latency_comes_first(name: str, plans: tuple[Plan, ...], order: tuple[int, ...]) -> None:
    assert in_order(plans, "latency") == tuple(plans[k] for k in order)


@pytest.mark.parametrize(
    ("fastest_s", "slowest_s", "replicas_first"),
    [(0.08, 0.19, True), (0.08, 0.21, False), (0.06, 0.9, True)],
)
def test_for_latency_a_fast_conversation_is_not_worth_slow_ones(
    fastest_s: float, slowest_s: float, replicas_first: bool
) -> None:
    """Beside a plan of 100 ms for each: twice as slow, unless the fastest one gains half."""
    fast, slow = a_plan("replicas", fastest_s).groups
    replicas = replace(a_plan("replicas", 0.1), groups=(fast, replace(slow, token_s=slowest_s, step_s=slowest_s)))
    layers = a_plan("layers", 0.1)
    assert in_order((layers, replicas), "latency") == ((replicas, layers) if replicas_first else (layers, replicas))


def test_of_copies_with_the_same_fastest_head_the_greater_aggregate_comes_first() -> None:
    plans = (a_plan("replicas", 0.1), a_plan("replicas", 0.1))
    slower = replace(plans[0], groups=(plans[0].groups[0], replace(plans[0].groups[1], step_s=0.12, mode="layers")))
    assert in_order((slower, plans[1]), "latency") == (plans[1], slower)


def test_for_throughput_comes_first_what_serves_all_fastest() -> None:
    plans = (a_plan("single", 0.1, goal="throughput"), a_plan("replicas", 0.15, goal="throughput"))
    assert in_order(plans, "throughput") == plans[::-1]


@pytest.mark.parametrize(
    ("other_s", "known", "tensor_first"),
    [(0.104, "predicted", False), (0.106, "predicted", True), (0.104, "measured", True)],
)
def test_for_throughput_devices_meet_where_that_gains_five_percent(
    other_s: float, known: Known, tensor_first: bool
) -> None:
    tensor, layers = a_plan("tensor", 0.1, goal="throughput"), a_plan("layers", other_s, goal="throughput")
    cut = replace(tensor, groups=tuple(replace(group, mode="tensor", known=known) for group in tensor.groups))
    assert in_order((cut, layers), "throughput") == ((cut, layers) if tensor_first else (layers, cut))


def test_a_gain_that_is_not_worth_it_is_told_with_its_own_reason() -> None:
    def faster(mode: GroupMode, goal: str) -> Plan:
        plan = a_plan(mode, 0.1, goal=goal)
        return replace(plan, groups=tuple(replace(group, mode=mode) for group in plan.groups))

    copies = a_plan("replicas", 0.1)
    starving = replace(copies, groups=(copies.groups[0], replace(copies.groups[1], step_s=0.3)))
    cases = (
        (faster("tensor", "throughput"), a_plan("layers", 0.104, goal="throughput"), "mostly predicted too high"),
        (faster("layers", "latency"), a_plan("single", 0.104), "without a worker is simpler"),
        (
            starving,
            a_plan("single", 0.104),
            "too little, since its slowest is 2.9 times as slow",
        ),
    )
    survey = make_survey([make_device("a/cpu", 2000)])
    candidates = find_candidates(survey, None)
    for other, best, why in cases:
        reasons = reasons_for(survey, make_memory(), candidates, best, (other,), LATENCY)
        (reason,) = (one for one in reasons if "1.04 times as fast as this" in one)
        assert reason.endswith(why)


def test_of_copies_that_are_as_fast_for_one_it_is_told_what_they_gain_for_all() -> None:
    survey = make_survey([make_device(f"{name}/cpu", 3000, native_gib_per_s=12) for name in "ab"], tensor_refused="no")
    plan = chosen(survey, (make_memory(parallel=4),), LATENCY)
    assert plan.mode == "single"
    (reason,) = (one for one in plan.reasons if one.startswith("replicas"))
    assert reason.endswith(
        "single is simpler; for 4 conversations at once the other is 1.2 times as fast: `--goal throughput`"
    )


def test_what_was_measured_before_corrects_the_ranking() -> None:
    survey, memories = make_survey(TWO_NEAR), (make_memory(),)
    (group,) = chosen(survey, memories, LATENCY).groups
    slow = record_of(group, Measured(1.0, 1.0, 10.0))
    ranking = rank_plans(survey, memories, LATENCY, Experience((slow,)))
    assert (group.mode, ranking.chosen.mode) == ("tensor", "layers")
    assert next(plan.token_s for plan in ranking.plans if plan.mode == "tensor") == pytest.approx(1.0)


def test_a_slow_run_does_not_send_a_plan_to_a_like_device_of_the_same_machine() -> None:
    """It would be as slow there, and its weights would have to go there first."""
    twins = [make_device(f"{name}/cpu", 3000) for name in "ab"]
    survey, memories = make_survey(twins, local=["a", "b"]), (make_memory(),)
    asked = Asked("latency", mode="single")
    first = chosen(survey, memories, asked)
    slow = record_of(first.groups[0], Measured(*(1.3 * one for one in (first.token_s, first.token_s, 2.0))))
    learnt = Experience((slow,), kinds={"a/cpu": "x", "b/cpu": "x"})
    again, other = rank_plans(survey, memories, asked, learnt).plans[:2]
    assert (again.shares[0].device, again.groups[0].known) == (first.shares[0].device, "measured")
    assert (other.shares[0].device, other.groups[0].known) == ("b/cpu", "corrected")
    elsewhere = rank_plans(survey, memories, asked, Experience((slow,))).chosen
    assert elsewhere.shares[0].device == "b/cpu"


@dataclass(frozen=True)
class Refusal:
    """A survey and model without a plan, and the whole error."""

    name: str
    message: str
    hint: str
    survey: Survey = make_survey(TOO_SMALL)  # noqa: RUF009 - frozen
    asked: Asked = LATENCY
    memory: ModelMemory = make_memory(parallel=4)  # noqa: RUF009 - frozen


SMALLER = "choose a smaller quantisation of the model"
BUFFERS = "split, each device also needs 56.0 MiB or more for its buffers and margin, and layers stay whole: they hold"
ON_HEAD = ", with the output layer on the head"
NEAR = make_survey(TWO_NEAR)
LARGER = make_survey([make_device("a/cpu", 700), make_device("b/cpu", 800)])
SMALL_CONTROLLER = make_survey([make_device("a/cpu", 700), make_device("b/cpu", 800)], controller_mib=64)
REFUSALS = (
    Refusal(
        "too little memory in sum",
        "llama.gguf needs 1.3 GiB at context 4096; the devices have 800 MiB (a/cpu 700, b/cpu 100)\n"
        f"{BUFFERS} 5 of 10 layers{ON_HEAD}\n"
        "b/cpu: budget 100 MiB holds no layer: the smallest needs 166 MiB with its buffers and margin",
        f"{SMALLER}, raise `memory` of a host, or add a host to the inventory",
    ),
    Refusal(
        "too many conversations",
        "llama.gguf needs 1.6 GiB at context 4096; the devices have 1.5 GiB (a/cpu 0.7, b/cpu 0.8)\n"
        f"{BUFFERS} 9 of 10 layers{ON_HEAD}",
        f"{SMALLER}, lower parallel to 2, lower context to 2048, raise `memory` of a host, "
        "or add a host to the inventory",
        LARGER,
        memory=make_memory(kv_mib=40, parallel=4),
    ),
    Refusal(
        "machines that have no more memory than their budgets take",
        "llama.gguf needs 1.3 GiB at context 4096; the devices have 800 MiB (a/cpu 700, b/cpu 100)\n"
        f"{BUFFERS} 5 of 10 layers{ON_HEAD}\n"
        "b/cpu: budget 100 MiB holds no layer: the smallest needs 166 MiB with its buffers and margin",
        f"{SMALLER}, or add a host to the inventory",
        make_survey([replace(one, budget=Budget(*(one.budget.usable_bytes,) * 2, 0)) for one in TOO_SMALL]),
    ),
    Refusal(
        "layers where one device alone would do",
        "llama.gguf needs 1.3 GiB at context 4096; the devices have 2.0 GiB (a/cpu 2.0)\n"
        "the head needs 86.0 MiB on the controller, which has 64.0 MiB available",
        "free memory on the controller, run meshctl on a larger machine, or choose another mode (single)",
        make_survey([make_device("a/cpu", 2000)], controller_mib=64),
        Asked("latency", mode="layers"),
    ),
    Refusal(
        "a controller too small for the head",
        "llama.gguf needs 1.3 GiB at context 4096; the devices have 1.5 GiB (a/cpu 0.7, b/cpu 0.8)\n"
        "the head needs 86.0 MiB on the controller, which has 64.0 MiB available",
        "free memory on the controller, or run meshctl on a larger machine",
        SMALL_CONTROLLER,
    ),
    Refusal(
        "a controller that never has enough for the head",
        "llama.gguf needs 1.3 GiB at context 4096; the devices have 1.5 GiB (a/cpu 0.7, b/cpu 0.8)\n"
        "the head needs 86.0 MiB on the controller, which has 64.0 MiB available",
        "run meshctl on a larger machine",
        replace(SMALL_CONTROLLER, controller=replace(SMALL_CONTROLLER.controller, memory_total_bytes=80 * MIB)),
    ),
    Refusal(
        "a controller too small for the head, and devices too small for the model",
        "llama.gguf needs 1.3 GiB at context 4096; the devices have 800 MiB (a/cpu 700, b/cpu 100)\n"
        "the head needs 86.0 MiB on the controller, which has 64.0 MiB available",
        f"{SMALLER}, or add a host to the inventory and run meshctl on a larger machine",
        make_survey(TOO_SMALL, controller_mib=64),
    ),
    Refusal(
        "too few devices, allowed or not",
        "llama.gguf needs 1.3 GiB at context 4096; the devices have 100 MiB (b/cpu 100)\n"
        f"{BUFFERS} 0 of 10 layers and the output layer\n"
        "b/cpu: budget 100 MiB holds no layer: the smallest needs 166 MiB with its buffers and margin",
        f"{SMALLER}, or add a host to the inventory and allow its devices",
        asked=Asked("latency", devices=frozenset({"b/cpu"})),
    ),
    Refusal(
        "too few devices allowed",
        "llama.gguf needs 1.3 GiB at context 4096; the devices have 700 MiB (a/cpu 700)\n"
        f"{BUFFERS} 5 of 10 layers{ON_HEAD}",
        f"{SMALLER}, raise `memory` of a host, or allow more devices",
        LARGER,
        Asked("latency", devices=frozenset({"a/cpu"})),
    ),
    Refusal(
        "single on devices that are each too small",
        "llama.gguf at context 4096 fits no single device: "
        "a/cpu needs 1.3 GiB and has 700 MiB; b/cpu needs 1.3 GiB and has 100 MiB",
        SMALLER,
        asked=Asked("latency", mode="single"),
    ),
    Refusal(
        "single on a device that was not timed natively",
        "llama.gguf at context 4096 fits no single device: a/cpu was not timed natively",
        f"{SMALLER}, survey again with --recalibrate, or choose another mode (layers)",
        make_survey([make_device("a/cpu", 2000, native_gib_per_s=0)]),
        Asked("latency", mode="single"),
    ),
    Refusal(
        "single on a device that is too small, and was not timed natively",
        "llama.gguf at context 4096 fits no single device: "
        "a/cpu needs 1.3 GiB and has 700 MiB and was not timed natively",
        SMALLER,
        make_survey([make_device("a/cpu", 700, native_gib_per_s=0)]),
        Asked("latency", mode="single"),
    ),
    Refusal(
        "tensor on devices that are too small",
        "llama.gguf at context 4096 does not fit in mode tensor: its layers are cut into 8 parts, one per KV head; "
        "2 to 8 devices can share them\n"
        "a/cpu holds 4 of 8 parts in 700 MiB; one part needs 227 MiB with buffers and margin\n"
        "b/cpu holds 0 of 8 parts in 100 MiB; one part needs 227 MiB with buffers and margin",
        SMALLER,
        asked=Asked("latency", mode="tensor"),
    ),
    Refusal(
        "tensor on devices that share too little memory",
        "llama.gguf at context 4096 does not fit in mode tensor: its layers are cut into 8 parts, one per KV head; "
        "2 to 8 devices can share them\n"
        "a/cpu holds 8 of 8 parts in 2.0 GiB; one part needs 227 MiB with buffers and margin\n"
        "b/cpu holds 8 of 8 parts in 2.0 GiB; one part needs 227 MiB with buffers and margin\n"
        "budgets of a/cpu and b/cpu cut to 28% together: their machine has 1.1 GiB beside 86.0 MiB of heads, "
        "they add up to 3.9 GiB",
        f"{SMALLER}, or choose another mode (single)",
        make_survey(TWO_NEAR, local="ab", controller_mib=1200),
        Asked("latency", mode="tensor"),
    ),
    Refusal(
        "tensor that failed when it was tried",
        "none of the groups that hold llama.gguf can run it in mode tensor\n"
        "mode tensor over a/cpu, b/cpu failed when it was tried",
        "see the warning of the survey on each, or choose another mode (single, layers, replicas)",
        replace(NEAR, tensor_failed=(("a/cpu", "b/cpu"),)),
        Asked("latency", mode="tensor"),
    ),
    Refusal(
        "tensor that the engine refuses",
        "the engine refuses mode tensor for llama.gguf: unknown architecture",
        "choose another mode (single, layers, replicas)",
        make_survey(TWO_NEAR, tensor_refused=REFUSED),
        Asked("latency", mode="tensor"),
    ),
    Refusal(
        "tensor that the engine refuses where nothing else fits",
        "the engine refuses mode tensor for llama.gguf: unknown architecture",
        "leave the mode out: no other has a plan either, and the error then says what is missing",
        make_survey(TOO_SMALL, tensor_refused=REFUSED),
        Asked("latency", mode="tensor"),
    ),
    Refusal(
        "tensor with one KV head",
        "llama.gguf has one KV head: no device can have less than one, so mode tensor has nothing to share",
        "choose another mode (single, layers)",
        NEAR,
        Asked("latency", mode="tensor"),
        make_memory(kv_heads=1),
    ),
    Refusal(
        "tensor on one device",
        "mode tensor needs 2 devices or more, and one can be used",
        "allow more devices, or choose another mode (single, layers)",
        NEAR,
        Asked("latency", mode="tensor", devices=frozenset({"a/cpu"})),
    ),
    Refusal(
        "replicas for one conversation",
        "mode replicas shares conversations among heads, and parallel is 1",
        "raise `parallel` to 2 or more, or choose another mode (single, layers, tensor)",
        NEAR,
        Asked("latency", mode="replicas"),
        make_memory(),
    ),
    Refusal(
        "replicas for one conversation where no two would have room",
        "mode replicas shares conversations among heads, and parallel is 1",
        f"raise `parallel` to 2 or more and {SMALLER}, or choose another mode (single, layers)",
        make_survey([make_device("a/cpu", 2000), make_device("b/cpu", 100)]),
        Asked("latency", mode="replicas"),
        make_memory(),
    ),
    Refusal(
        "replicas for one conversation on one device",
        "mode replicas shares conversations among heads, and parallel is 1",
        "raise `parallel` to 2 or more and add a host to the inventory, or choose another mode (single, layers)",
        make_survey([make_device("a/cpu", 2000)]),
        Asked("latency", mode="replicas"),
        make_memory(),
    ),
    Refusal(
        "replicas on one device",
        "llama.gguf at context 4096: no two heads or more with a whole copy each hold its 4 conversations together, be "
        "they devices or groups of devices; alone a/cpu holds one",
        "add a host to the inventory, or choose another mode (single, layers)",
        make_survey([make_device("a/cpu", 2000)]),
        Asked("latency", mode="replicas"),
    ),
    Refusal(
        "replicas with one copy at most",
        "llama.gguf at context 4096: no two heads or more with a whole copy each hold its 4 conversations together, be "
        "they devices or groups of devices; alone a/cpu holds one; b/cpu needs 1.3 GiB and has 100 MiB",
        f"{SMALLER}, or choose another mode (single, layers)",
        make_survey([make_device("a/cpu", 2000), make_device("b/cpu", 100)]),
        Asked("latency", mode="replicas"),
    ),
    Refusal(
        "replicas on devices that share memory for one copy",
        "llama.gguf at context 4096: no two heads or more with a whole copy each hold its 4 conversations together, be "
        "they devices or groups of devices; alone a/cpu holds one; b/cpu holds one\n"
        "budgets of a/cpu and b/cpu cut to 55% together: their machine has 2.1 GiB, they add up to 3.9 GiB",
        f"{SMALLER}, or choose another mode (single, layers, tensor)",
        make_survey(TWO_NEAR, local="ab", controller_mib=2200),
        Asked("latency", mode="replicas"),
    ),
    Refusal(
        "replicas on devices that hold too few conversations",
        "llama.gguf at context 4096: no two heads or more with a whole copy each hold its 4 conversations together, be "
        "they devices or groups of devices; alone a/cpu holds one with 1 of 4 conversations; b/cpu "
        "holds one with 2 of 4 conversations",
        f"{SMALLER}, lower parallel to 3, lower context to 2048, or choose another mode (layers, tensor)",
        make_survey([make_device("a/cpu", 1300), make_device("b/cpu", 1330)], controller_mib=100),
        Asked("latency", mode="replicas"),
    ),
    Refusal(
        "a split that is not the model's",
        "the split b/cpu=0 a/cpu=7 cannot run\nit has 7 layers, llama.gguf has 10\n"
        "b/cpu has 0 layers: it must have one or more",
        "change --split, or leave it out and let meshctl choose",
        NEAR,
        Asked("latency", split={"b/cpu": 0, "a/cpu": 7}),
    ),
    Refusal(
        "a split that is too large for a device",
        "the split b/cpu=5 a/cpu=5 cannot run\nb/cpu needs 614 MiB for 5 layers and has 100 MiB",
        "change --split, or leave it out and let meshctl choose",
        make_survey([make_device("a/cpu", 1000), make_device("b/cpu", 100), make_device("c/cpu", 1000)]),
        asked=Asked("latency", split={"b/cpu": 5, "a/cpu": 5}),
    ),
    Refusal(
        "a split where only one device alone would do",
        "the split a/cpu=10 cannot run\n"
        "the budgets do not hold it beside the output layer and the head: 2.0 GiB (a/cpu 2.0)\n"
        "the head needs 86.0 MiB on the controller, which has 64.0 MiB available",
        "leave --split out and let meshctl choose",
        make_survey([make_device("a/cpu", 2000)], controller_mib=64),
        Asked("latency", split={"a/cpu": 10}),
    ),
    Refusal(
        "a split where there is no plan at all",
        "the split a/cpu=10 cannot run\na/cpu needs 1.2 GiB for 10 layers and has 700 MiB",
        f"without --split there is no plan either: {SMALLER}, raise `memory` of a host, or add a host to the inventory",
        asked=Asked("latency", split={"a/cpu": 10}),
    ),
    Refusal(
        "a split of mode layers on a controller that holds no head",
        "the split a/cpu=10 cannot run\n"
        "the budgets do not hold it beside the output layer and the head: 2.0 GiB (a/cpu 2.0)\n"
        "the head needs 86.0 MiB on the controller, which has 64.0 MiB available",
        "without --split there is no plan either: free memory on the controller, run meshctl on a larger machine, or "
        "choose another mode (single)",
        make_survey([make_device("a/cpu", 2000)], controller_mib=64),
        Asked("latency", mode="layers", split={"a/cpu": 10}),
    ),
    Refusal(
        "a split where only several heads would do",
        "the split a/cpu=5 b/cpu=5 cannot run\n"
        "the budgets do not hold it beside the output layer and the head: 2.6 GiB (a/cpu 1.3, b/cpu 1.3)\n"
        "the head needs 86.0 MiB on the controller, which has 64.0 MiB available",
        "leave --split out and let meshctl choose",
        make_survey([make_device("a/cpu", 1330), make_device("b/cpu", 1330)], controller_mib=64),
        Asked("latency", split={"a/cpu": 5, "b/cpu": 5}),
    ),
    Refusal(
        "a split in another mode",
        "a split is of mode layers, not single",
        "leave out --mode or --split",
        NEAR,
        Asked("latency", mode="single", split={"a/cpu": 10}),
    ),
    Refusal(
        "an unknown device",
        "the survey has no device c/cpu, x",
        "name one of a/cpu, b/cpu",
        NEAR,
        Asked("latency", devices=frozenset({"x", "c/cpu", "b/cpu"})),
    ),
    Refusal(
        "an unknown mode",
        "unknown mode 'x'",
        "the modes are single, layers, tensor and replicas",
        NEAR,
        Asked("latency", mode="x"),
    ),
    Refusal("an unknown goal", "unknown goal 'fun'", "the goals are latency and throughput", NEAR, Asked("fun")),
    Refusal(
        "no usable device",
        "no device can be used\nb/cpu: its speed was not measured",
        "run `meshctl doctor` on the inventory, or survey it again with `meshctl survey`",
        make_survey([make_device("b/cpu", 700, gib_per_s=0)]),
    ),
)


@pytest.mark.parametrize("case", REFUSALS, ids=lambda case: case.name)
def test_without_a_plan_every_shortfall_is_said_with_what_to_change(case: Refusal) -> None:
    with pytest.raises(PlanError) as caught:
        rank_plans(case.survey, (case.memory,), case.asked)
    assert (str(caught.value), caught.value.hint) == (case.message, case.hint)


def test_a_card_whose_host_lacks_main_memory_is_told_as_that() -> None:
    cards = [make_gpu(f"{host}/cuda0", 2000, gib_per_s=10, native_gib_per_s=20) for host in "ab"]
    plan = chosen(make_survey(cards, host_mib=50), (make_memory(),), LATENCY)
    why = "b/cuda0 needs 86.0 MiB of main memory too, which has 50.0 MiB"
    assert f"no single device holds the whole model: {why}" in plan.reasons


def test_a_plan_says_by_how_much_budgets_of_its_devices_are_cut() -> None:
    """Two that need 614 MiB each and may take 1,000; a third one, which the plan leaves out, plays no part."""
    devices = [make_device(f"{name}/cpu", 1000, link=LOOPBACK) for name in "ab"]
    survey = make_survey([*devices, make_device("c/cpu", 1000, gib_per_s=0.1)], local="abc", controller_mib=1500)
    plan = chosen(survey, (make_memory(kv_heads=1),), LATENCY)
    assert {share.device for share in plan.shares} == {"a/cpu", "b/cpu"}
    (told,) = (reason for reason in plan.reasons if "cut to" in reason)
    assert told.startswith("budgets of a/cpu and b/cpu cut to ")
    assert told.endswith("they add up to 2.0 GiB")
    assert sum(share.budget_bytes for share in plan.shares) <= 1500 * MIB
    ample = chosen(make_survey(devices, local="ab", controller_mib=3000), (make_memory(kv_heads=1),), LATENCY)
    assert not any("cut to" in reason for reason in ample.reasons)


def test_the_context_that_an_error_proposes_has_a_plan() -> None:
    smaller = with_kv(REFUSALS[1].memory, 2048, 4)
    assert chosen(LARGER, (smaller,), LATENCY).mode == "layers"


def test_conversations_that_are_slower_together_than_one_after_the_other_are_told_so() -> None:
    (device,) = (make_device("a/cpu", 2000),)
    passes = tuple(replace(one, layers_s=(2.0, 4.0)) if one.tokens == 8 else one for one in device.native.passes)
    slow = replace(device, native=replace(device.native, passes=passes))
    memory = (make_memory(parallel=8),)
    sentence = "a/cpu: 8 conversations at once give "
    for one, told in ((device, 0), (slow, 1)):
        plan = chosen(make_survey([one]), memory, Asked("latency", mode="single"))
        assert len([reason for reason in plan.reasons if reason.startswith(sentence)]) == told


def test_more_devices_than_the_engine_takes_are_named_when_nothing_fits() -> None:
    survey = make_survey([make_device(f"h{k}/cpu", 120) for k in range(17)])
    with pytest.raises(PlanError, match="the engine splits over at most 15 devices, these are 17"):
        chosen(survey, (make_memory(40),), LATENCY)
