"""Devices of given speed and memory on this one machine, as hosts of an inventory; all of it gone again afterwards.

A local device is a cgroup that every process of its host is started in (`run_with`). With a rate, devices are hosts of
a lab instead: reached by SSH over a link of that rate. The controller, which is this very process, has a cgroup too.
"""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random

import lab_hosts
import lab_kernel as kernel
from bench_plan_cells import CONTROLLER_CORES, LOCAL, Cell, host_names
from lab_folder import LabHost
from lab_kernel import CGROUPS, LabError, Names
from orchestrator.inventory import Host
from workers.budget import MIB, MemoryCap

LAB = "bench"
CONTROLLER = Names("bench-controller")
PERIOD_US = 5_000
"""Time that a cgroup has not used it may use at once when it wakes: about one period. Measured at a quarter of a core,
5 ms of computing after a pause take 5, 8.5 and 15 ms with periods of 20, 10 and 5 ms; a slow machine takes 20."""

PHASE_US = 150
"""How far from the others a device may begin to compute in a period. The kernel gives the timer of each cgroup a random
offset (`init_cfs_bandwidth` in kernel/sched/fair.c, since Linux 6.3): devices that have to meet many times per token
would wait for each other's quarter of a period, which slow machines do not have."""

PHASE_TRIES, PHASE_PERIODS = 200, 24

LEAST_QUOTA_US = 1_000
BESIDE_BUDGET_BYTES = 512 * MIB
"""What a host's cgroup may hold beside its budget: agents, page cache of the model's file."""


def unavailable() -> str | None:
    """Why no devices can be made here, with the fix; None when they can."""
    if reason := lab_hosts.unavailable():
        return reason
    if not (CGROUPS / "cpu" / "cpu.cfs_quota_us").exists() and not (CGROUPS / "cpu").is_dir():
        return "devices are made of cgroups of version 1 with the cpu controller, which this kernel does not show"
    return None


@contextmanager
def controller_held() -> Iterator[None]:
    """This process, and what it starts without a host's `run_with`, has `CONTROLLER_CORES`."""
    before = _own_cpu_cgroup()
    kernel.sweep(CONTROLLER)
    try:
        kernel.add_cgroup(CONTROLLER.host("self"), None, None)
        hold_cpu(CONTROLLER.host("self"), CONTROLLER_CORES)
        _enter(_cpu_folder(CONTROLLER.host("self")))
        yield
    finally:
        _enter(before)
        kernel.sweep(CONTROLLER)


@contextmanager
def devices(cell: Cell, folder: Path, memory_bytes: int | None) -> Iterator[tuple[Host, ...]]:
    """The cell's devices as hosts of an inventory; each may use `memory_bytes` of memory (None: no limit)."""
    made = _local_hosts(cell, memory_bytes) if cell.link == LOCAL else _lab(cell, folder, memory_bytes)
    with made as hosts:
        yield hosts


def enter_words(files: Sequence[Path]) -> tuple[str, ...]:
    """The words that put a command into cgroups, by their `cgroup.procs`."""
    return ("sh", str(Path(__file__).with_name("bench_enter.sh")), " ".join(str(file) for file in files))


def hold_cpu(cgroup: str, cores: float) -> None:
    """Give the cgroup that part of a core, with periods as short as the kernel allows for it, at the same time as every
    other: the timer's offset is changed at random until it is that."""
    folder, random = _cpu_folder(cgroup), Random()
    quota_us, period_us = cpu_quota(cores)
    for _ in range(PHASE_TRIES):
        _set_quota(folder, quota_us, period_us)
        phase_us = None if cores >= 1 else _phase(folder)  # a whole core is always there
        if phase_us is None or abs(phase_us) <= PHASE_US:
            return
        other_us = random.randint(2 * period_us, 8 * period_us)
        _set_quota(folder, max(LEAST_QUOTA_US, round(cores * other_us)), other_us)
        _phase(folder)  # the offset moves while something computes there
    raise LabError(f"the kernel's timer for the quota of {cgroup} cannot be brought together with the others'")


def _set_quota(folder: Path, quota_us: int, period_us: int) -> None:
    (folder / "cpu.cfs_quota_us").write_text("-1")
    (folder / "cpu.cfs_period_us").write_text(str(period_us))
    (folder / "cpu.cfs_quota_us").write_text(str(quota_us))


def _phase(folder: Path) -> int | None:
    """From when on, in microseconds within `PERIOD_US`, processes there may compute; None where they always may."""
    script, procs = Path(__file__).with_name("bench_plan_phase.py"), folder / "cgroup.procs"
    words = (sys.executable, "-I", "-S", str(script), str(procs), str(PERIOD_US), str(PHASE_PERIODS))
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    return int(said) if said else None


def cpu_quota(cores: float) -> tuple[int, int]:
    """Quota and period in microseconds; the kernel wants a quota of at least a millisecond."""
    period_us = max(PERIOD_US, int(LEAST_QUOTA_US / cores + 0.999))
    return round(cores * period_us), period_us


@contextmanager
def _local_hosts(cell: Cell, memory_bytes: int | None) -> Iterator[tuple[Host, ...]]:
    names = Names(LAB)
    kernel.sweep(names)
    try:
        yield tuple(
            Host(
                name,
                "local",
                memory=_cap(memory_bytes),
                run_with=_limited(names.host(f"{name}-{round(cores * 1000)}"), cores, memory_bytes),
            )
            for name, cores in zip(host_names(cell.setup), cell.setup.cores, strict=True)
        )
    finally:
        kernel.sweep(names)


def _limited(cgroup: str, cores: float, memory_bytes: int | None) -> tuple[str, ...]:
    """Make the cgroup; the words that put a command into it."""
    limit = None if memory_bytes is None else memory_bytes + BESIDE_BUDGET_BYTES
    files = kernel.add_cgroup(cgroup, None, limit)
    hold_cpu(cgroup, cores)
    return enter_words(files)


@contextmanager
def _lab(cell: Cell, folder: Path, memory_bytes: int | None) -> Iterator[tuple[Host, ...]]:
    speeds = zip(host_names(cell.setup), cell.setup.cores, strict=True)
    wanted = tuple(LabHost(name, cpu=cores, rate=cell.link) for name, cores in speeds)
    with lab_hosts.up(lab_hosts.LabSpec(folder, wanted, LAB)) as lab:
        for host in lab.hosts:
            hold_cpu(host.namespace, host.spec.cpu or 1.0)
        yield tuple(
            Host(
                host.name,
                "ssh",
                address=host.address,
                user=host.user,
                key=str(lab.client_key),
                host_key=host.fingerprint(),
                memory=_cap(memory_bytes),
            )
            for host in lab.hosts
        )


def _cap(memory_bytes: int | None) -> MemoryCap:
    return MemoryCap(share=0.8) if memory_bytes is None else MemoryCap(limit_bytes=memory_bytes)


def _cpu_folder(cgroup: str) -> Path:
    return CGROUPS / "cpu" / cgroup


def _own_cpu_cgroup() -> Path:
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "cpu" in controllers.split(","):
            return _cpu_folder(path.lstrip("/"))
    raise LabError("this process is in no cpu cgroup of version 1: devices cannot be made on this kernel")


def _enter(folder: Path) -> None:
    (folder / "cgroup.procs").write_text(str(os.getpid()))
