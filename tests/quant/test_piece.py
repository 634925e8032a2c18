"""How mode `tensor` cuts a model into pieces; that these are the engine's own is shown by tests/end_to_end."""

from dataclasses import replace
from pathlib import Path

import pytest

from quant.gguf_file import read_model
from quant.model import Model, Tensor
from quant.pack import read_piece
from quant.piece import Piece, device_pieces, whole
from quant.synthetic import Shape, write_random_model

SHAPE = Shape(layers=2, embedding=1024, feed_forward=2048, heads=8, kv_heads=4, vocabulary=512)


@pytest.fixture
def model(tmp_path: Path) -> Model:
    write_random_model(tmp_path / "tiny.gguf", SHAPE, "Q8_0")
    return read_model(tmp_path / "tiny.gguf")


def pieces_of(model: Model, parts: tuple[int, ...], name: str) -> list[Piece]:
    """Of that tensor, device by device."""
    found = [[p for p in device_pieces(model, parts, device) if p.tensor.name == name] for device in range(len(parts))]
    return [piece for of_device in found for piece in of_device]


ROW = 1024 // 32 * 34


def test_the_sizes_begin_with_another_device_in_each_layer_and_lie_in_the_order_of_devices(model: Model) -> None:
    """Four heads in parts 5 : 3 are 2 and 2 for the first layer's order; 2.5 is rounded down, 1.5 too."""
    for layer, rows in ((0, [(0, 512), (512, 512)]), (1, [(0, 768), (768, 256)])):
        found = pieces_of(model, (5, 3), f"blk.{layer}.attn_q.weight")
        assert [(piece.first_bytes // ROW, piece.size_bytes // ROW) for piece in found] == rows
        assert [piece.count for piece in found] == [1, 1]


def test_what_is_cut_within_rows_is_a_run_of_each(model: Model) -> None:
    tensor = next(one for one in model.tensors if one.name == "blk.0.ffn_down.weight")
    first, second = pieces_of(model, (3, 1), tensor.name)
    row = 2048 // 32 * 34
    assert first == Piece(tensor, 0, row * 3 // 4, 1024, row)
    assert second == Piece(tensor, row * 3 // 4, row // 4, 1024, row)
    content = model.path.read_bytes()[tensor.offset :][: tensor.size_bytes]
    rows = [content[at : at + row] for at in range(0, len(content), row)]
    assert read_piece(model, second) == b"".join(one[row * 3 // 4 :] for one in rows)


def test_all_devices_together_have_everything_but_the_embedding(model: Model) -> None:
    parts = (3, 2, 2)
    pieces = [piece for device in range(3) for piece in device_pieces(model, parts, device)]
    cut = {piece.tensor.name for piece in pieces if piece.name != piece.tensor.name}
    assert {name.removeprefix("blk.0.") for name in cut if not name.startswith("blk.1.")} == {
        *(f"attn_{kind}.weight" for kind in ("q", "k", "v", "output")),
        *(f"ffn_{kind}.weight" for kind in ("up", "gate", "down")),
        "output.weight",
    }
    for tensor in model.tensors:
        size = sum(piece.size_bytes for piece in pieces if piece.tensor == tensor)
        times = 0 if tensor.name == "token_embd.weight" else 1 if tensor.name in cut else 3
        assert size == times * tensor.size_bytes
    assert len({piece.name for piece in pieces if piece.tensor.name in cut}) == 3 * len(cut)


def test_experts_are_cut_each(model: Model) -> None:
    tensors = [
        Tensor("blk.0.ffn_up_exps.weight", "Q8_0", (256, 512, 4), 4 * 512 * 272, 0),
        Tensor("blk.0.ffn_down_exps.weight", "Q8_0", (512, 256, 4), 4 * 256 * 544, 0, 4 * 512 * 272),
    ]
    experts = replace(model, architecture="qwen3moe", block_count=1, tensors=tuple(tensors))
    up, down = device_pieces(experts, (1, 1), 1)
    assert up == Piece(tensors[0], 256 * 272, 256 * 272, 4, 512 * 272)
    assert down == Piece(tensors[1], 272, 272, 4 * 256, 544)


def test_a_device_without_a_part_of_a_tensor_has_no_piece_of_it(model: Model) -> None:
    assert len(pieces_of(model, (8, 1), "blk.0.attn_k.weight")) == 2
    assert [piece.size_bytes for piece in pieces_of(model, (1, 8), "blk.0.attn_k.weight")] == [512 * ROW]


def test_nothing_is_foreseen_of_an_architecture_whose_rule_is_not_known(model: Model) -> None:
    assert device_pieces(replace(model, architecture="qwen35"), (1, 1), 0) == ()


def test_a_whole_tensor_is_called_by_its_name_and_a_piece_by_what_it_is_of_it(model: Model) -> None:
    tensor = model.tensors[0]
    assert whole(tensor).name == tensor.name
    assert Piece(tensor, 10, 20, 3, 40).name == f"{tensor.name}[10+20*3]"
