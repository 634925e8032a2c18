"""How the engine cuts layers in mode `tensor`: its own rule, worked out by hand for known models."""

from dataclasses import replace
from random import Random

import pytest

from orchestrator.plan.cut import cut, cut_bytes, granule, heads_of, part_bytes, whole_parts
from orchestrator.plan.values import ModelMemory
from tests.orchestrator.plan.examples import make_memory
from workers.budget import MIB


def model(kv_heads: int, width: int, block: int) -> ModelMemory:
    """`width` query elements per KV head, the attention's output quantised in blocks of `block`."""
    return replace(make_memory(kv_heads=kv_heads), head_groups=((width, block),))


@pytest.mark.parametrize(
    ("name", "kv_heads", "width", "block", "devices", "together", "whole"),
    [
        ("Llama 3 8B, Q4_K", 8, 512, 256, 2, 1, 8),
        ("Qwen2.5 7B, Q4_K: 896 is no whole number of blocks, 1,792 is", 4, 896, 256, 2, 2, 2),
        ("Qwen2.5 7B, Q4_K has nothing equal for three", 4, 896, 256, 3, 2, 0),
        ("Qwen2.5 7B, Q4_0", 4, 896, 32, 2, 1, 4),
        ("Llama 2 7B, Q4_K: heads of 128 in blocks of 256", 32, 128, 256, 2, 2, 16),
        ("Phi 3 mini, Q4_K: heads of 96", 32, 96, 256, 4, 8, 4),
        ("SmolLM2 135M on two: cut at 384 elements, two of three heads", 3, 192, 32, 2, 2, 0),
        ("SmolLM2 135M on three: cut at 192", 3, 192, 32, 3, 1, 3),
        ("F16", 8, 256, 1, 2, 1, 8),
    ],
)
def test_heads_stay_together_where_a_block_would_be_cut(
    name: str, kv_heads: int, width: int, block: int, devices: int, together: int, whole: int
) -> None:
    memory = model(kv_heads, width, block)
    assert (granule(memory, devices), whole_parts(memory, devices)) == (together, whole)


def test_layers_of_different_types_are_cut_where_all_of_them_can_be() -> None:
    memory = replace(make_memory(kv_heads=32), head_groups=((96, 32), (128, 256), (192, 128)))
    assert [granule(replace(memory, head_groups=(one,)), 2) for one in memory.head_groups] == [2, 2, 2]
    assert granule(replace(memory, head_groups=((96, 256), (640, 256))), 2) == 8


def test_what_does_not_come_out_even_depends_on_the_layer() -> None:
    """135 M on two devices, parts 2 and 1: two heads and one, but all three and none where the second comes first."""
    assert heads_of((2, 1), 3, 2, 0) == (2, 1)
    assert heads_of((2, 1), 3, 2, 1) == (3, 0)
    assert [heads_of((1, 1), 3, 2, first) for first in (0, 1)] == [(0, 3), (3, 0)]
    made = cut(model(3, 192, 32), (2, 1))
    assert made.heads == ((2 / 3, 1 / 3), (1.0, 0.0))
    assert made.attention == pytest.approx((5 / 6, 1 / 6))


def test_equal_parts_are_cut_alike_in_every_layer() -> None:
    memory, random = model(8, 512, 256), Random(0)
    for _ in range(50):
        first = random.randint(1, 6)
        parts = (first, 8 - first) if random.random() < 0.5 else (first, 7 - first, 1)
        if min(parts) < 1:
            continue
        assert cut(memory, parts).heads == (tuple(part / 8 for part in parts),)


def test_every_head_is_somewhere_and_bytes_add_up() -> None:
    random = Random(1)
    for _ in range(200):
        kv_heads, devices = random.randint(2, 12), random.randint(2, 4)
        parts = tuple(random.randint(1, 5) for _ in range(devices))
        memory = model(kv_heads, random.choice([96, 128, 192, 512]), random.choice([1, 32, 256]))
        memory = replace(memory, attention_bytes=300 * MIB, mirrored_bytes=2 * MIB)
        for first in range(devices):
            assert sum(heads_of(parts, kv_heads, granule(memory, devices), first)) == kv_heads
        held = cut_bytes(memory, parts)
        assert sum(one.kv_bytes for one in held) == pytest.approx(100 * MIB, abs=devices)
        whole = 1100 * MIB + (devices - 1) * 2 * MIB
        assert sum(one.weights_bytes for one in held) == pytest.approx(whole, abs=devices)


def test_a_part_of_equal_ones_takes_what_the_cut_gives_it() -> None:
    memory = replace(model(8, 512, 256), attention_bytes=300 * MIB, mirrored_bytes=8 * MIB)
    assert part_bytes(memory, 3, 8) == cut_bytes(memory, (3, 5))[0]


def test_layers_with_windows_and_those_without_go_round_each_for_themselves() -> None:
    """One KV head on two devices: the first, third and fifth of either kind on the second device, as the engine has it
    of Gemma 3 270M."""
    memory = replace(model(1, 256, 1), layer_kv_bytes=(MIB, 10 * MIB) * 5, layer_kv_fixed_bytes=(MIB, 0) * 5)
    assert [one.kv_bytes for one in cut_bytes(memory, (1, 1))] == [22 * MIB, 33 * MIB]
