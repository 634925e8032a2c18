"""What a file tells of its model, and that it is read once for each state of it."""

import os
from pathlib import Path

import pytest

from quant import described as described_module
from quant.described import described
from quant.description import Description, Experts, Tokenizer, TypeShare, describe
from quant.errors import ModelFileError
from quant.gguf_file import read_model
from quant.kv_cache import Cache, LayerCache
from quant.shards import split_model
from tests.quant.architectures import EXPERT_INNER, EXPERTS, KINDS, VOCABULARY, WIDTH, compressed, mixture_of_experts


def test_the_demo_model_is_told_whole(demo_model: Path) -> None:
    told = describe(demo_model)
    assert (told.name, told.architecture, told.licence) == ("Smollm2 135M 8k Lc100K Mix1 Ep2", "llama", "apache-2.0")
    assert (told.parameters, told.active_parameters, told.block_count) == (134515008, 134515008, 30)
    assert (told.context_length, told.embedding_length, told.feed_forward_length) == (8192, 576, 1536)
    assert (told.head_count, set(told.head_count_kv), told.experts) == (9, {3}, None)
    assert (told.vocabulary, told.tokenizer) == (49152, Tokenizer("gpt2", "smollm", 1, 2))
    assert told.chat_template.startswith("{% for message in messages %}")
    assert told.types == (
        TypeShare("Q4_1", 210, 106168320, 66355200),
        TypeShare("Q8_0", 1, 28311552, 30081024),
        TypeShare("F32", 61, 35136, 140544),
    )
    assert (told.input_bytes, told.layer_bytes, told.output_bytes) == (30081024, (2216448,) * 30, 30083328)
    assert (told.output_tied, told.file_bytes, told.weight_bytes) == (True, 98362432, 96576768)
    assert told.cache == Cache((LayerCache(3, 64, 64),) * 30)
    assert told.bits_per_weight == pytest.approx(5.744, abs=0.001)


def test_of_experts_only_those_that_work_are_active(tmp_path: Path) -> None:
    path = mixture_of_experts().write(tmp_path / "model.gguf")
    told = describe(path)
    assert read_model(path).experts_used == 2 / EXPERTS
    assert told.experts == Experts(EXPERTS, 2, 0)
    idle = 4 * 3 * WIDTH * EXPERT_INNER * (EXPERTS - 2)
    assert told.active_parameters == told.parameters - idle


def test_shared_experts_and_layers_that_predict_are_counted(tmp_path: Path) -> None:
    told = describe(compressed(predicting=1).write(tmp_path / "model.gguf"))
    assert (told.experts, told.predicting_layers) == (Experts(EXPERTS, 2, 1), 1)


def test_a_recurrent_model_has_no_heads(tmp_path: Path) -> None:
    told = describe(KINDS["recurrent in groups"].write(tmp_path / "model.gguf"))
    assert (told.head_count, told.head_count_kv, told.vocabulary) == (0, (0, 0, 0), VOCABULARY)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Every path that is really read."""
    told: list[Path] = []

    def counted(path: Path) -> Description:
        told.append(path)
        return describe(path)

    monkeypatch.setattr(described_module, "describe", counted)
    return told


def test_a_model_is_read_once_until_its_files_change(tmp_path: Path, reads: list[Path]) -> None:
    path, kept = mixture_of_experts().write(tmp_path / "model.gguf"), tmp_path / "kept"
    first = described(path, kept)
    assert (described(path, kept), reads) == (first, [path])
    os.utime(path, (1, 1))
    assert described(path, kept).files_digest != first.files_digest
    assert reads == [path, path]
    other = path.rename(tmp_path / "other.gguf")
    assert described(other, kept).path == other
    with pytest.raises(ModelFileError, match=r"model\.gguf does not exist$"):
        described(path, kept)


def test_a_shard_that_changes_is_noticed(tmp_path: Path, reads: list[Path]) -> None:
    path = mixture_of_experts().write(tmp_path / "model.gguf")
    shards = split_model(path, tmp_path / "parts", path.stat().st_size // 2)
    described(shards[0], tmp_path / "kept")
    os.utime(shards[1], (1, 1))
    described(shards[0], tmp_path / "kept")
    shards[1].unlink()
    with pytest.raises(ModelFileError, match="missing beside it"):
        described(shards[0], tmp_path / "kept")
    assert reads == [shards[0]] * 3


@pytest.mark.parametrize("kept", [b"", b"{}", b"\xff", b'{"path": "/"}'])
def test_what_was_kept_and_is_damaged_is_read_again(tmp_path: Path, kept: bytes, reads: list[Path]) -> None:
    path = mixture_of_experts().write(tmp_path / "model.gguf")
    first = described(path, tmp_path / "kept")
    next((tmp_path / "kept").iterdir()).write_bytes(kept)
    assert (described(path, tmp_path / "kept"), len(reads)) == (first, 2)


def test_what_cannot_be_kept_is_told_all_the_same(tmp_path: Path) -> None:
    path = mixture_of_experts().write(tmp_path / "model.gguf")
    (tmp_path / "kept").write_text("no folder")
    assert described(path, tmp_path / "kept") == describe(path)
    odd = path.rename(Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.gguf")))
    assert described(odd, tmp_path / "other") == describe(odd)
