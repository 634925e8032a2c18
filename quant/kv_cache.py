"""What the engine keeps of conversations in each layer of a model, in bytes. Pure arithmetic: values in, values out.

How the pinned llama.cpp lays it out: `llama-kv-cache.cpp`, `llama-kv-cache-iswa.cpp`, `llama-memory-recurrent.cpp`.
Plans do not rest on this: they ask the engine itself, and the tests compare both.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

CACHE_TYPES: Mapping[str, tuple[int, int]] = MappingProxyType({"f16": (1, 2), "q8_0": (32, 34), "q4_0": (32, 18)})
"""Elements of a block and its bytes, for each type that meshctl runs K and V in."""

_CELLS = 256
"""The engine rounds the tokens of a conversation, and what a window keeps, up to a multiple of this many."""

_F32_BYTES = 4


@dataclass(frozen=True)
class LayerCache:
    """One layer: lengths in elements of a head's K and V for one token, and F32 numbers of state per conversation.

    `window`: how many tokens it looks back at most; 0: all. A layer may have both a cache and a state, or neither.
    """

    heads: int = 0
    key_length: int = 0
    value_length: int = 0
    window: int = 0
    state: int = 0

    @property
    def grows(self) -> bool:
        """Whether every token of the context has a place in it."""
        return not self.window and self.token_elements > 0

    @property
    def token_elements(self) -> int:
        return self.heads * (self.key_length + self.value_length)


@dataclass(frozen=True)
class Cache:
    """All layers; `unknown`: why they are not counted, and then there are none."""

    layers: tuple[LayerCache, ...]
    unknown: str = ""


def token_bytes(cache: Cache, cache_type: str) -> int:
    """What each further token of context takes, in all layers that look back to the first one."""
    return sum(_row_bytes(layer, cache_type) for layer in cache.layers if layer.grows)


def state_bytes(cache: Cache) -> int:
    """What the recurrent layers keep of one conversation, however long it is."""
    return sum(layer.state * _F32_BYTES for layer in cache.layers)


def layer_cache_bytes(
    cache: Cache, cache_type: str, *, context: int, parallel: int = 1, micro_batch: int = 512
) -> tuple[int, ...]:
    """Bytes in each layer for `parallel` conversations of `context` tokens each."""
    return tuple(
        parallel * (_cells(layer, context, micro_batch) * _row_bytes(layer, cache_type) + layer.state * _F32_BYTES)
        for layer in cache.layers
    )


def refusal(cache: Cache, cache_type: str) -> str:
    """Why the engine does not take this type for this model; "" when it does."""
    block, _ = CACHE_TYPES[cache_type]
    lengths = {length for layer in cache.layers for length in (layer.key_length, layer.value_length)}
    if odd := sorted(length for length in lengths if length % block):
        return f"its heads have {odd[0]} elements, no whole number of {cache_type} blocks of {block}"
    return ""


def _row_bytes(layer: LayerCache, cache_type: str) -> int:
    block, block_bytes = CACHE_TYPES[cache_type]
    return layer.token_elements * block_bytes // block


def _cells(layer: LayerCache, context: int, micro_batch: int) -> int:
    """Tokens that have a place: those of a window, and of the micro-batch that is being read."""
    cells = _padded(context)
    return min(cells, _padded(layer.window + micro_batch)) if layer.window else cells


def _padded(tokens: int) -> int:
    return -(-tokens // _CELLS) * _CELLS
