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

BESIDE_BYTES = 64 * 1024
"""What a worker was seen to keep of graphs, for each layer: 2 MiB with 135 M of 30 layers."""


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
    device is r; one row stands for all where they are alike. `attention[d]` is the sum over all layers, of 1;
    `first[l]` the row of layer l."""

    parts: tuple[int, ...]
    heads: tuple[tuple[float, ...], ...]
    attention: tuple[float, ...]
    first: tuple[int, ...]

    def share(self, device: int) -> float:
        """The device's part, of 1, of all that is not attention."""
        return self.parts[device] / sum(self.parts)


def cut(memory: ModelMemory, parts: Sequence[int]) -> Cut:
    """How the engine cuts this model by these integers of `--tensor-split`."""
    kinds = tuple(fixed > 0 for fixed in memory.layer_kv_fixed_bytes) or (False,) * memory.blocks
    return _cut(memory.kv_heads, granule(memory, len(parts)), kinds, tuple(parts))


def cut_bytes(memory: ModelMemory, parts: Sequence[int]) -> tuple[ShareBytes, ...]:
    """What each device takes: its part of every layer and of the output layer, rounded up, and buffers."""
    made = cut(memory, parts)
    of_row = [0] * len(made.heads)
    for size, row in zip(memory.layer_kv_bytes, made.first, strict=True):
        of_row[row] += size
    kv = [sum(size * row[device] for size, row in zip(of_row, made.heads, strict=True)) for device in range(len(parts))]
    return tuple(_held(memory, made.share(device), heads, kv[device]) for device, heads in enumerate(made.attention))


def part_bytes(memory: ModelMemory, part: int, whole: int) -> ShareBytes:
    """What a device with `part` of `whole_parts` takes, whatever the others have."""
    return _held(memory, part / whole, part / whole, sum(memory.layer_kv_bytes) * part / whole)


def layers_part(memory: ModelMemory, share: float, heads: float) -> float:
    """Weights in bytes of all layers on a device with these parts, of 1: `heads` of attention, `share` of the rest."""
    rows = sum(memory.layer_weights_bytes) - memory.attention_bytes - memory.mirrored_bytes
    return memory.mirrored_bytes + memory.attention_bytes * heads + rows * share


def _held(memory: ModelMemory, share: float, heads: float, kv: float) -> ShareBytes:
    return ShareBytes(
        weights_bytes=_up(layers_part(memory, share, heads) + memory.output_bytes * share),
        kv_bytes=_up(kv),
        compute_bytes=_buffers_bytes(memory, share),
    )


def _buffers_bytes(memory: ModelMemory, share: float) -> int:
    return memory.compute_tensor_bytes - int(memory.cut_compute_bytes * (1 - share)) + BESIDE_BYTES * memory.blocks


def _block(width: int, block: int, devices: int) -> int:
    while block < FAST_BLOCK and block * devices < width:
        block *= 2
    return block


@lru_cache(maxsize=4096)
def _cut(kv_heads: int, together: int, kinds: tuple[bool, ...], parts: tuple[int, ...]) -> Cut:
    """`kinds`: whether a layer has a window or a state; the first device goes round among the layers of one kind."""
    counts = [heads_of(parts, kv_heads, together, first) for first in range(len(parts))]
    heads = tuple(tuple(count / kv_heads for count in row) for row in counts)
    first = tuple(kinds[:layer].count(kind) % len(parts) for layer, kind in enumerate(kinds))
    attention = tuple(
        sum(first.count(row) * heads[row][device] for row in range(len(parts))) / len(kinds)
        for device in range(len(parts))
    )
    if len(set(heads)) == 1:
        return Cut(parts, heads[:1], attention, (0,) * len(kinds))
    return Cut(parts, heads, attention, first)


def _up(size: float) -> int:
    """Rounded up, but not for what floating point adds to a whole number."""
    return -int(-(size - 1e-3) // 1) if size > 0 else 0
