"""Whole plans for whole surveys, the errors when there is none, and what holds for any survey."""

from dataclasses import dataclass, replace
from random import Random
from time import process_time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.errors import PlanError
from orchestrator.plan.choose import make_plan
from orchestrator.plan.costs import compute_s, decode_s, needed_bytes
from orchestrator.plan.noise import LEAST_NOISE
from orchestrator.plan.values import LeftOut, ModelMemory, Plan, Share
from orchestrator.survey.values import Device, Link, Survey
from tests.orchestrator.plan.examples import LOOPBACK, make_device, make_memory, make_survey
from workers.budget import MIB

EXACT_LINK = Link("tunnel", round_trip_s=2**-12, up_bytes_per_s=2.0**26, down_bytes_per_s=2.0**26)
"""With hidden states of 8192 bytes a stage costs 2^-12 + 2 * 2^-13 s: exact in binary."""

SLOW = Link("tunnel", round_trip_s=0.0003, up_bytes_per_s=12 * MIB, down_bytes_per_s=12 * MIB)
FAR = Link("tunnel", round_trip_s=0.0031, up_bytes_per_s=12 * MIB, down_bytes_per_s=12 * MIB)


def test_one_device_that_holds_everything_and_is_fastest_runs_it_alone() -> None:
    survey = make_survey([make_device("a/cpu", 2000), make_device("b/cpu", 1000, gib_per_s=5)])
    assert make_plan(survey, make_memory(), goal="latency") == Plan(
        mode="single",
        model="llama.gguf",
        context=4096,
        parallel=1,
        micro_batch=512,
        shares=(Share("a/cpu", 0, 10, True, 1150 * MIB, 100 * MIB, 60 * MIB, 2000 * MIB, time_s=1100 / 10 / 1024),),
        head="a",
        output_on_head=False,
        head_bytes=0,
        token_s=1100 / 10 / 1024,
        prefill_token_s=(1000 - 0.7 * 100) / 100 / 1024,
        left_out=(LeftOut("b/cpu", "alone it would need 1.3 GiB, its budget is 1000 MiB"),),
        reasons=(
            "a/cpu holds the whole model: 107 ms per token, the best split 109 ms",
            "predicted from a/cpu's speed through RPC; run natively it is usually as fast or faster",
        ),
    )


def test_a_model_that_fits_no_single_device_is_split_by_layers() -> None:
    survey = make_survey(
        [
            make_device("a/cpu", 700, gib_per_s=8, link=EXACT_LINK),
            make_device("b/cpu", 750, gib_per_s=4, link=EXACT_LINK),
            make_device("c/cpu", 90, gib_per_s=2, link=EXACT_LINK),
        ],
        local=["c"],
    )
    plan = make_plan(survey, make_memory(output_mib=64, logits_bytes=8192), goal="latency")
    prefill_token_s = 500 / 80 / 1024 + 430 / 40 / 1024 + 2 * (2**-12 + 2**-12 / 512)
    assert plan.prefill_token_s == pytest.approx(prefill_token_s)
    assert plan == Plan(
        mode="layers",
        model="llama.gguf",
        context=4096,
        parallel=1,
        micro_batch=512,
        shares=(
            Share("a/cpu", 0, 5, False, 500 * MIB, 50 * MIB, 40 * MIB, 700 * MIB, time_s=500 / 8192 + 2**-11),
            Share("b/cpu", 5, 5, True, 564 * MIB, 50 * MIB, 60 * MIB, 750 * MIB, time_s=564 / 4096 + 2**-11),
        ),
        head="",
        output_on_head=False,
        head_bytes=70 * MIB,
        token_s=500 / 8192 + 564 / 4096 + 2 * 2**-11,
        prefill_token_s=plan.prefill_token_s,
        left_out=(
            LeftOut(
                "c/cpu",
                "budget 90.0 MiB holds no layer: the smallest needs 166 MiB with its buffers and margin",
            ),
        ),
        reasons=(
            "no single device holds the whole model: it needs 1.3 GiB, the largest budget is 750 MiB (b/cpu)",
            "output layer on the last device: 200 ms per token, on the head 215 ms",
            "the head is taken to be as fast as c/cpu through RPC",
        ),
        head_compute_bytes=20 * MIB,
    )
    assert plan.tensor_split == (5, 6)


@dataclass(frozen=True)
class Case:
    """A survey and what its plan must be: shares as "DEVICE FIRST+COUNT", the head's part, and sentences."""

    name: str
    devices: tuple[Device, ...]
    shares: tuple[str, ...]
    mode: str = "layers"
    head: str = ""
    output_on_head: bool = False
    local: tuple[str, ...] = ()
    controller_mib: int = 48 * 1024
    asked_mode: str | None = None
    asked_devices: frozenset[str] | None = None
    goal: str = "latency"
    left_out: tuple[str, ...] = ()
    reason: str = ""


CASES = (
    Case(
        "a local device that holds everything runs it on the controller",
        (make_device("a/cpu", 2000, link=LOOPBACK),),
        ("a/cpu 0+10",),
        mode="single",
        local=("a",),
    ),
    Case(
        "the faster of two devices that hold everything",
        (make_device("a/cpu", 2000), make_device("b/cpu", 2000, gib_per_s=20)),
        ("b/cpu 0+10",),
        mode="single",
        head="b",
        left_out=("a/cpu: alone 107 ms per token, b/cpu 53.7 ms",),
    ),
    Case(
        "a GPU that holds everything",
        (make_device("a/cuda0", 2000, kind="cuda"), make_device("a/cpu", 700)),
        ("a/cuda0 0+10",),
        mode="single",
        head="a",
        left_out=("a/cpu: alone it would need 1.3 GiB, its budget is 700 MiB",),
    ),
    Case(
        "a split that is faster than the one device that holds everything",
        (make_device("a/cpu", 2000, gib_per_s=1), make_device("b/cpu", 700), make_device("c/cpu", 700)),
        ("b/cpu 0+5", "c/cpu 5+5"),
        output_on_head=True,
        left_out=(
            "a/cpu: with 1 of 10 layers it would compute 87.9 ms per token slower than others, "
            "and costs 392 µs as one more stage (round trip 250 µs)",
        ),
        reason="2 devices 108 ms per token, a/cpu alone 1.1 s",
    ),
    Case(
        "single when it is asked for, although a split is faster",
        (make_device("a/cpu", 2000, gib_per_s=1), make_device("b/cpu", 700), make_device("c/cpu", 700)),
        ("a/cpu 0+10",),
        mode="single",
        head="a",
        asked_mode="single",
        left_out=(
            "b/cpu: alone it would need 1.3 GiB, its budget is 700 MiB",
            "c/cpu: alone it would need 1.3 GiB, its budget is 700 MiB",
        ),
        reason="mode single was asked for",
    ),
    Case(
        "layers when they are asked for, although one device is faster",
        (make_device("a/cpu", 2000), make_device("b/cpu", 700)),
        ("a/cpu 0+10",),
        output_on_head=True,
        asked_mode="layers",
        left_out=(
            "b/cpu: with 5 of 10 layers it would save nothing, and costs 392 µs as one more stage (round trip 250 µs)",
        ),
        reason="one worker 108 ms per token, a/cpu alone 107 ms",
    ),
    Case(
        "the output layer on the head when logits would cross a slow link",
        (make_device("a/cpu", 700, link=SLOW), make_device("b/cpu", 800, link=SLOW), make_device("c/cpu", 100)),
        ("a/cpu 0+5", "b/cpu 5+5"),
        output_on_head=True,
        local=("c",),
        left_out=("c/cpu: budget 100 MiB holds no layer: the smallest needs 166 MiB with its buffers and margin",),
        reason="output layer on the head: 111 ms per token, on the last device 126 ms; "
        "195 KiB of logits per token stay off the link",
    ),
    Case(
        "the output layer on the last device when the head is slow",
        (make_device("a/cpu", 700), make_device("b/cpu", 800), make_device("c/cpu", 100, gib_per_s=1)),
        ("a/cpu 0+5", "b/cpu 5+5"),
        local=("c",),
        left_out=("c/cpu: budget 100 MiB holds no layer: the smallest needs 166 MiB with its buffers and margin",),
        reason="output layer on the last device: 110 ms per token, on the head 196 ms",
    ),
    Case(
        "a far device is left out when its link costs more than it saves",
        (
            make_device("a/cpu", 800),
            make_device("b/cpu", 800, gib_per_s=9),
            make_device("c/cpu", 300, gib_per_s=10.2, link=FAR),
        ),
        ("a/cpu 0+6", "b/cpu 6+4"),
        output_on_head=True,
        left_out=(
            "c/cpu: with 2 of 10 layers it would save 2.55 ms per token, "
            "but costs 4.40 ms as one more stage (round trip 3.10 ms)",
        ),
    ),
    Case(
        "a far device is used when it saves more than its link costs",
        (
            make_device("a/cpu", 800),
            make_device("b/cpu", 800, gib_per_s=9),
            make_device("c/cpu", 300, gib_per_s=13, link=FAR),
        ),
        ("c/cpu 0+2", "a/cpu 2+6", "b/cpu 8+2"),
        output_on_head=True,
    ),
    Case(
        "two local hosts share the controller's memory",
        (make_device("a/cpu", 700), make_device("b/cpu", 800)),
        ("a/cpu 0+5", "b/cpu 5+5"),
        local=("a", "b"),
        controller_mib=1500,
        reason="budgets of a/cpu and b/cpu cut to 94%: their machine has 1.4 GiB beside the head's 86.0 MiB, "
        "they add up to 1.5 GiB",
    ),
    Case(
        "two hosts whose speeds differ by noise share the layers evenly",
        (make_device("left/cpu", 1000), make_device("right/cpu", 1000, gib_per_s=10.3)),
        ("right/cpu 0+5", "left/cpu 5+5"),
        output_on_head=True,
        local=("right",),
        reason="left/cpu and right/cpu differ by 3%, within what counts as noise: layers shared evenly",
    ),
    Case(
        "two hosts whose speeds differ by more than noise do not",
        (make_device("left/cpu", 1000), make_device("right/cpu", 1000, gib_per_s=11.1)),
        ("right/cpu 0+8", "left/cpu 8+2"),
        output_on_head=True,
        local=("right",),
    ),
    Case(
        "a spread of the repetitions that is wide makes more count as noise",
        (make_device("left/cpu", 1000), make_device("right/cpu", 1000, gib_per_s=12, spread=0.3)),
        ("right/cpu 0+5", "left/cpu 5+5"),
        output_on_head=True,
        local=("right",),
        reason="left/cpu and right/cpu differ by 20%, within what counts as noise: layers shared evenly",
    ),
    Case(
        "layers are shared as evenly as a small budget allows",
        (
            make_device("a/cpu", 400),
            make_device("b/cpu", 1000, gib_per_s=10.04),
            make_device("c/cpu", 600, gib_per_s=10.06),
        ),
        ("c/cpu 0+4", "b/cpu 4+6"),
        output_on_head=True,
        left_out=("a/cpu: with 3 of 10 layers on it a token would take 194 µs longer than without it",),
        reason="b/cpu and c/cpu differ by less than 1%, within what counts as noise: "
        "layers shared as evenly as their sizes, the budgets and the prefill speeds allow",
    ),
    Case(
        "a device that would save no more than noise for the price of a stage is left out and that is said",
        (make_device("a/cpu", 2000, link=LOOPBACK), make_device("b/cpu", 2000, gib_per_s=10.5)),
        ("a/cpu 0+10",),
        output_on_head=True,
        local=("a",),
        asked_mode="layers",
        left_out=("b/cpu: with 5 of 10 layers it would save 1.93 ms per token, within what counts as noise",),
    ),
    Case(
        "only the devices that are asked for",
        (make_device("a/cpu", 2000), make_device("b/cpu", 2000, gib_per_s=5)),
        ("b/cpu 0+10",),
        mode="single",
        head="b",
        asked_devices=frozenset({"b/cpu"}),
        left_out=("a/cpu: not among the devices asked for",),
    ),
    Case(
        "devices that were not measured or have no budget are left out",
        (make_device("a/cpu", 2000), make_device("b/cpu", 700, gib_per_s=0), make_device("c/cpu", 0)),
        ("a/cpu 0+10",),
        mode="single",
        head="a",
        left_out=("b/cpu: its speed was not measured", "c/cpu: it has no budget"),
    ),
    Case(
        "goal throughput is said to be planned like latency",
        (make_device("a/cpu", 2000),),
        ("a/cpu 0+10",),
        mode="single",
        head="a",
        goal="throughput",
        reason="goal throughput: planned for one conversation's time per token, the engine batches several",
    ),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_plan_of_each_case(case: Case) -> None:
    survey = make_survey(case.devices, local=case.local, controller_mib=case.controller_mib)
    plan = make_plan(survey, make_memory(), goal=case.goal, devices=case.asked_devices, mode=case.asked_mode)
    assert (plan.mode, plan.head, plan.output_on_head) == (case.mode, case.head, case.output_on_head)
    assert tuple(f"{one.device} {one.first_layer}+{one.layers}" for one in plan.shares) == case.shares
    assert tuple(f"{one.device}: {one.reason}" for one in plan.left_out) == case.left_out
    assert case.reason in ("", *plan.reasons)


MODEL = make_memory()


@dataclass(frozen=True)
class Refusal:
    """A survey and model without a plan, and the whole error."""

    name: str
    survey: Survey
    message: str
    hint: str
    memory: ModelMemory = MODEL
    mode: str | None = None
    devices: frozenset[str] | None = None
    goal: str = "latency"


NEEDS = "split, each device also needs 56.0 MiB or more for its buffers and margin, and layers stay whole: they hold"
TWO = make_survey([make_device("a/cpu", 700), make_device("b/cpu", 800)])
REFUSALS = (
    Refusal(
        "too little memory in sum",
        make_survey([make_device("a/cpu", 700), make_device("b/cpu", 100)]),
        "llama.gguf needs 1.3 GiB at context 4096; the devices have 800 MiB (a/cpu 700, b/cpu 100)\n"
        f"{NEEDS} 4 of 10 layers and the output layer\n"
        "b/cpu: budget 100 MiB holds no layer: the smallest needs 166 MiB with its buffers and margin",
        "choose a smaller quantisation of the model, raise `memory` of a host, or add a host to inventory.yaml",
    ),
    Refusal(
        "a context that is too long",
        TWO,
        "llama.gguf needs 2.0 GiB at context 4096; the devices have 1.5 GiB (a/cpu 0.7, b/cpu 0.8)\n"
        f"{NEEDS} 6 of 10 layers and the output layer",
        "choose a smaller quantisation of the model, lower context to 1024, raise `memory` of a host, "
        "or add a host to inventory.yaml",
        memory=make_memory(kv_mib=80),
    ),
    Refusal(
        "too many conversations",
        TWO,
        "llama.gguf needs 1.6 GiB at context 4096; the devices have 1.5 GiB (a/cpu 0.7, b/cpu 0.8)\n"
        f"{NEEDS} 8 of 10 layers and the output layer",
        "choose a smaller quantisation of the model, lower parallel to 1, lower context to 2048, "
        "raise `memory` of a host, or add a host to inventory.yaml",
        memory=replace(make_memory(kv_mib=40), parallel=4),
    ),
    Refusal(
        "a controller too small for the head",
        make_survey([make_device("a/cpu", 700), make_device("b/cpu", 800)], controller_mib=64),
        "llama.gguf needs 1.3 GiB at context 4096; the devices have 1.5 GiB (a/cpu 0.7, b/cpu 0.8)\n"
        "the head needs 86.0 MiB on the controller, which has 64.0 MiB available",
        "free memory on the controller, or run meshctl on a larger machine",
    ),
    Refusal(
        "too few devices allowed",
        TWO,
        "llama.gguf needs 1.3 GiB at context 4096; the devices have 700 MiB (a/cpu 700)\n"
        f"{NEEDS} 4 of 10 layers and the output layer",
        "choose a smaller quantisation of the model, or allow more devices",
        devices=frozenset({"a/cpu"}),
    ),
    Refusal(
        "a device too small to be measured",
        make_survey([make_device("a/cpu", 700), replace(make_device("b/cpu", 20, gib_per_s=0), note="too little")]),
        "llama.gguf needs 1.3 GiB at context 4096; the devices have 700 MiB (a/cpu 700)\n"
        f"{NEEDS} 4 of 10 layers and the output layer\nb/cpu: too little",
        "choose a smaller quantisation of the model, raise `memory` of a host, or add a host to inventory.yaml",
    ),
    Refusal(
        "mode single on devices that are each too small",
        TWO,
        "llama.gguf at context 4096 fits no single device: "
        "a/cpu needs 1.3 GiB and has 700 MiB; b/cpu needs 1.3 GiB and has 800 MiB",
        "choose a smaller quantisation of the model, or let the model be split (mode layers)",
        mode="single",
    ),
    Refusal(
        "an unknown device",
        TWO,
        "the survey has no device a, c/cpu",
        "its devices are a/cpu, b/cpu",
        devices=frozenset({"a", "c/cpu", "b/cpu"}),
    ),
    Refusal("an unknown mode", TWO, "unknown mode 'tensor'", "the modes are single and layers", mode="tensor"),
    Refusal("an unknown goal", TWO, "unknown goal 'fun'", "the goals are latency and throughput", goal="fun"),
    Refusal(
        "no usable device",
        make_survey([make_device("b/cpu", 700, gib_per_s=0)]),
        "no device can be used\nb/cpu: its speed was not measured",
        "run `meshctl doctor` on the inventory, or survey it again with `meshctl survey`",
    ),
)


@pytest.mark.parametrize("case", REFUSALS, ids=lambda case: case.name)
def test_without_a_plan_every_shortfall_is_said_with_what_to_change(case: Refusal) -> None:
    with pytest.raises(PlanError) as caught:
        make_plan(case.survey, case.memory, goal=case.goal, devices=case.devices, mode=case.mode)
    assert (str(caught.value), caught.value.hint) == (case.message, case.hint)


@pytest.mark.parametrize("case", REFUSALS[1:3], ids=lambda case: case.name)
def test_the_context_that_an_error_proposes_has_a_plan(case: Refusal) -> None:
    context = int(case.hint.split("lower context to ")[1].split(",")[0])
    kv = tuple(size * context // 4096 for size in case.memory.layer_kv_bytes)
    make_plan(case.survey, replace(case.memory, context=context, layer_kv_bytes=kv), goal="latency")


machines = st.lists(
    st.tuples(st.integers(50, 1500), st.sampled_from([1.0, 2.5, 10.0]), st.sampled_from([EXACT_LINK, SLOW, FAR])),
    min_size=1,
    max_size=6,
)
calm = settings(max_examples=50, deadline=None, derandomize=True)


def plan_or_none(devices: list[Device], memory: ModelMemory) -> Plan | None:
    """The plan for remote hosts, or None when there is none."""
    try:
        return make_plan(make_survey(devices), memory, goal="latency")
    except PlanError:
        return None


def named(cluster: list[tuple[int, float, Link]], more_mib: int = 0) -> list[Device]:
    """Devices h0/cpu, h1/cpu, ..., each with `more_mib` more than drawn."""
    return [
        make_device(f"h{k}/cpu", budget + more_mib, gib_per_s=speed, link=link)
        for k, (budget, speed, link) in enumerate(cluster)
    ]


@calm
@given(machines, st.integers(1, 12), st.randoms(use_true_random=False))
def test_the_order_of_hosts_changes_nothing(
    cluster: list[tuple[int, float, Link]], layers: int, random: Random
) -> None:
    devices = named(cluster)
    shuffled = random.sample(devices, len(devices))
    assert plan_or_none(devices, make_memory(layers)) == plan_or_none(shuffled, make_memory(layers))


@calm
@given(machines, st.integers(1, 12), st.integers(0, 800))
def test_more_budget_is_never_a_worse_plan(cluster: list[tuple[int, float, Link]], layers: int, more_mib: int) -> None:
    before = plan_or_none(named(cluster), make_memory(layers))
    after = plan_or_none(named(cluster, more_mib), make_memory(layers))
    if before is not None:
        assert after is not None
        assert after.token_s <= before.token_s * (1 + 1e-5)


like_machines = st.lists(
    st.tuples(st.integers(150, 1500), st.floats(8, 16), st.sampled_from([EXACT_LINK, SLOW, FAR])),
    min_size=1,
    max_size=6,
)


@calm
@given(like_machines, st.integers(1, 12), st.integers(0, 800), st.randoms(use_true_random=False))
def test_machines_of_like_speeds_are_planned_in_any_order_and_more_budget_costs_no_more_than_noise(
    cluster: list[tuple[int, float, Link]], layers: int, more_mib: int, random: Random
) -> None:
    devices, memory = named(cluster), make_memory(layers)
    before, after = plan_or_none(devices, memory), plan_or_none(named(cluster, more_mib), memory)
    assert before == plan_or_none(random.sample(devices, len(devices)), memory)
    if before is not None:
        assert after is not None
        assert after.token_s <= before.token_s * (1 + LEAST_NOISE) * (1 + 1e-5)


@calm
@given(st.one_of(machines, like_machines), st.integers(1, 12))
def test_a_plan_places_every_layer_once_and_names_every_device(
    cluster: list[tuple[int, float, Link]], layers: int
) -> None:
    plan = plan_or_none(named(cluster), make_memory(layers))
    if plan is None:
        return
    placed = [layer for one in plan.shares for layer in range(one.first_layer, one.first_layer + one.layers)]
    names = [*(one.device for one in plan.shares), *(one.device for one in plan.left_out)]
    assert placed == list(range(layers))
    assert sorted(names) == [f"h{k}/cpu" for k in range(len(cluster))]
    assert all(needed_bytes(one.total_bytes) <= one.budget_bytes for one in plan.shares)
    assert sum(one.time_s for one in plan.shares) + plan.head_time_s == pytest.approx(plan.token_s)
    assert sum(plan.tensor_split) == layers + 1


def test_what_is_predicted_comes_from_each_devices_own_speed_also_where_two_are_taken_for_one() -> None:
    left, right = make_device("left/cpu", 1000), make_device("right/cpu", 1000, gib_per_s=10.3)
    memory = make_memory()
    plan = make_plan(make_survey([left, right], local=["right"]), memory, goal="latency")
    right_s, left_s = (decode_s(memory, one, 0, 5, output=False) for one in (right, left))
    assert [share.time_s for share in plan.shares] == [right_s, left_s]
    assert right_s < left_s
    assert plan.token_s == pytest.approx(right_s + left_s + compute_s(memory.output_bytes, right.speed))


def test_sixteen_devices_and_two_hundred_layers_are_planned_at_once_over_fifteen() -> None:
    """The engine splits over at most 15 devices; half a second is what a person takes for instant."""
    others = [make_device(f"h{k:02}/cpu", 1550, gib_per_s=2 + k) for k in range(1, 16)]
    survey = make_survey([make_device("h00/cpu", 300, gib_per_s=100), *others])
    took_s = []
    for _ in range(3):
        began_s = process_time()
        plan = make_plan(survey, make_memory(200, layer_mib=92), goal="latency")
        took_s.append(process_time() - began_s)
    assert len(plan.shares) == 15
    assert plan.left_out == (LeftOut("h00/cpu", "the engine splits over at most 15 devices"),)
    assert min(took_s) < 0.5
