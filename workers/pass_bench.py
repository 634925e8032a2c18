"""Time single passes through a model with `llama-bench`: the words that run it and its JSON as seconds per pass.

A prompt of no more tokens than a micro-batch is one pass; generating is passes of one token. Nothing here runs it.
"""

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

from pydantic import TypeAdapter, ValidationError

from workers.engine_commands import CacheType, FlashAttention, Where, attention_words, placement_words
from workers.errors import FactsError

DECODED_TOKENS = 16
REPETITIONS = 4
"""The first repetition warms up and is not counted."""


@dataclass(frozen=True)
class Timed:
    """One pass: the median of its repetitions in seconds, as on most days, and (slowest - fastest) / median, of several
    turns the median of theirs. `least_s`: the fastest of all (0: not told)."""

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
    turns: int = 1,
    context: int = 0,
    cache_type: CacheType = "f16",
    flash_attention: FlashAttention = "auto",
) -> tuple[str, ...]:
    """`llama-bench` over passes of these many tokens; 1 is decoding. `placement`: what computes.

    Decoding is timed in so many `turns`, each of all repetitions. `context` tokens are read before each pass, outside
    of what is timed. Verbose: why a model cannot be loaded is said nowhere else.
    """
    prompts = [tokens for tokens in passes if tokens > 1]
    return (
        *(program, "--model", model, "--no-warmup", "--repetitions", str(repetitions), "--output", "json", "--verbose"),
        *("--n-prompt", ",".join(str(tokens) for tokens in prompts) or "0"),
        *("--n-gen", ",".join([str(DECODED_TOKENS)] * turns) if 1 in passes else "0"),
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
    turns = defaultdict[int, list[_Row]](list)
    for row in rows:
        turns[row.n_prompt or 1].append(row)
    timed = {tokens: _timed(of_pass) for tokens, of_pass in turns.items()}
    if missing := sorted(set(passes) - timed.keys()):
        raise FactsError(f"llama-bench's answer cannot be read: nothing about passes of {missing} tokens")
    return timed


def _timed(turns: Sequence[_Row]) -> Timed:
    counted = [row.samples_ns[1:] or row.samples_ns for row in turns]
    middle = statistics.median(chain.from_iterable(counted))
    spread = statistics.median((max(samples) - min(samples)) / middle for samples in counted)
    tokens_ns = 1e9 * max(1, turns[0].n_gen)
    return Timed(middle / tokens_ns, spread, min(min(row.samples_ns) for row in turns) / tokens_ns)
