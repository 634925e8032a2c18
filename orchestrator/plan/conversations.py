"""The same model for fewer conversations, or for a shorter context: a smaller KV cache. Pure."""

from collections.abc import Sequence
from dataclasses import replace

from orchestrator.plan.values import ModelMemory


def with_kv(memory: ModelMemory, context: int, parallel: int) -> ModelMemory:
    """For a context no longer than that of `memory`; buffers are left as they are.

    All of the KV cache is linear in parallel, and in the context all but what is fixed (`layer_kv_fixed_bytes`). Where
    the engine has less for a context that is shorter than a window, this is too much, never too little.
    """
    fixed = memory.layer_kv_fixed_bytes or (0,) * memory.blocks
    kept = tuple(-(-size * parallel // memory.parallel) for size in fixed)
    whole = memory.context * memory.parallel
    growing = (
        -(-(size - beside) * context * parallel // whole)
        for size, beside in zip(memory.layer_kv_bytes, fixed, strict=True)
    )
    return replace(
        memory,
        context=context,
        parallel=parallel,
        layer_kv_bytes=tuple(map(sum, zip(kept, growing, strict=True))),
        layer_kv_fixed_bytes=kept if memory.layer_kv_fixed_bytes else (),
    )


def for_conversations(memories: Sequence[ModelMemory], parallel: int) -> tuple[ModelMemory, ...]:
    """The model at every micro-batch, with the KV cache of this many conversations only."""
    return tuple(with_kv(memory, memory.context, parallel) for memory in memories)


def for_context(memories: Sequence[ModelMemory], context: int) -> tuple[ModelMemory, ...]:
    """The model at every micro-batch that is no longer than this context, or at the first alone."""
    if context == memories[0].context:
        return tuple(memories)
    shorter = tuple(with_kv(memory, context, memory.parallel) for memory in memories)
    return tuple(memory for memory in shorter if memory.micro_batch <= context) or shorter[:1]
