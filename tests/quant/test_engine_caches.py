"""What a model keeps of conversations: the values by hand, and the sums exactly those of the engine itself."""

import asyncio
import subprocess
from pathlib import Path

import pytest

from orchestrator.engine.store import Engine
from orchestrator.memory import count_memory
from quant.engine_caches import cache_of
from quant.errors import ModelFileError
from quant.gguf_file import read_model_and_facts
from quant.kv_cache import Cache, LayerCache, layer_cache_bytes, refusal, state_bytes, token_bytes
from quant.synthetic import Fact
from tests.quant.architectures import (
    EXPERT_FACTS,
    HEADS,
    KINDS,
    KV_HEADS,
    LATENT,
    LENGTH,
    PLAIN_HEADS,
    ROPE,
    WIDTH,
    MadeUpModel,
    attention,
    feed_forward,
    made_up,
    mixture_of_experts,
)
from workers.budget import MIB
from workers.fit_table import read_fit_table

FULL = LayerCache(KV_HEADS, LENGTH, LENGTH)
NOTHING = LayerCache()


def read_cache(model: MadeUpModel, folder: Path) -> Cache:
    return cache_of(*read_model_and_facts(model.write(folder / "model.gguf")))


def in_window(window: int, length: int = LENGTH) -> LayerCache:
    return LayerCache(KV_HEADS, length, length, window)


def state(numbers: int) -> LayerCache:
    return LayerCache(state=numbers)


COMPRESSED = LayerCache(1, LATENT + ROPE, 0)
MAMBA_STATE = 3 * 512 + 16 * 512
GROUPED_STATE = 3 * (512 + 2 * 2 * 16) + 16 * 512
DELTA = state(3 * (128 + 2 * 2 * 32) + 32 * 128)
EXPECTED = {
    "experts": (FULL,) * 4,
    "heads of each layer": (LayerCache(1, 96, 96), LayerCache(2, 96, 96), LayerCache(4, 96, 96)),
    "compressed": (COMPRESSED,) * 5,
    "compressed, with layers that predict": (*(COMPRESSED,) * 4, NOTHING),
    "compressed architecture, old file": (LayerCache(HEADS, 96, 48),) * 3,
    "window in every other layer": (in_window(1000), FULL, in_window(1000), FULL, in_window(1000)),
    "window of the architecture": (in_window(4096), FULL),
    "window in most layers": (*(in_window(512),) * 5, FULL, *(in_window(512),) * 2),
    "no window after all": (FULL,) * 8,
    "windows listed, shared": (*(in_window(700, length=32),) * 3, FULL, NOTHING, NOTHING),
    "window and experts": (in_window(128), FULL, in_window(128), FULL),
    "window and a period": (in_window(300), in_window(300), FULL) * 3,
    "recurrent": (state(MAMBA_STATE),) * 3,
    "recurrent in groups": (state(GROUPED_STATE),) * 3,
    "receptance": (state(2 * WIDTH + 64 * WIDTH),) * 3,
    "attention in some layers": (state(MAMBA_STATE), state(MAMBA_STATE), FULL, state(MAMBA_STATE)),
    "attention in some of grouped": (state(GROUPED_STATE), FULL, state(GROUPED_STATE)),
    "attention beside recurrence": (LayerCache(KV_HEADS, LENGTH, LENGTH, state=GROUPED_STATE),) * 3,
    "attention, recurrence or neither": (state(GROUPED_STATE), NOTHING, FULL, state(GROUPED_STATE)),
    "short convolutions": (state(2 * WIDTH), FULL, state(2 * WIDTH), state(2 * WIDTH), FULL),
    "gated delta": (DELTA, DELTA, DELTA, FULL) * 2,
    "recurrence listed, with layers that predict": (FULL, DELTA, DELTA, NOTHING),
    "delta beside compressed": (
        *(state(3 * 3 * HEADS * 32 + 32 * 32 * HEADS),) * 2,
        COMPRESSED,
        state(3 * 3 * HEADS * 32 + 32 * 32 * HEADS),
    ),
}


def test_every_kind_is_known_by_hand() -> None:
    assert list(EXPECTED) == list(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_each_layer_keeps_what_its_kind_keeps(kind: str, tmp_path: Path) -> None:
    shapes = tuple(bare(layer) for layer in read_cache(KINDS[kind], tmp_path).layers)
    assert shapes == EXPECTED[kind]


def bare(layer: LayerCache) -> LayerCache:
    """Lengths of layers that keep no token mean nothing."""
    return layer if layer.token_elements else state(layer.state)


SETTINGS = ((1 << 20, 1, 512, "f16"), (65536, 64, 64, "q8_0"), (300, 64, 512, "q4_0"), (5000, 4, 256, "f16"))
"""Tokens of a conversation, how many of these, micro-batch, type."""


@pytest.mark.engine
@pytest.mark.parametrize("kind", KINDS)
def test_the_sum_is_that_of_the_engine(kind: str, engine: Engine, tmp_path: Path) -> None:
    """To the MiB that it reports, at sizes from one to thousands of them; and it refuses what we say it refuses."""
    path = KINDS[kind].write(tmp_path / "model.gguf")
    cache = cache_of(*read_model_and_facts(path))
    counted, told = [], []
    for context, parallel, micro_batch, cache_type in SETTINGS:
        layers = layer_cache_bytes(cache, cache_type, context=context, parallel=parallel, micro_batch=micro_batch)
        counted.append(None if refusal(cache, cache_type) else sum(layers) // MIB)
        told.append(engine_mib(engine, path, context * parallel, parallel, micro_batch, cache_type))
    assert counted == told


def engine_mib(engine: Engine, path: Path, tokens: int, parallel: int, micro_batch: int, cache_type: str) -> int | None:
    """What the engine itself counts; None when it refuses."""
    words = [str(engine.program("llama-fit-params")), "--model", str(path), "--fit-print", "on"]
    words += ["--ctx-size", str(tokens), "--parallel", str(parallel), "--ubatch-size", str(micro_batch)]
    words += ["--cache-type-k", cache_type, "--cache-type-v", cache_type]
    done = subprocess.run(words, capture_output=True, timeout=120, env={"GGML_NO_BACKTRACE": "1"})
    if done.returncode != 0:
        assert b"failed to create llama_context" in done.stderr
        return None
    return read_fit_table(done.stdout, 0)[-1].context_mib


@pytest.mark.engine
@pytest.mark.parametrize("kind", ["windows listed, shared", "compressed, with layers that predict", "gated delta"])
def test_each_layer_is_that_of_the_engine(kind: str, engine: Engine, tmp_path: Path) -> None:
    """As plans ask it, with a worker for every layer; what each is cut to MiB is spread over all of them."""
    model, facts = read_model_and_facts(KINDS[kind].write(tmp_path / "model.gguf"))
    asked = asyncio.run(count_memory(engine.folder, model, context=1 << 18, parallel=2, micro_batch=512))
    counted = layer_cache_bytes(cache_of(model, facts), "f16", context=1 << 18, parallel=2, micro_batch=512)
    off = [abs(ours - its) for ours, its in zip(counted, asked.layer_kv_bytes, strict=True)]
    assert max(off) < model.block_count * MIB < max(counted) / 8


def test_each_token_takes_blocks_of_its_type_where_layers_look_back_to_the_start() -> None:
    cache = Cache((LayerCache(2, 64, 64), LayerCache(2, 64, 64, window=512), LayerCache(1, 160, 0), state(100)))
    elements = 2 * 128 + 160
    assert token_bytes(cache, "f16") == elements * 2
    assert token_bytes(cache, "q8_0") == elements // 32 * 34
    assert token_bytes(cache, "q4_0") == elements // 32 * 18
    assert state_bytes(cache) == 400


def test_contexts_and_windows_are_rounded_up_to_256_tokens() -> None:
    cache = Cache((LayerCache(1, 1, 1), LayerCache(1, 1, 1, window=300)))
    assert layer_cache_bytes(cache, "f16", context=257, parallel=2) == (2 * 512 * 4, 2 * 512 * 4)
    assert layer_cache_bytes(cache, "f16", context=4096, micro_batch=64) == (4096 * 4, 512 * 4)


def test_heads_that_blocks_do_not_fill_are_refused_with_their_length() -> None:
    cache = Cache((LayerCache(2, 64, 80),))
    assert refusal(cache, "f16") == ""
    assert refusal(cache, "q8_0") == "its heads have 80 elements, no whole number of q8_0 blocks of 32"


PLAIN_LAYER = attention() | feed_forward()


@pytest.mark.parametrize("architecture", ["deepseek32", "t5", "minimax-m3"])
def test_what_keeps_more_than_k_and_v_is_not_counted(architecture: str, tmp_path: Path) -> None:
    cache = read_cache(made_up(architecture, [PLAIN_LAYER], PLAIN_HEADS), tmp_path)
    assert cache == Cache((), f"{architecture} models keep more than K and V: meshctl plan asks the engine")


def test_models_that_only_embed_keep_nothing(tmp_path: Path) -> None:
    assert read_cache(made_up("bert", [PLAIN_LAYER] * 2, PLAIN_HEADS), tmp_path) == Cache((NOTHING,) * 2)


@pytest.mark.parametrize(
    ("architecture", "layers", "facts", "windows"),
    [
        ("llama4", 5, {}, (8192, 8192, 8192, 0, 8192)),
        ("llama4", 2, {"attention.sliding_window": 0}, (0, 0)),
        ("smallthinker", 5, {"attention.sliding_window": 512}, (0, 4096, 4096, 4096, 0)),
        ("smallthinker", 2, {}, (0, 0)),
        ("exaone4", 3, {"attention.sliding_window": 512}, (0, 0, 0)),
        ("exaone4", 64, {"attention.sliding_window": 512}, (512, 512, 512, 0) * 16),
        ("mimo2", 3, {"attention.sliding_window": 99, "attention.sliding_window_pattern": (1, 0)}, (99, 0, 0)),
        ("lfm2", 2, {"attention.sliding_window": 64, "shortconv.l_cache": 3}, (64, 64)),
        ("phi3", 2, {"attention.sliding_window": 64}, (0, 0)),
    ],
)
def test_windows_are_those_of_the_architecture(
    architecture: str, layers: int, facts: dict[str, Fact], windows: tuple[int, ...], tmp_path: Path
) -> None:
    cache = read_cache(made_up(architecture, [PLAIN_LAYER] * layers, PLAIN_HEADS | facts), tmp_path)
    assert tuple(layer.window for layer in cache.layers) == windows


@pytest.mark.parametrize(
    ("architecture", "facts", "recurrent"),
    [
        ("qwen35", {"full_attention_interval": 2}, (True, False, True)),
        ("qwen35", {"attention.recurrent_layers": (0, 1, 0)}, (False, True, False)),
        ("qwen35moe", {"attention.recurrent_layers": 1}, (True, True, True)),
        ("minimax-01", {}, (True, True, True)),
    ],
)
def test_recurrent_layers_are_listed_or_all_but_every_so_many(
    architecture: str, facts: dict[str, Fact], recurrent: tuple[bool, ...], tmp_path: Path
) -> None:
    model = made_up(architecture, [PLAIN_LAYER] * 3, PLAIN_HEADS | {"ssm.conv_kernel": 4, "ssm.inner_size": 8} | facts)
    cache = read_cache(model, tmp_path)
    assert tuple(layer.state > 0 for layer in cache.layers) == recurrent


def test_layers_that_are_passed_several_times_keep_each_pass(tmp_path: Path) -> None:
    looped = made_up("nanbeige", [PLAIN_LAYER] * 2, PLAIN_HEADS | {"num_loops": 3})
    assert read_cache(looped, tmp_path).layers == (FULL,) * 6
    endless = made_up("nanbeige", [PLAIN_LAYER] * 2, PLAIN_HEADS | {"num_loops": 2**30})
    with pytest.raises(ModelFileError, match=r"nanbeige\.num_loops is 1,073,741,824$"):
        read_cache(endless, tmp_path)


def test_impossible_lengths_are_named(tmp_path: Path) -> None:
    broken = mixture_of_experts()
    facts = {**broken.facts, **EXPERT_FACTS, "attention.key_length": "long"}
    with pytest.raises(ModelFileError, match=r"qwen3moe\.attention\.key_length is 'long', not a possible number$"):
        read_cache(MadeUpModel(broken.architecture, facts, broken.layers, broken.others), tmp_path)
