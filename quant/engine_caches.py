"""Which cache the pinned engine gives each layer of a model, read from what its file states.

The engine's own way there: `llama_model::load_hparams` and `create_memory` (llama-model.cpp), `llama-hparams.cpp`.
"""

from dataclasses import dataclass, replace

from quant.architectures import (
    COMPRESSED,
    FULL_ATTENTION_INTERVAL,
    GEMMA3N_LAYERS_WITH_CACHE,
    HAS_MORE,
    MOST_LAYERS,
    NO_CACHE,
    RECURRENT,
    RECURRENT_OR_FEED_FORWARD,
    RECURRENT_WITHOUT_HEADS,
    WINDOWS,
    WINDOWS_FROM_LAYERS,
    Windows,
)
from quant.errors import ModelFileError
from quant.gguf_header import FETCH_AGAIN
from quant.kv_cache import Cache, LayerCache
from quant.model import Model
from quant.model_facts import Facts


def cache_of(model: Model, facts: Facts) -> Cache:
    """What the engine keeps for this model; ModelFileError for impossible lengths."""
    architecture, ask = model.architecture, _Asked(model, facts)
    if architecture in HAS_MORE or (architecture == "hy_v4" and ask.number("attention.indexer.top_k")):
        return Cache((), f"{architecture} models keep more than K and V: meshctl plan asks the engine")
    if architecture in NO_CACHE:
        return Cache((LayerCache(),) * model.block_count)
    layers = _layers(ask)
    return Cache(layers * _loops(ask) if architecture == "nanbeige" else layers)


@dataclass(frozen=True)
class _Asked:
    """A model and what its file states, by the keys of its architecture."""

    model: Model
    facts: Facts

    @property
    def blocks(self) -> int:
        return self.model.block_count

    @property
    def trunk(self) -> int:
        """Layers but those for predicting several tokens."""
        return max(0, self.blocks - self.number("nextn_predict_layers"))

    def key(self, name: str) -> str:
        return f"{self.model.architecture}.{name}"

    def number(self, name: str, default: int = 0) -> int:
        return self.facts.number(self.key(name), default)

    def heads(self) -> int:
        """Of the first layer: what the engine means by the model's number of heads."""
        return self.facts.numbers(self.key("attention.head_count"), self.blocks, 0)[0]


def _loops(ask: _Asked) -> int:
    """How often all layers are passed, each time with a cache of their own."""
    loops = max(1, ask.number("num_loops"))
    if loops * ask.blocks > MOST_LAYERS:
        raise ModelFileError(f"{ask.facts.path}: {ask.key('num_loops')} is {loops:,}", hint=FETCH_AGAIN)
    return loops


def _layers(ask: _Asked) -> tuple[LayerCache, ...]:
    """Attention in some layers or all, recurrence in others or, with `falcon-h1`, in the same ones."""
    states, windows = _recurrent(ask), _windows(ask)
    having = _with_cache(ask, states)
    state = _state(ask) if any(states) else 0
    plain, windowed = _attention(ask, in_window=False), _attention(ask, in_window=True)
    layers = []
    for layer, heads in enumerate(ask.model.head_count_kv):
        kind = replace(windowed if windows[layer] else plain, heads=heads, window=windows[layer])
        layers.append(replace(kind if having[layer] else LayerCache(), state=state if states[layer] else 0))
    return tuple(layers)


def _recurrent(ask: _Asked) -> tuple[bool, ...]:
    """Layers that have a state."""
    architecture, heads = ask.model.architecture, ask.model.head_count_kv
    if architecture in RECURRENT or architecture == "falcon-h1":
        told: tuple[bool, ...] = (True,) * ask.blocks
    elif architecture in RECURRENT_WITHOUT_HEADS:
        told = tuple(count == 0 for count in heads)
    elif architecture in RECURRENT_OR_FEED_FORWARD:
        told = tuple(count == width == 0 for count, width in zip(heads, _feed_forward(ask), strict=True))
    elif architecture in FULL_ATTENTION_INTERVAL:
        told = _told_recurrent(ask)
    else:
        told = (False,) * ask.blocks
    return tuple(flag and layer < ask.trunk for layer, flag in enumerate(told))


def _told_recurrent(ask: _Asked) -> tuple[bool, ...]:
    key = ask.key("attention.recurrent_layers")
    if ask.facts.has(key):
        return ask.facts.flags(key, ask.blocks) or (bool(ask.facts.number(key)),) * ask.blocks
    interval = max(1, ask.number("full_attention_interval", FULL_ATTENTION_INTERVAL[ask.model.architecture]))
    return tuple((layer + 1) % interval != 0 for layer in range(ask.blocks))


def _with_cache(ask: _Asked, states: tuple[bool, ...]) -> tuple[bool, ...]:
    """Layers that have K and V of their own."""
    architecture = ask.model.architecture
    if architecture in RECURRENT:
        return (False,) * ask.blocks
    if architecture == "falcon-h1":
        return (True,) * ask.blocks
    if architecture in RECURRENT_OR_FEED_FORWARD:
        return tuple(not state and width == 0 for state, width in zip(states, _feed_forward(ask), strict=True))
    if architecture in RECURRENT_WITHOUT_HEADS:
        return tuple(not state for state in states)
    last = min(ask.trunk or ask.blocks, _layers_before_shared(ask))
    return tuple(not state and layer < last for layer, state in enumerate(states))


def _layers_before_shared(ask: _Asked) -> int:
    """The last layers of some models use the K and V of layers before them."""
    if ask.model.architecture == "gemma3n":
        return GEMMA3N_LAYERS_WITH_CACHE
    shared = ask.number("attention.shared_kv_layers") if ask.model.architecture == "gemma4" else 0
    return ask.blocks - shared


def _attention(ask: _Asked, *, in_window: bool) -> LayerCache:
    """One layer but for its number of heads."""
    key, value = _head_lengths(ask)
    if in_window:
        key = ask.number("attention.key_length_swa", key)
        value = ask.number("attention.value_length_swa", value)
    return LayerCache(key_length=key, value_length=0 if _is_compressed(ask) else value)


def _head_lengths(ask: _Asked) -> tuple[int, int]:
    heads = ask.heads()
    if not heads and ask.model.architecture != "plamo2":
        return 0, 0
    default = ask.model.embedding_length // heads if heads else 0
    return ask.number("attention.key_length", default), ask.number("attention.value_length", default)


def _is_compressed(ask: _Asked) -> bool:
    lengths = ask.number("attention.key_length_mla"), ask.number("attention.value_length_mla")
    return ask.model.architecture in COMPRESSED and all(lengths)


def _windows(ask: _Asked) -> tuple[int, ...]:
    """The window of each layer; 0 for those that look back to the start."""
    architecture = ask.model.architecture
    if architecture == "lfm2":
        return (ask.number("attention.sliding_window"),) * ask.blocks
    rule = WINDOWS.get(architecture)
    if rule is None or WINDOWS_FROM_LAYERS.get(architecture, ask.trunk) != ask.trunk:
        return (0,) * ask.blocks
    window = ask.number("attention.sliding_window", rule.default)
    window = rule.fixed if window and rule.fixed else window
    return tuple(window if flag else 0 for flag in _in_window(ask, rule))


def _in_window(ask: _Asked, rule: Windows) -> tuple[bool, ...]:
    key = ask.key("attention.sliding_window_pattern")
    told = ask.facts.flags(key, ask.blocks)
    if told is not None:
        return told
    period = 1 if rule.period is None else ask.facts.number(key, rule.period)
    full = 0 if rule.dense_first else period - 1
    return tuple(layer < ask.trunk and (not period or layer % period != full) for layer in range(ask.blocks))


def _state(ask: _Asked) -> int:
    """Numbers in the state of a recurrent layer: its convolution's and its memory's (`n_embd_r` and `n_embd_s`)."""
    width, kernel, memory = ask.model.embedding_length, ask.number("ssm.conv_kernel"), ask.number("ssm.state_size")
    inner = ask.number("ssm.inner_size")
    if length := ask.number("wkv.head_size"):
        return ask.number("token_shift_count", 2) * width + width * length
    if cells := ask.number("shortconv.l_cache"):
        return width * (cells - 1) + memory * inner
    if length := ask.number("kda.head_dim"):
        return 3 * (kernel - 1 if kernel else 3) * ask.heads() * length + length * length * ask.heads()
    convolution = max(0, kernel - 1) * (inner + 2 * ask.number("ssm.group_count") * memory)
    if ask.model.architecture == "minimax-01":
        length, _ = _head_lengths(ask)
        return convolution + length * length * ask.heads()
    return convolution + memory * inner


def _feed_forward(ask: _Asked) -> tuple[int, ...]:
    return ask.facts.numbers(ask.key("feed_forward_length"), ask.blocks, 0)
