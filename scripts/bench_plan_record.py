"""What the planner's benchmark found out, one record per cell, and its JSON lines."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter

Role = Literal["plan", "default split", "one worker"]


@dataclass(frozen=True)
class Rates:
    """Tokens per second; None: not known. `aggregate` is of all conversations together."""

    decode: float | None = None
    prefill: float | None = None
    aggregate: float | None = None


@dataclass(frozen=True)
class Run:
    """One way to run the model: a plan, llama.cpp's own split over all RPC workers, or one RPC worker alone.

    `key` tells plans apart; `mode` is "" for what is no plan. Without `measured`, `note` says why.
    """

    role: Role
    key: str
    mode: str = ""
    devices: tuple[str, ...] = ()
    predicted: Rates | None = None
    measured: Rates | None = None
    note: str = ""


@dataclass(frozen=True)
class Memory:
    """A worker of the first plan that has workers: bytes planned, and by how much it grew in a whole prompt."""

    device: str
    planned_bytes: int
    grown_bytes: int


@dataclass(frozen=True)
class CellRecord:
    """A cell. `runs[0]` is the chosen plan; no runs: `note` says why. Prefill is of `prompt` tokens.

    `yardstick_s`: what the same passes took before the devices were timed, after that and after all runs, in seconds
    (`bench_plan_yardstick`); none where it was not taken.
    """

    key: str
    setup: str
    goal: str
    model: str
    link: str
    parallel: int
    prompt: int = 0
    rounds: int = 0
    runs: tuple[Run, ...] = ()
    memory: tuple[Memory, ...] = ()
    note: str = ""
    seconds: float = 0.0
    yardstick_s: tuple[float, ...] = ()


_RECORD = TypeAdapter(CellRecord)


def append_record(path: Path, record: CellRecord) -> None:
    """Add one line, at once, so that a run that is stopped can go on."""
    with path.open("ab") as file:
        file.write(_RECORD.dump_json(record) + b"\n")


def read_records(path: Path) -> tuple[CellRecord, ...]:
    """All records, oldest first; a last line that was cut off is left out."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return tuple(_RECORD.validate_json(line) for line in lines if line.endswith(b"\n"))
