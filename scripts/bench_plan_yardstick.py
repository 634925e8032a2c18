"""How fast the machine itself is while a cell is run: the same passes in a cgroup of their own, again and again.

On machines that others share, what a quota gets done differs by the hour, and no plan is to blame for that. Seen with
135 M on a quarter of a core, nothing else running: a pass of eight tokens took 230 to 290 ms on eight devices in one
quarter of an hour, 290 to 380 ms in the next, 340 to 410 ms in the one after.
"""

import asyncio
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import lab_kernel as kernel
from bench_plan_devices import enter_words, hold_cpu
from lab_kernel import Names
from workers.bench_output import read_bench
from workers.engine_commands import placement_words

NAMES = Names("bench-yardstick")
STEP_TOKENS, DECODED_TOKENS = 8, 4


@dataclass(frozen=True)
class Yardstick:
    """Words that run the passes and print how long they took as JSON."""

    words: tuple[str, ...]

    async def take(self) -> float:
        """Seconds of one pass of eight tokens and four of one, medians of the repetitions."""
        done = await asyncio.to_thread(subprocess.run, self.words, capture_output=True, check=True)
        step, decode = read_bench(done.stdout)
        return STEP_TOKENS * step.token_s + DECODED_TOKENS * decode.token_s


@contextmanager
def yardstick(program: Path, model: Path, cores: float, repetitions: int) -> Iterator[Yardstick]:
    """`llama-bench` on so many cores of a machine on which nothing else may run meanwhile."""
    kernel.sweep(NAMES)
    try:
        name = NAMES.host("self")
        files = kernel.add_cgroup(name, None, None)
        hold_cpu(name, cores)
        counts = ("--n-prompt", str(STEP_TOKENS), "--n-gen", str(DECODED_TOKENS), "--repetitions", str(repetitions))
        bench = (str(program), "--model", str(model), *counts, "--threads", "1", "--output", "json")
        yield Yardstick((*enter_words(files), *bench, *placement_words(None)))
    finally:
        kernel.sweep(NAMES)
