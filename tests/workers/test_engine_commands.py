"""The exact words of the engine's programs."""

from workers.engine_commands import HeadSettings, Placement, bench_command, head_command, worker_command

SPLIT = Placement(("127.0.0.1:21001", "127.0.0.1:21002"), (15, 16), output_on_head=True, output_tied=True)
SETTINGS = HeadSettings(
    model="model.gguf",
    alias="smol",
    port=21010,
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
        "llama-server --model model.gguf --alias smol --host 127.0.0.1 --port 21010 --api-key-file head.key"
        " --ctx-size 8192 --parallel 2 --ubatch-size 64 --threads 4"
        " --cache-type-k f16 --cache-type-v f16 --cache-ram 0 --fit off"
        " --no-ui --metrics --log-verbosity 4 --log-jsonl --sse-ping-interval 5"
        " --rpc 127.0.0.1:21001,127.0.0.1:21002 --device RPC0,RPC1"
        r" --n-gpu-layers 999 --split-mode layer --tensor-split 15,16 --override-tensor ^token_embd\.weight=CPU"
    )


def test_a_native_head_has_no_device_but_its_own_processor() -> None:
    words = head_command("llama-server", SETTINGS, None)
    assert words[-4:] == ("--device", "none", "--n-gpu-layers", "0")


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
