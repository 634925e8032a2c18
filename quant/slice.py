"""Write a model cut to its first layers: devices are timed on it, so that types, shapes and kernels are the real ones.

Metadata and tensors are copied byte by byte; only what tells of the layers is changed. Of a model whose header alone is
here the tensors are made up.
"""

import hashlib
import re
import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from quant.errors import SliceError
from quant.gguf_header import Array, Header, Scalar, TensorInfo, printable, read_header
from quant.gguf_writing import NewFile, Part, fact_entries, parts_of, write_gguf, write_gguf_with
from quant.model import Model, layer_bytes
from quant.shards import SPLIT_KEYS
from quant.synthetic import distinct_weights
from quant.whole_file import check_room, written_whole

MIB = 1024 * 1024

SHALLOW, DEEP = 2, 4
"""Decoding is linear in the layers: a line through 2 and 4 of them predicts 16 within 3 % (see docs/plan.md)."""

DEEP_BYTES = 256 * MIB
"""The layers of the deep slice exceed this: those that fit a processor's last-level cache seem too fast, and the line
through both depths shall not be drawn far. What noise there is grows with that: 9 times from 2 and 4 layers to 16, 4
times from 2 and 6."""

LARGE_LAYER_BYTES = 128 * MIB
LARGE_SHALLOW, LARGE_DEEP = 1, 3
"""Larger layers are timed on slices of 1 and 3: every slice also has to travel to the devices."""

_OTHER_STACKS = re.compile(r"(enc|dec)\.blk\.")
_ALL_LAYERS_IN_ONE = re.compile(r"per_layer_")
_BLOCK = re.compile(r"blk\.(\d+)\.")

_NOT_PER_LAYER = "rope.dimension_sections"
_COUNTED_FROM_THE_END = ("nextn_predict_layers", "attention.shared_kv_layers")
_COUNTED_FROM_THE_START = "leading_dense_block_count"


def slice_depths(model: Model, available_bytes: int | None = None) -> tuple[int, int]:
    """How many layers the shallow and the deep slice have; the deep one may be the whole model.

    What the deep slice has more are layers of the most frequent kind, where the first ones are of another (dense ones
    before those with experts). `available_bytes` is what a device has for layers (None: no limit); the deep slice
    takes no more.
    """
    sizes = layer_bytes(model)
    most = _layers_within(sizes, available_bytes)
    if most < 2 or model.block_count < 2:
        return 1, max(1, min(2, most))
    unusual = _unusual_first_layers(model)
    large = sizes[unusual] > LARGE_LAYER_BYTES
    wanted = LARGE_DEEP if large else max(DEEP, 1 + _layers_within(sizes, DEEP_BYTES))
    deep = min(max(wanted, unusual + 1), most, model.block_count)
    least = LARGE_SHALLOW if large else max(SHALLOW, deep // 3)
    return max(1, min(deep - 1, max(least, unusual))), deep


def shape_digest(model: Model) -> str:
    """The same for models whose tensors have the same names, types and shapes: what measured speeds are kept under."""
    facts = [model.architecture, str(model.block_count)]
    facts += sorted(f"{tensor.name} {tensor.type} {tensor.shape}" for tensor in model.tensors)
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:24]


def write_slice(model: Model, layers: int, path: Path, *, made_up: bool = False) -> None:
    """Write the model with its first `layers` layers, all else as it is; beside `path` first, then renamed. `made_up`:
    with weights at random, since the model's own are not here.

    SliceError for an architecture whose layers are not one stack, or share a tensor; NoRoomError.
    """
    if not 1 <= layers <= model.block_count:
        raise ValueError(f"{layers} of {model.block_count} layers")
    _check_can_be_cut(model)
    header = read_header(model.path)
    parts = tuple(_kept_parts(model, layers))
    new = NewFile(header.version, header.alignment, _cut_facts(model, header, layers), parts)
    check_room(path.parent, new.size_bytes, f"a slice of {model.name}")
    with written_whole(path) as partial:
        if made_up:
            write_gguf_with(_made_up, new, partial)
        else:
            write_gguf(new, partial)


def _made_up(info: TensorInfo) -> memoryview:
    return distinct_weights(info.name, info.type, info.shape).data


def _layers_within(sizes: tuple[int, ...], limit_bytes: int | None) -> int:
    if limit_bytes is None:
        return len(sizes)
    total = 0
    for count, size in enumerate(sizes):
        total += size
        if total > limit_bytes:
            return count
    return len(sizes)


def _unusual_first_layers(model: Model) -> int:
    """How many layers come before the first one of the most frequent kind; a kind is the names of its tensors."""
    names: list[set[str]] = [set() for _ in range(model.block_count)]
    for tensor in model.tensors:
        if tensor.block is not None and tensor.block < model.block_count:
            names[tensor.block].add(_BLOCK.sub("", tensor.name))
    kinds = [frozenset(of_layer) for of_layer in names]
    return kinds.index(Counter(kinds).most_common(1)[0][0])


def _check_can_be_cut(model: Model) -> None:
    if any(_OTHER_STACKS.match(tensor.name) for tensor in model.tensors):
        raise SliceError(f"{model.name}: a {model.architecture} model has more than one stack of layers")
    shared = [tensor.name for tensor in model.tensors if _ALL_LAYERS_IN_ONE.match(tensor.name)]
    if shared:
        name = printable(shared[0])
        raise SliceError(f"{model.name}: {name} of a {model.architecture} model belongs to all layers at once")


def _kept_parts(model: Model, layers: int) -> Iterator[Part]:
    for shard in model.shards:
        for part in parts_of(shard, read_header(shard)):
            match = _BLOCK.match(part.info.name)
            if match is None or int(match[1]) < layers:
                yield part


def _cut_facts(model: Model, header: Header, layers: int) -> tuple[bytes, ...]:
    """The entries of the metadata, each as its bytes in the file."""
    return tuple(
        _cut_entry(entry, key, header.facts[key], header, model, layers)
        for key, entry in fact_entries(model.path, header).items()
        if not key.startswith(SPLIT_KEYS)
    )


def _cut_entry(entry: bytes, key: str, value: Scalar | Array, header: Header, model: Model, layers: int) -> bytes:
    """This entry for a model of so many layers. The engine takes arrays of exactly one item per layer, those for
    predicting several tokens counted or not."""
    prefix = f"{model.architecture}."
    name = key.removeprefix(prefix)
    if not key.startswith(prefix) or name == _NOT_PER_LAYER:
        return entry
    if isinstance(value, Array):
        predicting = header.facts.get(f"{prefix}nextn_predict_layers", 0)
        without = model.block_count - predicting if isinstance(predicting, int) else model.block_count
        per_layer = value.items and value.count in (model.block_count, without)
        return _with_first_items(entry, value.count, min(layers, value.count)) if per_layer else entry
    number = _cut_number(name, value, model.block_count, layers) if isinstance(value, int) else value
    return entry if number == value else _with_number(entry, int(number))


def _cut_number(name: str, value: int, block_count: int, layers: int) -> int:
    if name == "block_count":
        return layers
    if name in _COUNTED_FROM_THE_END:
        return max(0, layers - (block_count - value))
    return min(value, layers) if name == _COUNTED_FROM_THE_START else value


def _with_first_items(entry: bytes, count: int, kept: int) -> bytes:
    """An array of numbers cut: type and number of its items, then the items."""
    items = _value_start(entry) + 12
    size = (len(entry) - items) // count
    return entry[: items - 8] + struct.pack("<Q", kept) + entry[items : items + kept * size]


def _with_number(entry: bytes, number: int) -> bytes:
    start = _value_start(entry)
    return entry[:start] + number.to_bytes(len(entry) - start, "little")


def _value_start(entry: bytes) -> int:
    """An entry starts with the length of its key in 8 bytes, the key, and its type in 4 bytes."""
    return 8 + int(struct.unpack_from("<Q", entry)[0]) + 4
