"""How a model is shown: whole answers for kinds that differ, and the JSON's sums."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.view.model import model_json, model_view
from quant.description import Description, Experts, Tokenizer, TypeShare
from quant.kv_cache import Cache, LayerCache
from tests.orchestrator.view.rendering import rendered

MIB = 1024 * 1024
PLAIN = LayerCache(2, 64, 64)
MODEL = Description(
    path=Path("/models/ada.gguf"),
    shards=(Path("/models/ada.gguf"),),
    files_digest="0f",
    name="Ada 1B",
    architecture="llama",
    licence="mit",
    parameters=1_240_000_000,
    active_parameters=1_240_000_000,
    block_count=4,
    predicting_layers=0,
    context_length=8192,
    embedding_length=512,
    feed_forward_length=1024,
    head_count=8,
    head_count_kv=(2, 2, 2, 2),
    experts=None,
    vocabulary=32000,
    tokenizer=Tokenizer("gpt2", "smollm", 1, 2),
    chat_template="{{ messages }}",
    file_bytes=700 * MIB,
    input_bytes=100 * MIB,
    layer_bytes=(125 * MIB, 125 * MIB, 125 * MIB, 25 * MIB),
    output_bytes=200 * MIB,
    output_tied=False,
    types=(TypeShare("Q4_K", 30, 1_200_000_000, 600 * MIB), TypeShare("F32", 9, 40_000_000, 100 * MIB)),
    cache=Cache((PLAIN,) * 4),
)


def test_a_plain_model_is_shown_from_its_name_to_its_layers() -> None:
    assert rendered(model_view(MODEL)) == (
        "Ada 1B\n"
        "  architecture   llama, 1.24 B parameters, 4.74 bits per weight\n"
        "  layers         4, 512 wide, feed-forward 1024\n"
        "  heads          8, 2 for keys and values, 64 elements each\n"
        "  context        8192 tokens as trained\n"
        "  vocabulary     32000 words, tokenizer gpt2 (smollm), ends with 2\n"
        "  chat template  14 characters\n"
        "  licence        mit\n"
        "  files          700 MiB, /models/ada.gguf\n"
        "\n"
        "tensors  number  weights    bytes  share\n"
        "  Q4_K       30   1.20 B  600 MiB  85.7%\n"
        "  F32         9  40.00 M  100 MiB  14.3%\n"
        "  all        39   1.24 B  700 MiB\n"
        "\n"
        "KV cache  per token  4096 tokens  8192 tokens\n"
        "  f16       2.0 KiB      8.0 MiB     16.0 MiB\n"
        "  q8_0      1.1 KiB      4.2 MiB      8.5 MiB\n"
        "  q4_0        576 B      2.2 MiB      4.5 MiB\n"
        "\n"
        "bytes by layer\n"
        "  input         ████████████               100 MiB\n"
        "  0-2           ███████████████            125 MiB  each, 375 MiB in all\n"
        "  3             ███                       25.0 MiB\n"
        "  output        ████████████████████████   200 MiB\n"
    )


def shown(**changes: object) -> list[str]:
    return rendered(model_view(replace(MODEL, **changes))).splitlines()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"experts": Experts(64, 6, 2), "active_parameters": 150_000_000},
            "  experts        64, 6 of them and 2 always for each token: 150 M parameters",
        ),
        (
            {"cache": Cache((LayerCache(1, 576, 0),) * 4), "head_count_kv": (1,) * 4},
            "  heads          8, 1 for keys and values, 576 elements together (compressed)",
        ),
        (
            {"cache": Cache((LayerCache(2, 96, 32),) * 4), "head_count_kv": (2, 4, 4, 4)},
            "  heads          8, 2 to 4 for keys and values, 96 and 32 elements",
        ),
        (
            {"cache": Cache((LayerCache(2, 64, 64, window=512), PLAIN) * 2)},
            "  2 of 4 layers look back over 512 tokens only",
        ),
        (
            {"cache": Cache((LayerCache(state=MIB), PLAIN, LayerCache(state=MIB), PLAIN))},
            "  2 recurrent layers keep 8.0 MiB of each conversation, however long",
        ),
        ({"cache": Cache((), "t5 models keep more than K and V")}, "KV cache: t5 models keep more than K and V"),
        (
            {"cache": Cache((LayerCache(2, 80, 80),) * 4)},
            "  not possible: its heads have 80 elements, no whole number of q8_0 blocks of 32",
        ),
        ({"head_count": 0, "head_count_kv": (0,) * 4}, "  heads          none"),
        (
            {"predicting_layers": 1},
            "  layers         4, 512 wide, feed-forward 1024; 1 at the end only for predicting further tokens",
        ),
        ({"licence": "", "chat_template": ""}, "  licence        not told in the file"),
        ({"shards": MODEL.shards * 3}, "  files          700 MiB in 3 shards, /models/ada.gguf"),
        (
            {"output_tied": True},
            "  output        ████████████████████████   200 MiB  the input's weights again",
        ),
    ],
)
def test_what_is_special_of_a_model_has_its_line(changes: dict[str, object], line: str) -> None:
    assert line in shown(**changes)


def test_no_line_is_wider_than_a_terminal() -> None:
    lines = rendered(model_view(replace(MODEL, output_tied=True, cache=Cache((PLAIN,)))), 80).splitlines()
    assert max(map(len, lines)) <= 80
    assert not any("…" in line for line in lines)


def test_the_json_has_the_sums_that_are_shown() -> None:
    told = json.loads(model_json(MODEL))
    assert (told["path"], told["weight_bytes"], told["bits_per_weight"]) == ("/models/ada.gguf", 700 * MIB, 4.736)
    assert told["cache"]["layers"][0] == {"heads": 2, "key_length": 64, "value_length": 64, "window": 0, "state": 0}
    assert told["conversation"]["q8_0"] == {
        "token_bytes": 1088,
        "state_bytes": 0,
        "bytes_at": {"4096": 1088 * 4096, "8192": 1088 * 8192},
    }
    odd = json.loads(model_json(replace(MODEL, cache=Cache((LayerCache(2, 80, 80),)))))
    assert "refused" in odd["conversation"]["q4_0"]
    unknown = json.loads(model_json(replace(MODEL, cache=Cache((), "not counted"))))
    assert unknown["conversation"] == {"f16": None, "q8_0": None, "q4_0": None}


def test_of_a_model_that_is_not_here_no_place_is_shown() -> None:
    lines = rendered(model_view(MODEL, is_here=False)).splitlines()
    assert "  files          700 MiB, not on this machine: meshctl pull fetches it" in lines
    here, there = json.loads(model_json(MODEL)), json.loads(model_json(MODEL, is_here=False))
    assert here["is_here"]
    assert there == {**here, "is_here": False, "path": None, "shards": [], "files_digest": ""}
