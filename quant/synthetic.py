"""Write GGUF files of made-up weights: neither the time nor the memory that a device needs depends on their values.

For measuring and counting only: such a model answers nothing sensible. Knows no device, host or engine.
"""

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter, TokenType
from numpy.typing import NDArray

from quant.mixture import MATRICES, LayerTypes
from quant.model import Model, layer_matrices, used_part
from quant.whole_file import written_whole

_FLOAT_FILL = 0x3C
"""0x3C3C3C3C is 0.0115 as F32 and 0x3C3C is 0.0115 as BF16: nowhere near a denormal number, which would be slow."""

_BLOCK_FILL = 0x11
"""0x1111 is 0.0006 as F16: what every scale of a quantised block (and every F16 weight) becomes.

One byte of every block is random, so that no two tensors are alike: the one in the middle, which in no type is part of
a scale as F16, and of F16 and F32 weights the lowest of the mantissa.
"""

_BLOCK = 256
_KV_BLOCK = 32
"""Heads of a multiple of this many elements: a KV cache of a quantised type takes no others."""

_SIGN_BIT, _SCALE_BITS, _SCALE_FILL = 0x80, 0x87, 0x08
"""Bytes that are random in these bits, and have that one set: as F16, which the scales of blocks are, 0.0001 to 0.0005
of either sign, wherever in a block they stand."""

_MXFP4_SCALE = 0x78
"""That type's scales are powers of two, this one 2 to the power of -7."""

_INDICES = ("I8", "I16", "I32", "I64")
"""No weights: numbers of experts, say."""

_EPSILON = 1e-5
_CONTEXT_LENGTH = 131072

Bytes = NDArray[np.uint8]


_INSTEAD = {
    "Q2_K": "Q4_0",
    "Q3_K": "Q4_0",
    "TQ1_0": "Q4_0",
    "TQ2_0": "Q4_0",
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}
"""What the engine takes for rows that no block of 256 divides (`tensor_type_fallback` in llama.cpp's llama-quant.cpp);
for all other such types IQ4_NL."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a llama model in elements. The widths should be multiples of 256, the block size of the K quants."""

    layers: int
    embedding: int
    feed_forward: int
    heads: int
    kv_heads: int
    vocabulary: int

    @property
    def kv_width(self) -> int:
        """Elements of one layer's K (or V) per token."""
        return self.embedding // self.heads * self.kv_heads

    @property
    def layer_weights(self) -> int:
        """Weights of the matrices of one layer."""
        return self.embedding * (2 * self.embedding + 2 * self.kv_width + 3 * self.feed_forward)

    @property
    def widths(self) -> tuple[int, ...]:
        """What one layer is told from others by."""
        return (self.embedding, self.feed_forward, self.heads, self.kv_heads)


def calibration_shape(layers: int) -> Shape:
    """About 15 M weights per layer, in the proportions of Llama 3, and an output layer too small to matter.

    8.7 MB per layer as Q4_0, written and loaded in a moment. Decoding is only timed truly when the layers together
    exceed the processor's last-level cache several times: choose their number by it.
    """
    return Shape(layers, embedding=1024, feed_forward=4096, heads=16, kv_heads=4, vocabulary=256)


ONE_BILLION = Shape(layers=16, embedding=2048, feed_forward=8192, heads=32, kv_heads=8, vocabulary=32000)
THREE_BILLION = Shape(layers=28, embedding=3072, feed_forward=8192, heads=24, kv_heads=8, vocabulary=32000)
"""The proportions of Llama 3.2's 1 B and 3 B models, with a smaller vocabulary: 1.2 and 3.0 billion weights."""


def type_bytes(kind: str, weights: int) -> int:
    """What so many weights take in whole blocks of this ggml type; ValueError for one that there is none of."""
    block, block_bytes = GGML_QUANT_SIZES[_known_type(kind)]
    return weights // block * block_bytes


def like_shape(model: Model, layers: int) -> Shape:
    """The shape of a llama model with this model's widths, for one that cannot be cut; widths in whole blocks."""
    ups = (t.shape[1] for t in model.tensors if ".ffn_up" in t.name and len(t.shape) > 1)
    return _like(model, layers, max(ups, default=4 * model.embedding_length), _BLOCK)


def like_work(model: Model) -> Shape:
    """The shape of a llama model whose layers are as much work for a token as this model's on the average: as wide
    between up and down as makes them have as many weights, if they have more than attention of this width alone.

    Of experts only the part that works for a token counts. The width is the model's own where heads divide it, else in
    whole blocks.
    """
    weights = sum(tensor.parameters * used_part(model, tensor) for tensor in layer_matrices(model))
    own = model.embedding_length % (max(1, model.head_count) * _KV_BLOCK) == 0
    shape = _like(model, model.block_count, 0, _KV_BLOCK if own else _BLOCK)
    attention = shape.embedding * 2 * (shape.embedding + shape.kv_width)
    scale = shape.embedding / model.embedding_length  # of what is rounded to whole blocks
    forward = max(0.0, weights * scale * scale / max(1, model.block_count) - attention) / (3 * shape.embedding)
    return replace(shape, feed_forward=_whole_blocks(round(forward), _KV_BLOCK if own else _BLOCK))


def _like(model: Model, layers: int, feed_forward: int, block: int) -> Shape:
    embedding, heads = _whole_blocks(model.embedding_length, block), max(1, model.head_count)
    divides = embedding % (heads * _KV_BLOCK) == 0
    return Shape(
        layers=layers,
        embedding=embedding,
        feed_forward=_whole_blocks(feed_forward, block),
        heads=heads if divides else 8,
        kv_heads=_kv_heads(model, heads) if divides else 8,
        vocabulary=model.vocabulary,
    )


def _kv_heads(model: Model, heads: int) -> int:
    least = min((count for count in model.head_count_kv if count), default=heads)
    return least if heads % least == 0 else 8


def _whole_blocks(width: int, block: int) -> int:
    return max(block, round(width / block) * block)


def write_random_model(path: Path, shape: Shape, tensor_type: str, *, reads_text: bool = False) -> None:
    """Write a model of this shape whose matrices have the ggml type `tensor_type` (such as "Q4_K"), norms F32.

    The same file each time. It takes token numbers only, as `llama-bench` sends, or, if it `reads_text`, the bytes of a
    text, each as a token. Written beside `path` and renamed, one tensor in memory at a time. ValueError for a type that
    does not exist or whose blocks do not divide the widths.
    """
    kind = _known_type(tensor_type)
    tensors = tuple(_tensors(shape, lambda layer, name: kind))
    write_made_up(path, "llama", _facts(shape), tensors, vocabulary=shape.vocabulary, reads_text=reads_text)


def write_mixed_model(path: Path, shape: Shape, layers: Sequence[LayerTypes], output_type: str) -> None:
    """As `write_random_model`, the matrices of each layer in types of their own, as `fitting_types` has them; the
    embedding, which is the output layer again, in `output_type`."""

    def type_of(layer: int | None, name: str) -> GGMLQuantizationType:
        return _known_type(output_type if layer is None else layers[layer][MATRICES.index(name)])

    tensors = tuple(tensor for tensor in _tensors(shape, type_of) if tensor.name != "output.weight")
    write_made_up(path, "llama", _facts(shape), tensors, vocabulary=shape.vocabulary)


def fitting_types(shape: Shape, layer: LayerTypes) -> LayerTypes:
    """These types, but where their blocks do not divide a row of this shape what the engine takes instead."""
    rows = (*[shape.embedding] * (len(MATRICES) - 1), shape.feed_forward)
    return tuple(
        kind if row % GGML_QUANT_SIZES[_known_type(kind)][0] == 0 else _INSTEAD.get(kind, "IQ4_NL")
        for kind, row in zip(layer, rows, strict=True)
    )


def layer_type_bytes(shape: Shape, layer: LayerTypes) -> int:
    """What the matrices of one layer of this shape take in these types."""
    wide, narrow, forward = shape.embedding, shape.kv_width, shape.feed_forward
    weights = (wide * wide, wide * narrow, wide * narrow, wide * wide, *[wide * forward] * 3)
    return sum(type_bytes(kind, count) for kind, count in zip(layer, weights, strict=True))


Fact = int | float | str | Sequence[int]


@dataclass(frozen=True)
class MadeUp:
    """A tensor to write; `shape` as ggml counts: elements of a row first. `is_norm`: ones, as F32."""

    name: str
    type: GGMLQuantizationType
    shape: tuple[int, ...]
    is_norm: bool

    @property
    def size_bytes(self) -> int:
        block, block_bytes = GGML_QUANT_SIZES[self.type]
        return int(np.prod(self.shape)) // block * block_bytes

    def data(self) -> Bytes:
        if self.is_norm:
            return np.ones(int(np.prod(self.shape)), dtype=np.float32).view(np.uint8)
        is_float = self.type in (GGMLQuantizationType.F32, GGMLQuantizationType.BF16)
        data = np.full(self.size_bytes, _FLOAT_FILL if is_float else _BLOCK_FILL, dtype=np.uint8)
        elements, block_bytes = GGML_QUANT_SIZES[self.type]
        varied = data[0 if elements == 1 else block_bytes // 2 :: block_bytes]
        varied[:] = np.random.default_rng(zlib.crc32(self.name.encode())).integers(0, 256, varied.size, dtype=np.uint8)
        return data


def distinct_weights(name: str, kind: str, shape: tuple[int, ...]) -> Bytes:
    """What a tensor of any model may hold instead of weights that are not here: ones in norms, elsewhere small numbers
    at random, of either sign, so that each token takes its own way through a model's experts, as with real weights.

    The same each time. ValueError for a type that does not exist.
    """
    is_norm = kind == "F32" and "norm" in name and name.endswith(".weight")
    tensor = MadeUp(name, _known_type(kind), shape, is_norm)
    if is_norm:
        return tensor.data()
    if kind in _INDICES:
        return np.zeros(tensor.size_bytes, dtype=np.uint8)
    data = np.random.default_rng(zlib.crc32(name.encode())).integers(0, 256, tensor.size_bytes, dtype=np.uint8)
    _, block_bytes = GGML_QUANT_SIZES[tensor.type]
    if kind in ("F32", "BF16"):
        highest = data[block_bytes - 1 :: block_bytes]
        highest[:] = highest & _SIGN_BIT | _FLOAT_FILL
    elif kind == "MXFP4":
        data[::block_bytes] = _MXFP4_SCALE
    else:
        data &= _SCALE_BITS
        data |= _SCALE_FILL
    return data


def _tensors(shape: Shape, type_of: Callable[[int | None, str], GGMLQuantizationType]) -> Iterator[MadeUp]:
    """`type_of`: by layer and matrix; of those outside of layers by None."""

    def matrix(name: str, width: int, rows: int) -> MadeUp:
        _, number, last = name.split(".") if "." in name else ("", None, name)
        kind = type_of(number if number is None else int(number), last)
        block, _ = GGML_QUANT_SIZES[kind]
        if width % block:
            raise ValueError(f"{name}: a row of {width} weights is no whole number of {kind.name} blocks of {block}")
        return MadeUp(f"{name}.weight", kind, (width, rows), is_norm=False)

    def norm(name: str) -> MadeUp:
        return MadeUp(f"{name}.weight", GGMLQuantizationType.F32, (shape.embedding,), is_norm=True)

    yield matrix("token_embd", shape.embedding, shape.vocabulary)
    for layer in range(shape.layers):
        block_name = f"blk.{layer}"
        yield norm(f"{block_name}.attn_norm")
        yield matrix(f"{block_name}.attn_q", shape.embedding, shape.embedding)
        yield matrix(f"{block_name}.attn_k", shape.embedding, shape.kv_width)
        yield matrix(f"{block_name}.attn_v", shape.embedding, shape.kv_width)
        yield matrix(f"{block_name}.attn_output", shape.embedding, shape.embedding)
        yield norm(f"{block_name}.ffn_norm")
        yield matrix(f"{block_name}.ffn_gate", shape.embedding, shape.feed_forward)
        yield matrix(f"{block_name}.ffn_up", shape.embedding, shape.feed_forward)
        yield matrix(f"{block_name}.ffn_down", shape.feed_forward, shape.embedding)
    yield norm("output_norm")
    yield matrix("output", shape.embedding, shape.vocabulary)


def _known_type(name: str) -> GGMLQuantizationType:
    try:
        return GGMLQuantizationType[name]
    except KeyError:
        raise ValueError(f"{name} is no ggml tensor type") from None


def write_made_up(
    path: Path,
    architecture: str,
    facts: Mapping[str, Fact],
    tensors: Sequence[MadeUp],
    *,
    vocabulary: int,
    reads_text: bool = False,
) -> None:
    """Write a model of any architecture: `facts` by their keys without its name. Beside `path` first, then renamed."""
    with written_whole(path) as partial:
        writer = GGUFWriter(partial, architecture)
        try:
            writer.add_name("meshctl synthetic")
            writer.add_vocab_size(vocabulary)
            for name, fact in facts.items():
                _add_fact(writer, f"{architecture}.{name}", fact)
            _add_tokenizer(writer, vocabulary if reads_text else 0)
            _add_tensors(writer, tensors)
        finally:
            writer.close()


def _add_tensors(writer: GGUFWriter, tensors: Sequence[MadeUp]) -> None:
    for tensor in tensors:
        # The writer reverses shapes; bytes are given so that it takes every block type as it is.
        block, block_bytes = GGML_QUANT_SIZES[tensor.type]
        rows = tuple(reversed(tensor.shape[1:]))
        byte_shape = (*rows, tensor.shape[0] // block * block_bytes)
        writer.add_tensor_info(tensor.name, byte_shape, np.dtype(np.uint8), tensor.size_bytes, tensor.type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in tensors:
        writer.write_tensor_data(tensor.data())


def _add_fact(writer: GGUFWriter, key: str, fact: Fact) -> None:
    if isinstance(fact, bool):
        writer.add_bool(key, fact)
    elif isinstance(fact, int):
        writer.add_uint32(key, fact)
    elif isinstance(fact, float):
        writer.add_float32(key, fact)
    elif isinstance(fact, str):
        writer.add_string(key, fact)
    else:
        writer.add_array(key, list(fact))


def _facts(shape: Shape) -> dict[str, Fact]:
    return {
        "block_count": shape.layers,
        "context_length": _CONTEXT_LENGTH,
        "embedding_length": shape.embedding,
        "feed_forward_length": shape.feed_forward,
        "attention.head_count": shape.heads,
        "attention.head_count_kv": shape.kv_heads,
        "attention.layer_norm_rms_epsilon": _EPSILON,
    }


_SPECIAL = ("<unk>", "<s>", "</s>")


def _add_tokenizer(writer: GGUFWriter, size: int) -> None:
    """One of `size` words, of which those after the bytes are never met in a text; 0: none."""
    if not size:
        writer.add_tokenizer_model("no_vocab")
        return
    if size < len(_SPECIAL) + 256:
        raise ValueError(f"a vocabulary of {size} has no room for 256 bytes")
    single = [f"<0x{byte:02X}>" for byte in range(256)]
    rest = [f"<never{number}>" for number in range(size - len(_SPECIAL) - len(single))]
    unknown, control = TokenType.UNKNOWN, TokenType.CONTROL
    writer.add_tokenizer_model("llama")
    writer.add_token_list([*_SPECIAL, *single, *rest])
    writer.add_token_scores([0.0] * size)
    writer.add_token_types([unknown, control, control, *[TokenType.BYTE] * 256, *[TokenType.UNUSED] * len(rest)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
