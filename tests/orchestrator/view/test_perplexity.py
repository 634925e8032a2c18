"""How perplexities are shown, each beside the first."""

import json
from dataclasses import replace
from pathlib import Path

from orchestrator.perplexity import Told
from orchestrator.view.perplexity import measured_text, perplexities_json, perplexities_view
from quant.gguf_file import read_model
from quant.model import Model
from quant.synthetic import Shape, write_random_model
from tests.orchestrator.view.rendering import rendered
from workers.perplexity_output import Perplexity

SHAPE = Shape(layers=2, embedding=64, feed_forward=128, heads=2, kv_heads=1, vocabulary=32)


def told(tmp_path: Path) -> tuple[Told, Told]:
    write_random_model(tmp_path / "m-Q8_0.gguf", SHAPE, "Q8_0")
    first: Model = read_model(tmp_path / "m-Q8_0.gguf")
    second = replace(first, path=Path("m-Q2_K.gguf"))
    return Told(first, Perplexity(10.0, 0.25, 4, 512)), Told(second, Perplexity(12.5, 0.3, 4, 512))


def test_the_ratio_is_to_the_first(tmp_path: Path) -> None:
    assert rendered(perplexities_view(told(tmp_path))) == (
        "model       size  bits/weight        perplexity   ratio\n"
        "m-Q8_0  82.0 KiB         8.60  10.0000 ± 0.2500  1.0000\n"
        "m-Q2_K  82.0 KiB         8.60  12.5000 ± 0.3000  1.2500\n"
    )
    assert measured_text(told(tmp_path), "wiki.txt") == "wiki.txt: 4 chunks of 512 tokens; less is better"


def test_json_has_a_model_each_with_all_figures(tmp_path: Path) -> None:
    found = json.loads(perplexities_json(told(tmp_path)))
    assert [(one["model"], one["perplexity"], one["ratio"]) for one in found] == [
        ("m-Q8_0.gguf", 10.0, 1.0),
        ("m-Q2_K.gguf", 12.5, 1.25),
    ]
    assert (found[0]["uncertainty"], found[0]["chunks"], found[0]["context"]) == (0.25, 4, 512)
