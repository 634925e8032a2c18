"""The exact words that start each program of the engine; pure, nothing here runs anything.

Why each flag is there was found by running the pinned engine: explicit placement instead of `--fit`, no prompt cache
in RAM (saving it aborts over RPC), both halves of the KV cache of one type, log level 4 because the buffer sizes per
device appear only there.
"""

from collections.abc import Sequence
from dataclasses import dataclass

ENVIRONMENT = {"GGML_NO_BACKTRACE": "1"}
"""For every program of the engine: abort at once instead of calling a debugger first (0.66 s where gdb is there)."""

ALL_LAYERS = "999"

UNTIED_OUTPUT_ON_HEAD = r"^output\.weight=CPU"
TIED_OUTPUT_ON_HEAD = r"^token_embd\.weight=CPU"
"""Anchored: without `^` the first pattern would also move every `attn_output`."""


@dataclass(frozen=True)
class Placement:
    """Where the layers go: RPC endpoints ("127.0.0.1:PORT") in pipeline order, items for each, output pattern.

    `tensor_split` has one integer per endpoint; they sum to block_count + 1 (the output layer is the last item).
    """

    endpoints: tuple[str, ...]
    tensor_split: tuple[int, ...]
    output_on_head: bool
    output_tied: bool

    @property
    def output_pattern(self) -> str | None:
        if not self.output_on_head:
            return None
        return TIED_OUTPUT_ON_HEAD if self.output_tied else UNTIED_OUTPUT_ON_HEAD


@dataclass(frozen=True)
class HeadSettings:
    """What a head is told beside where its layers are. `context` is tokens per conversation."""

    model: str
    alias: str
    port: int
    key_file: str
    context: int
    parallel: int
    micro_batch: int
    threads: int


def worker_command(program: str, *, port: int, threads: int, device: str = "CPU") -> tuple[str, ...]:
    """`ggml-rpc-server` for one device, on loopback only; its own default would be half the hardware threads."""
    return (program, "--host", "127.0.0.1", "--port", str(port), "--threads", str(threads), "--device", device)


def head_command(program: str, settings: HeadSettings, placement: Placement | None) -> tuple[str, ...]:
    """`llama-server` over the placement's workers, or natively on its own CPU when `placement` is None."""
    return (
        program,
        *("--model", settings.model, "--alias", settings.alias),
        *("--host", "127.0.0.1", "--port", str(settings.port), "--api-key-file", settings.key_file),
        *("--ctx-size", str(settings.context * settings.parallel), "--parallel", str(settings.parallel)),
        *("--ubatch-size", str(settings.micro_batch), "--threads", str(settings.threads)),
        *("--cache-type-k", "f16", "--cache-type-v", "f16", "--cache-ram", "0", "--fit", "off"),
        *("--no-ui", "--metrics", "--log-verbosity", "4", "--log-jsonl", "--sse-ping-interval", "5"),
        *(_native() if placement is None else _placed(placement)),
    )


def bench_command(
    program: str,
    *,
    models: Sequence[str],
    prompt: int,
    generate: int,
    repetitions: int,
    threads: int,
    micro_batch: int,
    placement: Placement | None,
) -> tuple[str, ...]:
    """`llama-bench` with JSON on stdout: prefill of `prompt` tokens, decode of `generate`, each model in turn.

    It samples nothing, so an end-of-text token cannot stop it, and it clears its cache before every repetition.
    """
    return (
        program,
        *(word for model in models for word in ("--model", model)),
        *("--n-prompt", str(prompt), "--n-gen", str(generate), "--repetitions", str(repetitions)),
        *("--threads", str(threads), "--ubatch-size", str(micro_batch), "--output", "json"),
        *(("--n-gpu-layers", "0") if placement is None else _placed(placement, "/")),
    )


def _native() -> tuple[str, ...]:
    return ("--device", "none", "--n-gpu-layers", "0")


def _placed(placement: Placement, separator: str = ",") -> tuple[str, ...]:
    """`llama-bench` separates items by "/", since a comma means another test there."""
    names = separator.join(f"RPC{index}" for index in range(len(placement.endpoints)))
    split = separator.join(str(count) for count in placement.tensor_split)
    pattern = placement.output_pattern
    return (
        *("--rpc", ",".join(placement.endpoints), "--device", names),
        *("--n-gpu-layers", ALL_LAYERS, "--split-mode", "layer", "--tensor-split", split),
        *(() if pattern is None else ("--override-tensor", pattern)),
    )
