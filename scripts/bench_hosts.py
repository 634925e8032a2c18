"""The command line of `scripts/bench-hosts`: connecting to hosts, their facts, and the check of their engines, timed.

Hosts of a lab on this one machine (as root, Linux), which share its processors: each would have its own in earnest. The
engine is put on each before anything is timed.
"""

import argparse
import asyncio
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lab_hosts import Lab, LabHost, LabSpec, unavailable, up
from orchestrator.folders import Folders, user_folders
from orchestrator.hosts import open_hosts
from orchestrator.inventory import Inventory
from orchestrator.inventory_file import load_inventory
from orchestrator.prepare import prepare_engine
from orchestrator.report import silent
from tests.program import Meshctl

WANTED = 3.0
FEW, MANY = 2, 32
TIMES = 5


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench-hosts", description=__doc__)
    parser.add_argument("--hosts", type=int, default=MANY, metavar="N", help=f"the most (default: {MANY})")
    options = parser.parse_args(words)
    for number in (signal.SIGTERM, signal.SIGHUP):  # leave by way of every `finally`: the lab goes, too
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    if reason := unavailable():
        print(f"error: {reason}", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="meshctl-bench-hosts-") as folder:
        hosts = tuple(LabHost(f"host{number}") for number in range(1, options.hosts + 1))
        with up(LabSpec(Path(folder, "lab"), hosts, f"bench-hosts-{os.getpid()}")) as lab:
            return _report(_measured(lab, Path(folder), options.hosts))


def _measured(lab: Lab, folder: Path, most: int) -> dict[int, tuple[float, float]]:
    program = Meshctl(folder, {**os.environ, "XDG_STATE_HOME": f"{folder}/state"})
    path = lab.inventory()
    program.ok("trust", str(path), "--yes")
    inventory = load_inventory(path)
    folders = replace(user_folders(), state=folder / "state" / "meshctl")
    print(f"the engine on {most} hosts ...", file=sys.stderr)
    asyncio.run(_meet(inventory, folders))
    found = {}
    for count in sorted({1, FEW, 8, most}):
        some = replace(inventory, hosts=inventory.hosts[:count])
        times = [asyncio.run(_meet(some, folders)) for _ in range(TIMES)]
        found[count] = tuple(statistics.median(column) for column in zip(*times, strict=True))
        print(f"{count}: {found[count]}", file=sys.stderr)
    return {count: (connect, engine) for count, (connect, engine) in found.items()}


async def _meet(inventory: Inventory, folders: Folders) -> tuple[float, float]:
    """Seconds for connections with all facts, and for the engine's check."""
    began = time.perf_counter()
    async with open_hosts(inventory, folders, silent()) as hosts:
        met = time.perf_counter()
        await prepare_engine(hosts, folders, silent())
        return met - began, time.perf_counter() - met


def _report(found: dict[int, tuple[float, float]]) -> int:
    few = sum(found[FEW])
    print("| hosts | connect and facts, s | engine, s | by two hosts |\n| --: | --: | --: | --: |")
    for count, (connect, engine) in found.items():
        print(f"| {count} | {connect:.2f} | {engine:.2f} | {(connect + engine) / few:.1f} |")
    ratio = sum(found[max(found)]) / few
    print(f"\nWanted: {max(found)} hosts in {WANTED:g} times the time of two: {'met' if ratio <= WANTED else 'missed'}")
    return int(ratio > WANTED)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
