"""What each device gets of a layer that mode `tensor` cuts: the pinned engine's own rule, in whole numbers. Pure.

From `llama_meta_device_get_split_state` in llama.cpp's llama-model.cpp. Attention is cut between KV heads, and only
where that is a whole number of blocks of its quantised output too (`granule`); the feed-forward every 128 rows, which
is as good as anywhere; norms and the like are on every device whole. Device d of n ends, in a layer, where the parts up
to it end, rounded down to a granule; the last one takes what is left, and which is last changes from layer to layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import lcm

from orchestrator.plan.costs import ShareBytes
from orchestrator.plan.values import ModelMemory

FAST_BLOCK = 128
"""The engine cuts attention at multiples of so many elements where that leaves no device idle."""

GRAPH_BYTES = 20_000
"""Of graphs sent again per token and device, for each layer squared: 5.2 MB at 16 layers, 18 to 20 MB at 30. Workers
were seen to keep about as much: 14 to 19 MiB beside all else with 135 M of 30 layers."""


def granule(memory: ModelMemory, devices: int) -> int:
    """KV heads that stay together when so many devices share a layer."""
    return lcm(*(lcm(width, _block(width, block, devices)) // width for width, block in memory.head_groups))


def whole_parts(memory: ModelMemory, devices: int) -> int:
    """Into how many equal parts so many devices can cut every layer alike; 0 where no such parts are enough."""
    together = granule(memory, devices)
    count = 0 if memory.kv_heads % together else memory.kv_heads // together
    return count if count >= devices else 0


def heads_of(parts: Sequence[int], kv_heads: int, together: int, first: int) -> tuple[int, ...]:
    """KV heads of each device in a layer whose first one is the device `first`."""
    counts, before, scanned = [0] * len(parts), 0, 0
    for step in range(len(parts)):
        device = (first + step) % len(parts)
        scanned += parts[device]
        end = kv_heads * scanned // sum(parts) // together * together if step < len(parts) - 1 else kv_heads
        counts[device], before = end - before, end
    return tuple(counts)


@dataclass(frozen=True)
class Cut:
    """The parts of a group of devices. `heads[r][d]` is device d's part, of 1, of the attention in layers whose first
    device is r; one row stands for all where they are alike. `attention[d]` is the sum over all layers, of 1."""

    parts: tuple[int, ...]
    heads: tuple[tuple[float, ...], ...]
    attention: tuple[float, ...]

    def share(self, device: int) -> float:
        """The device's part, of 1, of all that is not attention."""
        return self.parts[device] / sum(self.parts)


def cut(memory: ModelMemory, parts: Sequence[int]) -> Cut:
    """How the engine cuts this model by these integers of `--tensor-split`."""
    return _cut(memory.kv_heads, granule(memory, len(parts)), memory.blocks, tuple(parts))


def cut_bytes(memory: ModelMemory, parts: Sequence[int]) -> tuple[ShareBytes, ...]:
    """What each device takes: its part of every layer and of the output layer, rounded up, and buffers."""
    made = cut(memory, parts)
    return tuple(_held(memory, made.share(device), heads) for device, heads in enumerate(made.attention))


def part_bytes(memory: ModelMemory, part: int, whole: int) -> ShareBytes:
    """What a device with `part` of `whole_parts` takes, whatever the others have."""
    return _held(memory, part / whole, part / whole)


def layers_part(memory: ModelMemory, share: float, heads: float) -> float:
    """Weights in bytes of all layers on a device with these parts, of 1: `heads` of attention, `share` of the rest."""
    rows = sum(memory.layer_weights_bytes) - memory.attention_bytes - memory.mirrored_bytes
    return memory.mirrored_bytes + memory.attention_bytes * heads + rows * share


def _held(memory: ModelMemory, share: float, heads: float) -> ShareBytes:
    return ShareBytes(
        weights_bytes=_up(layers_part(memory, share, heads) + memory.output_bytes * share),
        kv_bytes=_up(sum(memory.layer_kv_bytes) * heads),
        compute_bytes=_buffers_bytes(memory, share),
    )


def _buffers_bytes(memory: ModelMemory, share: float) -> int:
    elsewhere = int(memory.cut_compute_bytes * (1 - share))
    return memory.compute_tensor_bytes - elsewhere + GRAPH_BYTES * memory.blocks**2


def _block(width: int, block: int, devices: int) -> int:
    while block < FAST_BLOCK and block * devices < width:
        block *= 2
    return block


@lru_cache(maxsize=4096)
def _cut(kv_heads: int, together: int, layers: int, parts: tuple[int, ...]) -> Cut:
    counts = [heads_of(parts, kv_heads, together, first) for first in range(len(parts))]
    heads = tuple(tuple(count / kv_heads for count in row) for row in counts)
    times = [len(range(first, layers, len(parts))) for first in range(len(parts))]
    attention = tuple(
        sum(n * row[device] for n, row in zip(times, heads, strict=True)) / layers for device in range(len(parts))
    )
    return Cut(parts, heads[:1] if len(set(heads)) == 1 else heads, attention)


def _up(size: float) -> int:
    """Rounded up, but not for what floating point adds to a whole number."""
    return -int(-(size - 1e-3) // 1) if size > 0 else 0
