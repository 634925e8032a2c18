"""What was measured with a model as it would be in other types: by kernels, not by bytes."""

from dataclasses import replace

import pytest

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

RATES = (
    KernelRate("Q4_0", (1, 8, 64), (4.0, 5.0, 12.0)),
    KernelRate("Q6_K", (1, 8, 64), (2.0, 5.0, 18.0)),
    KernelRate(MIXED.mixture.name, (1, 8, 64), (3.0, 5.0, 15.0)),
    KernelRate("output Q6_K", (1,), (2.0,)),
    KernelRate("output Q4_0", (1,), (4.0,)),
)
SPEED = Speed(
    passes=(PassTime(1, 0.5, (100, 200), (1.5, 2.5)), PassTime(64, 1.0, (100, 200), (5.0, 9.0))),
    output_s=0.25,
    output_bytes=Q4.output_bytes,
    rates=RATES,
)


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
    assert work_of(model).rates == (mixture_of(model).name, "output Q8_0")


def test_of_experts_only_those_that_work_are_read() -> None:
    model = make_model("Q4_0", layers=1)
    experts = make_tensor("blk.0.ffn_up_exps.weight", "Q6_K", (WIDTH, ROWS, 8))
    work, dense = work_of(replace(model, tensors=(*model.tensors, experts)), experts_used=0.25), work_of(model)
    assert work.used_bytes == dense.used_bytes + experts.size_bytes / 4
    assert work.layers_bytes == sum(layer_bytes(model)) + experts.size_bytes


def test_nothing_changes_for_the_model_that_was_timed() -> None:
    survey = make_survey([make_device("a/cpu", 1000)])
    assert retyped_survey(survey, Q4, work_of(make_model("Q4_0"))) is survey
    assert retyped_speed(SPEED, Q4, Q4) == SPEED


def test_more_bytes_can_be_faster_and_what_is_fixed_stays() -> None:
    """Decoding takes half of the time of the layers, a prompt half as much more, each beside what is fixed."""
    scale = Q6.layers_bytes / Q4.layers_bytes
    assert scale == pytest.approx(210 / 256 * 8 / 4.5, rel=1e-3)
    assert retyped_speed(SPEED, Q4, Q6) == replace(
        SPEED,
        passes=(
            PassTime(1, 0.5, (round(100 * scale), round(200 * scale)), (1.0, 1.5)),
            PassTime(64, 1.0, (round(100 * scale), round(200 * scale)), (7.0, 13.0)),
        ),
    )


def test_a_mixture_takes_what_its_own_layers_took() -> None:
    """Not what its types alone would: it was timed itself."""
    found = retyped_speed(SPEED, Q4, MIXED)
    assert found.passes[0].layers_s == (1.25, 2.0)


def test_the_output_layer_goes_by_its_own_type() -> None:
    found = retyped_speed(SPEED, Q4, work_of(make_model("Q4_0", output="Q4_0")))
    assert found.passes == SPEED.passes
    assert found.output_s == 0.5
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
    speed = replace(devices[0].speed, passes=SPEED.passes, rates=RATES)
    devices = [replace(one, speed=speed) for one in devices]
    time = replace(make_tensor_time(("a/cpu", "b/cpu"), (1, 1), 1), passes=(PassTime(1, 3.0, (200,), (5.25,)),))
    (found,) = retyped_survey(make_survey(devices, tensor=[time]), Q4, Q6).tensor
    (one,) = found.passes
    assert one.layers_s == pytest.approx((5.25 - 1.25 + 0.75,), rel=1e-2)


def test_a_work_that_some_device_has_no_rate_of_is_not_measured() -> None:
    known, unknown = make_device("a/cpu", 1000), make_device("b/cpu", 1000)
    rated = replace(known, speed=replace(known.speed, rates=RATES), native=replace(known.native, rates=RATES))
    assert is_measured(make_survey([rated]), Q6)
    assert is_measured(make_survey([rated]), MIXED)
    assert not is_measured(make_survey([rated, unknown]), Q6)
    assert not is_measured(make_survey([rated]), work_of(make_model("Q8_0")))
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
