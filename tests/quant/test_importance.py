"""Importance matrices: both formats give the same values, and what is damaged or made to harm is one clear error."""

import random
import struct
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter

from quant.errors import QuantError, QuantiseError
from quant.importance import Importance, check_importance, read_importance
from tests.fuzzing import TRIED

SUMS = np.array([[2.0, 4.0], [3.0, 9.0]], dtype=np.float32)
MUTATIONS = 1500


def write_gguf(path: Path, counts: tuple[float, ...] = (2.0, 3.0)) -> None:
    writer = GGUFWriter(path, "imatrix")
    writer.add_array("imatrix.datasets", ["wiki.txt"])
    writer.add_uint32("imatrix.chunk_count", 7)
    writer.add_uint32("imatrix.chunk_size", 512)
    writer.add_tensor("blk.0.ffn_down_exps.weight.in_sum2", SUMS)
    writer.add_tensor("blk.0.ffn_down_exps.weight.counts", np.array(counts, dtype=np.float32).reshape(-1, 1))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def legacy(*values: float, calls: int = 2, name: str = "blk.0.attn_q.weight") -> bytes:
    """One entry, the number of chunks, and the name of the text."""
    entry = struct.pack(f"<ii{len(name)}sii", 1, len(name), name.encode(), calls, len(values))
    return entry + struct.pack(f"<{len(values)}f", *values) + struct.pack("<ii8s", 7, 8, b"wiki.txt")


def test_sums_are_divided_by_how_often_they_were_counted_expert_by_expert(tmp_path: Path) -> None:
    write_gguf(tmp_path / "imatrix.gguf")
    found = read_importance(tmp_path / "imatrix.gguf")
    assert {name: values.tolist() for name, values in found.values.items()} == {
        "blk.0.ffn_down_exps.weight": [1.0, 2.0, 1.0, 3.0]
    }
    assert found.chunks == 7


def test_an_expert_that_no_text_has_reached_counts_as_1(tmp_path: Path) -> None:
    write_gguf(tmp_path / "imatrix.gguf", counts=(0.0, 3.0))
    (values,) = read_importance(tmp_path / "imatrix.gguf").values.values()
    assert values.tolist() == [1.0, 1.0, 1.0, 3.0]


def test_the_older_format_is_read_with_the_name_of_its_text(tmp_path: Path) -> None:
    (tmp_path / "imatrix.dat").write_bytes(legacy(2.0, 4.0, 6.0))
    found = read_importance(tmp_path / "imatrix.dat")
    assert {name: values.tolist() for name, values in found.values.items()} == {"blk.0.attn_q.weight": [1.0, 2.0, 3.0]}
    assert (found.chunks, found.text) == (7, "wiki.txt")


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "it ends within the number of its entries"),
        (b"hello, this is a text", "it does not begin like one"),
        (legacy(1.0)[:20], "it ends within the name of an entry"),
        (legacy(1.0)[:-18], "it ends within blk.0.attn_q.weight"),
        (legacy(float("nan")), "the values of blk.0.attn_q.weight are no numbers"),
        (legacy(), "blk.0.attn_q.weight has 0 values"),
        (struct.pack("<ii", 1, 2**31 - 1), "the name of an entry has 2147483647 bytes"),
    ],
)
def test_what_is_none_is_refused_with_the_reason(tmp_path: Path, data: bytes, why: str) -> None:
    (tmp_path / "imatrix.dat").write_bytes(data)
    with pytest.raises(QuantiseError) as caught:
        read_importance(tmp_path / "imatrix.dat")
    assert str(caught.value) == f"{tmp_path / 'imatrix.dat'} is no importance matrix that can be used: {why}"


def test_counts_that_do_not_divide_the_sums_are_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "imatrix.gguf", counts=(1.0, 1.0, 1.0))
    with pytest.raises(QuantiseError, match="has 4 sums for 3 counts"):
        read_importance(tmp_path / "imatrix.gguf")


DOWN = "blk.0.ffn_down_exps.weight"
WORDS = "token_embd.weight"


def test_a_matrix_of_the_model_has_a_value_for_each_element_of_a_row_of_each_expert() -> None:
    values = {
        DOWN: np.ones(4, np.float32),
        "blk.0.attn_q.weight": np.ones(8, np.float32),
        WORDS: np.ones(3, np.float32),
    }
    shapes = {DOWN: (2, 5, 2), "blk.0.attn_q.weight": (8, 4), WORDS: (8, 32), "blk.1.attn_q.weight": (8, 4)}
    check_importance(Path("i.gguf"), Importance(values), shapes)


@pytest.mark.parametrize(
    ("shapes", "why"),
    [
        ({"blk.0.ffn_down.weight": (8, 2)}, f"it is of tensors such as {DOWN}, which this one does not have"),
        ({DOWN: (2, 5, 3)}, f"{DOWN} has 4 values there and takes 6"),
    ],
)
def test_a_matrix_of_another_model_is_refused(shapes: dict[str, tuple[int, ...]], why: str) -> None:
    with pytest.raises(QuantiseError) as caught:
        check_importance(Path("i.gguf"), Importance({DOWN: np.ones(4, np.float32)}), shapes)
    assert str(caught.value) == f"i.gguf is the importance matrix of another model: {why}"


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(QuantiseError, match=r"none\.dat cannot be read"):
        read_importance(tmp_path / "none.dat")


def test_no_mutation_of_a_matrix_ends_in_anything_but_a_clear_error(tmp_path: Path) -> None:
    write_gguf(tmp_path / "imatrix.gguf")
    kinds = (((tmp_path / "imatrix.gguf").read_bytes()), legacy(*(float(n) for n in range(20))))
    chance, path = random.Random(6), tmp_path / "mutated"
    for _ in range(MUTATIONS):
        data = bytearray(chance.choice(kinds))
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(len(data))] = chance.choice((0, 1, 127, 128, 255, chance.randrange(256)))
        path.write_bytes(data[: chance.choice((len(data), chance.randrange(len(data))))])
        try:
            found = read_importance(path)
        except QuantError:
            continue
        assert all(np.isfinite(values).all() for values in found.values.values())
    TRIED["importance matrices"] += MUTATIONS
