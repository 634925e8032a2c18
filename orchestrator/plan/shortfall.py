"""The error when a model fits nowhere: the numbers of every shortfall, and a change that is checked to help. Pure."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from orchestrator.errors import PlanError
from orchestrator.plan.costs import needed_bytes
from orchestrator.plan.layers import Rules, place_layers
from orchestrator.plan.left_out import holds_no_layer
from orchestrator.plan.pools import Candidate, Pooled, pool_budgets, why_unusable
from orchestrator.plan.single import run_alone
from orchestrator.plan.split import head_need_bytes
from orchestrator.plan.values import ModelMemory
from orchestrator.survey.values import Survey
from orchestrator.view.sizes import bytes_text, parts_text

SMALLEST_CONTEXT = 256

Fits = Callable[[ModelMemory], bool]


def no_device(survey: Survey, names: Collection[str] | None) -> PlanError:
    """No device at all can be used; says why for each."""
    return PlanError(
        "\n".join(["no device can be used", *_unusable(survey, names)]),
        hint="run `meshctl doctor` on the inventory, or survey it again with `meshctl survey`",
    )


def _unusable(survey: Survey, names: Collection[str] | None) -> list[str]:
    asked = [device for device in survey.devices if names is None or device.name in names]
    return [f"{device.name}: {why}" for device in asked if (why := why_unusable(device))]


def no_single(memory: ModelMemory, candidates: Sequence[Candidate], fits: Fits) -> PlanError:
    """Mode `single` was asked for and no device holds the whole model."""
    needed = [
        f"{one.device.name} needs {bytes_text(needed_bytes(run_alone(memory, one).share.total_bytes))} "
        f"and has {bytes_text(one.budget_bytes)}"
        for one in candidates
    ]
    return PlanError(
        f"{memory.model} at context {memory.context} fits no single device: {'; '.join(needed)}",
        hint=_hint(memory, fits, "let the model be split (mode layers)"),
    )


def no_split(
    survey: Survey,
    memory: ModelMemory,
    candidates: Sequence[Candidate],
    names: Collection[str] | None,
    fits: Fits,
) -> PlanError:
    """Neither one device nor all together hold the model; every shortfall gets a line."""
    needed = bytes_text(needed_bytes(memory.total_bytes))
    budgets = {one.device.name: one.budget_bytes for one in candidates}
    lines = [f"{memory.model} needs {needed} at context {memory.context}; the devices have {parts_text(budgets)}"]
    controller_bytes = survey.controller.memory_available_bytes
    head_bytes = head_need_bytes(memory, output=False)
    pooled = pool_budgets(candidates, controller_bytes=controller_bytes, head_bytes=head_bytes)
    if pooled is None:
        lines.append(
            f"the head needs {bytes_text(head_bytes)} on the controller, "
            f"which has {bytes_text(controller_bytes)} available"
        )
        return PlanError("\n".join(lines), hint="free memory on the controller, or run meshctl on a larger machine")
    more = ("raise `memory` of a host", "add a host to inventory.yaml") if names is None else ("allow more devices",)
    return PlanError(
        "\n".join([*lines, *_split_shortfalls(memory, pooled), *_unusable(survey, names)]),
        hint=_hint(memory, fits, *more),
    )


def _split_shortfalls(memory: ModelMemory, pooled: Pooled) -> list[str]:
    blocks = len(memory.layer_weights_bytes)
    buffers = needed_bytes(memory.compute_bytes)
    empty = [f"{one.device.name}: {reason}" for one in pooled.candidates if (reason := holds_no_layer(memory, one))]
    return [
        f"split, each device also needs {bytes_text(buffers)} or more for its buffers and margin, and layers stay "
        f"whole: they hold {_most_layers(memory, pooled.candidates)} of {blocks} layers and the output layer",
        *pooled.reasons,
        *empty,
    ]


def _most_layers(memory: ModelMemory, candidates: Sequence[Candidate]) -> int:
    """How many of the first blocks, with the output layer, the candidates hold."""
    low, high = 0, len(memory.layer_weights_bytes)
    while low < high:
        middle = (low + high + 1) // 2
        if place_layers(_first_layers(memory, middle), candidates, Rules(output_on_head=False)) is None:
            high = middle - 1
        else:
            low = middle
    return low


def _first_layers(memory: ModelMemory, layers: int) -> ModelMemory:
    return replace(
        memory,
        layer_weights_bytes=memory.layer_weights_bytes[:layers],
        layer_kv_bytes=memory.layer_kv_bytes[:layers],
    )


def _hint(memory: ModelMemory, fits: Fits, *more: str) -> str:
    changes = ["choose a smaller quantisation of the model"]
    if memory.parallel > 1 and fits(_with_kv(memory, memory.context, 1)):
        changes.append("lower parallel to 1")
    context = _fitting_context(memory, fits)
    if context:
        changes.append(f"lower context to {context}")
    changes.extend(more)
    return f"{', '.join(changes[:-1])}, or {changes[-1]}"


def _fitting_context(memory: ModelMemory, fits: Fits) -> int:
    """The largest power of two below the context at which the model fits, or 0."""
    context = 1 << ((memory.context - 1).bit_length() - 1) if memory.context > 1 else 0
    while context >= SMALLEST_CONTEXT:
        if fits(_with_kv(memory, context, memory.parallel)):
            return context
        context //= 2
    return 0


def _with_kv(memory: ModelMemory, context: int, parallel: int) -> ModelMemory:
    """The same model with a smaller KV cache, which is linear in context and parallel; buffers are left as they are."""
    whole = memory.context * memory.parallel
    kv = tuple(-(-size * context * parallel // whole) for size in memory.layer_kv_bytes)
    return replace(memory, context=context, parallel=parallel, layer_kv_bytes=kv)
