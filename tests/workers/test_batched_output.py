"""Recorded lines of `llama-batched-bench` (SmolLM2 135M, one thread)."""

import pytest

from workers.batched_output import BatchedRow, read_batched
from workers.errors import FactsError

LINE = (
    b'{"n_kv_max": 1024, "n_batch": 2048, "n_ubatch": 64, "flash_attn": -1, "is_pp_shared": 0, "n_gpu_layers": 0, '
    b'"n_threads": 1, "n_threads_batch": 1, "pp": 64, "tg": 8, "pl": 4, "n_kv": 288, "t_pp": 1.355177, '
    b'"speed_pp": 188.905212, "t_tg": 0.267018, "speed_tg": 119.842110, "t": 1.622195, "speed": 177.537231}\n'
)


def test_every_repetition_is_a_row() -> None:
    rows = read_batched(LINE + LINE + b"\n")
    assert rows == (BatchedRow(pp=64, tg=8, pl=4, t_pp=1.355177, t_tg=0.267018),) * 2
    assert rows[0].aggregate_tokens_per_s == pytest.approx(119.84, abs=0.01)
    assert rows[0].step_s == pytest.approx(0.0334, abs=0.0001)


@pytest.mark.parametrize("stdout", [b"", b"\n", b"garbage\n", LINE + b'{"pp": 1}\n', LINE.replace(b"0.267018", b"0")])
def test_what_is_no_such_answer_is_refused(stdout: bytes) -> None:
    with pytest.raises(FactsError, match="llama-batched-bench's answer cannot be read"):
        read_batched(stdout)
