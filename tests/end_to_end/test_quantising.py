"""Quantising and comparing the real model with the real engine, as a user does."""

from pathlib import Path

import pytest

from orchestrator.engine.store import Engine
from quant.gguf_file import read_model
from tests.end_to_end.answers import answers, plain_head
from tests.end_to_end.refusals import error_of
from tests.program import Meshctl

pytestmark = pytest.mark.engine

SOURCE = "SmolLM2-135M-Instruct.Q4_1.gguf"
TEXT = Path(__file__).parents[2] / "docs" / "plan.md"
CHUNKS, CONTEXT = "3", "256"


def test_a_quantised_model_answers_and_is_as_good_as_its_bits(meshctl: Meshctl, engine: Engine) -> None:
    refused = meshctl.run("model", "quantise", "smollm2-135m", "--type", "Q8_0", "--out", "q8.gguf")
    assert refused.status == 1
    assert error_of(refused).startswith(f"{SOURCE} is quantised already (Q4_1): what that has lost stays lost")

    meshctl.ok("model", "quantise", "smollm2-135m", "--type", "F16", "--out", "f16.gguf", "--allow-requantise")
    lossy = meshctl.run("model", "quantise", "f16.gguf", "--type", "Q8_0", "--out", "q8.gguf")
    assert error_of(lossy).startswith("f16.gguf is quantised already (Q4_1")
    for kind in ("Q8_0", "Q2_K"):
        asked = ("--type", kind, "--out", f"{kind}.gguf", "--allow-requantise")
        done = meshctl.ok("model", "quantise", "f16.gguf", *asked)
        assert done.stdout.strip() == str(meshctl.folder / f"{kind}.gguf")
    assert read_model(meshctl.folder / "Q8_0.gguf").quantisation == "Q8_0"
    with plain_head(engine, meshctl.folder / "Q8_0.gguf") as url:
        assert all(len(answer.split()) > 4 for answer in answers(url))  # it knows little, quantised or not

    words = ("f16.gguf", "Q8_0.gguf", "Q2_K.gguf", "--text", str(TEXT), "--chunks", CHUNKS, "--context", CONTEXT)
    f16, q8, q2 = meshctl.ok("model", "perplexity", *words, "--json").json
    assert abs(q8["ratio"] - 1) < 0.03
    assert q2["ratio"] > 1.2
    assert f16["bits_per_weight"] > q8["bits_per_weight"] > q2["bits_per_weight"]

    again = meshctl.ok("model", "perplexity", *words)
    assert again.stderr.count("known from an earlier run") == 3
    assert f"{q2['perplexity']:.4f}" in again.stdout


def test_a_text_that_is_too_short_is_said_so(meshctl: Meshctl) -> None:
    (meshctl.folder / "text.txt").write_text("The sea covers most of the surface of the earth.")
    failed = meshctl.run("model", "perplexity", "smollm2-135m", "--text", "text.txt")
    assert failed.status == 1
    assert "and two chunks of 512 are the least" in error_of(failed)
