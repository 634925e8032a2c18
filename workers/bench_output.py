"""Read the JSON of `llama-bench --output json`; nothing here runs it."""

import statistics
from dataclasses import dataclass

from pydantic import TypeAdapter, ValidationError

from workers.errors import FactsError


@dataclass(frozen=True)
class BenchRow:
    """One test: prefill of `n_prompt` tokens or decode of `n_gen` tokens, nanoseconds for each repetition."""

    model_filename: str
    n_prompt: int
    n_gen: int
    samples_ns: tuple[int, ...]

    @property
    def tokens(self) -> int:
        return self.n_prompt + self.n_gen

    @property
    def token_s(self) -> float:
        """Seconds per token, median of the repetitions."""
        return statistics.median(self.samples_ns) / 1e9 / self.tokens

    @property
    def tokens_per_s(self) -> tuple[float, ...]:
        """Tokens per second of every repetition."""
        return tuple(self.tokens * 1e9 / sample for sample in self.samples_ns)

    @property
    def spread(self) -> float:
        """(slowest - fastest) / median of the repetitions."""
        return (max(self.samples_ns) - min(self.samples_ns)) / statistics.median(self.samples_ns)


_ROWS = TypeAdapter(tuple[BenchRow, ...])


def read_bench(stdout: bytes) -> tuple[BenchRow, BenchRow]:
    """The prefill and the decode of one model; FactsError when it is not llama-bench's JSON of those two tests."""
    try:
        rows = _ROWS.validate_json(stdout)
    except ValidationError as error:
        raise FactsError(f"llama-bench's answer cannot be read: {error.errors()[0]['msg']}") from error
    if [(row.n_prompt > 0, row.n_gen > 0) for row in rows] != [(True, False), (False, True)]:
        raise FactsError(f"llama-bench's answer cannot be read: {len(rows)} tests that are not prefill and decode")
    return rows[0], rows[1]
