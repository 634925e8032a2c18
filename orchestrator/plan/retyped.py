"""What was measured with a model, as it would be with its weights in other types. Pure.

Kernels differ by type, path and device: on a CPU through RPC weights of Q6_K are worked through twice as fast as the
fewer bytes of Q4_0. So times are not taken to grow with the bytes. Each device's time for the whole model is multiplied
by what its own kernels take for a small one in the new types, over what they take for it in those that were timed; of
that the output layer has its part by bytes. Of the very model that was timed nothing changes. Memory is taken over but
for the weights, as no buffer depends on their types.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from orchestrator.plan.costs import fixed_seconds, layers_seconds
from orchestrator.plan.noise import PREFILL_TOKENS
from orchestrator.plan.values import ModelMemory
from orchestrator.survey.values import Device, KernelRate, PassTime, Speed, Survey, TensorTime, rate_name
from quant.mixture import Mixture, mixture_of
from quant.model import (
    Model,
    attention_bytes,
    device_tensors,
    head_groups,
    input_bytes,
    layer_bytes,
    layer_matrices,
    mirrored_bytes,
    output_bytes,
    used_part,
)

_LEAST = 0.05
"""The least that is left of a time when other weights are computed faster."""

_TINY_S = 1e-9


@dataclass(frozen=True)
class Work:
    """What a token works through: the types of the layers' matrices, the type of most of the output layer, the bytes of
    both. `used_bytes`: of the layers' matrices, of experts only those that are used."""

    mixture: Mixture
    output_type: str
    layers_bytes: int
    output_bytes: int
    used_bytes: float

    @property
    def rate(self) -> str:
        """The rate that its speed is known by."""
        return rate_name(self.mixture.name, self.output_type)


def work_of(model: Model) -> Work:
    """What a token works through in this model."""
    outputs = device_tensors(model, 0, 0, output=True)
    largest = max(outputs, key=lambda tensor: tensor.parameters, default=None)
    used_bytes = sum(tensor.size_bytes * used_part(model, tensor) for tensor in layer_matrices(model))
    output_type = model.quantisation if largest is None else largest.type
    return Work(mixture_of(model), output_type, sum(layer_bytes(model)), output_bytes(model), max(1.0, used_bytes))


def is_measured(survey: Survey, work: Work) -> bool:
    """Whether every device in use has the rates of these types on every path that was timed."""
    paths = [speed for device in survey.devices for speed in (device.speed, device.native) if speed.measured]
    return all(any(rate.of == work.rate for rate in speed.rates) for speed in paths)


def retyped_survey(survey: Survey, before: Work, after: Work) -> Survey:
    """The survey of a model of the work `before` as it would be of the one with the work `after`."""
    if before == after:
        return survey
    there = {device.name: device for device in survey.devices}
    return replace(
        survey.with_devices(lambda device: _retyped_device(device, before, after)),
        controller_speed=retyped_speed(survey.controller_speed, before, after),
        tensor=tuple(_retyped_time(one, [there[name] for name in one.devices], before, after) for one in survey.tensor),
    )


def _retyped_device(device: Device, before: Work, after: Work) -> Device:
    speed, native = (retyped_speed(one, before, after) for one in (device.speed, device.native))
    return replace(device, speed=speed, native=native)


def retyped_speed(speed: Speed, before: Work, after: Work) -> Speed:
    """What does not depend on the weights (a stage's fixed cost, what a context costs) stays."""
    if not speed.measured or before == after:
        return speed
    scale = after.layers_bytes / before.layers_bytes
    output_s = speed.output_s * _output_ratio(speed, before, after)
    return replace(
        speed,
        passes=tuple(_retyped_pass(one, speed, output_s, before, after, scale) for one in speed.passes),
        output_s=output_s,
        output_bytes=round(speed.output_bytes * after.output_bytes / max(1, before.output_bytes)),
    )


def _retyped_pass(one: PassTime, speed: Speed, output_s: float, before: Work, after: Work, scale: float) -> PassTime:
    ratio = _layers_ratio(one.tokens, speed, output_s, before, after)
    return replace(
        one,
        layers_bytes=tuple(round(size * scale) for size in one.layers_bytes),
        layers_s=tuple(one.fixed_s + (seconds - one.fixed_s) * ratio for seconds in one.layers_s),
    )


def _retyped_time(time: TensorTime, devices: Sequence[Device], before: Work, after: Work) -> TensorTime:
    """All devices compute at the same time and exchange between: what the slowest takes more or less is added."""
    scale = after.layers_bytes / before.layers_bytes
    parts = [part / sum(time.parts) for part in time.parts]
    changed = [retyped_speed(device.speed, before, after) for device in devices]

    def at(tokens: int, size: int, seconds: float) -> float:
        was = max(p * layers_seconds(one.speed, size, tokens) for p, one in zip(parts, devices, strict=True))
        new_size = round(size * scale)
        now = max(p * layers_seconds(one, new_size, tokens) for p, one in zip(parts, changed, strict=True))
        return max(_LEAST * seconds, seconds + now - was)

    ratio = statistics.mean(_output_ratio(one.speed, before, after) for one in devices)
    return replace(
        time,
        passes=tuple(
            replace(
                one,
                layers_bytes=tuple(round(size * scale) for size in one.layers_bytes),
                layers_s=tuple(
                    at(one.tokens, size, seconds) for size, seconds in zip(one.layers_bytes, one.layers_s, strict=True)
                ),
            )
            for one in time.passes
        ),
        output_s=time.output_s * ratio,
    )


def _layers_ratio(tokens: int, speed: Speed, output_s: float, before: Work, after: Work) -> float:
    """How much longer the layers take in the types after than before, when the output layer takes `output_s` then: what
    is left of the whole. Where that was not measured, decoding goes by bytes; a prompt takes as long in any type."""
    whole = _whole_ratio(tokens, speed, before, after)
    if whole is None:
        return after.used_bytes / before.used_bytes if tokens < PREFILL_TOKENS else 1.0
    layers_s = _weights_s(speed, before, tokens)
    return max(_LEAST, ((layers_s + speed.output_s) * whole - output_s) / layers_s)


def _output_ratio(speed: Speed, before: Work, after: Work) -> float:
    """Of what decoding takes altogether, the part that the output layer has by its bytes."""
    of_layers = after.used_bytes / before.used_bytes
    of_output = after.output_bytes / max(1, before.output_bytes)
    whole, layers_s = _whole_ratio(1, speed, before, after), _weights_s(speed, before, 1)
    if whole is None:
        return of_output
    by_bytes_s = layers_s * of_layers + speed.output_s * of_output
    return (layers_s + speed.output_s) * whole / by_bytes_s * of_output


def _weights_s(speed: Speed, work: Work, tokens: int) -> float:
    """What all layers take, but for what does not depend on their weights."""
    return max(_TINY_S, layers_seconds(speed, work.layers_bytes, tokens) - fixed_seconds(speed, tokens))


def _whole_ratio(tokens: int, speed: Speed, before: Work, after: Work) -> float | None:
    """How much longer all weights take; None where that was not measured."""
    known = {rate.of: rate for rate in speed.rates}
    rates = [known.get(work.rate) for work in (before, after)]
    was, now = (None if rate is None else rate_at(rate, tokens) for rate in rates)
    return None if was is None or now is None else now / was


def rate_at(rate: KernelRate, tokens: int) -> float:
    """Seconds per weight in a pass of so many tokens, by the line between the passes that were timed; beyond the
    longest in proportion to the tokens."""
    pairs = list(zip(rate.tokens, rate.weight_s, strict=True))
    for (below, below_s), (above, above_s) in pairwise(pairs):
        if tokens <= above:
            return below_s + (above_s - below_s) * max(0, tokens - below) / (above - below)
    last, last_s = pairs[-1]
    return last_s * max(1.0, tokens / last)


def retyped_memory(memory: ModelMemory, model: Model) -> ModelMemory:
    """The memory of the model that was counted, with the weights of this one."""
    return replace(
        memory,
        layer_weights_bytes=layer_bytes(model),
        output_bytes=output_bytes(model),
        input_bytes=input_bytes(model),
        head_groups=head_groups(model),
        attention_bytes=attention_bytes(model),
        mirrored_bytes=mirrored_bytes(model),
    )
