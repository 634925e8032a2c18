"""The command line of `scripts/bench-hosts`: connecting to hosts, their facts, links and engines' check, timed.

Hosts of a lab on this one machine (as root, Linux), which share its processors: each would have its own in earnest.
With `--cores 0.03` each has that part of a core to itself, however many there are: a slow one, but its own. The engine
is put on each before anything is timed.
"""

import argparse
import asyncio
import os
import resource
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path

from lab_hosts import Lab, LabHost, LabSpec, unavailable, up
from orchestrator.fanout import all_or_raise, each_host
from orchestrator.folders import Folders, user_folders
from orchestrator.hosts import CONNECTIONS_AT_ONCE, open_hosts
from orchestrator.inventory import Host, Inventory
from orchestrator.inventory_file import load_inventory
from orchestrator.prepare import prepare_engine
from orchestrator.report import silent
from orchestrator.shell.connect import connect
from orchestrator.shell.ssh_config import write_ssh_files
from orchestrator.survey.gather_links import gather_links
from tests.program import Meshctl

WANTED = 3.0
FEW, MANY = 2, 32
TIMES = 5
HEADINGS = (
    "hosts",
    "login alone, s",
    "connect and facts, s",
    "links, s",
    "engine, s",
    "all three by two hosts",
    "login by two hosts",
    "controller's processor time, s",
)


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench-hosts", description=__doc__)
    parser.add_argument("--hosts", type=int, default=MANY, metavar="N", help=f"the most (default: {MANY})")
    parser.add_argument("--cores", type=float, metavar="PART", help="what each host has of a core (default: no limit)")
    parser.add_argument("--again", action="store_true", help="measure links anew each time, as a first start does")
    options = parser.parse_args(words)
    if options.hosts < FEW:
        parser.error(f"--hosts: at least {FEW}, which others are compared with")
    for number in (signal.SIGTERM, signal.SIGHUP):  # leave by way of every `finally`: the lab goes, too
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    if reason := unavailable():
        print(f"error: {reason}", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="meshctl-bench-hosts-") as folder:
        hosts = tuple(LabHost(f"host{number}", cpu=options.cores) for number in range(1, options.hosts + 1))
        with up(LabSpec(Path(folder, "lab"), hosts, f"bench-hosts-{os.getpid()}")) as lab:
            return _report(_measured(lab, Path(folder), options.hosts, again=options.again))


@dataclass(frozen=True)
class Meeting:
    """Seconds: a bare SSH login at every host and back; connections with all facts; links, as they are measured at a
    further start; the engine's check; and what of the processors' time those three took on the controller, its own
    agent and engine included."""

    login_s: float
    connect_s: float
    links_s: float
    engine_s: float
    here_s: float

    @property
    def met_s(self) -> float:
        return self.connect_s + self.links_s + self.engine_s


def _measured(lab: Lab, folder: Path, most: int, *, again: bool) -> dict[int, Meeting]:
    program = Meshctl(folder, {**os.environ, "XDG_STATE_HOME": f"{folder}/state"})
    path = lab.inventory()
    program.ok("trust", str(path), "--yes")
    inventory = load_inventory(path)
    folders = replace(user_folders(), state=folder / "state" / "meshctl")
    print(f"the engine on {most} hosts ...", file=sys.stderr)
    asyncio.run(_meet(inventory, folders))
    found = {}
    for count in sorted(count for count in {1, FEW, 8, most} if count <= most):
        some = replace(inventory, hosts=inventory.hosts[:count])
        times = [asyncio.run(_meet(some, folders, again=again)) for _ in range(TIMES)]
        columns = zip(*(astuple(one) for one in times), strict=True)
        found[count] = Meeting(*(statistics.median(column) for column in columns))
        print(f"{count}: {found[count]}", file=sys.stderr)
    return found


async def _meet(inventory: Inventory, folders: Folders, *, again: bool = False) -> Meeting:
    began = time.perf_counter()
    await _log_in(inventory, folders)
    logged_in, before_s = time.perf_counter(), _processor_s()
    async with open_hosts(inventory, folders, silent()) as hosts:
        met = time.perf_counter()
        await prepare_engine(hosts, folders, silent())
        ready = time.perf_counter()
        await gather_links(hosts, "bench-hosts", folders.state / "links", again=again)
        linked = time.perf_counter()
    used_s = _processor_s() - before_s
    return Meeting(logged_in - began, met - logged_in, linked - ready, ready - met, used_s)


async def _log_in(inventory: Inventory, folders: Folders) -> None:
    """What no program can do without that reaches hosts by SSH."""
    ssh = write_ssh_files(folders.state, inventory.path)

    async def one(host: Host) -> None:
        await (await connect(host, ssh, local_root=folders.cache)).close()

    all_or_raise(await each_host({host.name: one(host) for host in inventory.hosts}, limit=CONNECTIONS_AT_ONCE))


def _processor_s() -> float:
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


def _report(found: dict[int, Meeting]) -> int:
    few = found[FEW]
    print(f"| {' | '.join(HEADINGS)} |\n|{' --: |' * len(HEADINGS)}")
    for count, one in found.items():
        seconds = (one.login_s, one.connect_s, one.links_s, one.engine_s)
        ratios = (one.met_s / few.met_s, one.login_s / few.login_s)
        cells = (str(count), *(f"{one:.2f}" for one in seconds), *(f"{one:.1f}" for one in ratios), f"{one.here_s:.2f}")
        print(f"| {' | '.join(cells)} |")
    ratio = found[max(found)].met_s / few.met_s
    print(f"\nWanted: {max(found)} hosts in {WANTED:g} times the time of two: {'met' if ratio <= WANTED else 'missed'}")
    return int(ratio > WANTED)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
