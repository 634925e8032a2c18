"""Read the lines of `llama-batched-bench --output-format jsonl`; nothing here runs it."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from workers.errors import FactsError


@dataclass(frozen=True)
class BatchedRow:
    """One repetition with `pl` conversations at once: `pp` prompt and `tg` generated tokens of each, in seconds."""

    pp: int
    tg: Annotated[int, Field(gt=0)]
    pl: Annotated[int, Field(gt=0)]
    t_pp: float
    t_tg: Annotated[float, Field(gt=0)]

    @property
    def step_s(self) -> float:
        """Seconds of one step, in which every conversation gets a token."""
        return self.t_tg / self.tg

    @property
    def aggregate_tokens_per_s(self) -> float:
        """Generated tokens of all conversations together."""
        return self.pl * self.tg / self.t_tg


_ROW = TypeAdapter(BatchedRow)


def read_batched(stdout: bytes) -> tuple[BatchedRow, ...]:
    """One row per repetition, in order; FactsError when there is none or one cannot be read."""
    lines = [line for line in stdout.splitlines() if line.strip()]
    try:
        rows = tuple(_ROW.validate_json(line) for line in lines)
    except ValidationError as error:
        raise FactsError(f"llama-batched-bench's answer cannot be read: {error.errors()[0]['msg']}") from error
    if not rows:
        raise FactsError("llama-batched-bench's answer cannot be read: it is empty")
    return rows
