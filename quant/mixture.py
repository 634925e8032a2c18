"""Of which types the matrices of a model's layers are, so that a model of random weights can be of the same.

A quantisation is hardly ever of one type: some matrices of some layers get more bits, and rows that a type's blocks do
not divide get another type.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from quant.model import Model, Tensor, layer_matrices

MATRICES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
"""Those of a layer of the architecture `llama`, by their names in GGUF."""

_STANDS_FOR: Mapping[str, tuple[str, ...]] = {
    "attn_q": ("attn_q", "attn_qkv", "attn_q_b"),
    "attn_k": ("attn_k", "attn_qkv", "attn_k_b", "attn_kv_b"),
    "attn_v": ("attn_v", "attn_qkv", "attn_v_b", "attn_kv_b"),
    "attn_output": ("attn_output", "ssm_out"),
    "ffn_gate": ("ffn_gate", "ffn_gate_exps", "ffn_gate_up_exps", "ffn_up", "ffn_up_exps"),
    "ffn_up": ("ffn_up", "ffn_up_exps", "ffn_gate_up_exps"),
    "ffn_down": ("ffn_down", "ffn_down_exps"),
}
"""By matrix, the tensors of other architectures whose types it takes, the likest first; of a layer that has none of
them, that of most of its weights."""

LayerTypes = tuple[str, ...]
"""The ggml types of `MATRICES` in one layer."""


@dataclass(frozen=True)
class Mixture:
    """`counts[i]`: in how many of the layers `MATRICES[i]` has each type, by ascending name."""

    counts: tuple[tuple[tuple[str, int], ...], ...]

    @property
    def types(self) -> tuple[str, ...]:
        """All of them, by ascending name."""
        return tuple(sorted({kind for matrix in self.counts for kind, _ in matrix}))

    @property
    def name(self) -> str:
        """The type, where there is one only, else all of them and what tells this mixture from others of the same."""
        kinds = "+".join(self.types)
        if len(self.types) == 1:
            return kinds
        return f"{kinds}-{hashlib.sha256(repr(self.counts).encode()).hexdigest()[:8]}"

    def of_layers(self, layers: int) -> tuple[LayerTypes, ...]:
        """The types for a model of so many layers, each type in its part of them."""
        return tuple(zip(*(_apportioned(matrix, layers) for matrix in self.counts), strict=True))


def _apportioned(counts: Sequence[tuple[str, int]], layers: int) -> tuple[str, ...]:
    """By the largest remainders, so that each type has its part to less than a layer."""
    total = sum(count for _, count in counts)
    shares = {kind: count * layers / total for kind, count in counts}
    whole = {kind: int(share) for kind, share in shares.items()}
    by_rest = sorted(shares, key=lambda kind: (whole[kind] - shares[kind], kind))
    for kind in by_rest[: layers - sum(whole.values())]:
        whole[kind] += 1
    return tuple(chain.from_iterable([kind] * count for kind, count in whole.items()))


def mixture_of(model: Model) -> Mixture:
    """That of all layers that have matrices; where none has, of the model's type."""
    types = [_types_of(tensors) for tensors in _layers(model)] or [(model.quantisation,) * len(MATRICES)]
    matrices = zip(*types, strict=True)
    return Mixture(tuple(tuple(sorted(Counter(kinds).items())) for kinds in matrices))


def _layers(model: Model) -> Iterator[list[Tensor]]:
    matrices: dict[int, list[Tensor]] = {}
    for tensor in layer_matrices(model):
        matrices.setdefault(tensor.block or 0, []).append(tensor)
    return (matrices[block] for block in sorted(matrices))


def _types_of(layer: Iterable[Tensor]) -> LayerTypes:
    layer = list(layer)
    types = {tensor.name.split(".")[2]: tensor.type for tensor in layer}
    most = max(layer, key=lambda tensor: tensor.parameters).type
    return tuple(next((types[one] for one in _STANDS_FOR[name] if one in types), most) for name in MATRICES)
