"""Tensors as files of a worker's cache: what they are called, and what is kept about them."""

import hashlib
from pathlib import Path

import pytest

from quant.errors import ModelFileError
from quant.gguf_file import read_model
from quant.model import Model, device_tensors
from quant.pack import DigestBook, Digests, blake2b_digest, check_unchanged, engine_name, pack_name, read_piece
from quant.piece import whole
from quant.synthetic import Shape, write_random_model
from quant.whole_file import files_digest

SHAPE = Shape(layers=3, embedding=256, feed_forward=512, heads=4, kv_heads=2, vocabulary=128)


@pytest.fixture
def model(tmp_path: Path) -> Model:
    write_random_model(tmp_path / "Some model.v2.gguf", SHAPE, "Q4_0")
    return read_model(tmp_path / "Some model.v2.gguf")


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"", "cbf29ce484222325"),
        (b"a", "af63dc4c8601ec8c"),
        (b"foobar", "85944171f73967e8"),
        (b"\0", "af63bd4c8601b7df"),
    ],
)
def test_a_tensor_is_called_by_its_fnv_1a_hash(data: bytes, name: str) -> None:
    """The first three are test vectors of the hash's authors."""
    assert engine_name(data) == name
    assert blake2b_digest(data) == hashlib.blake2b(data).hexdigest()


def test_a_tensor_is_read_from_where_it_lies(model: Model) -> None:
    content = model.path.read_bytes()
    for tensor in model.tensors:
        data = read_piece(model, whole(tensor))
        assert len(data) == tensor.size_bytes
        assert content[tensor.offset :].startswith(data)
    assert model.tensors[-1].offset + model.tensors[-1].size_bytes <= len(content)


def test_a_file_that_has_become_shorter_is_named(model: Model) -> None:
    model.path.write_bytes(model.path.read_bytes()[:-40000])
    with pytest.raises(ModelFileError, match=r"Some model\.v2\.gguf has become shorter while it was read"):
        read_piece(model, whole(model.tensors[-1]))


def test_a_pack_has_a_readable_name_of_its_own_for_each_state_of_the_files(model: Model) -> None:
    before = pack_name(model)
    assert before == f"Some_model_v2-{files_digest(model.shards)}"
    check_unchanged(model)
    model.path.write_bytes(model.path.read_bytes() + b"\0")
    assert pack_name(read_model(model.path)) != before
    with pytest.raises(ModelFileError, match=r"Some model\.v2\.gguf has changed since it was read"):
        check_unchanged(model)


def test_a_device_is_sent_its_layers_and_the_output_layer_if_it_has_it(model: Model) -> None:
    names = [tensor.name for tensor in device_tensors(model, 1, 2, output=False)]
    assert names == [tensor.name for tensor in model.tensors if tensor.name.startswith(("blk.1.", "blk.2."))]
    assert names
    with_output = {tensor.name for tensor in device_tensors(model, 2, 1, output=True)}
    assert with_output >= {"output.weight", "output_norm.weight", "blk.2.attn_q.weight"}
    assert "token_embd.weight" not in with_output
    assert device_tensors(model, 0, 0, output=False) == ()


def test_what_is_known_of_tensors_is_kept_while_the_files_stay_as_they_are(model: Model, tmp_path: Path) -> None:
    book, other = (DigestBook(model, tmp_path / "digests") for _ in range(2))
    first, second = map(whole, model.tensors[:2])
    book.add(first, Digests("0f", "1f"))
    other.add(second, Digests("2f", "3f"))
    book.save()
    other.save()
    again = DigestBook(model, tmp_path / "digests")
    assert (again.of(first), again.of(second)) == (Digests("0f", "1f"), Digests("2f", "3f"))
    model.path.write_bytes(model.path.read_bytes() + b"\0")
    assert DigestBook(read_model(model.path), tmp_path / "digests").of(first) is None


def test_a_book_that_cannot_be_read_is_begun_anew(model: Model, tmp_path: Path) -> None:
    tmp_path.joinpath("digests").mkdir()
    tmp_path.joinpath("digests", f"{files_digest(model.shards)}.json").write_text("{")
    book = DigestBook(model, tmp_path / "digests")
    first = whole(model.tensors[0])
    assert book.of(first) is None
    book.add(first, Digests("0f", "1f"))
    book.save()
    assert DigestBook(model, tmp_path / "digests").of(first) == Digests("0f", "1f")
