"""Small models of many architectures, each as the pinned engine wants its tensors: the facts, and the shapes by name.

Sizes differ on purpose wherever two could be mixed up.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gguf import GGMLQuantizationType

from quant.synthetic import Fact, MadeUp, write_made_up

WIDTH, INNER, VOCABULARY = 256, 512, 288
"""Elements of the embedding and of the feed-forward, words."""

HEADS, KV_HEADS, LENGTH = 4, 2, 64
EXPERTS, EXPERT_INNER = 4, 96

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class MadeUpModel:
    """`layers`: the tensors of each, by their names within it."""

    architecture: str
    facts: Mapping[str, Fact]
    layers: tuple[Shapes, ...]
    others: Shapes

    def write(self, path: Path) -> Path:
        tensors = [*self.others.items()]
        tensors += [(f"blk.{n}.{name}", shape) for n, layer in enumerate(self.layers) for name, shape in layer.items()]
        plans = [MadeUp(name, GGMLQuantizationType.F32, shape, is_norm=len(shape) == 1) for name, shape in tensors]
        write_made_up(path, self.architecture, self.facts, plans, vocabulary=VOCABULARY, reads_text=True)
        return path


def made_up(
    architecture: str, layers: list[Shapes], facts: Mapping[str, Fact], **others: tuple[int, ...]
) -> MadeUpModel:
    common: dict[str, Fact] = {
        "block_count": len(layers),
        "context_length": 8192,
        "embedding_length": WIDTH,
        "feed_forward_length": INNER,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "attention.layer_norm_epsilon": 1e-5,
    }
    outer: Shapes = {"token_embd.weight": (WIDTH, VOCABULARY), "output_norm.weight": (WIDTH,)}
    return MadeUpModel(architecture, {**common, **facts}, tuple(layers), outer | others)


WITH_OUTPUT: Shapes = {"output.weight": (WIDTH, VOCABULARY)}
PLAIN_HEADS: dict[str, Fact] = {"attention.head_count": HEADS, "attention.head_count_kv": KV_HEADS}


def attention(heads: int = HEADS, kv_heads: int = KV_HEADS, length: int = LENGTH) -> Shapes:
    return {
        "attn_norm.weight": (WIDTH,),
        "attn_q.weight": (WIDTH, heads * length),
        "attn_k.weight": (WIDTH, kv_heads * length),
        "attn_v.weight": (WIDTH, kv_heads * length),
        "attn_output.weight": (heads * length, WIDTH),
    }


def head_norms(length: int = LENGTH) -> Shapes:
    return {"attn_q_norm.weight": (length,), "attn_k_norm.weight": (length,)}


def feed_forward() -> Shapes:
    return {
        "ffn_norm.weight": (WIDTH,),
        "ffn_gate.weight": (WIDTH, INNER),
        "ffn_up.weight": (WIDTH, INNER),
        "ffn_down.weight": (INNER, WIDTH),
    }


def post_norms() -> Shapes:
    return {"post_attention_norm.weight": (WIDTH,), "post_ffw_norm.weight": (WIDTH,)}


def experts() -> Shapes:
    return {
        "ffn_norm.weight": (WIDTH,),
        "ffn_gate_inp.weight": (WIDTH, EXPERTS),
        "ffn_gate_exps.weight": (WIDTH, EXPERT_INNER, EXPERTS),
        "ffn_up_exps.weight": (WIDTH, EXPERT_INNER, EXPERTS),
        "ffn_down_exps.weight": (EXPERT_INNER, WIDTH, EXPERTS),
    }


def shared_expert() -> Shapes:
    return {
        "ffn_gate_shexp.weight": (WIDTH, EXPERT_INNER),
        "ffn_up_shexp.weight": (WIDTH, EXPERT_INNER),
        "ffn_down_shexp.weight": (EXPERT_INNER, WIDTH),
    }


EXPERT_FACTS: dict[str, Fact] = {
    "expert_count": EXPERTS,
    "expert_used_count": 2,
    "expert_feed_forward_length": EXPERT_INNER,
}


def mixture_of_experts() -> MadeUpModel:
    layers = [attention() | head_norms() | experts() for _ in range(4)]
    return made_up("qwen3moe", layers, PLAIN_HEADS | EXPERT_FACTS)


def lengths_of_their_own() -> MadeUpModel:
    """Longer heads than the embedding divided by their number, and other numbers of heads in each layer."""
    counts, length = (1, 2, 4), 96
    layers = [attention(kv_heads=count, length=length) | feed_forward() for count in counts]
    facts: dict[str, Fact] = {
        "attention.head_count": HEADS,
        "attention.head_count_kv": counts,
        "attention.key_length": length,
        "attention.value_length": length,
        "rope.dimension_count": length,
    }
    return made_up("deci", layers, facts, **WITH_OUTPUT)


LATENT, ROPE, NOPE, DECOMPRESSED = 128, 32, 64, 48
QUERY_LATENT = 160


def compressed_attention() -> Shapes:
    return {
        "attn_norm.weight": (WIDTH,),
        "attn_q_a.weight": (WIDTH, QUERY_LATENT),
        "attn_q_a_norm.weight": (QUERY_LATENT,),
        "attn_q_b.weight": (QUERY_LATENT, HEADS * (NOPE + ROPE)),
        "attn_kv_a_mqa.weight": (WIDTH, LATENT + ROPE),
        "attn_kv_a_norm.weight": (LATENT,),
        "attn_k_b.weight": (NOPE, LATENT, HEADS),
        "attn_v_b.weight": (LATENT, DECOMPRESSED, HEADS),
        "attn_output.weight": (HEADS * DECOMPRESSED, WIDTH),
    }


COMPRESSED_FACTS: dict[str, Fact] = {
    "attention.key_length": LATENT + ROPE,
    "attention.value_length": LATENT,
    "attention.key_length_mla": NOPE + ROPE,
    "attention.value_length_mla": DECOMPRESSED,
    "attention.q_lora_rank": QUERY_LATENT,
    "attention.kv_lora_rank": LATENT,
    "rope.dimension_count": ROPE,
}


def compressed(predicting: int = 0) -> MadeUpModel:
    """MLA; the last `predicting` layers are for predicting several tokens."""
    layers = [compressed_attention() | (feed_forward() if n == 0 else experts() | shared_expert()) for n in range(5)]
    for layer in layers[len(layers) - predicting :]:
        layer |= {"nextn.eh_proj.weight": (2 * WIDTH, WIDTH)}
        layer |= {"nextn.enorm.weight": (WIDTH,), "nextn.hnorm.weight": (WIDTH,)}
    facts: dict[str, Fact] = {
        "attention.head_count": HEADS,
        "attention.head_count_kv": 1,
        "leading_dense_block_count": 1,
        "expert_shared_count": 1,
        "expert_weights_scale": 1.0,
        "nextn_predict_layers": predicting,
    }
    return made_up("deepseek2", layers, facts | COMPRESSED_FACTS | EXPERT_FACTS)


def uncompressed() -> MadeUpModel:
    """The same architecture in files from before its cache was compressed."""
    layers = [compressed_attention() | (feed_forward() if n == 0 else experts() | shared_expert()) for n in range(3)]
    for layer in layers:
        del layer["attn_k_b.weight"], layer["attn_v_b.weight"]
        layer["attn_kv_b.weight"] = (LATENT, HEADS * (NOPE + DECOMPRESSED))
    facts: dict[str, Fact] = {
        "attention.head_count": HEADS,
        "attention.head_count_kv": HEADS,
        "attention.key_length": NOPE + ROPE,
        "attention.value_length": DECOMPRESSED,
        "attention.q_lora_rank": QUERY_LATENT,
        "attention.kv_lora_rank": LATENT,
        "rope.dimension_count": ROPE,
        "leading_dense_block_count": 1,
        "expert_shared_count": 1,
        "expert_weights_scale": 1.0,
    }
    return made_up("deepseek2", layers, facts | EXPERT_FACTS)


def window_in_every_other_layer() -> MadeUpModel:
    layers = [attention() | feed_forward() | post_norms() for _ in range(5)]
    return made_up("gemma2", layers, PLAIN_HEADS | {"attention.sliding_window": 1000})


def window_of_the_architecture() -> MadeUpModel:
    """The file states no window."""
    layers = [attention() | feed_forward() | post_norms() for _ in range(2)]
    return made_up("gemma2", layers, PLAIN_HEADS)


def window_in_most_layers(window: int = 512) -> MadeUpModel:
    layers = [attention() | head_norms() | feed_forward() | post_norms() for _ in range(8)]
    return made_up("gemma3", layers, PLAIN_HEADS | {"attention.sliding_window": window})


def windows_listed() -> MadeUpModel:
    """Layers of their own lengths in windows, and the last two use what others keep."""
    pattern = (True, True, True, False, True, False)
    layers = []
    for layer, in_window in enumerate(pattern):
        length = 32 if in_window else LENGTH
        layers.append(attention(length=length) | head_norms(length) | feed_forward() | post_norms())
        if layer >= 4:
            del layers[-1]["attn_k.weight"], layers[-1]["attn_v.weight"], layers[-1]["attn_k_norm.weight"]
    facts: dict[str, Fact] = {
        "attention.sliding_window": 700,
        "attention.sliding_window_pattern": pattern,
        "attention.shared_kv_layers": 2,
        "attention.key_length": LENGTH,
        "attention.value_length": LENGTH,
        "attention.key_length_swa": 32,
        "attention.value_length_swa": 32,
        "rope.dimension_count_swa": 32,
        "embedding_length_per_layer_input": 0,
    }
    return made_up("gemma4", layers, PLAIN_HEADS | facts, **{"rope_freqs.weight": (LENGTH // 2,)})


def window_and_experts() -> MadeUpModel:
    layers = [attention() | experts() for _ in range(4)]
    for layer in layers:
        del layer["ffn_norm.weight"]
        layer |= {"post_attention_norm.weight": (WIDTH,), "attn_sinks.weight": (HEADS,), "attn_output.bias": (WIDTH,)}
        layer |= {"ffn_gate_inp.bias": (EXPERTS,), "ffn_gate_exps.bias": (EXPERT_INNER, EXPERTS)}
        layer |= {"ffn_up_exps.bias": (EXPERT_INNER, EXPERTS), "ffn_down_exps.bias": (WIDTH, EXPERTS)}
    facts = PLAIN_HEADS | EXPERT_FACTS | {"attention.sliding_window": 128}
    return made_up("gpt-oss", layers, facts, **WITH_OUTPUT)


def window_after_the_first() -> MadeUpModel:
    layers = [attention() | feed_forward() for _ in range(9)]
    for layer in layers:
        del layer["ffn_norm.weight"]
    facts: dict[str, Fact] = {
        "attention.sliding_window": 300,
        "attention.sliding_window_pattern": 3,
        "logit_scale": 1.0,
    }
    return made_up("cohere2", layers, PLAIN_HEADS | facts)


KERNEL, STATE, RANK, GROUPS = 4, 16, 8, 2
MAMBA_INNER = 2 * WIDTH
MAMBA_FACTS: dict[str, Fact] = {
    "ssm.conv_kernel": KERNEL,
    "ssm.inner_size": MAMBA_INNER,
    "ssm.state_size": STATE,
    "ssm.time_step_rank": RANK,
}
GROUPED_FACTS: dict[str, Fact] = MAMBA_FACTS | {"ssm.group_count": GROUPS}


def mamba() -> Shapes:
    return {
        "attn_norm.weight": (WIDTH,),
        "ssm_in.weight": (WIDTH, 2 * MAMBA_INNER),
        "ssm_conv1d.weight": (KERNEL, MAMBA_INNER),
        "ssm_conv1d.bias": (MAMBA_INNER,),
        "ssm_x.weight": (MAMBA_INNER, RANK + 2 * STATE),
        "ssm_dt.weight": (RANK, MAMBA_INNER),
        "ssm_dt.bias": (MAMBA_INNER,),
        "ssm_a": (STATE, MAMBA_INNER),
        "ssm_d": (MAMBA_INNER,),
        "ssm_out.weight": (MAMBA_INNER, WIDTH),
    }


def grouped_mamba() -> Shapes:
    convolved = MAMBA_INNER + 2 * GROUPS * STATE
    return {
        "attn_norm.weight": (WIDTH,),
        "ssm_in.weight": (WIDTH, MAMBA_INNER + convolved + RANK),
        "ssm_conv1d.weight": (KERNEL, convolved),
        "ssm_conv1d.bias": (convolved,),
        "ssm_dt.bias": (RANK,),
        "ssm_a": (1, RANK),
        "ssm_d": (1, RANK),
        "ssm_norm.weight": (MAMBA_INNER // GROUPS, GROUPS),
        "ssm_out.weight": (MAMBA_INNER, WIDTH),
    }


def recurrent() -> MadeUpModel:
    return made_up("mamba", [mamba() for _ in range(3)], MAMBA_FACTS | {"attention.head_count": 0})


def recurrent_in_groups() -> MadeUpModel:
    return made_up("mamba2", [grouped_mamba() for _ in range(3)], GROUPED_FACTS)


def receptance() -> MadeUpModel:
    """RWKV."""
    size, extra, decay = 64, 32, 48
    mixes = {f"time_mix_lerp_{name}.weight": (WIDTH, 1, 1) for name in "xwkvrg"}
    squares = {f"time_mix_{name}.weight": (WIDTH, WIDTH) for name in ("key", "value", "receptance", "gate", "output")}
    pairs = ("attn_norm", "attn_norm_2", "time_mix_ln")
    norms = {f"{name}.{kind}": (WIDTH,) for name in pairs for kind in ("weight", "bias")}
    layer: Shapes = {
        **norms,
        **mixes,
        **squares,
        "time_mix_w1.weight": (WIDTH, 5 * extra),
        "time_mix_w2.weight": (extra, WIDTH, 5),
        "time_mix_first.weight": (size, WIDTH // size),
        "time_mix_decay.weight": (WIDTH,),
        "time_mix_decay_w1.weight": (WIDTH, decay),
        "time_mix_decay_w2.weight": (decay, WIDTH),
        "channel_mix_lerp_k.weight": (WIDTH, 1, 1),
        "channel_mix_lerp_r.weight": (WIDTH, 1, 1),
        "channel_mix_key.weight": (WIDTH, INNER),
        "channel_mix_value.weight": (INNER, WIDTH),
        "channel_mix_receptance.weight": (WIDTH, WIDTH),
    }
    facts: dict[str, Fact] = {
        "attention.head_count": 0,
        "wkv.head_size": size,
        "time_mix_extra_dim": extra,
        "time_decay_extra_dim": decay,
    }
    norm: Shapes = {"token_embd_norm.weight": (WIDTH,), "token_embd_norm.bias": (WIDTH,), "output_norm.bias": (WIDTH,)}
    return made_up("rwkv6", [dict(layer) for _ in range(3)], facts, **(norm | WITH_OUTPUT))


def attention_in_some_layers() -> MadeUpModel:
    """Jamba: layers without KV heads are recurrent."""
    counts = (0, 0, KV_HEADS, 0)
    norms: Shapes = {"ssm_dt_norm.weight": (RANK,), "ssm_b_norm.weight": (STATE,), "ssm_c_norm.weight": (STATE,)}
    layers = [(attention() if count else mamba() | norms) | feed_forward() for count in counts]
    facts = MAMBA_FACTS | {"attention.head_count": HEADS, "attention.head_count_kv": counts}
    return made_up("jamba", layers, facts)


def attention_in_some_of_grouped() -> MadeUpModel:
    counts = (0, KV_HEADS, 0)
    layers = [(attention() if count else grouped_mamba()) | feed_forward() for count in counts]
    facts = GROUPED_FACTS | {"attention.head_count": HEADS, "attention.head_count_kv": counts}
    return made_up("granitehybrid", layers, facts)


def attention_beside_recurrence() -> MadeUpModel:
    """Falcon-H1: every layer has both."""
    layers = [grouped_mamba() | attention() | feed_forward() for _ in range(3)]
    for layer in layers:
        layer["ffn_norm"] = layer.pop("ffn_norm.weight")
    return made_up("falcon-h1", layers, PLAIN_HEADS | GROUPED_FACTS)


def attention_recurrence_or_neither() -> MadeUpModel:
    """Nemotron-H: layers of feed-forward only keep nothing."""
    kinds = ("recurrent", "feed-forward", "attention", "recurrent")
    shapes = {"recurrent": grouped_mamba(), "attention": attention()}
    shapes["feed-forward"] = {
        "attn_norm.weight": (WIDTH,),
        "ffn_up.weight": (WIDTH, INNER),
        "ffn_down.weight": (INNER, WIDTH),
    }
    facts: dict[str, Fact] = {
        "attention.head_count": HEADS,
        "attention.head_count_kv": tuple(KV_HEADS if kind == "attention" else 0 for kind in kinds),
        "feed_forward_length": tuple(INNER if kind == "feed-forward" else 0 for kind in kinds),
    }
    return made_up("nemotron_h", [shapes[kind] for kind in kinds], GROUPED_FACTS | facts)


def short_convolutions() -> MadeUpModel:
    """LFM2."""
    counts = (0, KV_HEADS, 0, 0, KV_HEADS)
    convolution: Shapes = {
        "attn_norm.weight": (WIDTH,),
        "shortconv.conv.weight": (3, WIDTH),
        "shortconv.in_proj.weight": (WIDTH, 3 * WIDTH),
        "shortconv.out_proj.weight": (WIDTH, WIDTH),
    }
    layers = [(attention() | head_norms() if count else convolution) | feed_forward() for count in counts]
    facts: dict[str, Fact] = {
        "attention.head_count": HEADS,
        "attention.head_count_kv": counts,
        "shortconv.l_cache": 3,
    }
    model = made_up("lfm2", layers, facts, **{"token_embd_norm.weight": (WIDTH,)})
    return MadeUpModel(model.architecture, model.facts, model.layers, without(model.others, "output_norm.weight"))


def without(shapes: Shapes, name: str) -> Shapes:
    return {key: shape for key, shape in shapes.items() if key != name}


def gated_delta() -> MadeUpModel:
    """Qwen3-Next: every fourth layer has attention."""
    size, keys, values = 32, 2, 4
    key_width, value_width = size * keys, size * values
    linear: Shapes = {
        "attn_norm.weight": (WIDTH,),
        "attn_qkv.weight": (WIDTH, 2 * key_width + value_width),
        "attn_gate.weight": (WIDTH, value_width),
        "ssm_conv1d.weight": (KERNEL, 2 * key_width + value_width),
        "ssm_dt.bias": (values,),
        "ssm_a": (values,),
        "ssm_ba.weight": (WIDTH, 2 * values),
        "ssm_norm.weight": (size,),
        "ssm_out.weight": (value_width, WIDTH),
    }
    full = attention() | head_norms() | {"attn_q.weight": (WIDTH, 2 * HEADS * LENGTH)}
    both = {"post_attention_norm.weight": (WIDTH,), "ffn_gate_inp_shexp.weight": (WIDTH,)}
    rest: Shapes = without(experts(), "ffn_norm.weight") | shared_expert() | both
    layers = [(full if (n + 1) % 4 == 0 else linear) | rest for n in range(8)]
    facts: dict[str, Fact] = {
        "expert_shared_feed_forward_length": EXPERT_INNER,
        "ssm.conv_kernel": KERNEL,
        "ssm.inner_size": value_width,
        "ssm.state_size": size,
        "ssm.time_step_rank": values,
        "ssm.group_count": keys,
    }
    return made_up("qwen3next", layers, PLAIN_HEADS | EXPERT_FACTS | facts)


def recurrence_listed() -> MadeUpModel:
    """Qwen3.5, which lists its recurrent layers here; the last layer predicts further tokens."""
    size, keys, values = 32, 2, 4
    key_width, value_width = size * keys, size * values
    linear: Shapes = {
        "attn_qkv.weight": (WIDTH, 2 * key_width + value_width),
        "attn_gate.weight": (WIDTH, value_width),
        "ssm_conv1d.weight": (KERNEL, 2 * key_width + value_width),
        "ssm_dt.bias": (values,),
        "ssm_a": (values,),
        "ssm_beta.weight": (WIDTH, values),
        "ssm_alpha.weight": (WIDTH, values),
        "ssm_norm.weight": (size,),
        "ssm_out.weight": (value_width, WIDTH),
    }
    full = attention() | head_norms() | {"attn_q.weight": (WIDTH, 2 * HEADS * LENGTH)}
    rest = without(feed_forward(), "ffn_norm.weight") | {"attn_norm.weight": (WIDTH,)}
    rest |= {"post_attention_norm.weight": (WIDTH,)}
    recurrent_layers = (False, True, True, False)
    layers = [(linear if recurrent else full) | rest for recurrent in recurrent_layers]
    layers[-1] |= {"nextn.eh_proj.weight": (2 * WIDTH, WIDTH)}
    layers[-1] |= {"nextn.enorm.weight": (WIDTH,), "nextn.hnorm.weight": (WIDTH,)}
    facts: dict[str, Fact] = {
        "attention.recurrent_layers": recurrent_layers,
        "nextn_predict_layers": 1,
        "rope.dimension_sections": (11, 11, 10, 0),
        "ssm.conv_kernel": KERNEL,
        "ssm.inner_size": value_width,
        "ssm.state_size": size,
        "ssm.time_step_rank": values,
        "ssm.group_count": keys,
    }
    return made_up("qwen35", layers, PLAIN_HEADS | facts)


def delta_beside_compressed() -> MadeUpModel:
    """Kimi Linear: recurrent layers, and MLA in the others."""
    size = 32
    inner = HEADS * size
    convolutions = {f"ssm_conv1d_{name}.weight": (KERNEL, 1, inner) for name in "qkv"}
    projections = {f"attn_{name}.weight": (WIDTH, inner) for name in "qkv"}
    linear: Shapes = {
        **convolutions,
        **projections,
        "attn_norm.weight": (WIDTH,),
        "ssm_f_a.weight": (WIDTH, size),
        "ssm_f_b.weight": (size, inner),
        "ssm_g_a.weight": (WIDTH, size),
        "ssm_g_b.weight": (size, inner),
        "ssm_beta.weight": (WIDTH, HEADS),
        "ssm_a": (1, HEADS),
        "ssm_dt.bias": (inner,),
        "ssm_norm.weight": (size,),
        "attn_output.weight": (inner, WIDTH),
    }
    mixture = experts() | shared_expert() | {"exp_probs_b.bias": (EXPERTS,)}
    counts = (0, 0, 1, 0)
    full = without(compressed_attention(), "attn_q_a_norm.weight") | {"attn_q.weight": (WIDTH, HEADS * (NOPE + ROPE))}
    full = without(without(full, "attn_q_a.weight"), "attn_q_b.weight")
    layers = [(full if n else linear) | mixture for n in counts]
    facts: dict[str, Fact] = {
        "attention.head_count": HEADS,
        "attention.head_count_kv": counts,
        "ssm.conv_kernel": KERNEL,
        "kda.head_dim": size,
        "expert_shared_count": 1,
        "expert_gating_func": 2,
    }
    return made_up("kimi-linear", layers, COMPRESSED_FACTS | EXPERT_FACTS | facts, **WITH_OUTPUT)


KINDS: Mapping[str, MadeUpModel] = {
    "experts": mixture_of_experts(),
    "heads of each layer": lengths_of_their_own(),
    "compressed": compressed(),
    "compressed, with layers that predict": compressed(predicting=1),
    "compressed architecture, old file": uncompressed(),
    "window in every other layer": window_in_every_other_layer(),
    "window of the architecture": window_of_the_architecture(),
    "window in most layers": window_in_most_layers(),
    "no window after all": window_in_most_layers(window=0),
    "windows listed, shared": windows_listed(),
    "window and experts": window_and_experts(),
    "window and a period": window_after_the_first(),
    "recurrent": recurrent(),
    "recurrent in groups": recurrent_in_groups(),
    "receptance": receptance(),
    "attention in some layers": attention_in_some_layers(),
    "attention in some of grouped": attention_in_some_of_grouped(),
    "attention beside recurrence": attention_beside_recurrence(),
    "attention, recurrence or neither": attention_recurrence_or_neither(),
    "short convolutions": short_convolutions(),
    "gated delta": gated_delta(),
    "recurrence listed, with layers that predict": recurrence_listed(),
    "delta beside compressed": delta_beside_compressed(),
}
