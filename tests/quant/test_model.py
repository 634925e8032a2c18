"""Bytes of a model's parts."""

from pathlib import Path

from quant.model import (
    Model,
    Tensor,
    dominant_type,
    hidden_bytes,
    input_bytes,
    kv_bytes_per_token,
    layer_bytes,
    logits_bytes,
    output_bytes,
)


def model(*tensors: Tensor, tied: bool = False) -> Model:
    return Model(
        path=Path("m.gguf"),
        shards=(Path("m.gguf"),),
        name="m",
        architecture="llama",
        quantisation="Q4_0",
        parameters=0,
        block_count=2,
        context_length=4096,
        embedding_length=64,
        head_count=4,
        head_count_kv=(2, 1),
        key_length=16,
        value_length=8,
        vocabulary=100,
        output_tied=tied,
        tensors=tensors,
    )


EMBEDDING = Tensor("token_embd.weight", "Q8_0", (64, 100), 6800, 0)
NORM = Tensor("output_norm.weight", "F32", (64,), 256, 0)
OUTPUT = Tensor("output.weight", "Q6_K", (64, 100), 5250, 0)
LAYERS = (
    Tensor("blk.0.attn_output.weight", "Q4_0", (64, 64), 2304, 0),
    Tensor("blk.1.attn_output.weight", "Q4_0", (64, 64), 2304, 0),
    Tensor("blk.1.ffn_norm.weight", "F32", (64,), 256, 0),
)


def test_weights_are_counted_where_they_lie() -> None:
    untied = model(EMBEDDING, *LAYERS, NORM, OUTPUT)
    assert (input_bytes(untied), layer_bytes(untied), output_bytes(untied)) == (6800, (2304, 2560), 5506)
    assert untied.size_bytes == 6800 + 2304 + 2560 + 5506


def test_tied_output_is_a_copy_of_the_embedding() -> None:
    tied = model(EMBEDDING, *LAYERS, NORM, tied=True)
    assert (input_bytes(tied), output_bytes(tied)) == (6800, 7056)


def test_kv_counts_the_heads_of_each_layer() -> None:
    assert kv_bytes_per_token(model()) == (2 * 24 * 2, 24 * 2)


def test_bytes_that_cross_a_link_per_token() -> None:
    assert (logits_bytes(model()), hidden_bytes(model())) == (400, 256)


def test_dominant_type_is_by_bytes_not_by_number() -> None:
    assert dominant_type((EMBEDDING, *LAYERS)) == "Q8_0"
