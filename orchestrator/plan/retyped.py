"""What was measured with a model, as it would be with its weights in other types. Pure.

Kernels differ by type, path and device: on a CPU through RPC weights of Q6_K are worked through twice as fast as the
fewer bytes of Q4_0. So times are not taken to grow with the bytes. Each device's time for the layers is multiplied by
what its own kernels take for all weights in the new types, over what they take in those that were timed: of the very
model that was timed nothing changes. Memory is taken over but for the weights, as no buffer depends on their types.
"""

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from orchestrator.plan.costs import layers_seconds
from orchestrator.plan.noise import PREFILL_TOKENS
from orchestrator.plan.values import ModelMemory
from orchestrator.survey.values import Device, KernelRate, PassTime, Speed, Survey, TensorTime
from quant.model import (
    Model,
    Tensor,
    attention_bytes,
    device_tensors,
    head_groups,
    input_bytes,
    layer_bytes,
    mirrored_bytes,
    output_bytes,
)

LITTLE = 0.02
"""Types that have a smaller part of the weights are not measured, and not missed."""

_BETWEEN = 0.05
"""The least that is left of a time measured across several devices when other weights are computed faster."""

Weights = Mapping[str, float]
"""By tensor type, how many weights are worked through."""


@dataclass(frozen=True)
class Work:
    """What a token works through: weights of all layers and of the output layer, by type, and their bytes. Of experts
    only those that are used count as weights; all of them have bytes."""

    layers: Weights
    output: Weights
    layers_bytes: int
    output_bytes: int

    @property
    def types(self) -> frozenset[str]:
        """Those that matter for speed."""
        return frozenset(kind for part in (self.layers, self.output) for kind in _that_matter(part))


def work_of(model: Model, experts_used: float = 1.0) -> Work:
    """`experts_used`: the part of the experts that work for one token."""
    output = device_tensors(model, 0, 0, output=True)
    layers = [tensor for tensor in model.tensors if tensor.block is not None]
    return Work(_weights(layers, experts_used), _weights(output, 1.0), sum(layer_bytes(model)), output_bytes(model))


def _weights(tensors: Iterable[Tensor], experts_used: float) -> Weights:
    """Vectors, such as norms, are no work to speak of."""
    weights = Counter[str]()
    for tensor in tensors:
        if len(tensor.shape) > 1:
            used = experts_used if "_exps." in tensor.name else 1.0
            weights[tensor.type] += tensor.parameters * used  # type: ignore[assignment] # a Counter also holds floats
    return dict(weights)


def _that_matter(weights: Weights) -> tuple[str, ...]:
    total = sum(weights.values())
    return tuple(kind for kind, count in weights.items() if count > LITTLE * total)


def unmeasured_types(survey: Survey, work: Work) -> tuple[str, ...]:
    """The types of which some device in use has no rate on some path that was timed."""
    paths = [speed for device in survey.devices for speed in (device.speed, device.native) if speed.measured]
    known = [{rate.type for rate in speed.rates} for speed in paths]
    return tuple(sorted(kind for kind in work.types if not all(kind in one for one in known)))


def retyped_survey(survey: Survey, before: Work, after: Work) -> Survey:
    """The survey of a model of the work `before` as it would be of the one with the work `after`."""
    if before == after:
        return survey
    hosts = tuple(
        replace(host, devices=tuple(_retyped_device(device, before, after) for device in host.devices))
        for host in survey.hosts
    )
    there = {device.name: device for device in survey.devices}
    return replace(
        survey,
        hosts=hosts,
        controller_speed=retyped_speed(survey.controller_speed, before, after),
        tensor=tuple(_retyped_time(one, [there[name] for name in one.devices], before, after) for one in survey.tensor),
    )


def _retyped_device(device: Device, before: Work, after: Work) -> Device:
    speed, native = (retyped_speed(one, before, after) for one in (device.speed, device.native))
    return replace(device, speed=speed, native=native)


def retyped_speed(speed: Speed, before: Work, after: Work) -> Speed:
    """What does not depend on the weights (a stage's fixed cost, what a context costs) stays."""
    if not speed.measured:
        return speed
    scale = after.layers_bytes / before.layers_bytes
    output = _ratio(speed.rates, 1, before.output, after.output)
    return replace(
        speed,
        passes=tuple(_retyped_pass(one, speed.rates, before, after, scale) for one in speed.passes),
        output_s=speed.output_s * output,
        output_bytes=round(speed.output_bytes * after.output_bytes / before.output_bytes),
    )


def _retyped_pass(one: PassTime, rates: Sequence[KernelRate], before: Work, after: Work, scale: float) -> PassTime:
    ratio = _ratio(rates, one.tokens, before.layers, after.layers)
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
        return max(_BETWEEN * seconds, seconds + now - was)

    ratio = statistics.mean(_ratio(one.speed.rates, 1, before.output, after.output) for one in devices)
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


def _ratio(rates: Sequence[KernelRate], tokens: int, before: Weights, after: Weights) -> float:
    """How much longer all weights take in the types after than before."""
    if before == after:
        return 1.0
    known = {rate.type: rate_at(rate, tokens) for rate in rates}
    was, now = (
        sum(count * (known.get(kind) or _by_bytes(known, kind, tokens)) for kind, count in one.items())
        for one in (before, after)
    )
    return now / was if was > 0 else 1.0


def rate_at(rate: KernelRate, tokens: int) -> float:
    """Seconds per weight in a pass of so many tokens, by the line between the passes that were timed; beyond the
    longest in proportion to the tokens."""
    pairs = list(zip(rate.tokens, rate.weight_s, strict=True))
    for (below, below_s), (above, above_s) in pairwise(pairs):
        if tokens <= above:
            return below_s + (above_s - below_s) * max(0, tokens - below) / (above - below)
    last, last_s = pairs[-1]
    return last_s * max(1.0, tokens / last)


def _by_bytes(known: Mapping[str, float], kind: str, tokens: int) -> float:
    """Of a type that was not measured: decoding reads its bytes, a prompt takes as many operations in any type."""
    if not known:
        return _weight_bytes(kind) if tokens < PREFILL_TOKENS else 1.0
    if tokens >= PREFILL_TOKENS:
        return statistics.median(known.values())
    return _weight_bytes(kind) * statistics.median(seconds / _weight_bytes(one) for one, seconds in known.items())


def _weight_bytes(kind: str) -> float:
    block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    return block_bytes / block


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
