"""The exact words of the engine's programs."""

from dataclasses import replace

from workers.engine_commands import (
    HeadSettings,
    Placement,
    batched_bench_command,
    bench_command,
    head_command,
    placement_words,
    worker_command,
)

SPLIT = Placement(("127.0.0.1:21001", "127.0.0.1:21002"), (15, 16), output_on_head=True, output_tied=True)
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
        " --cache-type-k f16 --cache-type-v f16 --cache-ram 0 --fit off"
        " --no-ui --metrics --log-verbosity 4 --log-jsonl --sse-ping-interval 5"
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


def test_layers_are_cut_with_flash_attention_and_no_tensor_is_moved() -> None:
    """The engine refuses to cut layers without the one and with the other."""
    assert placement_words(replace(SPLIT, mode="tensor", tensor_split=(2, 1))) == (
        *("--rpc", "127.0.0.1:21001,127.0.0.1:21002", "--device", "RPC0,RPC1", "--n-gpu-layers", "999"),
        *("--split-mode", "tensor", "--flash-attn", "on", "--tensor-split", "2,1"),
    )


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
        " --threads 1 --ubatch-size 64 --output json"
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
        " --cache-type-k f16 --cache-type-v f16 --fit off --device none --n-gpu-layers 0"
    )
