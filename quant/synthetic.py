"""Write llama-architecture GGUF files of made-up weights: the time a device needs does not depend on their values.

For measuring only: such a model answers nothing sensible. Knows no device, host or engine.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter, TokenType

from quant.model import Model
from quant.whole_file import written_whole

_FLOAT_FILL = 0x3C
"""0x3C3C3C3C is 0.0115 as F32 and 0x3C3C is 0.0115 as BF16: nowhere near a denormal number, which would be slow."""

_BLOCK_FILL = 0x11
"""0x1111 is 0.0006 as F16: what every scale of a quantised block (and every F16 weight) becomes.

One byte of every block is random, so that no two tensors are alike: the one in the middle, which in no type is part of
a scale as F16, and of F16 and F32 weights the lowest of the mantissa.
"""

_BLOCK = 256
_EPSILON = 1e-5
_CONTEXT_LENGTH = 131072


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


def calibration_shape(layers: int) -> Shape:
    """About 15 M weights per layer, in the proportions of Llama 3, and an output layer too small to matter.

    8.7 MB per layer as Q4_0, written and loaded in a moment. Decoding is only timed truly when the layers together
    exceed the processor's last-level cache several times: choose their number by it.
    """
    return Shape(layers, embedding=1024, feed_forward=4096, heads=16, kv_heads=4, vocabulary=256)


ONE_BILLION = Shape(layers=16, embedding=2048, feed_forward=8192, heads=32, kv_heads=8, vocabulary=32000)
THREE_BILLION = Shape(layers=28, embedding=3072, feed_forward=8192, heads=24, kv_heads=8, vocabulary=32000)
"""The proportions of Llama 3.2's 1 B and 3 B models, with a smaller vocabulary: 1.2 and 3.0 billion weights."""


def like_shape(model: Model, layers: int) -> Shape:
    """The shape of a llama model with this model's widths, for one that cannot be cut; widths in whole blocks."""
    ups = (t.shape[1] for t in model.tensors if ".ffn_up" in t.name and len(t.shape) > 1)
    feed_forward = max(ups, default=4 * model.embedding_length)
    heads = max(1, model.head_count)
    return Shape(
        layers=layers,
        embedding=_whole_blocks(model.embedding_length),
        feed_forward=_whole_blocks(feed_forward),
        heads=heads if _whole_blocks(model.embedding_length) % heads == 0 else 8,
        kv_heads=_kv_heads(model, heads),
        vocabulary=model.vocabulary,
    )


def _kv_heads(model: Model, heads: int) -> int:
    least = min((count for count in model.head_count_kv if count), default=heads)
    return least if _whole_blocks(model.embedding_length) % heads == 0 and heads % least == 0 else 8


def _whole_blocks(width: int) -> int:
    return max(_BLOCK, round(width / _BLOCK) * _BLOCK)


def write_random_model(path: Path, shape: Shape, tensor_type: str, *, reads_text: bool = False) -> None:
    """Write a model of this shape whose matrices have the ggml type `tensor_type` (such as "Q4_K"), norms F32.

    The same file each time. It takes token numbers only, as `llama-bench` sends, or, if it `reads_text`, the bytes of a
    text, each as a token. Written beside `path` and renamed, one tensor in memory at a time. ValueError for a type that
    does not exist or whose blocks do not divide the widths.
    """
    try:
        matrix_type = GGMLQuantizationType[tensor_type]
    except KeyError:
        raise ValueError(f"{tensor_type} is no ggml tensor type") from None
    tensors = tuple(_tensors(shape, matrix_type))
    with written_whole(path) as partial:
        _write(partial, shape, tensors, reads_text)


@dataclass(frozen=True)
class _TensorPlan:
    name: str
    type: GGMLQuantizationType
    shape: tuple[int, ...]  # as ggml counts: elements of a row first
    is_norm: bool

    @property
    def size_bytes(self) -> int:
        block, block_bytes = GGML_QUANT_SIZES[self.type]
        return int(np.prod(self.shape)) // block * block_bytes

    def data(self) -> "np.ndarray[tuple[int], np.dtype[np.uint8]]":
        if self.is_norm:
            return np.ones(self.shape[0], dtype=np.float32).view(np.uint8)
        is_float = self.type in (GGMLQuantizationType.F32, GGMLQuantizationType.BF16)
        data = np.full(self.size_bytes, _FLOAT_FILL if is_float else _BLOCK_FILL, dtype=np.uint8)
        elements, block_bytes = GGML_QUANT_SIZES[self.type]
        varied = data[0 if elements == 1 else block_bytes // 2 :: block_bytes]
        varied[:] = np.random.default_rng(zlib.crc32(self.name.encode())).integers(0, 256, varied.size, dtype=np.uint8)
        return data


def _tensors(shape: Shape, matrix_type: GGMLQuantizationType) -> Iterator[_TensorPlan]:
    block, _ = GGML_QUANT_SIZES[matrix_type]

    def matrix(name: str, width: int, rows: int) -> _TensorPlan:
        if width % block:
            raise ValueError(
                f"{name}: a row of {width} weights is no whole number of {matrix_type.name} blocks of {block}"
            )
        return _TensorPlan(f"{name}.weight", matrix_type, (width, rows), is_norm=False)

    def norm(name: str) -> _TensorPlan:
        return _TensorPlan(f"{name}.weight", GGMLQuantizationType.F32, (shape.embedding,), is_norm=True)

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


def _write(path: Path, shape: Shape, tensors: tuple[_TensorPlan, ...], reads_text: bool) -> None:
    writer = GGUFWriter(path, "llama")
    try:
        _add_facts(writer, shape)
        _add_tokenizer(writer, shape.vocabulary if reads_text else 0)
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
    finally:
        writer.close()


def _add_facts(writer: GGUFWriter, shape: Shape) -> None:
    writer.add_name("meshctl synthetic")
    writer.add_block_count(shape.layers)
    writer.add_context_length(_CONTEXT_LENGTH)
    writer.add_embedding_length(shape.embedding)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(_EPSILON)
    writer.add_vocab_size(shape.vocabulary)


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
