"""The exact words that start each program of the engine; pure, nothing here runs anything.

Why each flag is there was found by running the pinned engine: explicit placement instead of `--fit`, no prompt cache
in RAM (saving it aborts over RPC), both halves of the KV cache of one type, flash attention where the engine works with
nothing else, log level 4 because the buffer sizes per device appear only there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

ENVIRONMENT = {"GGML_NO_BACKTRACE": "1", "GOMP_SPINCOUNT": "1000"}
"""For every program of the engine.

Abort at once instead of calling a debugger first (0.66 s where gdb is there). And threads that wait for work let others
have the processor soon: libgomp has them spin 300,000 times (its manual, GOMP_SPINCOUNT), milliseconds in which they
take it from the next process on the same machine. Measured with the 135 M model and 2 threads each on 2 cores, tokens
per second without and with it: two workers in mode `layers` 50 and 77, a native first half and a worker 57 and 87, two
workers in mode `tensor` 0.7 and 9; beside another busy program, natively, 28 and 32 (prompts 102 and 144). Alone on
its machine a process is as fast as before (natively 104 and 112, a worker 99 and 99).
"""

ALL_LAYERS = "999"
KV_CELLS = 256
"""The engine rounds each conversation's part of the KV cache up to a multiple of this many tokens."""

MOST_AT_ONCE = 2048
"""Tokens that a program takes in at once, the engine's own default: more only takes memory."""

CacheType = Literal["f16", "q8_0", "q4_0"]
CACHE_TYPES: tuple[CacheType, ...] = ("f16", "q8_0", "q4_0")
"""What keys and values are kept as, both alike. These alone are known to be safe over RPC, and the only quantised ones
that CUDA has kernels of its own for as the engine is built."""

FlashAttention = Literal["auto", "on", "off"]
FLASH_ATTENTION: tuple[FlashAttention, ...] = ("auto", "on", "off")
"""How keys and values are read; "auto": by flash attention where the engine needs it or the devices have it."""

UNTIED_OUTPUT_ON_HEAD = r"^output\.weight=CPU"
TIED_OUTPUT_ON_HEAD = r"^token_embd\.weight=CPU"
"""Anchored: without `^` the first pattern would also move every `attn_output`."""


@dataclass(frozen=True)
class Placement:
    """Where the layers go: RPC endpoints ("127.0.0.1:PORT") in pipeline order, an integer per device, output pattern.

    `names` are the devices in pipeline order as the engine calls them: "RPC0" is the first endpoint, "CUDA0" a GPU of
    the head's own machine; without any the endpoints alone. Mode "layers": the head computes the first `head_layers` of
    `block_count` blocks on its CPU; the integers are the items of each device and sum to block_count + 1 - head_layers
    (the output layer is the last item). Mode "tensor": every layer is cut in parts of these proportions; the engine
    refuses to move single tensors then.
    """

    endpoints: tuple[str, ...]
    tensor_split: tuple[int, ...]
    output_on_head: bool
    output_tied: bool
    mode: Literal["layers", "tensor"] = "layers"
    block_count: int = 0
    head_layers: int = 0
    names: tuple[str, ...] = ()

    @property
    def devices(self) -> tuple[str, ...]:
        return self.names or tuple(f"RPC{number}" for number in range(len(self.endpoints)))

    @property
    def output_pattern(self) -> str | None:
        if not self.output_on_head or self.mode == "tensor":
            return None
        return TIED_OUTPUT_ON_HEAD if self.output_tied else UNTIED_OUTPUT_ON_HEAD

    @property
    def gpu_layers(self) -> str:
        """For `--n-gpu-layers`: the engine counts from the last layer, so what is left out are the first ones."""
        return str(self.block_count + 1 - self.head_layers) if self.head_layers else ALL_LAYERS


@dataclass(frozen=True)
class OnGpu:
    """Everything on one GPU of the machine that the program runs on, by the engine's name for it, such as "CUDA0"."""

    name: str


Where = Placement | OnGpu | None
"""What computes: workers, one GPU of the program's own machine, or (None) its CPU natively."""


@dataclass(frozen=True)
class HeadSettings:
    """What a head is told beside where its layers are. `context` is tokens per conversation; it listens at `socket`,
    a path that ends with ".sock"."""

    model: str
    alias: str
    socket: str
    key_file: str
    context: int
    parallel: int
    micro_batch: int
    threads: int
    cache_type: CacheType = "f16"
    flash_attention: FlashAttention = "auto"


PACK_VARIABLE = "LLAMA_CACHE"
"""Names the folder in which a worker with a cache looks for weights: in its sub-folder `rpc`, by their hashes."""


def worker_command(
    program: str, *, port: int, threads: int, device: str = "CPU", address: str = "127.0.0.1", cached: bool = False
) -> tuple[str, ...]:
    """`ggml-rpc-server` for one device, at that address only; its own default would be half the hardware threads.

    `cached`: it looks for weights in a folder (`PACK_VARIABLE`) before it has them sent.
    """
    listen = ("--host", address, "--port", str(port))
    return (program, *listen, "--threads", str(threads), "--device", device, *(("--cache",) if cached else ()))


def head_command(program: str, settings: HeadSettings, placement: Where) -> tuple[str, ...]:
    """`llama-server` over the placement's workers, or natively on a GPU or (None) the CPU of its own machine."""
    return (
        program,
        *("--model", settings.model, "--alias", settings.alias),
        *("--host", settings.socket, "--api-key-file", settings.key_file),
        *("--ctx-size", str(settings.context * settings.parallel), "--parallel", str(settings.parallel)),
        *("--ubatch-size", str(settings.micro_batch), "--threads", str(settings.threads)),
        *("--cache-ram", "0", "--fit", "off"),
        *("--no-ui", "--metrics", "--log-verbosity", "4", "--log-jsonl", "--sse-ping-interval", "5"),
        *attention_words(settings.cache_type, placement, settings.flash_attention),
        *placement_words(placement),
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
    placement: Where,
    cache_type: CacheType = "f16",
    flash_attention: FlashAttention = "auto",
) -> tuple[str, ...]:
    """`llama-bench` with JSON on stdout: prefill of `prompt` tokens, decode of `generate`, each model in turn.

    It samples nothing, so an end-of-text token cannot stop it, and it clears its cache before every repetition.
    """
    return (
        program,
        *(word for model in models for word in ("--model", model)),
        *("--n-prompt", str(prompt), "--n-gen", str(generate), "--repetitions", str(repetitions)),
        *("--threads", str(threads), "--ubatch-size", str(micro_batch), "--output", "json"),
        *attention_words(cache_type, placement, flash_attention),
        *placement_words(placement, "/"),
    )


def batched_bench_command(
    program: str,
    *,
    model: str,
    prompt: int,
    generate: int,
    conversations: int,
    repetitions: int,
    threads: int,
    micro_batch: int,
    placement: Where,
    cache_type: CacheType = "f16",
    flash_attention: FlashAttention = "auto",
) -> tuple[str, ...]:
    """`llama-batched-bench` with a JSON line per repetition: `conversations` at once, each with this many tokens.

    Each conversation has its own part of the KV cache, as in the head, which the engine rounds up to 256 tokens.
    """
    cells = -(-(prompt + generate) // KV_CELLS) * KV_CELLS
    return (
        *(program, "--model", model, "--output-format", "jsonl"),
        *("-npp", str(prompt), "-ntg", str(generate), "-npl", ",".join([str(conversations)] * repetitions)),
        *("--ctx-size", str(cells * conversations), "--no-kv-unified", "--ubatch-size", str(micro_batch)),
        *("--threads", str(threads), "--fit", "off"),
        *attention_words(cache_type, placement, flash_attention),
        *placement_words(placement),
    )


def perplexity_command(
    program: str, *, model: str, text: str, context: int, chunks: int | None, threads: int
) -> tuple[str, ...]:
    """`llama-perplexity` of a model on the file `text`, natively on the CPU; `chunks` None: all of the text.

    One chunk at a time and a line for each (output type 1), so that its progress can be followed; and one more than
    asked, as the last one does not count (`workers.perplexity_output`).
    """
    return (
        *(program, "--model", model, "--file", text),
        *("--ctx-size", str(context), "--batch-size", str(min(context, MOST_AT_ONCE)), "--ppl-output-type", "1"),
        *(() if chunks is None else ("--chunks", str(chunks + 1))),
        *("--threads", str(threads), "--cache-type-k", "f16", "--cache-type-v", "f16", "--fit", "off"),
        *placement_words(None),
    )


def attention_words(
    cache_type: CacheType, placement: Where, flash_attention: FlashAttention = "auto"
) -> tuple[str, ...]:
    """What keys and values are kept as, and flash attention as it was asked for or must be; for every program alike.

    Where nothing is said of it the engine has it on where the devices have it.
    """
    cut = isinstance(placement, Placement) and placement.mode == "tensor"
    types = ("--cache-type-k", cache_type, "--cache-type-v", cache_type)
    told = flash_attention_told(cache_type, flash_attention, cut=cut)
    return types if told == "auto" else (*types, "--flash-attn", told)


def flash_attention_told(cache_type: CacheType, asked: FlashAttention, *, cut: bool) -> FlashAttention:
    """What the engine is told: on wherever it works with nothing else."""
    return "on" if needs_flash_attention(cache_type, cut=cut) else asked


def needs_flash_attention(cache_type: CacheType, *, cut: bool) -> bool:
    """Whether the engine refuses to work without: quantised values, and layers that are `cut` across devices."""
    return cut or cache_type != "f16"


def placement_words(placement: Where, separator: str = ",") -> tuple[str, ...]:
    """The flags of a placement, for every program alike.

    `llama-bench` separates items by "/", since a comma means another test there.
    """
    if placement is None:
        return ("--device", "none", "--n-gpu-layers", "0")
    if isinstance(placement, OnGpu):
        return ("--device", placement.name, "--n-gpu-layers", ALL_LAYERS, "--split-mode", "none")
    split = separator.join(str(count) for count in placement.tensor_split)
    pattern = placement.output_pattern
    return (
        *(("--rpc", ",".join(placement.endpoints)) if placement.endpoints else ()),
        *("--device", separator.join(placement.devices), "--n-gpu-layers", placement.gpu_layers),
        *("--split-mode", "tensor" if placement.mode == "tensor" else "layer", "--tensor-split", split),
        *(() if pattern is None else ("--override-tensor", pattern)),
    )
