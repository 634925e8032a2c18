"""Files that want to harm, and ten thousand broken ones: a clear error or a usable model, never anything else."""

import json
import os
import random
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.view.model import model_json, model_view
from quant.description import describe
from quant.errors import QuantError
from quant.gguf_file import read_model
from quant.shards import join_model, split_model
from quant.slice import write_slice
from tests.fuzzing import TRIED
from tests.quant import hostile
from tests.quant.gguf_bytes import ARRAY, STRING, fact, number, tensor, text, words
from tests.quant.hostile import CASES

ROOT = Path(__file__).parents[2]
REFUSED_IN = "refused"

USABLE: dict[str, frozenset[str]] = {
    "ten_thousand_arrays": frozenset({"show", "slice"}),
    "numbers_that_take_most": frozenset({"show", "slice"}),
    "texts_that_just_fit": frozenset({"show", "slice"}),
    "a_layer_of_many_digits": frozenset({"show", "slice"}),
    "many_tensors": frozenset({"show", "slice", "split"}),
    "terabytes_of_nothing": frozenset({"show"}),
    "many_layers": frozenset({"show", "slice"}),
    "endless_loops": frozenset({"slice"}),
    "shards_elsewhere": frozenset({"show", "slice", "join"}),
    "a_name_for_a_terminal": frozenset({"show", "slice"}),
}
"""What may be done with those that are odd, but no lies; nothing with all others."""


def test_hostile_files_take_little_memory_and_time_and_say_what_they_are(tmp_path: Path) -> None:
    words_ = [sys.executable, "-m", hostile.__name__, str(tmp_path)]
    done = subprocess.run(words_, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.stderr == ""
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert [one["case"] for one in told] == [case.__name__ for case in CASES]
    for one in told:
        assert one["seconds"] < 20, one["case"]
        well = {use for use, said in one["said"].items() if not said}
        assert (one["case"], well) == (one["case"], USABLE.get(one["case"], set()))
        for said in one["said"].values():
            assert said.isprintable() or not said, said
            assert len(said) < 400 + 2 * len(str(tmp_path)), said
    left = [path for path in tmp_path.rglob("*") if ".partial" in path.name]
    assert left == []


LAYERS = 2
TENSORS = (
    "token_embd.weight",
    *(f"blk.{layer}.{name}.weight" for layer in range(LAYERS) for name in ("attn_k", "ffn_up")),
    "output.weight",
)
NUMBERS = (
    *(("block_count", LAYERS), ("context_length", 64), ("embedding_length", 8), ("feed_forward_length", 16)),
    *(("attention.head_count", 2), ("attention.head_count_kv", 1), ("attention.sliding_window", 4)),
    *(("attention.sliding_window_pattern", 2), ("ssm.inner_size", 8), ("ssm.state_size", 2), ("expert_count", 2)),
    *(("expert_used_count", 1), ("nextn_predict_layers", 0), ("shortconv.l_cache", 3)),
)


def model_facts(architecture: str) -> list[bytes]:
    listed = fact("tokenizer.ggml.tokens", ARRAY, struct.pack("<IQ", STRING, 4) + b"".join(map(text, "abcd")))
    counts = fact("tokenizer.ggml.token_type", ARRAY, struct.pack("<IQ4i", 5, 4, 1, 1, 1, 1))
    numbers = [number(f"{architecture}.{key}", value) for key, value in NUMBERS]
    return [
        words("general.architecture", architecture),
        words("general.name", "made up"),
        number("general.alignment", 32),
        *numbers,
        words("tokenizer.ggml.model", "gpt2"),
        listed,
        counts,
        words("tokenizer.chat_template", "{{ messages }}"),
    ]


def split_facts(number_: int, count: int) -> list[bytes]:
    return [number("split.no", number_), number("split.count", count), number("split.tensors.count", len(TENSORS))]


def file_of(facts: list[bytes], names: tuple[str, ...]) -> bytes:
    tensors = [tensor(name, (8, 2), 0, 64 * place) for place, name in enumerate(names)]
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(facts)) + b"".join((*facts, *tensors))
    return head + bytes(-len(head) % 32) + bytes(range(64)) * len(names)


Files = dict[str, bytes]
BASES: tuple[Files, ...] = (
    *({"m.gguf": file_of(model_facts(name), TENSORS)} for name in ("llama", "gemma3", "jamba", "nemotron_h", "lfm2")),
    {
        "m-00001-of-00002.gguf": file_of([*model_facts("llama"), *split_facts(0, 2)], TENSORS[:4]),
        "m-00002-of-00002.gguf": file_of(split_facts(1, 2), TENSORS[4:]),
    },
)
ODD_NUMBERS = (0, 1, 2, 31, 33, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**48, 2**62, 2**63, 2**64 - 1)


def flip(data: bytearray, chance: random.Random, place: int) -> None:
    data[place] ^= 1 << chance.randrange(8)


def overwrite(data: bytearray, chance: random.Random, place: int) -> None:
    size = chance.choice((1, 2, 4, 8))
    data[place : place + size] = struct.pack("<Q", chance.choice(ODD_NUMBERS))[:size]


def cut(data: bytearray, chance: random.Random, place: int) -> None:
    del data[place : place + chance.choice((1, 8, 40, len(data)))]


def repeat(data: bytearray, chance: random.Random, place: int) -> None:
    data[place:place] = data[place : place + chance.choice((1, 8, 40))]


def exchange(data: bytearray, chance: random.Random, place: int) -> None:
    other, size = chance.randrange(len(data)), chance.choice((4, 8, 30))
    data[place : place + size] = data[other : other + size]


MUTATIONS: tuple[Callable[[bytearray, random.Random, int], None], ...] = (flip, overwrite, cut, repeat, exchange)
MUTATED = 10_000


def broken(chance: random.Random) -> Files:
    """One of the files with one to three things changed, mostly in its header."""
    files = dict(chance.choice(BASES))
    name = chance.choice(sorted(files))
    data = bytearray(files[name])
    for _ in range(chance.choice((1, 1, 2, 3))):
        if data:
            chance.choice(MUTATIONS)(data, chance, chance.randrange(len(data)))
    return files | {name: bytes(data)}


@pytest.mark.parametrize("part", range(4))
def test_broken_files_are_refused_in_one_line_or_used(
    part: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Described, shown, sliced, split and joined: no other error, nothing left behind, and what was made is a model."""
    monkeypatch.setattr(os, "fsync", lambda file: None)  # thousands of waits for the disk
    chance = random.Random(part)
    became: Counter[str] = Counter()
    for _ in range(MUTATED // 4):
        files = broken(chance)
        for name, data in files.items():
            (tmp_path / name).write_bytes(data)
        became.update(outcomes(tmp_path / next(iter(files)), tmp_path / "out"))
        for name in files:
            (tmp_path / name).unlink()
        TRIED["broken GGUF files"] += 1
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert min(became[use] for use in ("show", "slice", "split", "join", REFUSED_IN)) > 50, became


def outcomes(path: Path, out: Path) -> list[str]:
    """What worked, and `refused` where nothing did."""
    out.mkdir(exist_ok=True)
    uses: dict[str, Callable[[], Path | None]] = {
        "show": lambda: show(path),
        "slice": lambda: sliced(path, out / "slice.gguf"),
        "split": lambda: split_model(path, out, max(64, path.stat().st_size - 64))[0],
        "join": lambda: joined(path, out / "joined.gguf"),
    }
    return [use for use, act in uses.items() if worked(act, out)] or [REFUSED_IN]


def worked(act: Callable[[], Path | None], out: Path) -> bool:
    made, said = None, ""
    try:
        made = act()
    except QuantError as error:
        said = str(error)
    if made is not None:
        for shard in read_model(made).shards:
            shard.unlink()
    assert (list(out.iterdir()), said.isprintable(), len(said) < 600) == ([], True, True), said
    return not said


def show(path: Path) -> None:
    description = describe(path)
    model_view(description)
    json.loads(model_json(description))
    tokenizer = description.tokenizer
    texts = (description.name, description.architecture, description.licence, tokenizer.kind, tokenizer.rules)
    assert all(text.isprintable() for text in texts), texts


def sliced(path: Path, target: Path) -> Path:
    write_slice(read_model(path), 1, target)
    return target


def joined(path: Path, target: Path) -> Path:
    join_model(path, target)
    return target
