"""What the engine's programs print, read from recorded output."""

from pathlib import Path

import pytest

from workers.bench_output import BenchRow, read_bench
from workers.errors import FactsError
from workers.head_log import MIB, Buffers, plain_log, read_buffers

RECORDED = Path(__file__).parent / "recorded"


def test_llama_bench_rows_have_their_samples() -> None:
    rows = read_bench((RECORDED / "llama_bench.json").read_bytes())
    assert [(row.model_filename, row.n_prompt, row.n_gen, len(row.samples_ns)) for row in rows] == [
        ("model.gguf", 16, 0, 2),
        ("model.gguf", 0, 4, 2),
    ]


def test_rates_are_by_the_median_and_keep_every_repetition() -> None:
    row = BenchRow("model.gguf", 0, 10, (1_000_000_000, 2_000_000_000, 4_000_000_000))
    assert (row.token_s, row.tokens_per_s, row.spread) == (0.2, (10.0, 5.0, 2.5), 1.5)


@pytest.mark.parametrize("text", [b"", b"[", b"[]", b"{}", b'[{"n_prompt": 1}]', b"error: no model"])
def test_anything_else_is_an_error_that_says_so(text: bytes) -> None:
    with pytest.raises(FactsError, match="llama-bench's answer cannot be read"):
        read_bench(text)


def test_buffers_are_kept_by_the_workers_port_since_every_one_is_called_rpc0() -> None:
    buffers = read_buffers((RECORDED / "head_log.jsonl").read_text().splitlines())
    half = Buffers(int(31.71 * MIB), 45 * MIB, int(2.05 * MIB))
    assert {name: buffers[name] for name in ("127.0.0.1:21901", "127.0.0.1:21902")} == {
        "127.0.0.1:21901": half,
        "127.0.0.1:21902": half,
    }


def test_a_log_is_shown_as_messages_and_lines_that_are_no_json_stay() -> None:
    lines = ('{"type":"log","level":"info","msg":"fine\\n"}', "ggml-rpc.cpp:569: Remote RPC server crashed")
    assert plain_log("\n".join(lines)) == "fine\nggml-rpc.cpp:569: Remote RPC server crashed"
