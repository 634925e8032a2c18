"""What was measured with a model as it would be in other types: by kernels, not by bytes."""

from dataclasses import replace

import pytest

from orchestrator.plan.costs import layers_seconds
from orchestrator.plan.retyped import (
    Work,
    is_measured,
    rate_at,
    retyped_memory,
    retyped_speed,
    retyped_survey,
    work_of,
)
from orchestrator.survey.values import NOT_MEASURED, KernelRate, PassTime, Speed
from quant.mixture import mixture_of
from quant.model import layer_bytes, output_bytes
from tests.orchestrator.plan.examples import make_device, make_memory, make_survey, make_tensor_time
from tests.orchestrator.plan.typed_models import LAYERS, ROWS, WIDTH, WORDS, make_model, make_tensor
from workers.budget import MIB

Q4, Q6 = work_of(make_model("Q4_0")), work_of(make_model("Q6_K"))
MATRIX = WIDTH * ROWS

MIXED = work_of(make_model("Q4_0", "Q6_K"))
OTHER_OUTPUT = work_of(make_model("Q4_0", output="Q4_0"))

RATES = (
    KernelRate("Q4_0, output Q6_K", (1, 8, 64), (4.0, 5.0, 12.0)),
    KernelRate("Q6_K", (1, 8, 64), (2.0, 5.0, 18.0)),
    KernelRate(f"{MIXED.mixture.name}, output Q6_K", (1, 8, 64), (3.0, 5.0, 15.0)),
    KernelRate("Q4_0", (1, 8, 64), (3.0, 5.0, 12.0)),
)
SIZES = (Q4.layers_bytes // 2, Q4.layers_bytes)
SPEED = Speed(
    passes=(PassTime(1, 0.5, SIZES, (1.5, 2.5)), PassTime(64, 1.0, SIZES, (5.0, 9.0))),
    output_s=0.25,
    output_bytes=Q4.output_bytes,
    rates=RATES,
)


def whole_s(speed: Speed, tokens: int) -> float:
    """All weights, without what does not depend on them."""
    one = next(one for one in speed.passes if one.tokens == tokens)
    return one.layers_s[-1] - one.fixed_s + speed.output_s


def test_work_has_the_types_of_matrices_and_the_bytes_that_are_read() -> None:
    model = make_model("Q4_0", "Q6_K", output="Q8_0")
    matrices = [one for one in model.tensors if one.block is not None and len(one.shape) > 1]
    assert work_of(model) == Work(
        mixture=mixture_of(model),
        output_type="Q8_0",
        layers_bytes=sum(layer_bytes(model)),
        output_bytes=output_bytes(model),
        used_bytes=sum(tensor.size_bytes for tensor in matrices),
    )
    assert work_of(model).rate == f"{mixture_of(model).name}, output Q8_0"
    assert work_of(make_model("Q4_0", output="Q4_0")).rate == "Q4_0"


def test_a_file_without_an_output_layer_has_work_all_the_same() -> None:
    model = make_model("Q4_0")
    layers = tuple(one for one in model.tensors if one.block is not None)
    work = work_of(replace(model, tensors=layers))
    assert (work.output_type, work.output_bytes) == ("Q4_0", 0)
    assert retyped_speed(SPEED, work, Q6).output_s > 0


def test_of_experts_only_those_that_work_are_read() -> None:
    model = make_model("Q4_0", layers=1)
    experts = make_tensor("blk.0.ffn_up_exps.weight", "Q6_K", (WIDTH, ROWS, 8))
    mixed = replace(model, tensors=(*model.tensors, experts), experts_used=0.25)
    work, dense = work_of(mixed), work_of(model)
    assert work.used_bytes == dense.used_bytes + experts.size_bytes / 4
    assert work.layers_bytes == sum(layer_bytes(model)) + experts.size_bytes


def test_nothing_changes_for_the_model_that_was_timed() -> None:
    survey = make_survey([make_device("a/cpu", 1000)])
    assert retyped_survey(survey, Q4, work_of(make_model("Q4_0"))) is survey
    assert retyped_speed(SPEED, Q4, Q4) == SPEED


def test_more_bytes_can_be_faster_and_what_is_fixed_stays() -> None:
    """Decoding takes half of the time, a prompt half as much more, each beside what is fixed."""
    scale = Q6.layers_bytes / Q4.layers_bytes
    assert scale == pytest.approx(210 / 256 * 8 / 4.5, rel=1e-3)
    found = retyped_speed(SPEED, Q4, Q6)
    assert whole_s(found, 1) == pytest.approx(2.25 / 2)
    assert whole_s(found, 64) == pytest.approx(8.25 * 1.5)
    for one, before in zip(found.passes, SPEED.passes, strict=True):
        assert one.fixed_s == before.fixed_s
        assert one.layers_bytes == tuple(round(size * scale) for size in SIZES)


def test_of_the_whole_the_output_layer_has_its_part_by_bytes() -> None:
    """Layers have 1.46 times the bytes, the output layer as many as before."""
    found = retyped_speed(SPEED, Q4, Q6)
    layers_s = whole_s(found, 1) - found.output_s
    assert layers_s / found.output_s == pytest.approx((210 / 256) / (18 / 32) * 2.0 / 0.25)


def test_a_mixture_takes_what_it_took_itself() -> None:
    """Not what its types alone would."""
    assert whole_s(retyped_speed(SPEED, Q4, MIXED), 1) == pytest.approx(2.25 * 3 / 4)


def test_an_output_layer_of_another_type_makes_another_whole() -> None:
    found = retyped_speed(SPEED, Q4, OTHER_OUTPUT)
    assert whole_s(found, 1) == pytest.approx(2.25 * 3 / 4)
    assert found.output_s < 0.25 * 3 / 4
    assert found.output_bytes == output_bytes(make_model("Q4_0", output="Q4_0"))


def test_where_no_kernel_was_timed_decoding_goes_by_bytes_and_a_prompt_takes_as_long() -> None:
    found = retyped_speed(replace(SPEED, rates=()), Q4, Q6)
    more = (210 / 256) / (18 / 32)
    assert found.passes[0].layers_s == pytest.approx((0.5 + 1.0 * more, 0.5 + 2.0 * more))
    assert found.passes[1].layers_s == (5.0, 9.0)


@pytest.mark.parametrize("rates", [RATES[:1], RATES[1:2]])
def test_with_one_of_both_timed_nothing_can_be_compared_but_bytes(rates: tuple[KernelRate, ...]) -> None:
    found = retyped_speed(replace(SPEED, rates=rates), Q4, Q6)
    assert found.passes[0].layers_s == pytest.approx((0.5 + (210 / 256) / (18 / 32), 0.5 + 2 * (210 / 256) / (18 / 32)))


def test_an_output_layer_whose_type_was_not_timed_goes_by_its_bytes() -> None:
    found = retyped_speed(SPEED, Q4, work_of(make_model("Q4_0", output="Q8_0")))
    assert found.output_s == pytest.approx(0.25 * (34 / 32) / (210 / 256))


def test_what_was_not_timed_stays_so() -> None:
    assert retyped_speed(NOT_MEASURED, Q4, Q6) == NOT_MEASURED


@pytest.mark.parametrize(
    ("tokens", "seconds"), [(1, 4.0), (4, 4.0 + 3 / 7), (8, 5.0), (36, 8.5), (64, 12.0), (128, 24.0)]
)
def test_rates_between_and_beyond_the_passes_that_were_timed(tokens: int, seconds: float) -> None:
    assert rate_at(RATES[0], tokens) == pytest.approx(seconds)


def test_what_devices_exchange_stays_when_layers_are_cut() -> None:
    """A group that takes 4 s more than its devices compute takes 4 s more afterwards, too."""
    devices = [make_device(name, 1000) for name in ("a/cpu", "b/cpu")]
    speed = replace(devices[0].speed, passes=SPEED.passes, output_s=0.25, rates=RATES)
    devices = [replace(one, speed=speed) for one in devices]
    alone_s, found_s = (
        layers_seconds(one, work.layers_bytes // 2, 1)
        for one, work in ((speed, Q4), (retyped_speed(speed, Q4, Q6), Q6))
    )
    timed = PassTime(1, 3.0, (Q4.layers_bytes,), (alone_s + 4.0,))
    time = replace(make_tensor_time(("a/cpu", "b/cpu"), (1, 1), 1), passes=(timed,))
    (found,) = retyped_survey(make_survey(devices, tensor=[time]), Q4, Q6).tensor
    assert found_s < alone_s
    assert found.passes[0].layers_s == pytest.approx((found_s + 4.0,), rel=1e-3)


def test_a_work_that_some_device_has_no_rate_of_is_not_measured() -> None:
    known, unknown = make_device("a/cpu", 1000), make_device("b/cpu", 1000)
    rated = replace(known, speed=replace(known.speed, rates=RATES), native=replace(known.native, rates=RATES))
    assert is_measured(make_survey([rated]), Q6)
    assert is_measured(make_survey([rated]), MIXED)
    assert not is_measured(make_survey([rated, unknown]), Q6)
    assert not is_measured(make_survey([rated]), work_of(make_model("Q8_0")))
    assert is_measured(make_survey([rated]), OTHER_OUTPUT)
    assert not is_measured(make_survey([rated]), work_of(make_model("Q4_0", output="Q8_0")))


def test_memory_has_the_weights_of_the_other_model_and_all_else_of_its_own() -> None:
    memory, model = make_memory(LAYERS), make_model("Q8_0")
    assert retyped_memory(memory, model) == replace(
        memory,
        layer_weights_bytes=(2 * MATRIX * 34 // 32 + 4 * WIDTH,) * LAYERS,
        output_bytes=WIDTH * WORDS * 210 // 256,
        input_bytes=68 * MIB,
        mirrored_bytes=LAYERS * 4 * WIDTH,
    )
