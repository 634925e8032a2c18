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


def test_buffers_are_those_of_the_memory_that_they_are_in() -> None:
    """Pinned for copies to a GPU is the host's memory; a file that is mapped for a GPU is the GPU's."""
    lines = [
        f"{what}: {name} {kind} buffer size = {mib}.00 MiB"
        for what, name, kind, mib in (
            ("load_tensors", "CPU_Mapped", "model", 1),
            ("load_tensors", "CUDA_Host", "model", 2),
            ("load_tensors", "CUDA0", "model", 4),
            ("load_tensors", "MTL0_Mapped", "model", 8),
            ("load_tensors", "MTL0", "model", 16),
            ("llama_kv_cache", "CUDA0", "KV", 32),
            ("sched_reserve", "CUDA0", "compute", 99),
            ("sched_reserve", "CUDA0", "compute", 64),
            ("sched_reserve", "Vulkan_Host", "compute", 128),
            ("sched_reserve", "Vulkan0", "compute", 256),
        )
    ]
    assert read_buffers(lines) == {
        "CPU": Buffers(3 * MIB, 0, 128 * MIB),
        "CUDA0": Buffers(4 * MIB, 32 * MIB, 64 * MIB),
        "MTL0": Buffers(24 * MIB, 0, 0),
        "Vulkan0": Buffers(0, 0, 256 * MIB),
    }


def test_caches_and_states_of_a_device_are_added_up_and_an_earlier_load_is_forgotten() -> None:
    """Layers with windows have a cache of their own; of two loads in one log the second counts."""
    worker = "RPC0[10.0.0.1:5]"
    lines = [
        f"{what}: {worker} {kind} buffer size = {mib}.00 MiB"
        for what, kind, mib in (
            *(("load_tensors", "model", 512), ("llama_kv_cache", "KV", 512), ("sched_reserve", "compute", 512)),
            *(("load_tensors", "model", 1), ("load_tensors", "model", 2)),
            *(("llama_kv_cache", "KV", 4), ("llama_kv_cache", "KV", 8), ("llama_memory_recurrent", "RS", 16)),
            *(("sched_reserve", "compute", 99), ("sched_reserve", "compute", 32)),
        )
    ]
    assert read_buffers(lines) == {"10.0.0.1:5": Buffers(3 * MIB, 28 * MIB, 32 * MIB)}


def test_a_log_is_shown_as_messages_and_lines_that_are_no_json_stay() -> None:
    lines = ('{"type":"log","level":"info","msg":"fine\\n"}', "ggml-rpc.cpp:569: Remote RPC server crashed")
    assert plain_log("\n".join(lines)) == "fine\nggml-rpc.cpp:569: Remote RPC server crashed"
