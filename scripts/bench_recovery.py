"""The command line of `scripts/bench-recovery`: a worker is killed under four streams again and again.

Two local hosts, each of which can hold the demo model; both are used. A cluster is made anew after every second time,
because a host on which something fails three times is set aside.
"""

import argparse
import os
import signal
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.end_to_end.fault_table import Cluster, Row, as_markdown, kill, row_of
from tests.end_to_end.inventories import write_local
from tests.program import Meshctl

WANTED_S = 10.0
PER_CLUSTER = 2


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench-recovery", description=__doc__)
    parser.add_argument("--times", type=int, default=10, metavar="N", help="how often (default: 10)")
    rows = list(_rows(parser.parse_args(words).times))
    print(as_markdown(rows), end="")
    seconds = [row.goes_on_s for row in rows if row.goes_on_s is not None]
    median_s = statistics.median(seconds)
    met = "met" if median_s <= WANTED_S else "missed"
    print(f"\nAll four streams go on after {median_s:.1f} s, median of {len(seconds)} (wanted {WANTED_S:g} s: {met})")
    return int(median_s > WANTED_S)


def _rows(times: int) -> Iterator[Row]:
    for first in range(0, times, PER_CLUSTER):
        with _cluster() as cluster:
            for number in range(first, min(first + PER_CLUSTER, times)):
                print(f"{number + 1} of {times}", file=sys.stderr)
                yield row_of(cluster, f"worker killed ({number + 1})", kill(cluster.pid("worker"), signal.SIGKILL))


@contextmanager
def _cluster() -> Iterator[Cluster]:
    with tempfile.TemporaryDirectory() as folder:
        program = Meshctl(Path(folder), {**os.environ, "XDG_STATE_HOME": f"{folder}/state"})
        inventory = str(write_local(Path(folder, "inventory.yaml"), memory="400MiB", context=512, parallel=5))
        try:
            program.ok("up", inventory, "--detach", "--split", "part1/cpu=15,part2/cpu=15")
            yield Cluster(program)
        finally:
            program.run("down", inventory)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
