"""Models of made-up tensors in any types, for tests of what a quantisation costs. No file has them."""

from pathlib import Path

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from quant.model import Model, Tensor, dominant_type

WIDTH, ROWS, WORDS = 4096, 8192, 16384
LAYERS = 10


def make_tensor(name: str, kind: str, shape: tuple[int, ...]) -> Tensor:
    block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    tensor = Tensor(name, kind, shape, 0, 0)
    return Tensor(name, kind, shape, tensor.parameters // block * block_bytes, 0)


def make_model(up: str, down: str | None = None, *, output: str = "Q6_K", layers: int = LAYERS) -> Model:
    """Layers of two matrices, of 33.5 M weights each, and a norm; an embedding and an output of 67 M weights."""
    tensors = [
        make_tensor("token_embd.weight", up, (WIDTH, WORDS)),
        make_tensor("output.weight", output, (WIDTH, WORDS)),
    ]
    for layer in range(layers):
        tensors.append(make_tensor(f"blk.{layer}.attn_norm.weight", "F32", (WIDTH,)))
        tensors.append(make_tensor(f"blk.{layer}.ffn_up.weight", up, (WIDTH, ROWS)))
        tensors.append(make_tensor(f"blk.{layer}.ffn_down.weight", down or up, (ROWS, WIDTH)))
    return Model(
        path=Path("/models/made.gguf"),
        shards=(Path("/models/made.gguf"),),
        name="made",
        architecture="llama",
        quantisation=dominant_type(tuple(tensors)),
        parameters=sum(tensor.parameters for tensor in tensors),
        block_count=layers,
        context_length=32768,
        embedding_length=WIDTH,
        head_count=32,
        head_count_kv=(8,) * layers,
        key_length=128,
        value_length=128,
        vocabulary=WORDS,
        output_tied=False,
        tensors=tuple(tensors),
    )
