"""Bytes of a model's parts."""

from dataclasses import replace
from pathlib import Path

import pytest

from quant.model import (
    Model,
    Tensor,
    attention_bytes,
    dominant_type,
    feed_forward_length,
    head_groups,
    hidden_bytes,
    input_bytes,
    kv_bytes_per_token,
    layer_bytes,
    logits_bytes,
    mirrored_bytes,
    output_bytes,
    worked_part,
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


@pytest.mark.parametrize(("cache_type", "of_32"), [("f16", 64), ("q8_0", 34), ("q4_0", 18)])
def test_kv_is_counted_in_blocks_of_its_type(cache_type: str, of_32: int) -> None:
    wide = replace(model(), key_length=64, value_length=32)
    assert kv_bytes_per_token(wide, cache_type) == (2 * 3 * of_32, 3 * of_32)


def test_what_is_cut_by_heads_what_by_rows_and_what_is_everywhere() -> None:
    more = (
        Tensor("blk.0.attn_q.weight", "Q4_0", (64, 64), 2304, 0),
        Tensor("blk.0.attn_q_norm.weight", "F32", (16,), 64, 0),
        Tensor("blk.0.ffn_down_exps.weight", "Q4_0", (64, 64), 2304, 0),
        Tensor("blk.0.ffn_gate_inp.weight", "F32", (64, 4), 1024, 0),
    )
    whole = model(EMBEDDING, *LAYERS, *more, NORM, OUTPUT)
    assert attention_bytes(whole) == 3 * 2304
    assert mirrored_bytes(whole) == 256 + 64 + 1024
    assert sum(layer_bytes(whole)) - attention_bytes(whole) - mirrored_bytes(whole) == 2304


def test_the_widest_dense_feed_forward_counts() -> None:
    down = Tensor("blk.1.ffn_down.weight", "Q4_0", (192, 64), 6912, 0)
    experts = Tensor("blk.0.ffn_down_exps.weight", "Q4_0", (64, 64, 4), 9216, 0)
    assert feed_forward_length(model(*LAYERS, down, experts)) == 192
    assert feed_forward_length(model(*LAYERS, experts)) == 0


def test_of_experts_those_that_rest_are_no_work_for_a_token() -> None:
    experts = Tensor("blk.0.ffn_down_exps.weight", "Q4_0", (64, 64, 8), 8 * 2304, 0)
    mixed = replace(model(*LAYERS, experts), experts_used=0.25)
    assert worked_part(mixed, 0, 1) == pytest.approx(3 / 9)
    assert worked_part(mixed, 1, 2) == worked_part(model(*LAYERS, experts), 0, 2) == 1.0
    assert worked_part(mixed, 2, 3) == 1.0


def test_layers_say_how_wide_a_kv_head_is_and_in_what_blocks() -> None:
    """Two and four query heads of 16 for each KV head, one output in blocks of 32, the other in blocks of 256."""
    other = Tensor("blk.1.attn_output.weight", "Q6_K", (256, 64), 13440, 0)
    assert head_groups(model(LAYERS[0], other)) == ((32, 32), (64, 256))
    assert head_groups(model(LAYERS[0])) == ((32, 32),)


def test_bytes_that_cross_a_link_per_token() -> None:
    assert (logits_bytes(model()), hidden_bytes(model())) == (400, 256)


def test_dominant_type_is_by_bytes_not_by_number() -> None:
    assert dominant_type((EMBEDDING, *LAYERS)) == "Q8_0"
