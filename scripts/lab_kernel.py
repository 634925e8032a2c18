"""What the lab asks of the Linux kernel: network namespaces, links, cgroups (versions 1 and 2), and ending processes.

Everything made here carries the lab's prefix, is found again by it alone, and is taken away by `sweep`, whoever made
it and however they ended. Nothing without the prefix is ever changed.
"""

import ipaddress
import json
import os
import re
import signal
import subprocess
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

NETNS = Path("/run/netns")
CGROUPS = Path("/sys/fs/cgroup")
COMMAND_DEADLINE_S = 20.0
CPU_PERIOD_US = 10_000
"""A tenth of the kernel's usual period: a slow machine is slow all the time, it does not stop for 75 ms at a time."""
LEAST_CPU_QUOTA_US = 1_000
JOIN_AND_RUN = 'for file in $1; do echo 0 >"$file"; done; shift; exec "$@"'


class LabError(Exception):
    """The lab cannot do what was asked; the text says why and what to do."""


@dataclass(frozen=True)
class Names:
    """The kernel names of one lab; interface names are short because the kernel allows 15 characters."""

    lab: str

    @property
    def prefix(self) -> str:
        return f"meshctl-lab.{self.lab}."

    @property
    def interface_prefix(self) -> str:
        return f"ml{zlib.crc32(self.lab.encode()):08x}"

    @property
    def bridge(self) -> str:
        return f"{self.interface_prefix}br"

    def host(self, name: str) -> str:
        """The name of a host's network namespace and cgroups."""
        return self.prefix + name

    def link(self, number: int) -> str:
        return f"{self.interface_prefix}h{number}"


def run(*words: str) -> str:
    """Run a command to its end and give its stdout; LabError with its stderr when it fails."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=COMMAND_DEADLINE_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise LabError(f"{' '.join(words)}: no end after {COMMAND_DEADLINE_S:g} s") from error
    if done.returncode != 0:
        raise LabError(f"{' '.join(words)}: {done.stderr.strip() or f'exit status {done.returncode}'}")
    return done.stdout


def start(words: Sequence[str], log: Path) -> None:
    """Start a command that outlives us, with its output in `log`."""
    with log.open("ab") as output:
        subprocess.run(
            ("setsid", "--fork", *words),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            timeout=COMMAND_DEADLINE_S,
            check=True,
        )


def joined(cgroup_files: Iterable[Path], words: Sequence[str]) -> tuple[str, ...]:
    """The command, made to enter the cgroups first; `cgroup_files` are their `cgroup.procs`."""
    return ("sh", "-c", JOIN_AND_RUN, "join", " ".join(map(str, cgroup_files)), *words)


def within(namespace: str, *words: str) -> tuple[str, ...]:
    """The command, run in the network namespace (and only that one)."""
    return ("nsenter", f"--net={NETNS / namespace}", *words)


def wait_until(condition: Callable[[], bool], deadline_s: float, pause_s: float = 0.02) -> bool:
    """Ask again and again; False when the deadline passes."""
    end = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(pause_s)
    return True


def free_subnet(wanted: str | None) -> ipaddress.IPv4Network:
    """The wanted /24, or the first of 10.213.7.0/24 and up that no address or route of this machine touches."""
    used = _used_networks()
    candidates = [wanted] if wanted else [f"10.213.{third}.0/24" for third in range(7, 255)]
    for text in candidates:
        subnet = ipaddress.IPv4Network(text)
        if not any(subnet.overlaps(one) for one in used):
            return subnet
    raise LabError(f"{wanted or '10.213.7.0/24 and all up to 10.213.254.0/24'} is in use here; choose another --subnet")


def add_bridge(names: Names, subnet: ipaddress.IPv4Network) -> None:
    """The switch that the hosts' links end in; it holds the controller's own address, the first of the subnet."""
    run("ip", "link", "add", names.bridge, "type", "bridge")
    run("ip", "address", "add", f"{subnet[1]}/{subnet.prefixlen}", "dev", names.bridge)
    run("ip", "link", "set", names.bridge, "up")


def add_link(names: Names, host: str, number: int, address: str, rate: str | None) -> None:
    """A namespace with one network card, `eth0`, plugged into the bridge; `rate` (tc's words) holds both directions."""
    namespace, link = names.host(host), names.link(number)
    run("ip", "netns", "add", namespace)
    run("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", namespace)
    run("ip", "link", "set", link, "master", names.bridge, "up")
    run("ip", "-n", namespace, "link", "set", "lo", "up")
    run("ip", "-n", namespace, "address", "add", address, "dev", "eth0")
    run("ip", "-n", namespace, "link", "set", "eth0", "up")
    if rate:
        shape_link(names, host, number, rate)


def shape_link(names: Names, host: str, number: int, rate: str) -> None:
    """Hold a host's link to another rate, both ways."""
    shape = ("root", "tbf", "rate", rate, "burst", str(burst_bytes(rate)), "latency", "50ms")
    run("tc", "qdisc", "replace", "dev", names.link(number), *shape)
    run("tc", "-n", names.host(host), "qdisc", "replace", "dev", "eth0", *shape)


def burst_bytes(rate: str) -> int:
    """What may pass at once: a millisecond's worth, at least ten full packets."""
    match = re.fullmatch(r"([0-9.]+)(k|m|g)?bit", rate)
    if match is None:
        raise LabError(f'rate "{rate}" is not understood; write one such as 100mbit or 1gbit')
    bits_per_s = float(match[1]) * {"k": 1e3, "m": 1e6, "g": 1e9}.get(match[2], 1.0)
    return max(15_140, int(bits_per_s / 8 / 1000))


def add_cgroup(name: str, cpu: float | None, memory_bytes: int | None) -> tuple[Path, ...]:
    """Cgroups that hold the processes in them to `cpu` cores and `memory_bytes`; their `cgroup.procs` files."""
    if (CGROUPS / "cgroup.controllers").exists():
        return _add_cgroup_2(name, cpu, memory_bytes)
    return _add_cgroup_1(name, cpu, memory_bytes)


def cgroup_pids(name: str) -> tuple[int, ...]:
    """The processes in the cgroups of that name, children included."""
    pids = {int(word) for folder in cgroup_folders(name) for word in _read(folder / "cgroup.procs").split()}
    return tuple(sorted(pids))


def cgroup_folders(pattern: str) -> list[Path]:
    """The cgroups of that name (or glob pattern), in whichever hierarchies there are."""
    return [*CGROUPS.glob(pattern), *CGROUPS.glob(f"cpu/{pattern}"), *CGROUPS.glob(f"memory/{pattern}")]


def memory_used_bytes(name: str) -> int:
    """What the kernel counts for the cgroup: the processes' memory and the pages of files they touched."""
    for folder in cgroup_folders(name):
        for file in ("memory.usage_in_bytes", "memory.current"):
            text = _read(folder / file)
            if text:
                return int(text)
    return 0


def sweep(names: Names) -> None:
    """End every process of the lab and take every kernel object of it away; nothing there is no error."""
    namespaces = [path.name for path in NETNS.glob(f"{names.prefix}*")]
    _end_processes(lambda: {*_pids_of_namespaces(namespaces), *cgroup_pids(f"{names.prefix}*")})
    for interface in _interfaces():
        if interface.startswith(names.interface_prefix):
            with suppress(LabError):  # gone with the other end of its pair, or with its namespace
                run("ip", "link", "delete", interface)
    for namespace in namespaces:
        run("ip", "netns", "delete", namespace)
    for folder in cgroup_folders(f"{names.prefix}*"):
        if not wait_until(partial(_removed, folder), 5):
            raise LabError(f"the cgroup {folder} cannot be removed; see which processes are in its cgroup.procs")


def end_host(namespace: str) -> None:
    """End every process of a host at once, and take its cgroups away; its network stays."""
    _end_processes(lambda: {*_pids_of_namespaces([namespace]), *cgroup_pids(namespace)})
    for folder in cgroup_folders(namespace):
        if not wait_until(partial(_removed, folder), 5):
            raise LabError(f"the cgroup {folder} cannot be removed; see which processes are in its cgroup.procs")


def leftovers(names: Names) -> tuple[str, ...]:
    """What of the lab still exists in the kernel."""
    found = [*NETNS.glob(f"{names.prefix}*"), *cgroup_folders(f"{names.prefix}*")]
    return (
        *(str(path) for path in found),
        *(one for one in _interfaces() if one.startswith(names.interface_prefix)),
    )


def _used_networks() -> Iterator[ipaddress.IPv4Network]:
    for route in json.loads(run("ip", "-json", "-4", "route", "show", "table", "all")):
        if route["dst"] != "default":
            yield ipaddress.IPv4Network(route["dst"], strict=False)


def _add_cgroup_1(name: str, cpu: float | None, memory_bytes: int | None) -> tuple[Path, ...]:
    folders = [CGROUPS / "cpu" / name, CGROUPS / "memory" / name]
    for folder in folders:
        if not folder.parent.is_dir():
            raise LabError(f"{folder.parent} is missing: this kernel cannot limit {folder.parent.name} by cgroups")
        folder.mkdir()
    if cpu is not None:
        quota_us, period_us = _cpu_quota(cpu)
        (folders[0] / "cpu.cfs_period_us").write_text(str(period_us))
        (folders[0] / "cpu.cfs_quota_us").write_text(str(quota_us))
    if memory_bytes is not None:
        (folders[1] / "memory.limit_in_bytes").write_text(str(memory_bytes))
        swap = folders[1] / "memory.memsw.limit_in_bytes"
        if swap.exists():
            swap.write_text(str(memory_bytes))
    return tuple(folder / "cgroup.procs" for folder in folders)


def _add_cgroup_2(name: str, cpu: float | None, memory_bytes: int | None) -> tuple[Path, ...]:
    (CGROUPS / "cgroup.subtree_control").write_text("+cpu +memory")
    folder = CGROUPS / name
    folder.mkdir()
    if cpu is not None:
        (folder / "cpu.max").write_text("{} {}".format(*_cpu_quota(cpu)))
    if memory_bytes is not None:
        (folder / "memory.max").write_text(str(memory_bytes))
        if (folder / "memory.swap.max").exists():
            (folder / "memory.swap.max").write_text("0")
    return (folder / "cgroup.procs",)


def _cpu_quota(cpu: float) -> tuple[int, int]:
    period_us = max(CPU_PERIOD_US, int(LEAST_CPU_QUOTA_US / cpu + 1))
    return int(cpu * period_us), period_us


def _pids_of_namespaces(namespaces: Iterable[str]) -> set[int]:
    pids: set[int] = set()
    for namespace in namespaces:
        with suppress(LabError):  # a file that a crash left behind without a namespace mounted on it
            pids |= {int(word) for word in run("ip", "netns", "pids", namespace).split()}
    return pids


def _end_processes(find: Callable[[], set[int]]) -> None:
    def ended() -> bool:
        pids = find() - {os.getpid()}
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not pids

    if not wait_until(ended, 10):
        raise LabError(f"processes {sorted(find())} do not end; end them by hand and try again")


def _interfaces() -> list[str]:
    return [path.name for path in Path("/sys/class/net").iterdir()]


def _removed(folder: Path) -> bool:
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
