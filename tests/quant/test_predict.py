"""What a model would be, by the engine itself; and a program that crashes instead of answering."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from orchestrator.engine.store import Engine
from quant.errors import QuantiseError
from quant.gguf_file import read_model
from quant.gguf_header import read_header
from quant.model import Model, layer_bytes
from quant.predict import Prediction, predict_quantised, read_outcomes
from quant.quantisations import QUANTISATIONS, find_quantisation
from quant.quantise import Outcome, Request, command
from quant.synthetic import Shape, write_random_model

SHAPE = Shape(layers=16, embedding=512, feed_forward=1024, heads=8, kv_heads=2, vocabulary=256)


def predicted(answer: Prediction | QuantiseError) -> Prediction:
    assert isinstance(answer, Prediction), answer
    return answer


@pytest.fixture
def model(tmp_path: Path) -> Model:
    write_random_model(tmp_path / "model.gguf", SHAPE, "F16")
    return read_model(tmp_path / "model.gguf")


@pytest.mark.engine
async def test_the_engines_own_rules_give_some_tensors_more_bits(engine: Engine, model: Model) -> None:
    """Q4_K_M: of 16 layers the first and last eighth, and every third between, have more in ffn_down and attn_v."""
    found = predicted((await predict_quantised(engine.folder, model, (find_quantisation("Q4_K_M"),)))["Q4_K_M"])
    more = [t.block for t in found.model.tensors if t.name.endswith("ffn_down.weight") and t.type == "Q6_K"]
    assert more == [0, 1, 4, 7, 10, 13, 14, 15]
    assert len(set(layer_bytes(found.model))) == 2
    assert (found.needs_importance, found.lossy, found.fallbacks) == (False, (), 0)


@pytest.mark.engine
async def test_a_file_that_the_engine_refuses_is_not_blamed_on_the_type_alone(
    engine: Engine, model: Model, tmp_path: Path
) -> None:
    """No other type would help here: the metadata lack a number."""
    data, key = model.path.read_bytes(), b"llama.attention.layer_norm_rms_epsilon"
    assert data.count(key) == 1
    other = tmp_path / "other.gguf"
    other.write_bytes(data.replace(key, key.swapcase()))
    refused = (await predict_quantised(engine.folder, read_model(other), (find_quantisation("Q4_0"),)))["Q4_0"]
    assert isinstance(refused, QuantiseError)
    assert str(refused) == f"other.gguf cannot become Q4_0: key not found in model: {key.decode()}"
    assert refused.hint == (
        "choose another type; where it is so with every type, the engine cannot read this file: fetch it again, or "
        "another conversion of this model"
    )


@pytest.mark.engine
async def test_all_quantisations_are_answered_at_once(engine: Engine, model: Model) -> None:
    found = await predict_quantised(engine.folder, model, QUANTISATIONS.values())
    sizes = {name: predicted(one).file_bytes for name, one in found.items()}
    assert list(sizes) == list(QUANTISATIONS)
    assert sizes["Q4_0"] < sizes["Q5_0"] < sizes["Q6_K"] < sizes["Q8_0"] < sizes["F16"] < sizes["F32"]
    assert abs(sizes["F16"] - model.path.stat().st_size) < 4096
    needing = {name for name, one in found.items() if predicted(one).needs_importance}
    assert needing == {name for name, one in QUANTISATIONS.items() if one.needs_importance}


@pytest.mark.engine
async def test_what_was_kept_is_not_asked_again(engine: Engine, model: Model, tmp_path: Path) -> None:
    wanted = (find_quantisation("Q4_K_M"), find_quantisation("Q8_0"))
    first = await predict_quantised(engine.folder, model, wanted, kept=tmp_path / "kept")
    (tmp_path / engine.folder.name).mkdir()  # an engine of that name which cannot be asked
    silent = tmp_path / engine.folder.name
    assert await predict_quantised(silent, model, wanted, kept=tmp_path / "kept") == first
    with pytest.raises(QuantiseError, match="has no engine libraries"):
        await predict_quantised(silent, model, (find_quantisation("Q6_K"),), kept=tmp_path / "kept")
    for book in (tmp_path / "kept").iterdir():
        book.write_text("{")
    assert await predict_quantised(engine.folder, model, wanted, kept=tmp_path / "kept") == first


@pytest.mark.engine
async def test_a_file_that_the_engine_does_not_know_is_one_error(engine: Engine, model: Model) -> None:
    data = model.path.read_bytes().replace(b"llama", b"lamma")
    model.path.write_bytes(data)
    found = (await predict_quantised(engine.folder, model, (find_quantisation("Q8_0"),)))["Q8_0"]
    assert isinstance(found, QuantiseError)
    assert "unknown model architecture: 'lamma'" in str(found)


@pytest.mark.engine
async def test_an_abort_of_native_code_is_one_error_with_its_last_words(engine: Engine, model: Model) -> None:
    """The engine has room for 512 layers and asserts it."""
    _, end = read_header(model.path).places["llama.block_count"]
    with model.path.open("r+b") as file:
        file.seek(end - 4)
        file.write((513).to_bytes(4, "little"))
    with pytest.raises(QuantiseError, match="the engine ended by SIGABRT instead of answering") as caught:
        await predict_quantised(engine.folder, model, (find_quantisation("Q8_0"),))
    assert "n_layer" in caught.value.details.splitlines()[-1]


async def test_an_engine_that_does_not_load_is_named(tmp_path: Path, model: Model) -> None:
    with pytest.raises(QuantiseError, match="has no engine libraries") as caught:
        await predict_quantised(tmp_path / "none", model, (find_quantisation("Q8_0"),))
    assert caught.value.hint == "build the engine: meshctl engine build"


@pytest.mark.parametrize(
    ("status", "how"), [(-6, "by SIGABRT"), (-9, "by SIGKILL"), (3, "with status 3"), (None, "late")]
)
def test_a_program_that_crashes_is_told_with_the_end_of_what_it_said(status: int | None, how: str) -> None:
    with pytest.raises(QuantiseError) as caught:
        read_outcomes(status, b"", "llama-quant.cpp:42: GGML_ASSERT(x) failed\n")
    assert str(caught.value) == f"the engine ended {how} instead of answering"
    assert caught.value.details == "llama-quant.cpp:42: GGML_ASSERT(x) failed\n"
    assert ("memory" in caught.value.hint) is (status == -9)


def test_an_answer_is_read_whole() -> None:
    outcome = Outcome(7, {"a": "Q8_0"}, needs_importance=False, fallbacks=2, refusal="")
    assert read_outcomes(0, json.dumps({"outcomes": [asdict(outcome)]}).encode(), "") == (outcome,)


def test_the_program_gets_everything_in_one_word() -> None:
    words = command(sys.executable, Request("/engine", "/a b.gguf", (7,)))
    assert words[:4] == (sys.executable, "-P", "-m", "quant.quantise")
    assert '"source": "/a b.gguf"' in words[4]
