"""Read what `llama-perplexity` writes: how far it is, and the result; tests read recorded output.

Its logger writes in a thread that nothing waits for at the end, so that on a busy machine its last lines may never come
(`common_log_main` in `log.cpp`; seen with 2 cores), and its status is 0 also when it has measured nothing. So the last
chunk is not counted: what stood before it has come while that was computed.
"""

import math
import re
from dataclasses import dataclass

from workers.errors import FactsError, LostResultsError

LEAST_CONTEXT = 16
"""Tokens per chunk below which no perplexity says anything."""

_CHUNKS = re.compile(r"calculating perplexity over (\d+) chunks, n_ctx=(\d+)")
_CHUNK = re.compile(r"^ *\d+ +(\S+) +(\S+) +(\S+)$", re.MULTILINE)
_TOO_SHORT = re.compile(r"tokenizes to only (\d+) tokens")
_ERROR = re.compile(r"^\S+ E (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Perplexity:
    """How surprised a model is by a text, per token: exp of the mean negative log-likelihood; `uncertainty` is the
    engine's estimate of its standard error, over the tokens measured."""

    value: float
    uncertainty: float
    chunks: int
    context: int


class ChunkCounter:
    """Counts the chunks that are done, line by line; `total` is 0 until the engine has said how many there are."""

    def __init__(self) -> None:
        self.done = 0
        self.total = 0

    def take(self, line: str) -> bool:
        """Whether this line was news."""
        if announced := _CHUNKS.search(line):
            self.total = int(announced[1])
        elif self.total and _CHUNK.fullmatch(line):
            self.done += 1
        else:
            return False
        return True


def read_perplexity(output: str, context: int) -> Perplexity:
    """The result in all that it wrote, of all chunks but the last; FactsError with its own reason when there is none,
    LostResultsError where more than the last one have not come: chunks of very small models take less than a
    millisecond.

    A chunk's line has the perplexity of all until then, the mean negative log-likelihood, and that mean's error.
    """
    announced = _CHUNKS.search(output)
    if announced is None:
        raise _no_result(output, context)
    counted = int(announced[1]) - 1
    chunks = _CHUNK.findall(output, announced.end())
    if counted < 1 or len(chunks) < counted:
        lost = FactsError if counted < 1 else LostResultsError
        raise lost(
            f"of {counted + 1} chunks the results of {len(chunks)} have come", hint="try again, with more chunks"
        )
    value, _, error = (_number(text) for text in chunks[counted - 1])
    if not (math.isfinite(value) and math.isfinite(error)):
        raise FactsError("the model's probabilities are no numbers", hint="fetch or quantise it again")
    return Perplexity(value, value * error, counted, int(announced[2]))


def _no_result(output: str, context: int) -> FactsError:
    if short := _TOO_SHORT.search(output):
        tokens = int(short[1])
        smaller = f", or --context {_largest_context(tokens)}" if tokens >= 2 * LEAST_CONTEXT else ""
        return FactsError(
            f"the text has {tokens} token{'s' if tokens > 1 else ''}, and two chunks of {context} are the least",
            hint=f"choose a longer text{smaller}",
        )
    errors = _ERROR.findall(output)
    return FactsError(errors[-1] if errors else "llama-perplexity has printed no result")


def _largest_context(tokens: int) -> int:
    """A power of two of which the text has two."""
    return int(2 ** int(math.log2(tokens / 2)))


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
