"""What a model is: the facts of a GGUF file as frozen values, and the bytes that its parts take. Reads nothing."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

_BLOCK_TENSOR = re.compile(r"blk\.(\d+)\.")

_CUT_BY_HEADS = re.compile(r"blk\.\d+\.(attn_(q|k|v|qkv|gate)\.(weight|bias)|attn_(output|sinks)\.weight)$")
_CUT_BY_ROWS = re.compile(r"blk\.\d+\.(ffn_(up|gate|gate_up|down)(_exps)?\.(weight|bias)|ssm_.*)$")
_OUTPUT = re.compile(r"blk\.\d+\.attn_output\.weight$")
"""How the pinned engine cuts tensors in mode `tensor`; all others are on every device whole (`llama-model.cpp`,
`llama_meta_device_get_split_state`)."""

_INPUT_TENSORS = (
    "token_embd.weight",
    "position_embd.weight",
    "token_types.weight",
    "per_layer_token_embd.weight",
    "masked_embd_centroids.weight",
    "masked_embd_ordering.weight",
)
"""The engine keeps these on the head always (LLM_TENSOR_LAYER_INPUT in llama.cpp's llama-arch.cpp)."""


@dataclass(frozen=True)
class Tensor:
    """One tensor: ggml type name, shape as ggml counts (elements of a row first), bytes, the shard it lies in and where
    it begins there."""

    name: str
    type: str
    shape: tuple[int, ...]
    size_bytes: int
    shard: int
    offset: int = 0

    @property
    def parameters(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def block(self) -> int | None:
        """The layer it belongs to; None for those before the first and after the last."""
        match = _BLOCK_TENSOR.match(self.name)
        return int(match[1]) if match else None


@dataclass(frozen=True)
class Model:
    """A model as its file describes it; `path` is the first of `shards`.

    `quantisation` is the tensor type that takes the most bytes. `block_count` is what the engine calls n_layer and
    includes layers for predicting several tokens. Lengths are in elements, `context_length` in tokens as trained;
    `head_count_kv` has one entry per layer. `output_tied`: the output layer is the token embedding used again.
    `experts_used`: the part of its experts that work for one token. `files_digest` is that of `quant.whole_file` before
    the files were read: another one later means other files.
    """

    path: Path
    shards: tuple[Path, ...]
    name: str
    architecture: str
    quantisation: str
    parameters: int
    block_count: int
    context_length: int
    embedding_length: int
    head_count: int
    head_count_kv: tuple[int, ...]
    key_length: int
    value_length: int
    vocabulary: int
    output_tied: bool
    tensors: tuple[Tensor, ...]
    experts_used: float = 1.0
    files_digest: str = ""

    @property
    def size_bytes(self) -> int:
        """All tensors; the files are a little larger."""
        return sum(tensor.size_bytes for tensor in self.tensors)


def layer_matrices(model: Model) -> Iterator[Tensor]:
    """The matrices of all layers; vectors, such as norms, are no work to speak of."""
    return (tensor for tensor in model.tensors if tensor.block is not None and len(tensor.shape) > 1)


def used_part(model: Model, tensor: Tensor) -> float:
    """The part of a tensor that works for one token: all of it, but of experts."""
    return model.experts_used if "_exps." in tensor.name else 1.0


def worked_part(model: Model, first_layer: int, end_layer: int) -> float:
    """The part of the bytes of these layers that works for one token."""
    held = [tensor for tensor in model.tensors if tensor.block in range(first_layer, end_layer)]
    worked = sum(tensor.size_bytes * used_part(model, tensor) for tensor in held)
    return worked / max(1, sum(tensor.size_bytes for tensor in held)) or 1.0


def dominant_type(tensors: tuple[Tensor, ...]) -> str:
    """The tensor type that takes the most bytes."""
    sizes = Counter[str]()
    for tensor in tensors:
        sizes[tensor.type] += tensor.size_bytes
    return sizes.most_common(1)[0][0]


def layer_bytes(model: Model) -> tuple[int, ...]:
    """Weights of each layer in bytes."""
    sizes = [0] * model.block_count
    for tensor in model.tensors:
        if tensor.block is not None and tensor.block < model.block_count:
            sizes[tensor.block] += tensor.size_bytes
    return tuple(sizes)


def input_bytes(model: Model) -> int:
    """Weights that stay on the head: the embeddings."""
    return sum(tensor.size_bytes for tensor in model.tensors if tensor.name in _INPUT_TENSORS)


def output_bytes(model: Model) -> int:
    """Weights of the output layer where they are used; a tied one is a copy of the token embedding."""
    return sum(tensor.size_bytes for tensor in model.tensors if _is_output(model, tensor))


def device_tensors(model: Model, first_layer: int, layers: int, output: bool) -> tuple[Tensor, ...]:
    """What a head sends to the device with these layers, and the output layer if `output`: each whole, in mode
    `layers`."""
    wanted = range(first_layer, first_layer + layers)
    return tuple(tensor for tensor in model.tensors if tensor.block in wanted or (output and _is_output(model, tensor)))


def _is_output(model: Model, tensor: Tensor) -> bool:
    if tensor.name == "token_embd.weight":
        return model.output_tied
    return tensor.block is None and tensor.name not in _INPUT_TENSORS


def attention_bytes(model: Model) -> int:
    """Weights of all layers that mode `tensor` cuts by attention heads."""
    return sum(tensor.size_bytes for tensor in model.tensors if _CUT_BY_HEADS.match(tensor.name))


def feed_forward_length(model: Model) -> int:
    """The widest dense feed-forward of any layer, in elements; 0 where all are mixtures of experts."""
    downs = (t.shape[0] for t in model.tensors if t.block is not None and t.name.endswith(".ffn_down.weight"))
    return max(downs, default=0)


def mirrored_bytes(model: Model) -> int:
    """Weights of all layers that every device of mode `tensor` holds whole: norms, routers of experts."""
    return sum(
        tensor.size_bytes
        for tensor in model.tensors
        if tensor.block is not None and not _CUT_BY_HEADS.match(tensor.name) and not _CUT_BY_ROWS.match(tensor.name)
    )


def head_groups(model: Model) -> tuple[tuple[int, int], ...]:
    """Of the layers with attention, each way once: query elements per KV head, and elements in a block of the quantised
    attention output; together they say between which heads mode `tensor` can cut."""
    outputs = {t.block: t.type for t in model.tensors if _OUTPUT.match(t.name)}
    blocks = {layer: GGML_QUANT_SIZES[GGMLQuantizationType[kind]][0] for layer, kind in outputs.items()}
    groups = {
        (model.head_count // heads * model.key_length, blocks[layer])
        for layer, heads in enumerate(model.head_count_kv)
        if heads and layer in blocks
    }
    return tuple(sorted(groups))


def kv_bytes_per_token(model: Model, cache_type: str = "f16") -> tuple[int, ...]:
    """K and V of one token in each layer, both of this ggml type, for plain attention (no sliding window, no recurrent
    state). A quantised type packs heads of whole blocks only; the engine refuses others."""
    block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[cache_type.upper()]]
    width = model.key_length + model.value_length
    return tuple(heads * width * block_bytes // block for heads in model.head_count_kv)


def packs_heads(model: Model, cache_type: str) -> bool:
    """Whether the keys and values of a head are a whole number of this type's blocks; the engine takes no others."""
    block, _ = GGML_QUANT_SIZES[GGMLQuantizationType[cache_type.upper()]]
    return model.key_length % block == model.value_length % block == 0


def logits_bytes(model: Model) -> int:
    """What the output layer sends back for one token: one F32 for each word of the vocabulary."""
    return model.vocabulary * 4


def hidden_bytes(model: Model) -> int:
    """What passes from one stage to the next for one token: one F32 for each element of the embedding."""
    return model.embedding_length * 4
