"""Time single passes through a model with `llama-bench`: the words that run it and its JSON as seconds per pass.

A prompt of no more tokens than a micro-batch is one pass; generating is passes of one token. Nothing here runs it.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import TypeAdapter, ValidationError

from workers.engine_commands import CacheType, FlashAttention, Where, attention_words, placement_words
from workers.errors import FactsError

DECODED_TOKENS = 16
REPETITIONS = 4
"""The first repetition warms up and is not counted."""


@dataclass(frozen=True)
class Timed:
    """One pass: the median of its repetitions in seconds, as on most days, and (slowest - fastest) / median. `least_s`:
    the fastest of all (0: not told)."""

    seconds: float
    spread: float
    least_s: float = field(default=0.0, compare=False)


@dataclass(frozen=True)
class _Row:
    n_prompt: int
    n_gen: int
    samples_ns: tuple[int, ...]


_ROWS = TypeAdapter(tuple[_Row, ...])


def pass_bench_command(
    program: str,
    *,
    model: str,
    passes: Sequence[int],
    threads: int,
    placement: Where,
    repetitions: int = REPETITIONS,
    context: int = 0,
    cache_type: CacheType = "f16",
    flash_attention: FlashAttention = "auto",
) -> tuple[str, ...]:
    """`llama-bench` over passes of these many tokens; 1 is decoding. `placement`: what computes.

    `context` tokens are read before each pass, outside of what is timed. Verbose: why a model cannot be loaded is said
    nowhere else.
    """
    prompts = [tokens for tokens in passes if tokens > 1]
    return (
        *(program, "--model", model, "--no-warmup", "--repetitions", str(repetitions), "--output", "json", "--verbose"),
        *("--n-prompt", ",".join(str(tokens) for tokens in prompts) or "0"),
        *("--n-gen", str(DECODED_TOKENS) if 1 in passes else "0"),
        *("--ubatch-size", str(max(passes)), "--threads", str(threads)),
        *(("--n-depth", str(context)) if context else ()),
        *attention_words(cache_type, placement, flash_attention),
        *placement_words(placement, "/"),
    )


def read_passes(stdout: bytes, passes: Sequence[int]) -> Mapping[int, Timed]:
    """The time of each pass by its tokens; FactsError when one of them is missing."""
    try:
        rows = _ROWS.validate_json(stdout)
    except ValidationError as error:
        raise FactsError(f"llama-bench's answer cannot be read: {error.errors()[0]['msg']}") from error
    timed = {row.n_prompt if row.n_prompt else 1: _timed(row) for row in rows}
    if missing := sorted(set(passes) - timed.keys()):
        raise FactsError(f"llama-bench's answer cannot be read: nothing about passes of {missing} tokens")
    return timed


def _timed(row: _Row) -> Timed:
    counted = row.samples_ns[1:] or row.samples_ns
    middle = statistics.median(counted)
    tokens = max(1, row.n_gen)
    return Timed(middle / 1e9 / tokens, (max(counted) - min(counted)) / middle, min(row.samples_ns) / 1e9 / tokens)
