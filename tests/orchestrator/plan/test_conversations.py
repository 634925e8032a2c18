"""A model for a shorter context and for fewer conversations: never less memory than the engine will take."""

from dataclasses import replace

import pytest

from orchestrator.memory import fixed_kv
from orchestrator.plan.conversations import with_kv
from orchestrator.plan.values import ModelMemory
from quant.kv_cache import Cache, LayerCache, layer_cache_bytes
from tests.orchestrator.plan.examples import make_memory

FULL, WINDOW = LayerCache(4, 128, 128), LayerCache(4, 128, 128, window=1024)
STATE, BOTH = LayerCache(state=300_000), LayerCache(4, 128, 128, state=300_000)
LAYERS = {
    "no window": (FULL,) * 3,
    "windows": (WINDOW, WINDOW, FULL),
    "recurrent": (STATE, FULL, STATE),
    "both in a layer": (BOTH,) * 3,
}
CONTEXTS = (256, 512, 1024, 1280, 1536, 2048, 4096, 8192, 16384, 32768)


def counted(layers: tuple[LayerCache, ...], context: int, parallel: int = 4) -> ModelMemory:
    """As the engine has it, by what it is asked."""
    here, doubled = (
        layer_cache_bytes(Cache(layers), "f16", context=tokens, parallel=parallel, micro_batch=64)
        for tokens in (context, 2 * context)
    )
    fixed = fixed_kv(here, doubled)
    memory = replace(make_memory(len(layers), parallel=parallel), context=context)
    return replace(memory, layer_kv_bytes=here, layer_kv_fixed_bytes=fixed if any(fixed) else ())


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("whole", [2048, 32768])
def test_no_layer_has_less_than_the_engine_gives_it_at_a_shorter_context(kind: str, whole: int) -> None:
    """Also where the window is hardly shorter than the context: 1,280 tokens of 2,048."""
    memory = counted(LAYERS[kind], whole)
    for context in CONTEXTS[: CONTEXTS.index(whole) + 1]:
        for parallel in (1, 3, 4):
            smaller, asked = with_kv(memory, context, parallel), counted(LAYERS[kind], context, parallel)
            assert (smaller.context, smaller.parallel) == (context, parallel)
            pairs = list(zip(smaller.layer_kv_bytes, asked.layer_kv_bytes, strict=True))
            assert all(ours >= engines for ours, engines in pairs)
            if context >= 1280 or kind != "windows":
                assert smaller.layer_kv_bytes == pytest.approx(asked.layer_kv_bytes, abs=2)


@pytest.mark.parametrize("kind", LAYERS)
def test_one_step_is_as_good_as_two(kind: str) -> None:
    memory = counted(LAYERS[kind], 32768)
    twice, once = with_kv(with_kv(memory, 8192, 2), 2048, 1), with_kv(memory, 2048, 1)
    assert twice.layer_kv_bytes == pytest.approx(once.layer_kv_bytes, abs=4)
    assert twice.layer_kv_fixed_bytes == once.layer_kv_fixed_bytes


def test_what_a_context_twice_as_long_does_not_add_is_fixed() -> None:
    """All of it, none, half; and never more than there is, nor less than nothing, where both are cut to MiB."""
    assert fixed_kv((100, 100, 100, 100, 100), (100, 200, 150, 99, 202)) == (100, 0, 50, 100, 0)
