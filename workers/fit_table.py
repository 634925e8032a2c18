"""Ask `llama-fit-params` what a model takes on each device, and read its table; nothing here runs it.

The table has whole MiB, cut off, not rounded: `FitRow` keeps them, and `upper_bytes` is what each stays below.
"""

import re
from dataclasses import dataclass

from workers.budget import MIB
from workers.engine_commands import CacheType, FlashAttention, Placement, attention_words, placement_words
from workers.errors import FactsError

HOST = "Host"
"""The last row: the machine that runs the engine itself."""

_ERROR = re.compile(r"[\d.]+ E (?:\w+: )?(?P<text>.+)")
"""A line of the engine's log: its time, its level and, mostly, the function that wrote it."""

_ROW = re.compile(r"(?P<name>\S+) (?P<model>\d+) (?P<context>\d+) (?P<compute>\d+) ?")


@dataclass(frozen=True)
class FitRow:
    """One device: weights, KV cache and compute buffers in MiB, each cut to a whole number."""

    name: str
    model_mib: int
    context_mib: int
    compute_mib: int


def fit_command(
    program: str,
    *,
    model: str,
    context: int,
    parallel: int,
    micro_batch: int,
    placement: Placement | None,
    cache_type: CacheType = "f16",
    flash_attention: FlashAttention = "auto",
) -> tuple[str, ...]:
    """Print the table for the same flags that `head_command` gives; natively on the CPU when `placement` is None.

    `context` is per conversation: the engine is told the sum over all of them. Allocates nothing on the workers, but
    takes up each worker's only connection while it runs.
    """
    return (
        *(program, "--model", model, "--fit-print", "on"),
        *("--ctx-size", str(context * parallel), "--parallel", str(parallel), "--ubatch-size", str(micro_batch)),
        *attention_words(cache_type, placement, flash_attention),
        *placement_words(placement),
    )


def device_rows(placement: Placement | None) -> int:
    """How many rows stand before the host's: one per device, or in mode `tensor` one that sums them up."""
    if placement is None:
        return 0
    return 1 if placement.mode == "tensor" else len(placement.devices)


def read_fit_table(stdout: bytes, devices: int) -> tuple[FitRow, ...]:
    """The rows of `devices` devices in their order and the host's last; FactsError when that is not what is there.

    `devices` is what `device_rows` says of the placement that was asked about.
    """
    lines = stdout.decode(errors="replace").splitlines()
    matches = [match for line in lines if (match := _ROW.fullmatch(line))]
    rows = tuple(FitRow(m["name"], int(m["model"]), int(m["context"]), int(m["compute"])) for m in matches)
    if len(rows) != devices + 1 or rows[-1].name != HOST:
        raise FactsError(
            f"llama-fit-params printed {[row.name for row in rows]} instead of {devices} devices and {HOST}",
            hint="check the engine: meshctl engine check",
        )
    return rows


def refusal(stderr: str) -> str:
    """The engine's reason why it will not have this, as it logs it; "" when it has logged none."""
    matches = (_ERROR.match(line.strip()) for line in stderr.splitlines())
    return next((match["text"] for match in matches if match), "")


def upper_bytes(cut_mib: int) -> int:
    """The least number of bytes that a size cut to this many MiB cannot reach."""
    return (cut_mib + 1) * MIB
