"""Write a model cut to its first layers: devices are timed on it, so that types, shapes and kernels are the real ones.

Tensors are copied as they are, a map of the file at a time; the metadata says how many layers there are now.
"""

import hashlib
import os
import re
from pathlib import Path

from gguf import GGUFReader, GGUFValueType, GGUFWriter, ReaderField

from quant.errors import SliceError
from quant.model import Model, layer_bytes

MIB = 1024 * 1024

SHALLOW, DEEP = 2, 4
"""Decoding is linear in the layers: a line through 2 and 4 of them predicts 16 within 3 % (see docs/plan.md)."""

CACHE_GOAL_BYTES = 96 * MIB
"""The layers of the deep slice exceed this: those that fit a processor's last-level cache seem too fast."""

LARGE_LAYER_BYTES = 128 * MIB
"""Larger layers are timed on slices of 2 and 3: every slice also has to travel to the devices."""

_OTHER_STACKS = re.compile(r"(enc|dec)\.blk\.")
_WRITERS_OWN = ("general.architecture", "GGUF.", "split.")
_NOT_PER_LAYER = "rope.dimension_sections"


def slice_depths(model: Model, available_bytes: int | None = None) -> tuple[int, int]:
    """How many layers the shallow and the deep slice have; the deep one may be the whole model.

    `available_bytes` is what a device has for layers (None: no limit); the deep slice takes no more.
    """
    sizes = layer_bytes(model)
    most = _layers_within(sizes, available_bytes)
    if most < 2 or model.block_count < 2:
        return 1, max(1, min(2, most))
    wanted = 3 if sizes[0] > LARGE_LAYER_BYTES else max(DEEP, 1 + _layers_within(sizes, CACHE_GOAL_BYTES))
    deep = min(wanted, most, model.block_count)
    return max(1, min(deep - 1, max(SHALLOW, deep // 3))), deep


def shape_digest(model: Model) -> str:
    """The same for models whose tensors have the same names, types and shapes: what measured speeds are kept under."""
    facts = [model.architecture, str(model.block_count)]
    facts += sorted(f"{tensor.name} {tensor.type} {tensor.shape}" for tensor in model.tensors)
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:24]


def write_slice(model: Model, layers: int, path: Path) -> None:
    """Write the model with its first `layers` layers, all else as it is; beside `path` first, then renamed.

    SliceError for an architecture whose layers are not one stack.
    """
    if not 1 <= layers <= model.block_count:
        raise ValueError(f"{layers} of {model.block_count} layers")
    if any(_OTHER_STACKS.match(tensor.name) for tensor in model.tensors):
        raise SliceError(f"{model.name}: a {model.architecture} model has more than one stack of layers")
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        _write(model, layers, partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _layers_within(sizes: tuple[int, ...], limit_bytes: int | None) -> int:
    if limit_bytes is None:
        return len(sizes)
    total = 0
    for count, size in enumerate(sizes):
        total += size
        if total > limit_bytes:
            return count
    return len(sizes)


def _write(model: Model, layers: int, path: Path) -> None:
    readers = [GGUFReader(shard) for shard in model.shards]
    writer = GGUFWriter(path, model.architecture)
    try:
        for field in readers[0].fields.values():
            if not field.name.startswith(_WRITERS_OWN):
                _copy_fact(writer, field, model, layers)
        tensors = [tensor for reader in readers for tensor in reader.tensors if _is_kept(tensor.name, layers)]
        for tensor in tensors:
            data = tensor.data
            writer.add_tensor_info(tensor.name, data.shape, data.dtype, data.nbytes, tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in tensors:
            writer.write_tensor_data(tensor.data)
    finally:
        writer.close()


def _is_kept(name: str, layers: int) -> bool:
    match = re.match(r"blk\.(\d+)\.", name)
    return match is None or int(match[1]) < layers


def _copy_fact(writer: GGUFWriter, field: ReaderField, model: Model, layers: int) -> None:
    value, kind = field.contents(), field.types[0]
    name = field.name.removeprefix(f"{model.architecture}.")
    of_model = field.name != name
    if of_model and name == "block_count":
        value = layers
    elif of_model and name == "nextn_predict_layers":
        value = 0
    elif of_model and name == "leading_dense_block_count":
        value = min(value, layers)
    elif of_model and kind == GGUFValueType.ARRAY and name != _NOT_PER_LAYER and len(value) == model.block_count:
        value = value[:layers]
    element = field.types[-1] if kind == GGUFValueType.ARRAY else None
    writer.add_key_value(field.name, value, kind, sub_type=element)
