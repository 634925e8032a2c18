"""The quantisations by name, and a model with its tensors in other types."""

from pathlib import Path

import pytest
from gguf import LlamaFileType

from quant.errors import QuantiseError
from quant.gguf_file import read_model
from quant.model import Model, layer_bytes
from quant.quantisations import QUANTISATIONS, bits_per_weight, find_quantisation, lossy_types, retyped, usual_bits
from quant.synthetic import Shape, write_random_model

SHAPE = Shape(layers=2, embedding=256, feed_forward=512, heads=4, kv_heads=2, vocabulary=256)


def small(tmp_path: Path, kind: str) -> Model:
    write_random_model(tmp_path / f"{kind}.gguf", SHAPE, kind)
    return read_model(tmp_path / f"{kind}.gguf")


def matrices(model: Model, kind: str) -> dict[str, str]:
    return {tensor.name: kind for tensor in model.tensors if len(tensor.shape) > 1}


@pytest.mark.parametrize(("said", "name"), [("q4_k_m", "Q4_K_M"), ("Q4_K", "Q4_K_M"), ("iq2_xxs", "IQ2_XXS")])
def test_names_are_taken_in_letters_of_either_case_and_short(said: str, name: str) -> None:
    assert find_quantisation(said).name == name


def test_an_unknown_name_is_answered_with_all_that_there_are() -> None:
    with pytest.raises(QuantiseError, match="there is no quantisation Q9_K") as caught:
        find_quantisation("Q9_K")
    assert all(f"{one.name} {one.bits_per_weight:.2f}" in caught.value.hint for one in QUANTISATIONS.values())


def test_the_numbers_are_the_engines() -> None:
    """By `llama_ftype` in llama.h of the pinned engine."""
    numbers = {name: find_quantisation(name).file_type for name in ("F32", "F16", "Q8_0", "Q4_K_M", "IQ1_M", "BF16")}
    assert numbers == {"F32": 0, "F16": 1, "Q8_0": 7, "Q4_K_M": 15, "IQ1_M": 31, "BF16": 32}
    assert {one.file_type for one in QUANTISATIONS.values()} <= {int(number) for number in LlamaFileType}


def test_they_stand_in_order_of_size() -> None:
    sizes = [round(one.bits_per_weight, 2) for one in QUANTISATIONS.values()]
    assert sizes == sorted(sizes)


def test_usual_bits_are_of_quantisations_and_of_tensor_types() -> None:
    assert [usual_bits(name) for name in ("Q4_K_M", "Q4_K", "Q8_0", "UD-Q4_K_XL")] == [4.8944, 4.8944, 8.5008, None]


def test_a_model_in_other_types_is_counted_as_one_that_was_written_so(tmp_path: Path) -> None:
    source, written = small(tmp_path, "F16"), small(tmp_path, "Q4_K")
    changed = retyped(source, matrices(source, "Q4_K"))
    assert (changed.size_bytes, layer_bytes(changed)) == (written.size_bytes, layer_bytes(written))
    assert (changed.quantisation, bits_per_weight(changed)) == ("Q4_K", bits_per_weight(written))
    assert changed.files_digest == ""


def test_what_was_quantised_already_and_would_be_again_is_lossy(tmp_path: Path) -> None:
    f16, q8 = small(tmp_path, "F16"), small(tmp_path, "Q8_0")
    assert lossy_types(f16, retyped(f16, matrices(f16, "Q4_K"))) == ()
    assert lossy_types(q8, retyped(q8, matrices(q8, "Q4_K"))) == ("Q8_0",)
    assert lossy_types(q8, q8) == ()
