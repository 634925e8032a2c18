"""Of which types layers are, and the same mixture in fewer of them."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from quant.gguf_file import read_model
from quant.mixture import MATRICES, Mixture, mixture_of
from quant.model import Tensor
from quant.synthetic import Shape, fitting_types, layer_type_bytes, write_mixed_model, write_random_model

SHAPE = Shape(layers=3, embedding=256, feed_forward=512, heads=4, kv_heads=2, vocabulary=64)
NARROW = replace(SHAPE, embedding=192, heads=6)
K_QUANTS = ("Q4_K", "Q4_K", "Q6_K", "Q4_K", "Q4_K", "Q4_K", "Q6_K")


def matrix(kind: str, layers: int) -> tuple[tuple[str, int], ...]:
    return ((kind, layers),)


def test_a_model_of_one_type_is_called_by_it(tmp_path: Path) -> None:
    write_random_model(tmp_path / "model.gguf", SHAPE, "Q4_0")
    found = mixture_of(read_model(tmp_path / "model.gguf"))
    assert found == Mixture((matrix("Q4_0", 3),) * 7)
    assert found.name == "Q4_0"
    assert found.of_layers(2) == (("Q4_0",) * 7,) * 2


def test_what_is_written_of_a_mixture_has_it(tmp_path: Path) -> None:
    layers = (K_QUANTS, K_QUANTS, ("Q4_K",) * 7)
    write_mixed_model(tmp_path / "model.gguf", SHAPE, layers, "Q8_0")
    made = read_model(tmp_path / "model.gguf")
    found = mixture_of(made)
    more = (("Q4_K", 1), ("Q6_K", 2))
    assert found.counts == tuple(more if name in ("attn_v", "ffn_down") else matrix("Q4_K", 3) for name in MATRICES)
    assert found.types == ("Q4_K", "Q6_K")
    assert found.name.startswith("Q4_K+Q6_K-")
    assert Counter(found.of_layers(3)) == Counter(layers)
    sizes = [layer_type_bytes(SHAPE, layer) for layer in layers]
    matrices = [one for one in made.tensors if one.block is not None and len(one.shape) > 1]
    assert sum(tensor.size_bytes for tensor in matrices) == sum(sizes)


def test_mixtures_of_the_same_types_have_names_of_their_own() -> None:
    two = [Mixture(((("Q4_K", count), ("Q6_K", 4 - count)),) * 7) for count in (1, 2)]
    assert two[0].name != two[1].name


@pytest.mark.parametrize(("layers", "more"), [(32, 20), (16, 10), (5, 3), (2, 1), (1, 1)])
def test_fewer_layers_have_the_same_parts(layers: int, more: int) -> None:
    mixture = Mixture(((("Q4_K", 12), ("Q6_K", 20)),) * 7)
    assert Counter(kinds[0] for kinds in mixture.of_layers(layers))["Q6_K"] == more


def test_other_architectures_give_the_types_of_what_is_like_it(tmp_path: Path) -> None:
    """Experts stand for a layer's own matrices; of what has nothing alike the largest matrix does."""
    write_random_model(tmp_path / "model.gguf", SHAPE, "Q4_0")
    names = {"attn_qkv": ("Q5_0", 8), "ffn_up_exps": ("Q4_K", 9), "ffn_down_exps": ("Q6_K", 7), "ssm_in": ("F16", 10)}
    tensors = tuple(Tensor(f"blk.0.{name}.weight", kind, (32, rows), 0, 0) for name, (kind, rows) in names.items())
    (types,) = mixture_of(replace(read_model(tmp_path / "model.gguf"), tensors=tensors)).of_layers(1)
    assert types == ("Q5_0", "Q5_0", "Q5_0", "F16", "Q4_K", "Q4_K", "Q6_K")


def test_layers_without_matrices_are_of_the_models_type(tmp_path: Path) -> None:
    write_random_model(tmp_path / "model.gguf", SHAPE, "Q4_0")
    assert mixture_of(replace(read_model(tmp_path / "model.gguf"), tensors=())).name == "Q4_0"


def test_rows_that_no_block_divides_get_what_the_engine_takes() -> None:
    assert fitting_types(SHAPE, K_QUANTS) == K_QUANTS
    assert fitting_types(NARROW, K_QUANTS) == ("Q5_0", "Q5_0", "Q8_0", "Q5_0", "Q5_0", "Q5_0", "Q6_K")
    assert fitting_types(NARROW, ("IQ4_XS",) * 7) == (*["IQ4_NL"] * 6, "IQ4_XS")
