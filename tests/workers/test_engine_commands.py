"""The exact words of the engine's programs."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest

from workers.engine_commands import (
    CACHE_TYPES,
    FLASH_ATTENTION,
    CacheType,
    FlashAttention,
    HeadSettings,
    OnGpu,
    Placement,
    Where,
    attention_words,
    batched_bench_command,
    bench_command,
    head_command,
    perplexity_command,
    placement_words,
    worker_command,
)
from workers.fit_table import fit_command
from workers.pass_bench import pass_bench_command

SPLIT = Placement(("127.0.0.1:21001", "127.0.0.1:21002"), (15, 16), output_on_head=True, output_tied=True)
CUT = replace(SPLIT, mode="tensor", tensor_split=(2, 1))
SETTINGS = HeadSettings(
    model="model.gguf",
    alias="smol",
    socket="/run/head.sock",
    key_file="head.key",
    context=4096,
    parallel=2,
    micro_batch=64,
    threads=4,
)


def test_a_worker_listens_on_loopback_with_explicit_threads() -> None:
    assert " ".join(worker_command("ggml-rpc-server", port=21001, threads=3)) == (
        "ggml-rpc-server --host 127.0.0.1 --port 21001 --threads 3 --device CPU"
    )


def test_a_head_over_workers_places_every_layer_explicitly() -> None:
    assert " ".join(head_command("llama-server", SETTINGS, SPLIT)) == (
        "llama-server --model model.gguf --alias smol --host /run/head.sock --api-key-file head.key"
        " --ctx-size 8192 --parallel 2 --ubatch-size 64 --threads 4"
        " --cache-ram 0 --fit off"
        " --no-ui --metrics --log-verbosity 4 --log-jsonl --sse-ping-interval 5 --cache-type-k f16 --cache-type-v f16"
        " --rpc 127.0.0.1:21001,127.0.0.1:21002 --device RPC0,RPC1"
        r" --n-gpu-layers 999 --split-mode layer --tensor-split 15,16 --override-tensor ^token_embd\.weight=CPU"
    )


def test_a_native_head_has_no_device_but_its_own_processor() -> None:
    words = head_command("llama-server", SETTINGS, None)
    assert words[-4:] == ("--device", "none", "--n-gpu-layers", "0")


def test_what_a_head_computes_itself_are_the_first_layers() -> None:
    """The engine counts from the last layer on, the output layer included."""
    own = Placement(("127.0.0.1:1",), (21,), output_on_head=True, output_tied=False, block_count=30, head_layers=10)
    assert placement_words(own) == (
        *("--rpc", "127.0.0.1:1", "--device", "RPC0", "--n-gpu-layers", "21", "--split-mode", "layer"),
        *("--tensor-split", "21", "--override-tensor", r"^output\.weight=CPU"),
    )


def test_a_gpu_of_the_heads_own_is_a_device_by_its_name_among_the_workers() -> None:
    """Everywhere in the order, with its items in `--tensor-split`; workers are counted in the order of `--rpc`."""
    own = replace(SPLIT, names=("RPC0", "CUDA0", "RPC1"), tensor_split=(10, 12, 9))
    assert placement_words(own) == (
        *("--rpc", "127.0.0.1:21001,127.0.0.1:21002", "--device", "RPC0,CUDA0,RPC1", "--n-gpu-layers", "999"),
        *("--split-mode", "layer", "--tensor-split", "10,12,9", "--override-tensor", r"^token_embd\.weight=CPU"),
    )
    bench = placement_words(own, "/")
    assert bench[bench.index("--device") + 1] == "RPC0/CUDA0/RPC1"
    cards = Placement((), (15, 16), output_on_head=False, output_tied=False, names=("CUDA0", "CUDA1"))
    assert placement_words(cards)[:2] == ("--device", "CUDA0,CUDA1")


def test_layers_are_cut_with_no_tensor_moved() -> None:
    """The engine refuses to."""
    assert placement_words(CUT) == (
        *("--rpc", "127.0.0.1:21001,127.0.0.1:21002", "--device", "RPC0,RPC1", "--n-gpu-layers", "999"),
        *("--split-mode", "tensor", "--tensor-split", "2,1"),
    )


@pytest.mark.parametrize("placement", [None, OnGpu("CUDA0"), SPLIT, CUT], ids=["cpu", "gpu", "layers", "tensor"])
@pytest.mark.parametrize("cache_type", CACHE_TYPES)
def test_flash_attention_is_on_where_the_engine_works_with_nothing_else(
    cache_type: CacheType, placement: Where
) -> None:
    """Quantised values and layers that are cut ask for it; else the engine decides, or the user. It is said once: to
    `llama-bench` twice means two runs."""
    types = ("--cache-type-k", cache_type, "--cache-type-v", cache_type)
    needed = cache_type != "f16" or placement is CUT
    for asked in FLASH_ATTENTION:
        told = "on" if needed else asked
        flash = () if told == "auto" else ("--flash-attn", told)
        assert attention_words(cache_type, placement, asked) == (*types, *flash)


@pytest.mark.parametrize("placement", [SPLIT, CUT], ids=["layers", "tensor"])
def test_every_program_is_told_the_same_of_keys_and_values(placement: Placement) -> None:
    told = {words[words.index("--cache-type-k") :][:6] for words in programs(placement, "q4_0")}
    assert told == {("--cache-type-k", "q4_0", "--cache-type-v", "q4_0", "--flash-attn", "on")}
    assert {words.count("--flash-attn") for words in programs(placement, "q4_0")} == {1}


def test_every_program_is_told_that_flash_attention_is_off() -> None:
    told = {words[words.index("--cache-type-k") :][:6] for words in programs(SPLIT, "f16", "off")}
    assert told == {("--cache-type-k", "f16", "--cache-type-v", "f16", "--flash-attn", "off")}


def programs(
    placement: Placement, cache_type: CacheType, flash_attention: FlashAttention = "auto"
) -> tuple[tuple[str, ...], ...]:
    """The words of the head, of the programs that measure, and of the one that counts."""
    settings = replace(SETTINGS, cache_type=cache_type, flash_attention=flash_attention)
    sizes = {"prompt": 8, "generate": 8, "repetitions": 1, "threads": 1, "micro_batch": 64}
    every: tuple[Callable[..., tuple[str, ...]], ...] = (
        partial(bench_command, "bench", models=["a"], **sizes),  # type: ignore[arg-type] # sizes are none of the others
        partial(batched_bench_command, "batched", model="a", conversations=2, **sizes),  # type: ignore[arg-type]
        partial(pass_bench_command, "bench", model="a", passes=(1,), threads=1),
        partial(fit_command, "fit", model="a", context=512, parallel=1, micro_batch=64),
    )
    kept = {"placement": placement, "cache_type": cache_type, "flash_attention": flash_attention}
    return (head_command("head", settings, placement), *(one(**kept) for one in every))


def test_the_output_pattern_is_anchored_and_only_there_when_wanted() -> None:
    untied = Placement(("127.0.0.1:1",), (3,), output_on_head=True, output_tied=False)
    remote = Placement(("127.0.0.1:1",), (3,), output_on_head=False, output_tied=True)
    assert (untied.output_pattern, remote.output_pattern) == (r"^output\.weight=CPU", None)


def test_llama_bench_gets_slashes_where_a_comma_means_another_test() -> None:
    words = bench_command(
        "llama-bench",
        models=["a.gguf", "b.gguf"],
        prompt=64,
        generate=8,
        repetitions=3,
        threads=1,
        micro_batch=64,
        placement=SPLIT,
    )
    assert " ".join(words) == (
        "llama-bench --model a.gguf --model b.gguf --n-prompt 64 --n-gen 8 --repetitions 3"
        " --threads 1 --ubatch-size 64 --output json --cache-type-k f16 --cache-type-v f16"
        " --rpc 127.0.0.1:21001,127.0.0.1:21002 --device RPC0/RPC1"
        r" --n-gpu-layers 999 --split-mode layer --tensor-split 15/16 --override-tensor ^token_embd\.weight=CPU"
    )


def test_conversations_at_once_each_get_their_own_cells() -> None:
    words = batched_bench_command(
        "llama-batched-bench",
        model="a.gguf",
        prompt=250,
        generate=8,
        conversations=4,
        repetitions=3,
        threads=2,
        micro_batch=64,
        placement=None,
    )
    assert " ".join(words) == (
        "llama-batched-bench --model a.gguf --output-format jsonl -npp 250 -ntg 8 -npl 4,4,4"
        " --ctx-size 2048 --no-kv-unified --ubatch-size 64 --threads 2"
        " --fit off --cache-type-k f16 --cache-type-v f16 --device none --n-gpu-layers 0"
    )


def test_perplexity_is_measured_natively_one_chunk_after_the_other() -> None:
    words = perplexity_command("llama-perplexity", model="a.gguf", text="t.txt", context=512, chunks=3, threads=2)
    assert " ".join(words) == (
        "llama-perplexity --model a.gguf --file t.txt --ctx-size 512 --batch-size 512 --ppl-output-type 1 --chunks 4"
        " --threads 2 --cache-type-k f16 --cache-type-v f16 --fit off --device none --n-gpu-layers 0"
    )
    whole = perplexity_command("llama-perplexity", model="a.gguf", text="t.txt", context=8192, chunks=None, threads=2)
    assert "--chunks" not in whole
    assert whole[whole.index("--batch-size") + 1] == "2048"
