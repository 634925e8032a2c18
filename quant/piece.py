"""What a worker gets of a tensor, and where its bytes lie in the model's file: all of it, or in mode `tensor` a part.

By the pinned engine's own rule: `llama_meta_device_get_split_state` (llama.cpp's llama-model.cpp) says where a tensor
is cut, `ggml_backend_meta_buffer_set_tensor` (ggml-backend-meta.cpp) in which pieces it is sent. A piece that is
thought wrong does no harm: no worker is ever asked for it. Only architectures whose rule is known here are cut.
"""

import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import lcm

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from quant.model import Model, Tensor, device_tensors

CUT = ("llama", "qwen2", "qwen3", "qwen3moe")

OUTPUTS = ("output.weight", "token_embd.weight")
"""The second where it is the output's, too; of the input's a device has nothing."""

FAST_BLOCK = 128
"""The engine cuts at multiples of so many elements where that leaves no device idle."""

_ATTENTION = re.compile(r"blk\.\d+\.attn_(q|k|v|output)\.weight$")
_FEED_FORWARD = re.compile(r"blk\.\d+\.ffn_(up|gate|down)(_exps)?\.weight$")
_WITHIN_ROWS = re.compile(r"blk\.\d+\.(attn_output|ffn_down(_exps)?)\.weight$")
"""These are cut within each row, the others that are cut between rows."""


@dataclass(frozen=True)
class Piece:
    """`count` runs of `run_bytes`, each `stride_bytes` after the one before; the first begins `first_bytes` after the
    tensor does."""

    tensor: Tensor
    first_bytes: int
    run_bytes: int
    count: int = 1
    stride_bytes: int = 0

    @property
    def size_bytes(self) -> int:
        return self.run_bytes * self.count

    @property
    def offset(self) -> int:
        """Where it begins in its file."""
        return self.tensor.offset + self.first_bytes

    @property
    def name(self) -> str:
        """The tensor's, with what the piece is of it."""
        if self.size_bytes == self.tensor.size_bytes:
            return self.tensor.name
        return f"{self.tensor.name}[{self.first_bytes}+{self.run_bytes}*{self.count}]"


def whole(tensor: Tensor) -> Piece:
    return Piece(tensor, 0, tensor.size_bytes)


def device_pieces(model: Model, parts: Sequence[int], device: int) -> tuple[Piece, ...]:
    """What a head in mode `tensor` sends to the device of this number, of as many as there are `parts` (of every layer;
    the integers of `--tensor-split`). Nothing where it is not known how this model is cut."""
    if model.architecture not in CUT:
        return ()
    types = {tensor.name: tensor.type for tensor in model.tensors}
    pieces = (
        _piece(model, types, tensor, parts, device) for tensor in device_tensors(model, 0, model.block_count, True)
    )
    return tuple(piece for piece in pieces if piece is not None)


def _piece(model: Model, types: Mapping[str, str], tensor: Tensor, parts: Sequence[int], device: int) -> Piece | None:
    granule = _granule(model, types, tensor, len(parts))
    if granule is None:
        return whole(tensor)
    axis = 0 if _WITHIN_ROWS.match(tensor.name) else 1
    layer = model.block_count if tensor.block is None else tensor.block
    sizes = _sizes(tensor.shape[axis], granule, parts, layer % len(parts))
    if not sizes[device]:
        return None
    low, high = sum(sizes[:device]), sum(sizes[: device + 1])
    stride = _row_bytes(tensor) if axis == 0 else _row_bytes(tensor) * tensor.shape[1]
    begin, end = (stride * edge // tensor.shape[axis] for edge in (low, high))
    return Piece(tensor, begin, end - begin, tensor.size_bytes // stride, stride)


def _granule(model: Model, types: Mapping[str, str], tensor: Tensor, devices: int) -> int | None:
    """Elements between which it is never cut; None: every device has it whole."""
    if tensor.name in OUTPUTS:
        return 1
    prefix = f"blk.{tensor.block}."
    if _FEED_FORWARD.match(tensor.name):
        down = types.get(f"{prefix}ffn_down.weight") or types[f"{prefix}ffn_down_exps.weight"]
        return lcm(_block(down), FAST_BLOCK)
    if (attention := _ATTENTION.match(tensor.name)) and tensor.block is not None:
        heads = model.head_count // model.head_count_kv[tensor.block]
        together = _heads_together(heads * model.key_length, _block(types[f"{prefix}attn_output.weight"]), devices)
        widths = {"q": heads * model.key_length, "k": model.key_length, "v": model.value_length}
        return together * widths.get(attention[1], heads * model.value_length)
    return None


def _heads_together(width: int, block: int, devices: int) -> int:
    """KV heads that are not parted, of `width` query elements each, before an output in blocks of so many elements."""
    while block < FAST_BLOCK and block * devices < width:
        block *= 2
    return lcm(width, block) // width


def _sizes(elements: int, granule: int, parts: Sequence[int], first: int) -> list[int]:
    """Elements of each device. They are reckoned beginning with the device `first`, so that rounding evens out over the
    layers, but lie in the order of the devices."""
    sizes, low, scanned = [0] * len(parts), 0, 0
    for step in range(len(parts)):
        device = (first + step) % len(parts)
        scanned += parts[device]
        high = elements if step == len(parts) - 1 else _share(elements, scanned, sum(parts)) // granule * granule
        sizes[device], low = high - low, high
    return sizes


def _share(elements: int, part: int, total: int) -> int:
    """As the engine reckons it, in single precision."""
    return int(_single(_single(elements * part) / total))


def _single(number: float) -> float:
    return float(struct.unpack("f", struct.pack("f", number))[0])


def _row_bytes(tensor: Tensor) -> int:
    block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[tensor.type]]
    return tensor.shape[0] // block * block_bytes


def _block(kind: str) -> int:
    return GGML_QUANT_SIZES[GGMLQuantizationType[kind]][0]
