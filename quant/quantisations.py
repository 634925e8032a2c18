"""What quantisations there are, and what each takes and needs, as data. Reads nothing, runs nothing.

Which tensor of a model gets which type is the engine's own affair (some get more bits than others, rows that no block
divides get another type): `quant.predict` asks it. Here is only what holds for every model.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType

from quant.errors import QuantiseError
from quant.model import Model, Tensor, dominant_type

LOSSLESS = ("F64", "F32", "F16", "BF16")
"""Types of a source that quantising once is meant for; all others have lost precision already, Q8_0 the least."""


@dataclass(frozen=True)
class Quantisation:
    """A kind of file that the engine makes: its name as `llama-quantize` has it, and what a weight takes on average.

    `bits_per_weight` is that of Llama 3.1 8B as stated by the engine (tools/quantize: README.md, else from the sizes in
    `QUANT_OPTIONS`): other models differ, small ones more. `needs_importance`: without an importance matrix the engine
    refuses tensors of it, since the result would be useless. `note`: what it is for, where that is not any model.
    """

    name: str
    bits_per_weight: float
    needs_importance: bool = False
    note: str = ""

    @property
    def file_type(self) -> int:
        """The engine's number for it, `llama_ftype`."""
        return int(LlamaFileType["ALL_F32" if self.name == "F32" else f"MOSTLY_{self.name}"])


_TERNARY = "for models trained with weights of -1, 0 and 1"

_ALL = (
    Quantisation("Q1_0", 1.125, note="for models trained with weights of one bit"),
    Quantisation("TQ1_0", 1.69, note=_TERNARY),
    Quantisation("IQ1_S", 2.0042, needs_importance=True),
    Quantisation("TQ2_0", 2.06, note=_TERNARY),
    Quantisation("IQ1_M", 2.1460, needs_importance=True),
    Quantisation("IQ2_XXS", 2.3824, needs_importance=True),
    Quantisation("IQ2_XS", 2.5882, needs_importance=True),
    Quantisation("IQ2_S", 2.7403, needs_importance=True),
    Quantisation("IQ2_M", 2.9294, needs_importance=True),
    Quantisation("Q2_K_S", 2.9697, needs_importance=True),
    Quantisation("Q2_K", 3.1593),
    Quantisation("IQ3_XXS", 3.2548, needs_importance=True),
    Quantisation("IQ3_XS", 3.4977, needs_importance=True),
    Quantisation("Q3_K_S", 3.6429),
    Quantisation("IQ3_S", 3.6606),
    Quantisation("IQ3_M", 3.7628),
    Quantisation("Q3_K_M", 3.9960),
    Quantisation("MXFP4_MOE", 4.25, note="for the experts of mixtures; all else becomes Q8_0"),
    Quantisation("Q3_K_L", 4.2979),
    Quantisation("IQ4_XS", 4.4597),
    Quantisation("Q4_0", 4.64),
    Quantisation("Q4_K_S", 4.6672),
    Quantisation("IQ4_NL", 4.6818),
    Quantisation("Q4_K_M", 4.8944),
    Quantisation("Q4_1", 5.11),
    Quantisation("Q5_K_S", 5.5704),
    Quantisation("Q5_0", 5.57),
    Quantisation("Q5_K_M", 5.7036),
    Quantisation("Q5_1", 6.04),
    Quantisation("Q6_K", 6.5633),
    Quantisation("Q8_0", 8.5008),
    Quantisation("F16", 16.0),
    Quantisation("BF16", 16.0),
    Quantisation("F32", 32.0),
)

QUANTISATIONS: Mapping[str, Quantisation] = MappingProxyType({one.name: one for one in _ALL})
"""By name, the smallest first."""

_ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}


def find_quantisation(name: str) -> Quantisation:
    """By its name in letters of either case, also by the engine's short ones (Q4_K); QuantiseError names all others."""
    upper = name.upper()
    found = QUANTISATIONS.get(_ALIASES.get(upper, upper))
    if found is None:
        choices = ", ".join(f"{one.name} {one.bits_per_weight:.2f}" for one in _ALL)
        raise QuantiseError(
            f"there is no quantisation {name}", hint=f"choose one of these (bits per weight of an 8 B model): {choices}"
        )
    return found


def usual_bits(name: str) -> float | None:
    """What a weight takes in a large model of this quantisation, or mostly of this tensor type; None: the engine makes
    none of that name."""
    found = QUANTISATIONS.get(_ALIASES.get(name, name))
    return None if found is None else found.bits_per_weight


def bits_per_weight(model: Model) -> float:
    """On average over all weights of this very model."""
    return model.size_bytes * 8 / model.parameters


def retyped(model: Model, types: Mapping[str, str]) -> Model:
    """The model with its tensors in these ggml types, by name; those not named stay as they are.

    For sums of bytes and shapes only: where tensors lie in a file is not known of one that has not been written.
    """
    tensors = tuple(_retyped(tensor, types.get(tensor.name, tensor.type)) for tensor in model.tensors)
    return replace(model, tensors=tensors, quantisation=dominant_type(tensors), files_digest="")


def _retyped(tensor: Tensor, kind: str) -> Tensor:
    block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    return replace(tensor, type=kind, size_bytes=tensor.parameters // block * block_bytes, shard=0, offset=0)


def lossy_types(source: Model, quantised: Model) -> tuple[str, ...]:
    """The types of tensors that would be converted although they have lost precision already, the most bytes first."""
    after = {tensor.name: tensor.type for tensor in quantised.tensors}
    lost: dict[str, int] = {}
    for tensor in source.tensors:
        if tensor.type not in LOSSLESS and after[tensor.name] != tensor.type:
            lost[tensor.type] = lost.get(tensor.type, 0) + tensor.size_bytes
    return tuple(sorted(lost, key=lambda kind: -lost[kind]))
