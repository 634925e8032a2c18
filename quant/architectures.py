"""What the layers of the pinned engine's architectures keep of a conversation: its rules as data, and nothing else.

They are those of `load_arch_hparams` in llama.cpp's `src/models` and of `llama_model::create_memory`. An architecture
that is in none of these tables has plain attention.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

MOST_LAYERS = 512
"""`LLAMA_MAX_LAYERS`: the engine takes no more."""


@dataclass(frozen=True)
class Windows:
    """Which layers of an architecture look back over a window only, where its file does not list them itself.

    `period`: every so many layers one looks back to the start, the last of them or, if `dense_first`, the first; None:
    the file lists them. `default`: the window where the file states none. `fixed`: the window whatever it states.
    """

    period: int | None = None
    dense_first: bool = False
    default: int = 0
    fixed: int = 0


WINDOWS: Mapping[str, Windows] = MappingProxyType(
    {
        "afmoe": Windows(4),
        "cohere2": Windows(4),
        "cohere2moe": Windows(4, dense_first=True),
        "exaone-moe": Windows(4, default=128),
        "exaone4": Windows(4, default=4096),
        "gemma2": Windows(2, default=4096),
        "gemma3": Windows(6),
        "gemma3n": Windows(5),
        "gemma4": Windows(),
        "gpt-oss": Windows(2),
        "granite_swa": Windows(),
        "laguna": Windows(4, dense_first=True),
        "llama4": Windows(4, default=8192, fixed=8192),
        "maple": Windows(),
        "mellum": Windows(4),
        "mimo2": Windows(),
        "muse-glimmer": Windows(4),
        "olmo2": Windows(4),
        "plamo3": Windows(8),
        "smallthinker": Windows(4, dense_first=True, fixed=4096),
        "spark2_5": Windows(),
        "step35": Windows(),
    }
)
WINDOWS_FROM_LAYERS = {"exaone4": 64}
"""Only models of exactly so many layers have windows, whatever the file states."""

NO_CACHE = frozenset(
    [
        "bert",
        "modern-bert",
        "nomic-bert",
        "nomic-bert-moe",
        "neo-bert",
        "jina-bert-v2",
        "jina-bert-v3",
        "eurobert",
        "gemma-embedding",
        "wavtokenizer-dec",
        "dream",
        "llada",
        "llada-moe",
        "rnd1",
    ]
)
RECURRENT = frozenset(["mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"])
RECURRENT_WITHOUT_HEADS = frozenset(
    ["jamba", "plamo2", "granitehybrid", "lfm2", "lfm2moe", "kimi-linear", "kimi-k3", "bailingmoe3"]
)
"""Their layers without KV heads are recurrent."""

RECURRENT_OR_FEED_FORWARD = frozenset(["nemotron_h", "nemotron_h_moe"])
"""Their layers are either recurrent, or attention, or feed-forward only."""

FULL_ATTENTION_INTERVAL = MappingProxyType({"qwen3next": 4, "qwen35": 4, "qwen35moe": 4, "minimax-01": 8})
"""All layers but every so many are recurrent, where the file does not list them."""

COMPRESSED = frozenset(["deepseek2", "mistral4", "kimi-linear", "kimi-k3", "bailingmoe3", "hy_v4"])
"""MLA: where the file tells how long heads are after decompression, only the compressed K is kept; V is part of it."""

HAS_MORE = frozenset(
    [
        "deepseek32",
        "deepseek4",
        "glm-dsa",
        "glm5-next",
        "dots3note",
        "minimax-m3",
        "qwen4exp",
        "dflash",
        "eagle3",
        "gemma4-assistant",
        "graniteswitch",
        "hrm_text",
        "t5",
        "t5encoder",
        "qwen3tts",
        "pockettts",
    ]
)
"""They keep more than K, V and a state (keys of an indexer, several caches, an encoder's output)."""

GEMMA3N_LAYERS_WITH_CACHE = 20
