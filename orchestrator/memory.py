"""Count what a model takes, by the engine's own arithmetic.

Weights come exactly from the model's file. KV cache and compute buffers depend on how the engine is built, so it is
asked: `llama-fit-params` against idle workers on this machine. Allocates none of that memory.
"""

import asyncio
import hashlib
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from orchestrator.errors import EngineError
from orchestrator.idle_workers import IdleWorkers, idle_workers
from orchestrator.plan.values import ModelMemory
from orchestrator.survey.values import kept_as
from quant.engine_caches import cache_of
from quant.errors import ModelFileError
from quant.gguf_file import read_model_and_facts
from quant.kv_cache import layer_cache_bytes
from quant.model import (
    Model,
    attention_bytes,
    feed_forward_length,
    head_groups,
    hidden_bytes,
    input_bytes,
    kv_bytes_per_token,
    layer_bytes,
    logits_bytes,
    mirrored_bytes,
    output_bytes,
    packs_heads,
)
from workers.budget import MIB
from workers.engine_commands import ENVIRONMENT, KV_CELLS, CacheType, FlashAttention, Placement, needs_flash_attention
from workers.fit_table import FitRow, device_rows, fit_command, read_fit_table, refusal, upper_bytes

_DEADLINE_S = 300.0
_ATTEMPTS = 3
F32_BYTES = 4
_MOST_DEVICES = 15
"""More than this the engine does not take."""

_CUT_WITHOUT = "it reads keys and values of such layers by flash attention only, and that is off in the inventory"
_STORED = TypeAdapter(ModelMemory)
NO_WORKERS = IdleWorkers((), 0)


@dataclass(frozen=True)
class _Question:
    """What the engine is asked about; each answer has one row per device and the host's last."""

    engine: Path
    model: Model
    context: int
    parallel: int
    micro_batch: int
    cache_type: CacheType
    flash_attention: FlashAttention = "auto"

    async def ask(self, placement: Placement | None, workers: IdleWorkers = NO_WORKERS) -> tuple[FitRow, ...]:
        words = fit_command(
            str(self.engine / "llama-fit-params"),
            model=str(self.model.path),
            context=self.context,
            parallel=self.parallel,
            micro_batch=self.micro_batch,
            placement=placement,
            cache_type=self.cache_type,
            flash_attention=self.flash_attention,
        )
        return read_fit_table(await _run(workers.joined(words)), device_rows(placement))

    async def ask_native(self) -> FitRow:
        """Everything on this machine's CPU. EngineError, and why, where keys and values of this type are refused; what
        the engine refuses of the model itself it does with any."""
        try:
            return (await self.ask(None))[-1]
        except EngineError as error:
            if self.cache_type == "f16":
                raise
            await replace(self, cache_type="f16").ask(None)
            raise _cache_type_refused(self, error) from error

    async def ask_split(
        self, workers: IdleWorkers, tensor_split: Sequence[int], *, output_on_head: bool = False
    ) -> tuple[FitRow, ...]:
        tied = self.model.output_tied
        return await self.ask(Placement(workers.endpoints, tuple(tensor_split), output_on_head, tied), workers)

    async def ask_cut(self, workers: IdleWorkers) -> tuple[int | None, str]:
        """Bytes of the compute buffers of each device of mode `tensor`, which do not depend on their number and parts;
        None, and the engine's reason, where it cannot cut this model."""
        if self.flash_attention == "off":
            return None, _CUT_WITHOUT
        parts = (1,) * len(workers.endpoints)
        placement = Placement(workers.endpoints, parts, False, self.model.output_tied, mode="tensor")
        try:
            return upper_bytes((await self.ask(placement, workers))[0].compute_mib), ""
        except EngineError as error:
            return None, refusal(error.details) or error.engine_words


async def count_memory(
    engine: Path,
    model: Model,
    *,
    context: int,
    parallel: int,
    micro_batch: int,
    cache_type: CacheType = "f16",
    flash_attention: FlashAttention = "auto",
    cache: Path | None = None,
) -> ModelMemory:
    """What `model` takes for `parallel` conversations of `context` tokens each, on the engine in the folder `engine`.

    Takes a second or two; the answer is kept in the folder `cache` if one is given. EngineError when the engine
    fails on this model, or refuses keys and values of this type for it.
    """
    question = _Question(engine, model, context, parallel, micro_batch, cache_type, flash_attention)
    if flash_attention == "off" and needs_flash_attention(cache_type, cut=False):
        raise EngineError(
            f"the engine reads keys and values as {cache_type} by flash attention only, and that is off",
            hint='write "flash_attention: auto" in the inventory, or "cache_type: f16"',
        )
    if cache is None:
        return await _count(question)
    stored = cache / f"memory-{_digest(question)}.json"
    memory = _read(stored)
    if memory is None:
        memory = await _count(question)
        _write(stored, memory)
    return replace(memory, path=str(model.path))


async def _count(question: _Question) -> ModelMemory:
    model = question.model
    native = await question.ask_native()
    devices = min(3, model.block_count)
    async with idle_workers(question.engine, devices) as workers:
        split = even_split(model.block_count, devices)
        remote = await question.ask_split(workers, split)
        on_head = await question.ask_split(workers, split, output_on_head=True)
        cut, refused = await question.ask_cut(workers.first(2)) if devices > 1 else (None, "")
    kv, fixed = await _layer_kv(question, native.context_mib)
    surplus = surplus_logits_bytes(model, parallel=question.parallel, micro_batch=question.micro_batch)
    compute = compute_buffers(native, remote, on_head, surplus)
    counted = compute.last_bytes if cut is None else min(compute.last_bytes, cut)
    tensor_bytes, cut_bytes = tensor_buffers(model, question.micro_batch, counted)
    return ModelMemory(
        model=model.name,
        path=str(model.path),
        context=question.context,
        parallel=question.parallel,
        micro_batch=question.micro_batch,
        layer_weights_bytes=layer_bytes(model),
        layer_kv_bytes=kv,
        layer_kv_fixed_bytes=fixed,
        output_bytes=output_bytes(model),
        output_tied=model.output_tied,
        input_bytes=input_bytes(model),
        compute_bytes=compute.inner_bytes,
        compute_last_bytes=compute.last_bytes,
        compute_head_bytes=compute.head_bytes,
        logits_bytes=logits_bytes(model),
        hidden_bytes=hidden_bytes(model),
        kv_heads=min((heads for heads in model.head_count_kv if heads), default=1),
        compute_tensor_bytes=tensor_bytes,
        cut_compute_bytes=cut_bytes,
        tensor_refused=refused,
        head_groups=head_groups(model),
        attention_bytes=attention_bytes(model),
        mirrored_bytes=mirrored_bytes(model),
        cache_type=question.cache_type,
        flash_attention=question.flash_attention,
    )


def _cache_type_refused(question: _Question, error: EngineError) -> EngineError:
    model, why = question.model, refusal(error.details) or error.engine_words
    if not packs_heads(model, question.cache_type):
        why = f"its heads have {model.key_length} and {model.value_length} numbers, which it packs by 32"
    return EngineError(
        f"the engine cannot keep keys and values of {model.path.name} as {question.cache_type}: {why}",
        hint='write "cache_type: f16" in the inventory, or ask for it: --cache-type f16',
    )


def tensor_buffers(model: Model, micro_batch: int, counted_bytes: int) -> tuple[int, int]:
    """Compute buffers of a device that has all of a layer in mode `tensor`, and what of them is cut like the layer.

    The engine counts one figure for every device, whatever its part: `counted_bytes`. Workers took, within 4 MiB, 6.25
    times the hidden states and 3.5 times their part of the feed-forward's of one micro-batch in F32, measured over
    parts of 1/8 to 3/4 at micro-batches of 64, 256 and 512 with embeddings of 2,048 to 3,584. Never less than half of
    the figure; where the feed-forward is of experts, all of it. Of a plan's buffers these are the only ones that
    the engine does not count itself: it cannot be asked for them.
    """
    rows = feed_forward_length(model) * F32_BYTES * micro_batch
    if not rows:
        return counted_bytes, 0
    whole = max(counted_bytes, int(6.25 * hidden_bytes(model) * micro_batch + 3.5 * rows))
    return whole, min(int(3.5 * rows), whole - counted_bytes // 2)


def even_split(layers: int, devices: int) -> tuple[int, ...]:
    """Items for each device, as even as they get; the last one has the output layer beside its share."""
    counts = [layers // devices + (index < layers % devices) for index in range(devices)]
    return (*counts[:-1], counts[-1] + 1)


def surplus_logits_bytes(model: Model, *, parallel: int, micro_batch: int) -> int:
    """What `llama-fit-params` reserves for logits beyond what the server does.

    It counts a row of logits for every token of a micro-batch; the server reserves one for each conversation
    (`n_outputs_max` in llama.cpp's common/speculative.cpp).
    """
    return max(0, micro_batch - parallel) * logits_bytes(model)


@dataclass(frozen=True)
class ComputeBuffers:
    """Upper bounds in bytes: of a device that is not last, of one that is last or alone, and of the head."""

    inner_bytes: int
    last_bytes: int
    head_bytes: int


def compute_buffers(
    native: FitRow, remote: Sequence[FitRow], on_head: Sequence[FitRow], surplus_bytes: int
) -> ComputeBuffers:
    """Put the answers together: everything native, the output on the last device, and the output on the head.

    A buffer is reused within a graph, so the logits' surplus never takes it below what the layers themselves need.
    """
    *inner, last, head = (upper_bytes(row.compute_mib) for row in remote)
    *without_output, head_with_output = (upper_bytes(row.compute_mib) for row in on_head)
    most_inner = max((*inner, *without_output))
    alone = upper_bytes(native.compute_mib)
    return ComputeBuffers(
        inner_bytes=most_inner,
        last_bytes=max(most_inner, last - surplus_bytes, alone - surplus_bytes),
        head_bytes=max(head, head_with_output - surplus_bytes),
    )


async def _layer_kv(question: _Question, total_mib: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """KV cache of each layer, and what of it does not shrink with the context (empty: nothing anywhere): by arithmetic
    where the engine agrees on the sum, else as the engine has it at this context and at twice as much, to the MiB."""
    known = await asyncio.to_thread(_known_kv, question, total_mib)
    if known is not None:
        return known
    computed = plain_kv(
        question.model, context=question.context, parallel=question.parallel, cache_type=question.cache_type
    )
    if all(computed) and sum(computed) // MIB == total_mib:
        return computed, ()
    doubled = replace(question, context=2 * _cells(question.context))
    async with idle_workers(question.engine, min(_MOST_DEVICES, question.model.block_count + 2)) as workers:
        asked = await _asked_kv(question, workers, total_mib)
        more = await _asked_kv(doubled, workers, (await doubled.ask_native()).context_mib)
    return asked, fixed_kv(asked, more)


def _known_kv(question: _Question, total_mib: int) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """By the rules of the architecture, windows, states and compressed attention too; None where they are not known, or
    the engine has another sum."""
    try:
        _, facts = read_model_and_facts(question.model.path)
        cache = cache_of(question.model, facts)
    except ModelFileError:
        return None
    here, doubled = (
        layer_cache_bytes(
            cache,
            question.cache_type,
            context=context,
            parallel=question.parallel,
            micro_batch=question.micro_batch,
        )
        for context in (question.context, 2 * _cells(question.context))
    )
    agrees = len(here) == question.model.block_count and sum(here) // MIB == total_mib
    if not agrees:
        return None
    fixed = fixed_kv(here, doubled)
    return here, fixed if any(fixed) else ()


async def _asked_kv(question: _Question, workers: IdleWorkers, total_mib: int) -> tuple[int, ...]:
    """KV cache of each layer, with a worker for each."""
    layers, at_once = question.model.block_count, len(workers.endpoints) - 2
    cut_mib: list[int] = []
    while len(cut_mib) < layers:
        asked = min(at_once, layers - len(cut_mib))
        split = one_layer_each(layers, first=len(cut_mib), asked=asked)
        rows = await question.ask_split(workers.first(len(split)), split)
        cut_mib += [row.context_mib for row in rows[1 : 1 + asked]]
    return spread_kv(cut_mib, total_mib)


def fixed_kv(layer_bytes: Sequence[int], doubled_bytes: Sequence[int]) -> tuple[int, ...]:
    """What of each layer's KV cache a shorter context leaves as it is, from its bytes at this context and at twice it.

    What a context twice as long does not add, a shorter one is not taken to save. So a layer has never less than the
    engine gives it: its bytes grow more slowly, never faster, with a longer context.
    """
    return tuple(
        min(here, max(0, 2 * here - doubled)) for here, doubled in zip(layer_bytes, doubled_bytes, strict=True)
    )


def plain_kv(model: Model, *, context: int, parallel: int, cache_type: CacheType = "f16") -> tuple[int, ...]:
    """KV cache of each layer in bytes for plain attention; each conversation's share is rounded up to 256 tokens."""
    cells = _cells(context) * parallel
    return tuple(cells * token_bytes for token_bytes in kv_bytes_per_token(model, cache_type))


def _cells(context: int) -> int:
    return -(-context // KV_CELLS) * KV_CELLS


def one_layer_each(layers: int, *, first: int, asked: int) -> tuple[int, ...]:
    """A split that gives each of `asked` devices, from the second on, one layer from `first` on."""
    return (first, *(1,) * asked, layers + 1 - first - asked)


def spread_kv(cut_mib: Sequence[int], total_mib: int) -> tuple[int, ...]:
    """Bytes of each layer from sizes cut to MiB and their true sum: what the cuts lost goes evenly to all that have
    any."""
    having = [index for index, mib in enumerate(cut_mib) if mib] or range(len(cut_mib))
    lost_each = max(0, upper_bytes(total_mib) - sum(cut_mib) * MIB) // len(having)
    return tuple(mib * MIB + (lost_each if index in having else 0) for index, mib in enumerate(cut_mib))


async def _run(words: tuple[str, ...]) -> bytes:
    """Stdout of `llama-fit-params`; it is run again where it ends without a reason: a thread of its own writes its log,
    and what that has not written yet is lost when it aborts."""
    for _ in range(_ATTEMPTS - 1):
        try:
            return await _run_once(words)
        except EngineError as error:
            if refusal(error.details):
                raise
    return await _run_once(words)


async def _run_once(words: tuple[str, ...]) -> bytes:
    try:
        process = await asyncio.create_subprocess_exec(
            *words,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, **ENVIRONMENT, "LC_ALL": "C"},
        )
    except OSError as error:
        raise EngineError(
            f"{words[0]} cannot be run: {error.strerror}", hint="build it: meshctl engine build"
        ) from error
    try:
        async with asyncio.timeout(_DEADLINE_S):
            stdout, stderr = await process.communicate()
    except TimeoutError as error:
        raise EngineError(f"{words[0]} did not answer within {_DEADLINE_S:.0f} s") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        raise EngineError(
            f"the engine cannot count the memory of {words[2]}: llama-fit-params ended with {process.returncode}",
            hint="the engine may not know this kind of model; try another file of it",
            details=stderr.decode(errors="replace").strip()[-2000:],
        )
    return stdout


def _digest(question: _Question) -> str:
    """Of everything the answer depends on; paths are not among it."""
    model = replace(question.model, path=Path(), shards=())
    facts = (
        "tensor buffers, refusals, cuts, cut buffers, fixed KV and known caches",
        _build(question.engine),
        model,
        question.context,
        question.parallel,
        question.micro_batch,
        *kept_as(question.cache_type, question.flash_attention),
    )
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:24]


def _build(engine: Path) -> tuple[object, ...]:
    """What tells one build of the engine from another: its folder's name and its program's size and time."""
    try:
        program = (engine / "llama-fit-params").stat()
    except OSError:
        return ()
    return (engine.name, program.st_size, program.st_mtime_ns)


def _read(stored: Path) -> ModelMemory | None:
    """The kept answer; None when there is none, or one of another version of meshctl."""
    try:
        return _STORED.validate_json(stored.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def _write(stored: Path, memory: ModelMemory) -> None:
    stored.parent.mkdir(parents=True, exist_ok=True)
    partial = stored.with_name(f"{stored.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(_STORED.dump_json(memory, indent=2))
        partial.replace(stored)
    finally:
        with suppress(FileNotFoundError):
            partial.unlink()
