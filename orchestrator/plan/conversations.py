"""The same model for fewer conversations, or for a shorter context: a smaller KV cache. Pure."""

from collections.abc import Sequence
from dataclasses import replace

from orchestrator.plan.values import ModelMemory


def with_kv(memory: ModelMemory, context: int, parallel: int) -> ModelMemory:
    """The KV cache is linear in context and parallel; its bytes are rounded up, buffers are left as they are."""
    whole = memory.context * memory.parallel
    kv = tuple(-(-size * context * parallel // whole) for size in memory.layer_kv_bytes)
    return replace(memory, context=context, parallel=parallel, layer_kv_bytes=kv)


def for_conversations(memories: Sequence[ModelMemory], parallel: int) -> tuple[ModelMemory, ...]:
    """The model at every micro-batch, with the KV cache of this many conversations only."""
    return tuple(with_kv(memory, memory.context, parallel) for memory in memories)
