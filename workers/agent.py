#!/usr/bin/env python3
"""The part of meshctl that runs on a host: it answers questions about the host and holds programs on a leash.

It is copied to the host as one file and run by whatever Python 3.8 or newer is there, so it uses the standard library
only and imports nothing of the project. stdout is JSON; a failure is {"error": "..."} with exit status 1. It opens no
port but the measuring server's (`link`, loopback only), those of bridges, and, where the user wants it, one at which
another host fetches weights (`give`); it leaves nothing running when it ends.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import errno
import fcntl
import fnmatch
import glob
import hashlib
import ipaddress
import json
import os
import platform
import pwd
import re
import resource
import select
import selectors
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import traceback
from collections import deque
from typing import Any, BinaryIO, Callable, Collection, Iterable, Iterator, Mapping, NamedTuple

KIB = 1024
MIB = 1024 * 1024
QUESTION_TIMEOUT_S = 10.0
ALIVE_EVERY_S = 2.0
STOP_STAGES = ((signal.SIGTERM, 2.0), (signal.SIGTERM, 1.0), (signal.SIGKILL, 5.0))
"""The orderly stop: each signal to the whole group, and how long it is given before the next.

The second SIGTERM is what ends a llama-server that still has an open stream.
"""
FIRST_PORT = 20000
LARGEST_TRANSFER_BYTES = 1024 * MIB
LARGEST_ECHO_BYTES = 16 * MIB
LINK_CONNECTIONS = 8
LINK_IDLE_S = 60.0
LOCK_WAIT_S = 300.0
LOCK_LOOK_S = 0.2
LOG_TIMES_S = 1.0
TELL_S = 0.5
FOLLOW_EVERY_S = 0.25
FOLLOW_BYTES = 256 * KIB
STALE_S = 15 * 60.0
"""What is being written changes all the time: unfinished files untouched for this long belong to nobody any more."""

RESUMED = ".resumed.part"
RESUMED_S = 24 * 3600.0
"""An unfinished file of a transfer that can go on keeps this ending, and is kept as much longer."""

TEMPORARY_NAMES = ("*.tmp-*", "*.old-*", "*.part", "*.part-*", "*.partial", "head*.key")
"""The last: a head has read its key long before."""

CAPTURED_BYTES = 8 * MIB
LINK_PATIENCE_S = 20.0
NETWORK_PATIENCE_S = 30.0
ATTEND_S = 20.0
"""Without a question for so long nobody waits for questions any more."""

BRIDGE_BYTES = 256 * KIB
BRIDGE_BACKLOG = 8
BRIDGE_LOOK_S = 2.0
LARGEST_DESCRIPTOR = 4096
BLAKE2B_DIGITS = 128
MARK = ".mark"
BESIDE_ITEMS = (MARK, ".lock", ".log", ".tar.gz", ".tar.gz.mark", ".code")
LOGS = "logs"
ITEM_FOLDERS = ("agent", "engines", LOGS, "models", "packs", "slices")
MANIFEST = "manifest.json"
PACKED = "rpc"
"""The folder of a pack that the engine's worker looks for tensors in (LLAMA_CACHE is the pack)."""

COMING = "coming"
"""The folder of a pack with tensors that are not whole yet, "NAME.TOKEN", the token being that of whoever sends it."""

FRESH_PACK_S = 3600.0
"""What was put there within this time somebody is about to start with."""

COMING_KEPT_S = 7 * 24 * 3600.0
"""A transfer that was cut off goes on where it was; one that nobody has gone on with for a week is given up."""

SOCKETS = "run"
"""The folder of sockets: it goes with nothing, as what runs is reached by it."""

BESIDE_ENGINE = ("manifest.json", "proofs.json", "excluded", ".smoke")
PACKAGE_MANAGERS = ("apt-get", "dnf", "zypper", "pacman", "apk", "brew")
SERVING = ("ggml-rpc-server", "llama-server")
OUR_VARIABLE = "GGML_NO_BACKTRACE=1"
"""Every program of the engine that is ours is started with it (`engine_commands.ENVIRONMENT`)."""

FIRST_USER = 1000
NO_USER = 65534

PR_SET_PDEATHSIG = 1  # linux/prctl.h
PR_SET_CHILD_SUBREAPER = 36

CLONE_NEWUSER = 0x10000000  # linux/sched.h
CLONE_NEWNET = 0x40000000

SIOCGIFFLAGS = 0x8913  # linux/sockios.h
SIOCSIFFLAGS = 0x8914
SIOCGIFADDR = 0x8915
IFF_UP = 0x1  # linux/if.h
ARPHRD_ETHER = "1"  # linux/if_arp.h
MAC_RADIOS = ("Wi-Fi", "AirPort", "Bluetooth PAN")


class AgentError(Exception):
    """What was asked cannot be done; the text is the answer."""


def main(arguments: list[str]) -> int:
    """Run one verb; the exit status is 0, 1 for a failure that the answer names, 2 for wrong usage."""
    options, words = split_words(arguments)
    parsed = parser().parse_args(options)
    try:
        return int(parsed.verb(parsed, words) or 0)
    except AgentError as error:
        return say_error(str(error))
    except OSError as error:
        return say_error(describe(error))


def split_words(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Options before the first `--`, the words of a program after it."""
    if "--" not in arguments:
        return arguments, []
    cut = arguments.index("--")
    return arguments[:cut], arguments[cut + 1 :]


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(prog="agent.py", description="meshctl's agent on a host")
    verbs = result.add_subparsers(required=True, dest="verb_name")

    def verb(name: str, run: Callable[..., int | None], *flags: tuple[str, dict[str, Any]]) -> None:
        one = verbs.add_parser(name)
        one.set_defaults(verb=run)
        for flag, settings in flags:
            one.add_argument(flag, **settings)

    needed: dict[str, Any] = {"required": True}
    verb("facts", answer_facts, ("--root", needed))
    verb(
        "leash",
        hold_leash,
        ("--name", needed),
        ("--log", needed),
        ("--log-bytes", {"type": int, "default": 8 * MIB}),
        ("--heartbeat-s", {"type": float, "default": 10.0}),
        ("--env", {"action": "append", "default": []}),
        ("--uses", {"action": "append", "default": []}),
        ("--temporary", {"action": "append", "default": []}),
        ("--capture", {"action": "store_true"}),
        ("--tell", {"action": "store_true"}),
        ("--private", {"action": "store_true"}),
        ("--network", {"type": int, "default": 0}),
        ("--bridge", {"default": ""}),
        ("--bridge-network", {"type": int, "default": 0}),
    )
    verb("network", hold_network)
    verb("enter", enter_and_run, ("--private", {"action": "store_true"}), ("--network", {"type": int, "default": 0}))
    verb("link", serve_link, ("--address", {"default": "127.0.0.1"}), ("--socket", {"default": ""}))
    verb("ports", answer_ports, ("--count", {"type": int, "default": 1}), ("--address", {"default": "127.0.0.1"}))
    verb("unpack", answer_unpack, ("archive", {}), ("folder", {}), ("sha256", {}))
    verb("check", answer_check, ("folder", {}))
    verb("digest", answer_digest, ("file", {}))
    verb("hold", hold_lock, ("file", {}))
    verb("tools", answer_tools)
    several: dict[str, Any] = {"nargs": "+"}
    verb("collect", answer_collect, ("binaries", {}), ("folder", {}), ("manifest", {}), ("programs", several))
    verb("orphans", answer_orphans, ("--root", needed), ("--keep", {"nargs": "+", **needed}))
    since: dict[str, Any] = {"type": float, "default": None}
    verb("tail", answer_tail, ("file", {}), ("--lines", {"type": int, "default": 20}), ("--since-s", since))
    verb(
        "follow",
        follow_logs,
        ("folder", {}),
        ("--lines", {"type": int, "default": 0}),
        ("--since-s", since),
        ("--from-clock-s", since),
        ("--heartbeat-s", {"type": float, "default": 10.0}),
    )
    verb("tidy", answer_tidy, ("--root", needed))
    verb("listen", answer_listen, ("--network", {"type": int, "default": 0}))
    verb("look", answer_look, ("item", {}), ("name", {}))
    verb("record", answer_record, ("item", {}), ("name", {}), ("size", {"type": int}), ("sha256", {}))
    verb("stored", answer_stored, ("--root", needed), ("--check", {"choices": ("none", "sizes", "hashes")}))
    verb("forget", answer_forget, ("--root", needed), ("items", {"nargs": "*"}))
    verb("others", answer_others)
    verb("vulkan", answer_vulkan)
    verb("attend", answer_many, ("--facts", {"default": ""}))
    tell: tuple[str, dict[str, Any]] = ("--tell", {"action": "store_true"})
    verb("pack", answer_pack, ("item", {}), ("token", {}), ("--every-byte", {"action": "store_true"}), tell)
    verb("carve", answer_carve, ("item", {}), ("model", {}), tell)
    verb(
        "take",
        answer_take,
        *(("item", {}), ("name", {}), ("token", {}), ("size", {"type": int}), ("blake2b", {})),
    )
    verb("held", answer_held, ("item", {}), ("model", {}))
    address, peer = ("--address", needed), ("--peer", needed)
    verb("give", give_weights, ("item", {}), ("model", {}), address, peer)
    seconds: dict[str, Any] = {"type": float, "default": None}
    verb("fetch", answer_fetch, ("item", {}), address, ("--port", {"type": int}), ("--seconds", seconds), tell)
    verb("place", answer_place, ("folder", {}))
    verb("drop", answer_drop, ("item", {}), ("token", {}))
    verb("thin", answer_thin, ("item", {}))
    verb("mend", answer_mend, ("item", {}))
    return result


def say(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


class Teller:
    """Says how far something has come that takes long, now and then, before its answer; nothing unless `wanted`."""

    def __init__(self, wanted: bool, total_bytes: int) -> None:
        self.wanted = wanted
        self.total_bytes = total_bytes
        self.done_bytes = 0
        self.next_s = 0.0

    def add(self, size_bytes: int) -> None:
        self.done_bytes += size_bytes
        now_s = time.monotonic()
        if self.wanted and (now_s >= self.next_s or self.done_bytes == self.total_bytes):
            self.next_s = now_s + TELL_S
            say({"done_bytes": self.done_bytes, "total_bytes": self.total_bytes})


def say_error(text: str) -> int:
    say({"error": text})
    return 1


def describe(error: OSError) -> str:
    place = f"{error.filename}: " if error.filename else ""
    return f"{place}{error.strerror or error}"


def sha256_of(path: str) -> str:
    return hash_file(path, hashlib.sha256())


def blake2b_of(path: str) -> str:
    return hash_file(path, hashlib.blake2b())


def hash_file(path: str, digest: Any) -> str:
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(MIB), b""):
            digest.update(block)
    return str(digest.hexdigest())


def ask(words: Iterable[str], timeout_s: float = QUESTION_TIMEOUT_S) -> str:
    """stdout of a command, "" when it is missing, fails or takes too long: absent tools are an answer here."""
    try:
        finished = subprocess.run(
            list(words),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=timeout_s,
            env={**os.environ, "LC_ALL": "C"},
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return finished.stdout.decode(errors="replace") if finished.returncode == 0 else ""


def read_text(*parts: str) -> str:
    """A small file's text, "" when it is not there or not ours to read: kernels differ in what they show."""
    try:
        with open(os.path.join(*parts), "rb") as file:
            return file.read().decode(errors="replace")
    except OSError:
        return ""


# facts


def answer_facts(options: argparse.Namespace, words: list[str]) -> None:
    root = os.path.abspath(os.path.expanduser(options.root))
    measured = {**system_facts(), **processor_facts(), **memory_and_gpus(), **disk_facts(root)}
    connection = os.environ.get("SSH_CONNECTION", "")
    reached = {"medium": medium(connection), "address": own_address(connection)}
    network = {"private_network_refused": private_network_refused()}
    say({**measured, **reached, **network, "clock_s": time.time()})


def system_facts() -> dict[str, Any]:
    start = boot()
    return {
        "os": platform.system(),
        "os_name": os_name(),
        "architecture": architecture(),
        "libc": libc(),
        "python": platform.python_version(),
        "hostname": socket.gethostname(),
        "user": user_name(),
        "compiler": compiler(),
        "boot": hashlib.sha256(start.encode()).hexdigest()[:16] if start else "",
    }


def boot() -> str:
    """The same for all that runs on this kernel until it starts anew; "" where it is not told."""
    return (read_text("/proc/sys/kernel/random/boot_id") or ask(("sysctl", "-n", "kern.bootsessionuuid"))).strip()


def is_mac() -> bool:
    return platform.system() == "Darwin"


def user_name() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def os_name(root: str = "/") -> str:
    if is_mac():
        return f"macOS {platform.mac_ver()[0]}"
    return read_os_release(read_text(root, "etc/os-release")) or platform.system()


def read_os_release(text: str) -> str:
    """PRETTY_NAME of /etc/os-release (freedesktop.org: os-release)."""
    found = re.search(r"^PRETTY_NAME=(['\"]?)(.*)\1\s*$", text, re.MULTILINE)
    return found.group(2) if found else ""


def architecture() -> str:
    """What programs here are built for: not always what the kernel says.

    A 32-bit Raspberry Pi OS runs on a 64-bit kernel, and a Python under Rosetta believes in an Intel Mac.
    """
    machine = platform.machine()
    if is_mac() and ask(("sysctl", "-n", "hw.optional.arm64")).strip() == "1":
        return "arm64"
    if sys.maxsize < 2**32:
        return {"aarch64": "armv7l", "x86_64": "i686"}.get(machine, machine)
    return machine


def libc(root: str = "/") -> str:
    if is_mac():
        return ""
    with contextlib.suppress(ValueError, OSError):
        return os.confstr("CS_GNU_LIBC_VERSION") or ""
    for loader in glob.glob(os.path.join(root, "lib/ld-musl-*.so.1")):
        return read_musl(loader_text(loader))
    return ""


def loader_text(loader: str) -> str:
    """musl's loader without arguments prints its version to stderr and fails."""
    try:
        finished = subprocess.run([loader], stderr=subprocess.PIPE, timeout=QUESTION_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return finished.stderr.decode(errors="replace")


def read_musl(text: str) -> str:
    found = re.search(r"^Version (\S+)", text, re.MULTILINE)
    return f"musl {found.group(1)}" if found else "musl"


def compiler() -> str:
    # On a Mac without developer tools `c++` opens a dialog on the screen of whoever sits there.
    if is_mac() and not ask(("xcode-select", "-p")):
        return ""
    return ask(("c++", "--version")).partition("\n")[0].strip()


def disk_facts(root: str) -> dict[str, Any]:
    folder = root
    while not os.path.exists(folder):
        folder = os.path.dirname(folder)
    disk = os.statvfs(folder)
    total, free = disk.f_blocks * disk.f_frsize, disk.f_bavail * disk.f_frsize
    return {"root": root, "disk_total_bytes": total, "disk_free_bytes": free}


# the network


def medium(connection: str) -> str:
    """Over what this host is reached: "wired", "wireless", or "" where the system does not tell.

    `connection` is what sshd sets as SSH_CONNECTION: the client's address and port, then this host's (ssh(1)).
    """
    return medium_at(own_address(connection))


def medium_at(address: str) -> str:
    """The same of this host's interface with that address; "" for none."""
    if not address:
        return ""
    if is_mac():
        return read_mac_medium(address, ask(("ifconfig",)), ask(("networksetup", "-listallhardwareports")))
    name = interface_of(address)
    return interface_medium("/", name) if name else ""


def own_address(connection: str) -> str:
    """This host's address that SSH came to, "" without SSH; see `medium`."""
    words = connection.split()
    return words[2].partition("%")[0] if len(words) == 4 else ""


def interface_of(address: str, root: str = "/") -> str:
    """The interface that has this address, "" when none does. Source of the format of if_inet6: proc_net(5)."""
    wanted = ipaddress.ip_address(address)
    for line in read_text(root, "proc/net/if_inet6").splitlines():
        words = line.split()
        if ipaddress.ip_address(bytes.fromhex(words[0])) == wanted:
            return words[-1]
    names = (name for _, name in socket.if_nameindex())
    return next((name for name in names if ipv4_address(name) == str(wanted)), "")


def ipv4_address(interface: str) -> str:
    """The interface's first IPv4 address, "" when it has none (netdevice(7))."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket, contextlib.suppress(OSError):
        answer = fcntl.ioctl(any_socket, SIOCGIFADDR, struct.pack("256s", interface.encode()))
        return socket.inet_ntoa(answer[20:24])
    return ""


def interface_medium(root: str, name: str) -> str:
    """Wireless interfaces have a radio in sysfs; bridges, bonds and VLANs are what lies below them.

    A pair of virtual Ethernet interfaces counts as wired; a VPN's tunnel tells nothing.
    """
    folder = os.path.join(root, "sys/class/net", name)
    entries = os.listdir(folder) if os.path.isdir(folder) else []
    if "wireless" in entries or "phy80211" in entries:
        return "wireless"
    below = {interface_medium(root, entry[len("lower_") :]) for entry in entries if entry.startswith("lower_")}
    if below:
        return "wireless" if "wireless" in below else below.pop() if len(below) == 1 else ""
    return "wired" if read_text(folder, "type").strip() == ARPHRD_ETHER else ""


def read_mac_medium(address: str, interfaces: str, hardware_ports: str) -> str:
    """From `ifconfig` and `networksetup -listallhardwareports`; a VPN is no hardware port and tells nothing."""
    for block in re.split(r"^(?=\S)", interfaces, flags=re.MULTILINE):
        if re.search(rf"\sinet6? {re.escape(address)}[%\s]", block):
            name = block.partition(":")[0]
            port = re.search(rf"^Hardware Port: (.+)\nDevice: {re.escape(name)}$", hardware_ports, re.MULTILINE)
            if port:
                return "wireless" if port.group(1) in MAC_RADIOS else "wired"
    return ""


# processors


def processor_facts() -> dict[str, Any]:
    if is_mac():
        return read_mac_processor(ask(("sysctl", "hw", "machdep.cpu")))
    allowed = sorted(os.sched_getaffinity(0))
    information = read_text("/proc/cpuinfo")
    name = processor_name(information, read_text("/proc/device-tree/model").strip("\0\n"))
    return {
        "cpu_name": name or platform.machine(),
        "cpu_features": processor_features(information),
        "cores_physical": physical_cores("/", allowed),
        "cores_logical": len(allowed),
        "processors": allowed,
        "cpu_quota": cpu_quota("/"),
    }


def processor_name(information: str, board: str) -> str:
    """x86 kernels name the model per processor; ARM boards are known by their device tree."""
    for key in ("model name", "Model", "Hardware"):
        found = re.search(rf"^{key}\s*: (.+)$", information, re.MULTILINE)
        if found:
            return found.group(1).strip()
    return board


def processor_features(information: str) -> list[str]:
    found = re.search(r"^(?:flags|Features)\s*: (.+)$", information, re.MULTILINE)
    return sorted(set(found.group(1).split())) if found else []


def physical_cores(root: str, allowed: Iterable[int]) -> int:
    """Cores behind the logical processors that this process may use, by sysfs, else by /proc/cpuinfo."""
    processors = set(allowed)
    cores = {
        read_text(root, f"sys/devices/system/cpu/cpu{processor}/topology/thread_siblings_list").strip()
        for processor in processors
    }
    if "" in cores:
        cores = cores_of_cpuinfo(read_text(root, "proc/cpuinfo"), processors)
    return len(cores) or len(processors)


def cores_of_cpuinfo(information: str, processors: set[int]) -> set[str]:
    cores = set()
    for block in information.split("\n\n"):
        values = dict(re.findall(r"^(processor|physical id|core id)\s*: (\d+)$", block, re.MULTILINE))
        if "core id" in values and int(values.get("processor", -1)) in processors:
            cores.add(f"{values.get('physical id', '0')}:{values['core id']}")
    return cores


def read_mac_processor(text: str) -> dict[str, Any]:
    """From `sysctl hw machdep.cpu`: `key: value` lines, of which Intel and Apple chips have different ones."""
    values = dict(re.findall(r"^([\w.]+): (.*)$", text, re.MULTILINE))
    intel = f"{values.get('machdep.cpu.features', '')} {values.get('machdep.cpu.leaf7_features', '')}".lower().split()
    optional = [key.rpartition(".")[2] for key, value in values.items() if "optional" in key and value == "1"]
    logical = int(values.get("hw.logicalcpu", "1"))
    return {
        "cpu_name": values.get("machdep.cpu.brand_string", "unknown"),
        "cpu_features": sorted({*intel, *optional}),
        "cores_physical": int(values.get("hw.physicalcpu", logical)),
        "cores_logical": logical,
        "cpu_quota": None,
    }


# control groups


def cgroup_folders(root: str, controller: str) -> list[str]:
    """The folders of the control groups that hold this process for one controller, innermost first.

    Version 1 mounts each controller by itself, version 2 all at one place; a hybrid system has both. `root` stands
    for `/`. A folder that lies above what is mounted here (a container) cannot be seen and is left out.
    Sources: cgroups(7), proc_pid_mountinfo(5).
    """
    folders: list[str] = []
    for line in read_text(root, "proc/self/cgroup").splitlines():
        controllers, _, path = line.partition(":")[2].partition(":")
        for mount in cgroup_mounts(root):
            if mount.serves(controllers, controller):
                folders += upward(mount, path)
    return [os.path.join(root, folder.lstrip("/")) for folder in folders]


class Mount(NamedTuple):
    root: str
    place: str
    kind: str
    options: list[str]

    def serves(self, controllers: str, controller: str) -> bool:
        """Whether a line of /proc/self/cgroup with these `controllers` ("" for version 2) speaks of this mount."""
        if not controllers:
            return self.kind == "cgroup2"
        return controller in controllers.split(",") and controller in self.options


def cgroup_mounts(root: str) -> list[Mount]:
    mounts = []
    for line in read_text(root, "proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        fields, tail = before.split(), after.split()
        if len(fields) > 4 and len(tail) > 2 and tail[0] in ("cgroup", "cgroup2"):
            mounts.append(Mount(unescape(fields[3]), unescape(fields[4]), tail[0], tail[2].split(",")))
    return mounts


def unescape(text: str) -> str:
    """The kernel writes blanks in mountinfo as `\\040`."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found.group(1), 8)), text)


def upward(mount: Mount, path: str) -> Iterator[str]:
    relative = os.path.relpath(path, mount.root)
    parts = [] if relative == "." or relative.startswith("..") else relative.split("/")
    for count in range(len(parts), -1, -1):
        yield "/".join([mount.place, *parts[:count]])


def cpu_quota(root: str) -> float | None:
    """The cores' worth of time that the tightest group allows; None without a limit."""
    quotas = []
    for folder in cgroup_folders(root, "cpu"):
        words = read_text(folder, "cpu.max").split() or [
            read_text(folder, "cpu.cfs_quota_us").strip(),
            read_text(folder, "cpu.cfs_period_us").strip(),
        ]
        if words[0].isdigit() and words[1].isdigit():
            quotas.append(int(words[0]) / int(words[1]))
    return round(min(quotas), 4) if quotas else None


class MemoryGroup(NamedTuple):
    folder: str
    limit_bytes: int
    left_bytes: int


def memory_groups(root: str) -> list[MemoryGroup]:
    """Every limited memory group above this process, and what a new process may still take in it."""
    groups = []
    for folder in cgroup_folders(root, "memory"):
        limits = [read_text(folder, name).strip() for name in ("memory.max", "memory.high", "memory.limit_in_bytes")]
        known = [int(limit) for limit in limits if limit.isdigit()]
        if known:
            groups.append(MemoryGroup(folder, min(known), min(known) - unreclaimable_bytes(folder)))
    return groups


def unreclaimable_bytes(folder: str) -> int:
    """What a group holds and cannot give back.

    Its page cache (inactive_file + active_file) counts as free: the kernel drops those pages before it refuses memory
    or kills anything, and a group that has just received a model file is full of them. Shared memory is not among
    them: it lies on the anonymous lists.
    """
    usage = read_text(folder, "memory.current").strip() or read_text(folder, "memory.usage_in_bytes").strip()
    values: dict[str, str] = dict(re.findall(r"^(\w+) (\d+)$", read_text(folder, "memory.stat"), re.MULTILINE))
    # Version 1 counts a group's descendants only under total_*; version 2 always does.
    reclaimable = sum(int(values.get(f"total_{key}", values.get(key, 0))) for key in ("inactive_file", "active_file"))
    return max(0, int(usage or 0) - reclaimable)


# memory


class Memory(NamedTuple):
    """Bytes of a host; `limited_by` names the control group that is tighter than the machine."""

    total_bytes: int
    available_bytes: int
    limited_by: str


def linux_memory(root: str = "/") -> Memory:
    """The machine's own figures (proc_meminfo(5)), or those of the tightest control group, whichever are less."""
    values = dict(re.findall(r"^(\w+):\s+(\d+) kB$", read_text(root, "proc/meminfo"), re.MULTILINE))
    if "MemAvailable" not in values:
        raise AgentError("/proc/meminfo does not say MemAvailable: the kernel is older than 3.14")
    memory = Memory(int(values["MemTotal"]) * KIB, int(values["MemAvailable"]) * KIB, "")
    for group in memory_groups(root):
        if group.limit_bytes >= memory.total_bytes and group.left_bytes >= memory.available_bytes:
            continue
        tightest = group.left_bytes < memory.available_bytes
        memory = Memory(
            min(memory.total_bytes, group.limit_bytes),
            max(0, min(memory.available_bytes, group.left_bytes)),
            group.folder if tightest or not memory.limited_by else memory.limited_by,
        )
    return memory


def mac_memory() -> Memory:
    total = int(ask(("sysctl", "-n", "hw.memsize")) or 0)
    return Memory(total, min(total, read_vm_stat(ask(("vm_stat",)))), "")


def read_vm_stat(text: str) -> int:
    """Bytes a new process may take on a Mac without compressing or swapping: free, file-backed and purgeable pages.

    Activity Monitor's "cached files" are the last two. Speculative pages are file-backed ones; vm_stat has already
    taken them off "Pages free".
    """
    page = re.search(r"page size of (\d+) bytes", text)
    values = dict(re.findall(r'^"?([\w -]+?)"?:\s+(\d+)\.$', text, re.MULTILINE))
    if page is None or "Pages free" not in values:
        raise AgentError("vm_stat gives no figures that can be read")
    kinds = ("Pages free", "File-backed pages", "Pages purgeable")
    return int(page.group(1)) * sum(int(values.get(kind, "0")) for kind in kinds)


def current_memory() -> Memory:
    return mac_memory() if is_mac() else linux_memory()


def available_bytes() -> int | None:
    """None when the host does not say just now: a question that failed is no reason to end a program."""
    try:
        return current_memory().available_bytes
    except AgentError:
        return None


def memory_and_gpus() -> dict[str, Any]:
    memory = current_memory()
    return {
        "memory_total_bytes": memory.total_bytes,
        "memory_available_bytes": memory.available_bytes,
        "memory_limited_by": memory.limited_by,
        "gpus": mac_gpus(memory) if is_mac() else [*nvidia_gpus(memory), *vulkan_gpus()],
    }


# graphics processors


GPU_PATIENCE_S = 20.0
"""Drivers that sleep take seconds; all questions about a host have to end before its facts are given up."""


def nvidia_gpus(memory: Memory) -> list[dict[str, Any]]:
    # Under WSL the tool lies where a login without a terminal does not look.
    program = shutil.which("nvidia-smi") or "/usr/lib/wsl/lib/nvidia-smi"
    fields = "memory.total,memory.free,index,compute_cap,name"
    old_fields = "memory.total,memory.free,index,index,name"  # drivers before 2022 know no compute_cap
    begun = time.monotonic()
    for asked in (fields, old_fields):
        words = (program, f"--query-gpu={asked}", "--format=csv,noheader,nounits")
        text = ask(words, timeout_s=GPU_PATIENCE_S)
        if text or time.monotonic() - begun >= GPU_PATIENCE_S:  # a card that hangs is not asked again
            return read_nvidia(text, memory)
    return []


def read_nvidia(text: str, memory: Memory) -> list[dict[str, Any]]:
    """Lines of `MiB in all, MiB free, index, compute capability, name`; chips that share the host's memory say "[N/A]"
    for both sizes."""
    gpus = []
    for line in text.splitlines():
        fields = [field.strip() for field in line.split(",", 4)]
        if len(fields) < 5 or not fields[2].isdigit():
            continue
        total = int(fields[0]) * MIB if fields[0].isdigit() else memory.total_bytes
        free = int(fields[1]) * MIB if fields[1].isdigit() else memory.available_bytes
        found = gpu("cuda", int(fields[2]), fields[4], total, free)
        capability = fields[3] if re.match(r"\d+\.\d+$", fields[3]) else ""
        gpus.append({**found, "compute_capability": capability, "shares_memory": not fields[0].isdigit()})
    return gpus


def vulkan_gpus() -> list[dict[str, Any]]:
    """What the host's Vulkan drivers reach, but not those that compute on the processor.

    Drivers are foreign code: they are asked in a process of their own. Where the kernel has no graphics device nobody
    is asked, since that takes a while.
    """
    if not any(map(glob.glob, ("/dev/dri/renderD*", "/dev/nvidia[0-9]*", "/dev/dxg", "/dev/kgsl-3d0"))):
        return []
    found = ask((sys.executable, "-I", "-S", os.path.abspath(__file__), "vulkan"), timeout_s=GPU_PATIENCE_S)
    try:
        return list(json.loads(found)["gpus"]) if found else []
    except (ValueError, KeyError, TypeError):
        return []


def answer_vulkan(options: argparse.Namespace, words: list[str]) -> None:
    try:
        vulkan = ctypes.CDLL("libvulkan.so.1")
    except OSError:
        say({"gpus": []})
        return
    say({"gpus": ask_vulkan(vulkan, VULKAN_GPUS)})


INTEGRATED = 1
VULKAN_GPUS = (INTEGRATED, 2, 3)
"""VkPhysicalDeviceType of those that are GPUs (integrated, discrete, virtual); 4 computes on the processor."""

VULKAN_1_2 = 1 << 22 | 2 << 12
INSTANCE_INFO, APPLICATION_INFO = 1, 0
DEVICE_LOCAL = 1
DEVICES_AT_MOST, HEAPS_AT_MOST, TYPES_AT_MOST = 16, 16, 32


class VulkanApplication(ctypes.Structure):
    """VkApplicationInfo."""

    _fields_ = (
        *(("kind", ctypes.c_int32), ("next", ctypes.c_void_p), ("name", ctypes.c_char_p), ("version", ctypes.c_uint32)),
        *(("engine", ctypes.c_char_p), ("engine_version", ctypes.c_uint32), ("api", ctypes.c_uint32)),
    )


class VulkanInstanceInfo(ctypes.Structure):
    """VkInstanceCreateInfo without layers and extensions."""

    _fields_ = (
        *(("kind", ctypes.c_int32), ("next", ctypes.c_void_p), ("flags", ctypes.c_uint32)),
        *(("application", ctypes.POINTER(VulkanApplication)), ("layers", ctypes.c_uint32)),
        *(("layer_names", ctypes.c_void_p), ("extensions", ctypes.c_uint32), ("extension_names", ctypes.c_void_p)),
    )


class VulkanProperties(ctypes.Structure):
    """The first fields of VkPhysicalDeviceProperties, and room for the others."""

    _fields_ = (
        *(("api", ctypes.c_uint32), ("driver", ctypes.c_uint32), ("vendor", ctypes.c_uint32)),
        *(("device", ctypes.c_uint32), ("kind", ctypes.c_int32), ("name", ctypes.c_char * 256)),
        ("rest", ctypes.c_uint8 * 2048),
    )


class VulkanHeap(ctypes.Structure):
    """VkMemoryHeap."""

    _fields_ = (("size", ctypes.c_uint64), ("flags", ctypes.c_uint32))


class VulkanMemory(ctypes.Structure):
    """VkPhysicalDeviceMemoryProperties."""

    _fields_ = (
        *(("type_count", ctypes.c_uint32), ("types", ctypes.c_uint32 * 2 * TYPES_AT_MOST)),
        *(("heap_count", ctypes.c_uint32), ("heaps", VulkanHeap * HEAPS_AT_MOST)),
    )


def ask_vulkan(vulkan: Any, kinds: Iterable[int]) -> list[dict[str, Any]]:
    """Every device of these kinds with the size of its own memory; what of that is free the engine tells later.

    Structures and numbers are those of vulkan_core.h of Vulkan 1.2 (Khronos' registry).
    """
    application = VulkanApplication(APPLICATION_INFO, None, b"meshctl", 1, None, 0, VULKAN_1_2)
    info = VulkanInstanceInfo(INSTANCE_INFO, None, 0, ctypes.pointer(application), 0, None, 0, None)
    instance = ctypes.c_void_p()
    if vulkan.vkCreateInstance(ctypes.byref(info), None, ctypes.byref(instance)) != 0:
        return []
    try:
        count, devices = ctypes.c_uint32(DEVICES_AT_MOST), (ctypes.c_void_p * DEVICES_AT_MOST)()
        vulkan.vkEnumeratePhysicalDevices(instance, ctypes.byref(count), devices)
        found = [vulkan_gpu(vulkan, ctypes.c_void_p(device), kinds) for device in devices[: count.value]]
    finally:
        vulkan.vkDestroyInstance(instance, None)
    gpus = [one for one in found if one is not None]
    return [{**one, "index": index} for index, one in enumerate(gpus)]


def vulkan_gpu(vulkan: Any, device: Any, kinds: Iterable[int]) -> dict[str, Any] | None:
    properties, memory = VulkanProperties(), VulkanMemory()
    vulkan.vkGetPhysicalDeviceProperties(device, ctypes.byref(properties))
    vulkan.vkGetPhysicalDeviceMemoryProperties(device, ctypes.byref(memory))
    heaps = memory.heaps[: memory.heap_count]
    own = max((heap.size for heap in heaps if heap.flags & DEVICE_LOCAL), default=0)
    if properties.kind not in kinds:
        return None
    found = gpu("vulkan", 0, properties.name.decode(errors="replace"), own, own)
    return {**found, "shares_memory": properties.kind == INTEGRATED}


def gpu(kind: str, index: int, name: str, total: int, free: int) -> dict[str, Any]:
    return {"kind": kind, "index": index, "name": name, "memory_total_bytes": total, "memory_free_bytes": free}


def mac_gpus(memory: Memory) -> list[dict[str, Any]]:
    limit = ask(("sysctl", "-n", "iogpu.wired_limit_mb")).strip()
    wired_limit_bytes = int(limit) * MIB if limit.isdigit() else 0
    return read_displays(ask(("system_profiler", "SPDisplaysDataType", "-json"), 30.0), memory, wired_limit_bytes)


def read_displays(text: str, memory: Memory, wired_limit_bytes: int) -> list[dict[str, Any]]:
    """Metal devices of `system_profiler SPDisplaysDataType -json`: Apple chips, and cards with memory of their own."""
    try:
        entries = json.loads(text)["SPDisplaysDataType"] if text else []
    except (ValueError, KeyError, TypeError):
        return []
    gpus: list[dict[str, Any]] = []
    for entry in entries:
        name = str(entry.get("sppci_model") or entry.get("_name") or "")
        own = re.match(r"(\d+) (GB|MB)$", str(entry.get("spdisplays_vram", "")))
        if name.startswith("Apple"):
            total = wired_limit_bytes or metal_share_bytes(memory.total_bytes)
            chip = gpu("metal", len(gpus), name, total, min(total, memory.available_bytes))
            gpus.append({**chip, "shares_memory": True})
        elif own:
            total = int(own.group(1)) * MIB * (KIB if own.group(2) == "GB" else 1)
            gpus.append(gpu("metal", len(gpus), name, total, total))
    return gpus


def metal_share_bytes(total_bytes: int) -> int:
    """What macOS lets an Apple chip's GPU hold by default: two thirds up to 32 GiB, three quarters above.

    Seen as `recommendedMaxWorkingSetSize` in public logs of llama.cpp: 5.3 of 8, 21.3 of 32, 27 of 36, 48 of 64 GiB.
    """
    return total_bytes * 2 // 3 if total_bytes <= 32 * KIB * MIB else total_bytes * 3 // 4


# processes


class Running(NamedTuple):
    """One running process; memory in bytes. `stopped`: by a signal or a debugger, until somebody lets it go on."""

    parent: int
    group: int
    cpu_s: float
    rss_bytes: int
    stopped: bool = False


def running_processes() -> dict[int, Running]:
    if is_mac():
        return read_ps(ask(("ps", "-axo", "pid=,ppid=,pgid=,stat=,rss=,time=")))
    found = {}
    for name in os.listdir("/proc"):
        process = read_stat(read_text("/proc", name, "stat")) if name.isdigit() else None
        if process is not None:
            found[int(name)] = process
    return found


def read_stat(text: str) -> Running | None:
    """/proc/PID/stat (proc_pid_stat(5)); None for a process that is gone or only waits to be collected."""
    fields = text.rpartition(")")[2].split()
    if len(fields) < 22 or fields[0] in "ZX":
        return None
    ticks = int(fields[11]) + int(fields[12])
    rss_bytes = int(fields[21]) * resource.getpagesize()
    cpu_s = ticks / os.sysconf("SC_CLK_TCK")
    return Running(int(fields[1]), int(fields[2]), cpu_s, rss_bytes, stopped=fields[0] in "Tt")


def read_ps(text: str) -> dict[int, Running]:
    found = {}
    for line in text.splitlines():
        fields = line.split()
        if len(fields) == 6 and not fields[3].startswith("Z"):
            cpu_s = read_ps_time(fields[5])
            rss_bytes, stopped = int(fields[4]) * KIB, fields[3].startswith("T")
            found[int(fields[0])] = Running(int(fields[1]), int(fields[2]), cpu_s, rss_bytes, stopped)
    return found


def read_ps_time(text: str) -> float:
    """`DAYS-HOURS:MINUTES:SECONDS`, of which only the last two are always there."""
    days, _, clock = text.rpartition("-")
    seconds = 0.0
    for part in clock.split(":"):
        seconds = seconds * 60 + float(part)
    return seconds + 86400 * int(days or 0)


def anonymous_bytes(pid: int, rss_bytes: int) -> int:
    if is_mac():
        return rss_bytes
    values = re.findall(r"^(?:RssAnon|RssShmem):\s+(\d+) kB$", read_text(f"/proc/{pid}/status"), re.MULTILINE)
    return sum(int(value) for value in values) * KIB


def family_of(processes: dict[int, Running], ancestor: int, group: int, without: set[int]) -> set[int]:
    """Who belongs to a held program: members of its group, and everybody who descends from `ancestor`."""
    children: dict[int, list[int]] = {}
    for pid, process in processes.items():
        children.setdefault(process.parent, []).append(pid)
    family = {pid for pid, process in processes.items() if process.group == group}
    waiting = [ancestor, *family]
    while waiting:
        fresh = [pid for pid in children.get(waiting.pop(), []) if pid not in family and pid not in without]
        family.update(fresh)
        waiting += fresh
    return family - without


# the leash


class BoundedLog:
    """A log of at most `limit_bytes` in FILE, the older FILE.1 and FILE.old; also the last bytes in memory.

    What a run before wrote goes to FILE.old, so that no line of it is taken for one of this run. A disk that refuses is
    no reason to hold the program up: what cannot be written is dropped. The programs do not say when they wrote a line:
    FILE.times has, at most once a second, the time and the size that FILE had then (`written_since`).
    """

    def __init__(self, path: str, limit_bytes: int) -> None:
        self.path = path
        self.part_bytes = max(4 * KIB, limit_bytes // 3)
        self.memory: deque[bytes] = deque()
        self.memory_bytes = 0
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # none yet, or another run of the same name was faster
            if os.path.getsize(path) > 0:
                os.replace(path, path + ".old")
        for ending in (".1", ".1.times"):
            remove(path + ending)
        self.open()

    def open(self) -> None:
        self.file, self.times = (open_new(path) for path in (self.path, self.path + ".times"))
        self.size_bytes = 0
        self.timed_s = 0.0

    def write(self, data: bytes) -> None:
        self.remember(data)
        with contextlib.suppress(OSError):
            if self.size_bytes + len(data) > self.part_bytes:
                self.rotate()
            data = data[-self.part_bytes :]
            self.note_time(time.time())
            self.file.write(data)
            self.size_bytes += len(data)

    def note_time(self, now_s: float) -> None:
        if not 0 <= now_s - self.timed_s < LOG_TIMES_S:
            self.times.write(b"%.1f %d\n" % (now_s, self.size_bytes))
            self.timed_s = now_s

    def rotate(self) -> None:
        for name in (self.path, self.path + ".times"):
            os.replace(name, self.path + ".1" + name[len(self.path) :])
        self.file.close()
        self.times.close()
        self.open()

    def remember(self, data: bytes) -> None:
        self.memory.append(data[-16 * KIB :])
        self.memory_bytes += len(self.memory[-1])
        while len(self.memory) > 1 and self.memory_bytes - len(self.memory[0]) >= 8 * KIB:
            self.memory_bytes -= len(self.memory.popleft())

    def tail(self, lines: int = 20) -> str:
        return last_lines(b"".join(self.memory)[-8 * KIB :], lines)

    def close(self) -> None:
        for file in (self.file, self.times):
            with contextlib.suppress(OSError):
                file.close()


def open_new(path: str) -> BinaryIO:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb", buffering=0)


def last_lines(data: bytes, lines: int) -> str:
    return "\n".join(data.decode(errors="replace").splitlines()[-lines:]) if lines > 0 else ""


class EventWriter:
    """JSON lines to a stream that may be full or gone: never waits, so that the leash always keeps its deadlines."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.waiting = b""
        self.broken = False
        os.set_blocking(descriptor, False)

    def send(self, event: dict[str, Any]) -> None:
        """What is said again and again is dropped while earlier lines wait; the others are kept."""
        if self.waiting and event["event"] in ("alive", "said"):
            return self.flush()
        self.waiting += json.dumps(event).encode() + b"\n"
        return self.flush()

    def flush(self) -> None:
        try:
            while self.waiting and not self.broken:
                self.waiting = self.waiting[os.write(self.descriptor, self.waiting) :]
        except BlockingIOError:
            pass
        except OSError:
            self.broken = True

    def finish(self, wait_s: float) -> None:
        """Give the last lines a while; afterwards nobody reads them."""
        end = time.monotonic() + wait_s
        self.flush()
        while self.waiting and not self.broken and time.monotonic() < end:
            time.sleep(0.02)
            self.flush()


# many questions


def answer_many(options: argparse.Namespace, words: list[str]) -> None:
    """Answer questions that come on stdin as JSON lines, several at once, until it closes or none has come for a while.

    {"id": 1, "words": ["facts", ...], "stdin": "..."} is answered by {"id": 1, "status": 0, "stdout": "...",
    "stderr": "..."}, as the verb would be as a program of its own, without the time that Python takes to start;
    {"cancel": 1} ends one. Each character of the texts is a byte. `--facts ROOT` is answered before the first.
    """
    if options.facts:
        answer_facts(argparse.Namespace(root=options.facts), [])
    Attendant().run()


class Question:
    """One that is being answered by the process `pid`, which leads a group of its own."""

    def __init__(self, number: int, pid: int, outputs: dict[int, str]) -> None:
        self.number = number
        self.pid = pid
        self.names = outputs
        self.texts = dict.fromkeys(outputs.values(), b"")


class Attendant:
    """Each question gets a fork of this process, which has one thread and nothing open that matters."""

    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        self.selector.register(0, selectors.EVENT_READ)
        self.asked: dict[int, Question] = {}
        self.rest = b""
        self.library = load_libc()

    def run(self) -> None:
        while True:
            events = self.selector.select(ATTEND_S)
            if not events and not self.asked:
                return
            for key, _ in events:
                if key.fd == 0 and not self.hear():
                    self.end_all()
                    return
                if key.fd != 0:
                    self.collect(key.fd)

    def hear(self) -> bool:
        """False when nobody asks any more."""
        data = os.read(0, 64 * KIB)
        *lines, self.rest = (self.rest + data).split(b"\n")
        for line in filter(None, lines):
            question = json.loads(line)
            if "cancel" in question:
                self.cancel(question["cancel"])
            else:
                self.begin(question["id"], question["words"], question.get("stdin", ""))
        return bool(data)

    def begin(self, number: int, words: list[str], stdin: str) -> None:
        outputs = {name: os.pipe() for name in ("stdout", "stderr")}
        with input_file(stdin) as source:
            parent, pid = os.getpid(), os.fork()
            if pid == 0:
                die_with(self.library, parent)
                become_answer(words, source.fileno(), [writer for _, writer in outputs.values()])
        question = Question(number, pid, {reader: name for name, (reader, _) in outputs.items()})
        for reader, writer in outputs.values():
            os.close(writer)
            self.asked[reader] = question
            self.selector.register(reader, selectors.EVENT_READ)

    def collect(self, reader: int) -> None:
        question = self.asked[reader]
        data = os.read(reader, 64 * KIB)
        question.texts[question.names[reader]] += data
        if data:
            return
        self.selector.unregister(reader)
        os.close(reader)
        del self.asked[reader]
        if question not in self.asked.values():
            _, status = os.waitpid(question.pid, 0)
            texts = {name: text.decode("latin-1") for name, text in question.texts.items()}
            say({"id": question.number, "status": exit_status(status), **texts})

    def cancel(self, number: int) -> None:
        for question in self.asked.values():
            if question.number == number:
                kill_group(question.pid)

    def end_all(self) -> None:
        for question in self.asked.values():
            kill_group(question.pid)


def input_file(text: str) -> BinaryIO:
    """What a question brings for stdin."""
    if not text:
        return open(os.devnull, "rb")
    file: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115 # closed by whoever asks
    file.write(text.encode("latin-1"))
    file.seek(0)
    return file


def become_answer(words: list[str], source: int, outputs: list[int]) -> None:
    """In the fork: answer as if this were a program of its own, and end."""
    status = 1
    try:
        os.setpgid(0, 0)
        for target, descriptor in enumerate([source, *outputs]):
            os.dup2(descriptor, target)
        os.closerange(3, LARGEST_DESCRIPTOR)
        status = main(words)
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:  # noqa: BLE001 # as Python itself does at the end of a program
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def kill_group(pid: int) -> None:
    for kill in (os.killpg, os.kill):  # a fork that is not yet a group of its own is one process
        with contextlib.suppress(OSError):
            kill(pid, signal.SIGKILL)


def load_libc() -> Any:
    """The C library for prctl(2), None where there is no such call."""
    if is_mac():
        return None
    try:
        library = ctypes.CDLL(None, use_errno=True)
        return library if hasattr(library, "prctl") else None
    except OSError:
        return None


KEEPER = """trap "" TERM INT HUP
read -r group || exit
read -r done || { kill -s KILL -- "-$group"; [ $# = 0 ] || rm -f -- "$@"; }"""


class Keeper:
    """A second process that ends the group with SIGKILL when the leash itself is killed.

    It also removes what the program needed for this run only. It waits on a pipe that closes with the leash. It works
    where PR_SET_PDEATHSIG does not (macOS), and for grandchildren, which that never reaches. A shell does it in a tenth
    of the memory that a fork of us would take.
    """

    def __init__(self, temporary: list[str]) -> None:
        quiet = subprocess.DEVNULL
        words = ("/bin/sh", "-c", KEEPER, "sh", *temporary)
        process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=quiet, stderr=quiet, start_new_session=True)
        process.returncode = 0  # collected by wait4, never by subprocess
        assert process.stdin is not None
        self.pid, self.pipe = process.pid, process.stdin

    def watch(self, group: int) -> None:
        self.say(b"%d\n" % group)

    def dismiss(self) -> None:
        self.say(b"done\n")
        with contextlib.suppress(OSError):
            self.pipe.close()

    def say(self, line: bytes) -> None:
        with contextlib.suppress(OSError):
            self.pipe.write(line)
            self.pipe.flush()


def hold_leash(options: argparse.Namespace, words: list[str]) -> int:
    if not words:
        raise AgentError("leash: no program after --")
    return Leash(options, words).run()


VISIBLE_CARDS = "CUDA_VISIBLE_DEVICES"
"""The numbers of the NVIDIA cards that a program sees, and counts anew from 0: those given count among what this
host's own variable of that name lists, where that is set (`cards_of`)."""


def with_variables(own: Mapping[str, str], given: Mapping[str, str]) -> dict[str, str]:
    """This host's variables and those given; NVIDIA's cards are given by their numbers among those that it shows."""
    shown = own.get(VISIBLE_CARDS, "")
    if not shown or not given.get(VISIBLE_CARDS):
        return {**own, **given}
    return {**own, **given, VISIBLE_CARDS: cards_of(given[VISIBLE_CARDS], shown)}


def cards_of(numbers: str, shown: str) -> str:
    """Those of `shown` that stand at these positions of it; numbers or other names of cards."""
    cards = [card.strip() for card in shown.split(",")]
    return ",".join(cards[int(number)] for number in numbers.split(",") if int(number) < len(cards))


class Leash:
    """One program in a session of its own, ended when nobody asks for it any more.

    One thread and one selector: heartbeats come in on stdin, the program's output through a pipe, signals through a
    socket pair; every other thing is a deadline.
    """

    def __init__(self, options: argparse.Namespace, words: list[str]) -> None:
        self.name: str = options.name
        self.heartbeat_s: float = options.heartbeat_s
        self.words = words
        self.environment = with_variables(os.environ, dict(pair.partition("=")[::2] for pair in options.env))
        self.items: list[str] = options.uses
        # Locks, until this process ends.
        self.held = [*(hold_item(item) for item in options.uses), *hold_logs(options.log)]
        self.temporary: list[str] = options.temporary
        for path in self.temporary:
            os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
        self.captured = bytearray() if options.capture else None
        self.tells: bool = options.tell
        self.untold = b""
        self.private: bool = options.private
        self.network: int = options.network
        self.bridge_ends: str = options.bridge
        self.bridge_network: int = options.bridge_network
        self.bridge = 0
        self.log = BoundedLog(options.log, options.log_bytes)
        self.events = EventWriter(1)
        self.selector = selectors.SelectSelector()  # epoll refuses a stdin that is a file or /dev/null
        self.child = 0
        self.status: int | None = None
        self.ended = False
        self.peak_bytes = 0
        self.stopping = False
        self.stop_reason = ""
        self.stage = 0
        self.stage_ends = 0.0
        self.heard = time.monotonic()
        self.next_alive = self.heard + ALIVE_EVERY_S
        self.typed = b""

    def run(self) -> int:
        self.library = load_libc()
        self.keeper = Keeper(self.temporary)
        self.catch_signals()
        if self.library is not None:
            self.library.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        try:
            self.start()
        except OSError as error:
            return self.finish_unstarted(error)
        self.selector.register(0, selectors.EVENT_READ, self.listen)
        while not self.finished():
            for key, _ in self.selector.select(self.patience_s()):
                key.data()
            self.collect()
            self.keep_deadlines()
        return self.finish()

    def catch_signals(self) -> None:
        self.wakeup, self.bell = socket.socketpair()
        for end in (self.wakeup, self.bell):
            end.setblocking(False)
        signal.set_wakeup_fd(self.bell.fileno(), warn_on_full_buffer=False)
        self.selector.register(self.wakeup, selectors.EVENT_READ, lambda: self.wakeup.recv(KIB))
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda number, frame: self.stop(signal.Signals(number).name))
        # An ignored signal stays ignored across exec: a worker whose head dies must not die of writing to it.
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)

    def start(self) -> None:
        self.output, theirs = nonblocking_pipe()
        self.answer, answer = nonblocking_pipe()
        silence, self.silent = os.pipe()  # open as long as this leash: a tunnel ends with its stdin
        leash = os.getpid()
        try:
            process = subprocess.Popen(
                self.words,
                stdin=silence,
                stdout=theirs if self.captured is None else answer,
                stderr=theirs,
                env=self.environment,
                start_new_session=True,
                restore_signals=False,
                preexec_fn=lambda: prepare_child(self.library, leash, self.private, self.network),
            )
        finally:
            os.close(theirs)
            os.close(answer)
            os.close(silence)
        process.returncode = 0  # collected by wait4 here, never by subprocess
        self.child = process.pid
        self.keeper.watch(self.child)
        self.selector.register(self.output, selectors.EVENT_READ, self.read_output)
        self.selector.register(self.answer, selectors.EVENT_READ, self.read_answer)
        if self.bridge_ends:
            self.open_bridge()
        self.events.send({"event": "started", "pid": self.child, "leash": os.getpid(), "name": self.name})

    def open_bridge(self) -> None:
        try:
            self.bridge = start_bridge(self.bridge_network or self.child, self.bridge_ends, self.library)
        except OSError as error:
            self.stop(f"its bridge {self.bridge_ends} does not listen: {error.strerror}")

    def listen(self) -> None:
        try:
            data = os.read(0, 64 * KIB)
        except BlockingIOError:
            return
        if not data:
            self.selector.unregister(0)
            self.stop("stdin closed")
            return
        self.heard = time.monotonic()
        *lines, self.typed = (self.typed + data).split(b"\n")
        self.typed = self.typed[-KIB:]
        if b"stop" in lines or b"kill" in lines:
            self.stop("asked to stop")
        if b"kill" in lines:
            self.stage, self.stage_ends = max(self.stage, len(STOP_STAGES) - 1), self.heard

    def read_output(self) -> None:
        try:
            data = os.read(self.output, 64 * KIB)
        except BlockingIOError:
            return
        if data:
            self.log.write(data)
            if self.tells:
                self.tell(data)
        else:
            self.selector.unregister(self.output)

    def tell(self, data: bytes) -> None:
        """Lines of the program as they come, for one whose progress is read in them."""
        *lines, rest = (self.untold + data).split(b"\n")
        self.untold = rest[-KIB:]
        if lines:
            self.events.send({"event": "said", "lines": [line[:KIB].decode(errors="replace") for line in lines]})

    def read_answer(self) -> None:
        try:
            data = os.read(self.answer, 64 * KIB)
        except BlockingIOError:
            return
        if data:
            self.capture(data)
        else:
            self.selector.unregister(self.answer)

    def capture(self, data: bytes) -> None:
        if self.captured is not None:
            self.captured += data[: CAPTURED_BYTES - len(self.captured)]

    def collect(self) -> None:
        """Take the exit status of every child that has ended, adopted ones included."""
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self.child:
                self.ended = True
                self.status = exit_status(status)
                self.peak_bytes = max(self.peak_bytes, usage.ru_maxrss * (1 if is_mac() else KIB))
            elif pid == self.bridge:
                self.stop("its bridge ended")

    def keep_deadlines(self) -> None:
        now = time.monotonic()
        if self.events.broken:
            self.stop("stdout closed")
        if now - self.heard > self.heartbeat_s:
            self.stop(f"no heartbeat for {self.heartbeat_s:g} s")
        if self.ended:
            self.stop("")
        if self.stopping and now >= self.stage_ends and self.stage < len(STOP_STAGES):
            self.next_stage(now)
        if now >= self.next_alive and not self.ended:
            self.next_alive = now + ALIVE_EVERY_S
            self.report()

    def stop(self, reason: str) -> None:
        """Ask for the orderly stop; the first reason is the one that is reported. Also called by signal handlers."""
        if not self.stopping:
            self.stopping, self.stop_reason = True, reason

    def next_stage(self, now: float) -> None:
        number, wait_s = STOP_STAGES[self.stage]
        self.stage += 1
        self.stage_ends = now + wait_s
        for pid in self.family(running_processes()):
            with contextlib.suppress(OSError):
                os.kill(pid, number)

    def family(self, processes: dict[int, Running]) -> set[int]:
        # A subreaper adopts what its descendants leave behind, so on Linux nobody gets away by a session of its own.
        ancestor = self.child if self.library is None else os.getpid()
        return family_of(processes, ancestor, self.child, {self.keeper.pid, os.getpid()})

    def finished(self) -> bool:
        if self.stage == len(STOP_STAGES) and time.monotonic() >= self.stage_ends:
            return True
        return self.ended and not self.family(running_processes())

    def patience_s(self) -> float:
        now = time.monotonic()
        if self.stopping:
            return 0.05
        return max(0.0, min(self.next_alive - now, self.heard + self.heartbeat_s - now + 0.01))

    def report(self) -> None:
        processes = running_processes()
        family = self.family(processes)
        members = {pid: processes[pid] for pid in family - {self.bridge}}
        rss = sum(process.rss_bytes for process in members.values())
        self.peak_bytes = max(self.peak_bytes, rss)
        self.events.send(
            {
                "event": "alive",
                "rss_bytes": rss,
                "anonymous_bytes": sum(anonymous_bytes(pid, one.rss_bytes) for pid, one in members.items()),
                "cpu_s": round(sum(process.cpu_s for process in members.values()), 2),
                "available_bytes": available_bytes(),
                "stopped": any(processes[pid].stopped for pid in family),
            }
        )

    def finish(self) -> int:
        with contextlib.suppress(OSError):
            for data in iter(lambda: os.read(self.output, 64 * KIB), b""):
                self.log.write(data)
        with contextlib.suppress(OSError):
            for data in iter(lambda: os.read(self.answer, 64 * KIB), b""):
                self.capture(data)
        self.keeper.dismiss()
        return self.say_exit(self.status, self.log.tail())

    def finish_unstarted(self, error: OSError) -> int:
        self.keeper.dismiss()
        status = 127 if error.errno == errno.ENOENT else 126
        text = f"{self.words[0]}: {error.strerror}"
        self.log.write(text.encode() + b"\n")
        return self.say_exit(status, text)

    def say_exit(self, status: int | None, tail: str) -> int:
        self.log.close()
        for path in self.temporary:
            remove(path)
        for item in self.items:
            touch(mark_of(item))
        peak, reason = self.peak_bytes, self.stop_reason
        event = {"event": "exit", "status": status, "reason": reason, "rss_peak_bytes": peak, "tail": tail}
        if self.captured is not None:
            event["output"] = self.captured.decode(errors="replace")
        self.events.send(event)
        self.events.finish(2.0 if self.captured is None else 30.0)
        return 0


def nonblocking_pipe() -> tuple[int, int]:
    """Its reading end, which never blocks, and its writing end."""
    ours, theirs = os.pipe()
    os.set_blocking(ours, False)
    return ours, theirs


def prepare_child(library: Any, leash: int, private: bool, network: int) -> None:
    """Between fork and exec: no core dumps (a worker's is as large as its weights), its network, death with the leash.

    What goes wrong with the network is what the program "said" before it ended.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        choose_network(library, private, network)
    except OSError as error:
        os.write(2, f"no private network: {describe(error)}\n".encode())
        os._exit(126)
    die_with(library, leash)


def die_with(library: Any, leash: int) -> None:
    if library is not None:
        library.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != leash:
            os._exit(1)


def exit_status(status: int) -> int:
    """As subprocess says it: negative for a signal."""
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


# private networks


def hold_network(options: argparse.Namespace, words: list[str]) -> None:
    """Keep a network for programs of ours alone until stdin closes, or brings nothing for a while."""
    leave_network(load_libc())
    say({"pid": os.getpid()})
    while select.select((0,), (), (), NETWORK_PATIENCE_S)[0] and os.read(0, 4 * KIB):
        pass


def enter_and_run(options: argparse.Namespace, words: list[str]) -> None:
    """Become the program, in the network of another process or in one of its own."""
    if not words:
        raise AgentError("enter: no program after --")
    choose_network(load_libc(), options.private, options.network)
    os.execvp(words[0], words)


def choose_network(library: Any, private: bool, network: int) -> None:
    if private:
        leave_network(library)
    elif network and not enter_network(library, network):
        raise OSError(errno.ESRCH, f"process {network} has none any more")


def leave_network(library: Any) -> None:
    """Give this process, and all it starts, a network that has nothing but a loopback of its own.

    What listens there is out of reach for every other user, and whoever wants to join must be able to trace us. Where
    that takes more rights than we have, we get them in a user namespace in which we are the only user
    (user_namespaces(7)); some systems forbid that, too.
    """
    if library is None:
        raise OSError(errno.ENOSYS, "this system has none")
    if library.unshare(CLONE_NEWNET) != 0:
        user, group = os.getuid(), os.getgid()
        checked(library, library.unshare(CLONE_NEWUSER | CLONE_NEWNET))
        for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    with socket.socket() as any_socket:
        loopback = b"lo".ljust(16, b"\0")
        (flags,) = struct.unpack_from("=H", fcntl.ioctl(any_socket, SIOCGIFFLAGS, loopback + bytes(16)), 16)
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, loopback + struct.pack("=H14x", flags | IFF_UP))


def enter_network(library: Any, pid: int) -> bool:
    """Join the network of another process of ours; only while this one has a single thread (setns(2)). False when it is
    in that one anyway."""
    if library is None:
        raise OSError(errno.ENOSYS, "this system has none")
    with open(f"/proc/{pid}/ns/user") as users, open(f"/proc/{pid}/ns/net") as network:
        if os.path.samestat(os.fstat(network.fileno()), os.stat("/proc/self/ns/net")):
            return False
        if not os.path.samestat(os.fstat(users.fileno()), os.stat("/proc/self/ns/user")):
            checked(library, library.setns(users.fileno(), CLONE_NEWUSER))
        checked(library, library.setns(network.fileno(), CLONE_NEWNET))
    return True


def checked(library: Any, status: int) -> None:
    if status != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def private_network_refused() -> str:
    """Why this system gives us no private network; "" when it does. Tried in a process of its own."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            leave_network(load_libc())
        except OSError as error:
            no_more = "no more network namespaces are allowed (sysctl user.max_net_namespaces)"
            os.write(theirs, f"unshare: {no_more if error.errno == errno.ENOSPC else error.strerror}".encode())
        finally:
            os._exit(0)
    os.close(theirs)
    with os.fdopen(ours, "rb") as answer:
        text = answer.read().decode(errors="replace")
    os.waitpid(child, 0)
    return text


# bridges between networks


def start_bridge(pid: int, ends: str, library: Any) -> int:
    """Fork a process in the network of `pid` that carries what comes in at the first end to the second ("A=B").

    An end is `tcp:ADDRESS:PORT` or `unix:PATH`; a path leads in and out of private networks. Gives its number when it
    listens; OSError with its reason when it does not. It costs 10 microseconds there and back (measured on loopback).
    """
    leash = os.getpid()
    ours, theirs = os.pipe()
    child = os.fork()
    if child:
        os.close(theirs)
        with os.fdopen(ours, "rb") as answer:
            text = answer.read().decode(errors="replace")
        if text:
            raise OSError(errno.EIO, text)
        return child
    try:
        become_bridge(library, leash, theirs)
        near, far = ends.split("=", 1)
        server = listen_in(library, pid, near, theirs)
        while os.getppid() == leash:
            if select.select([server], [], [], BRIDGE_LOOK_S)[0]:
                carry_connection(server.accept()[0], far)
    finally:
        os._exit(1)


def listen_in(library: Any, pid: int, near: str, told: int) -> socket.socket:
    """Listen in the network of that process; closes `told` then, or writes the reason there."""
    try:
        if library is not None:  # where there are networks of their own
            enter_network(library, pid)
        return listen_at(near)
    except OSError as error:
        os.write(told, describe(error).encode())
        raise
    finally:
        os.close(told)


def become_bridge(library: Any, leash: int, told: int) -> None:
    """Nothing of the leash's but its end is shared, and `told`: no streams, no pipes, no signal handlers."""
    die_with(library, leash)
    os.closerange(3, told)
    os.closerange(told + 1, LARGEST_DESCRIPTOR)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)


def listen_at(end: str) -> socket.socket:
    family, address = socket_address(end)
    server = socket.socket(family)
    if family == socket.AF_UNIX:
        os.makedirs(os.path.dirname(str(address)), 0o700, exist_ok=True)
        os.umask(0o177)
    server.bind(address)
    server.listen(BRIDGE_BACKLOG)
    return server


def socket_address(end: str) -> tuple[socket.AddressFamily, Any]:
    kind, _, place = end.partition(":")
    if kind == "unix":
        return socket.AF_UNIX, place
    address, _, port = place.rpartition(":")
    return socket.AF_INET, (address, int(port))


def carry_connection(near: socket.socket, far: str) -> None:
    """Both directions, each by a thread; one that cannot be carried on is closed."""
    family, address = socket_address(far)
    there = socket.socket(family)
    try:
        there.connect(address)
    except OSError:
        near.close()
        there.close()
        return
    for source, sink in ((near, there), (there, near)):
        send_at_once(source)
        threading.Thread(target=carry, args=(source, sink), daemon=True).start()


def send_at_once(connection: socket.socket) -> None:
    if connection.family != socket.AF_UNIX:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def carry(source: socket.socket, sink: socket.socket) -> None:
    """One direction, until its end, which is passed on; what breaks ends both."""
    buffer = memoryview(bytearray(BRIDGE_BYTES))
    try:
        while count := source.recv_into(buffer):
            sink.sendall(buffer[:count])
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


# measuring the link


def serve_link(options: argparse.Namespace, words: list[str]) -> None:
    """Serve measuring connections until stdin closes, or brings nothing for a while: a lost path closes nothing.

    At a socket in our folder if one is named. Off loopback it serves only whoever came by SSH.
    """
    with link_server(options) as server:
        peer = "" if options.socket else only_peer(options.address)
        say({"port": 0 if options.socket else server.getsockname()[1]})
        threading.Thread(target=accept_links, args=(server, peer), daemon=True).start()
        while select.select((0,), (), (), LINK_PATIENCE_S)[0] and os.read(0, 4 * KIB):
            pass
    if options.socket:
        remove(options.socket)


def link_server(options: argparse.Namespace) -> socket.socket:
    if options.socket:
        return listen_at(f"unix:{options.socket}")
    server = socket.socket(family_of_address(options.address))
    server.bind((options.address, 0))
    server.listen(LINK_CONNECTIONS)
    return server


def family_of_address(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def only_peer(address: str) -> str:
    """The one address that may connect, "" for every one."""
    if ipaddress.ip_address(address).is_loopback:
        return ""
    words = os.environ.get("SSH_CONNECTION", "").split()
    if len(words) != 4:
        raise AgentError(f"nobody may connect to {address}: this is no SSH connection")
    return words[0].partition("%")[0]


def accept_links(server: socket.socket, peer: str) -> None:
    places = threading.BoundedSemaphore(LINK_CONNECTIONS)
    while True:
        places.acquire()
        try:
            connection, origin = server.accept()
        except OSError:
            return
        if peer and origin[0] != peer:
            connection.close()
            places.release()
            continue
        threading.Thread(target=serve_connection, args=(connection, places), daemon=True).start()


def serve_connection(connection: socket.socket, places: threading.BoundedSemaphore) -> None:
    """Requests of 17 bytes (operation, size, count; big-endian) until the other side closes or breaks the rules."""
    with connection, contextlib.suppress(OSError):
        connection.settimeout(LINK_IDLE_S)
        send_at_once(connection)
        buffer = bytearray(MIB)
        serving = True
        while serving:
            header = receive(connection, bytearray(17))
            serving = header is not None and serve_request(connection, *struct.unpack(">cQQ", header), buffer=buffer)
    places.release()


def receive(connection: socket.socket, target: bytearray | memoryview) -> bytearray | memoryview | None:
    """Fill `target`; None when the stream ends first."""
    view = memoryview(target)
    while view:
        count = connection.recv_into(view)
        if count == 0:
            return None
        view = view[count:]
    return target


def serve_request(connection: socket.socket, operation: bytes, size: int, count: int, *, buffer: bytearray) -> bool:
    """Do one request; False ends the connection."""
    if operation == b"E" and 0 < size <= LARGEST_ECHO_BYTES and size * count <= LARGEST_TRANSFER_BYTES:
        return echo(connection, size, count)
    if operation == b"S" and size <= LARGEST_TRANSFER_BYTES:
        return sink(connection, size, buffer)
    if operation == b"R" and size <= LARGEST_TRANSFER_BYTES:
        return source(connection, size, buffer)
    return False


def echo(connection: socket.socket, size: int, count: int) -> bool:
    message = bytearray(size)
    for _ in range(count):
        if receive(connection, message) is None:
            return False
        connection.sendall(message)
    return True


def sink(connection: socket.socket, size: int, buffer: bytearray) -> bool:
    view = memoryview(buffer)
    while size:
        count = connection.recv_into(view[: min(size, len(buffer))])
        if count == 0:
            return False
        size -= count
    connection.sendall(b"k")
    return True


def source(connection: socket.socket, size: int, buffer: bytearray) -> bool:
    view = memoryview(buffer)
    while size:
        count = min(size, len(buffer))
        connection.sendall(view[:count])
        size -= count
    return True


# ports


def answer_ports(options: argparse.Namespace, words: list[str]) -> None:
    end = ephemeral_start(read_text("/proc/sys/net/ipv4/ip_local_port_range"))
    say({"ports": free_ports(options.count, FIRST_PORT, end, os.getpid(), options.address)})


def ephemeral_start(port_range: str) -> int:
    """Where outgoing connections begin: above it, a port may belong to one at any moment."""
    text = port_range.split() or ask(("sysctl", "-n", "net.inet.ip.portrange.first")).split()
    start = int(text[0]) if text and text[0].isdigit() else 32768
    return start if start >= FIRST_PORT + 1000 else 32768


def free_ports(count: int, first: int, end: int, seed: int, address: str = "127.0.0.1") -> list[int]:
    """`count` ports in [first, end) that can be bound at the address, tried from a place that depends on `seed`."""
    width = end - first
    start = seed * 7919 % width  # a prime, so that neighbours begin far from each other
    found: list[int] = []
    for step in range(width):
        if len(found) == count:
            return found
        port = first + (start + step) % width
        if can_bind(port, address):
            found.append(port)
    if len(found) == count:
        return found
    raise AgentError(f"only {len(found)} of {count} ports are free between {first} and {end - 1}")


def can_bind(port: int, address: str) -> bool:
    with socket.socket(family_of_address(address)) as probe:
        try:
            probe.bind((address, port))
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise AgentError(f"{address} is no address of this host") from error
            return False
    return True


# folders


def answer_unpack(options: argparse.Namespace, words: list[str]) -> None:
    folder = os.path.abspath(options.folder)
    os.makedirs(os.path.dirname(folder), exist_ok=True)
    with locked(folder + ".lock"):
        actual = sha256_of(options.archive)
        if actual != options.sha256:
            raise AgentError(f"{options.archive} has the sha256 {actual}, expected {options.sha256}: send it again")
        unpack(options.archive, folder)
        os.unlink(options.archive)
    say({"folder": folder})


def lock_now(file: Any) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def locked(path: str) -> Iterator[None]:
    """Hold a lock file, so that two controllers do not change one folder at once."""
    with open(path, "a", encoding="ascii") as file:
        end = time.monotonic() + LOCK_WAIT_S
        while not lock_now(file):
            if time.monotonic() > end:
                raise AgentError(f"another meshctl has been holding {path} for {LOCK_WAIT_S:g} s")
            time.sleep(0.1)
        yield


def unpack(archive: str, folder: str) -> None:
    """Extract beside, then rename: the folder is either the old one or the whole new one.

    Whoever wants this holds the folder's lock: what is beside it was left by one that was killed.
    """
    for left in glob.glob(f"{glob.escape(folder)}.tmp-*"):
        shutil.rmtree(left, ignore_errors=True)
    fresh = f"{folder}.tmp-{os.getpid()}"
    try:
        extract(archive, fresh)
    except (tarfile.TarError, EOFError) as error:
        shutil.rmtree(fresh, ignore_errors=True)
        raise AgentError(f"{archive} is not a whole tar.gz: {error}") from error
    except OSError as error:
        shutil.rmtree(fresh, ignore_errors=True)
        raise AgentError(disk_message(error, folder)) from error
    except AgentError:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    replace_folder(folder, fresh)


def replace_folder(folder: str, fresh: str) -> None:
    """What was there is moved aside first: programs that run from it go on."""
    aside = f"{folder}.old-{os.getpid()}"
    if os.path.lexists(folder):
        os.rename(folder, aside)
    os.rename(fresh, folder)
    shutil.rmtree(aside, ignore_errors=True)


def disk_message(error: OSError, folder: str) -> str:
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return describe(error)
    free = disk_facts(os.path.dirname(folder))["disk_free_bytes"]
    return f"the disk is full: {folder} does not fit, {free / MIB:.0f} MiB are free there"


def extract(archive: str, folder: str) -> None:
    """Files and folders first, links last: nothing can then be written through a link."""
    os.makedirs(folder)
    with tarfile.open(archive, "r:gz") as tar:
        members = tar.getmembers()
        for member in members:
            refuse_hostile(member)
        for member in members:
            place = os.path.join(folder, os.path.normpath(member.name))
            if member.isdir():
                os.makedirs(place, exist_ok=True)
            elif member.isreg():
                write_member(tar, member, place)
        for member in members:
            if member.issym():
                place = os.path.join(folder, os.path.normpath(member.name))
                os.makedirs(os.path.dirname(place), exist_ok=True)
                os.symlink(member.linkname, place)


def refuse_hostile(member: tarfile.TarInfo) -> None:
    """Only regular files, folders and relative links that stay inside."""
    if not (member.isreg() or member.isdir() or member.issym()):
        raise AgentError(f"the archive holds {member.name}, which is no file, folder or symbolic link")
    if leaves(member.name):
        raise AgentError(f"the archive holds {member.name}, which lies outside of the folder")
    target = os.path.join(os.path.dirname(member.name), member.linkname)
    if member.issym() and (os.path.isabs(member.linkname) or leaves(target)):
        raise AgentError(f"the archive holds {member.name}, a link that leads outside, to {member.linkname}")


def leaves(path: str) -> bool:
    return os.path.isabs(path) or os.path.normpath(path).split("/")[0] == ".."


def write_member(tar: tarfile.TarFile, member: tarfile.TarInfo, place: str) -> None:
    os.makedirs(os.path.dirname(place), exist_ok=True)
    content = tar.extractfile(member)
    if content is None:
        raise AgentError(f"the archive holds {member.name}, which cannot be read")
    mode = 0o755 if member.mode & 0o100 else 0o644
    with content, os.fdopen(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as target:
        shutil.copyfileobj(content, target, MIB)


def answer_check(options: argparse.Namespace, words: list[str]) -> None:
    folder = options.folder
    try:
        with open(os.path.join(folder, "manifest.json"), "rb") as file:
            entries = [(str(one["path"]), one["sha256"], one["size_bytes"]) for one in json.load(file)["files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise AgentError(f"{folder}/manifest.json cannot be read: {error!r}") from error
    missing = [path for path, _, _ in entries if not os.path.isfile(os.path.join(folder, path))]
    present = [entry for entry in entries if entry[0] not in missing]
    wrong = [path for path, digest, size in present if not is_intact(folder, path, digest, size)]
    extra = extra_files(folder, {path for path, _, _ in entries})
    ok = not missing and not wrong and not extra
    say({"ok": True} if ok else {"ok": False, "wrong": wrong, "missing": missing, "extra": extra})


def is_intact(folder: str, path: str, digest: str, size: int) -> bool:
    place = os.path.join(folder, path)
    return not leaves(path) and os.path.getsize(place) == size and sha256_of(place) == digest


def extra_files(folder: str, known: set[str]) -> list[str]:
    """Files that no manifest speaks of: the engine loads every library of a fitting name that lies beside it."""
    found = []
    for place, folders, files in os.walk(folder):
        if place == folder:
            folders[:] = [name for name in folders if name not in BESIDE_ENGINE]
            files = [name for name in files if name not in BESIDE_ENGINE and not name.startswith(".")]
        found += [os.path.relpath(os.path.join(place, name), folder) for name in files]
    return sorted(set(found) - known)


def answer_digest(options: argparse.Namespace, words: list[str]) -> None:
    say({"sha256": sha256_of(options.file)})


def hold_lock(options: argparse.Namespace, words: list[str]) -> None:
    """Hold a lock file until stdin closes, or brings nothing for a while: a lost path closes nothing.

    Says {"held": false} when somebody else has it, {"held": true} once it is ours; it waits as long as it is wanted.
    """
    os.makedirs(os.path.dirname(options.file), 0o700, exist_ok=True)
    with open(options.file, "a", encoding="ascii") as file:
        held, heard = lock_now(file), time.monotonic()
        say({"held": held})
        while time.monotonic() - heard < NETWORK_PATIENCE_S:
            if select.select((0,), (), (), LOCK_LOOK_S)[0]:
                if not os.read(0, 4 * KIB):
                    return
                heard = time.monotonic()
            if not held and lock_now(file):
                held = True
                say({"held": True})


# building the engine here


def answer_tools(options: argparse.Namespace, words: list[str]) -> None:
    """What a build needs: absolute paths of programs and their versions, "" for what this host lacks."""
    say(build_tools())


def build_tools() -> dict[str, str]:
    cmake = find_tool("cmake")
    cxx = find_compiler("c++", "g++", "clang++")
    kind, version = read_compiler(ask((cxx, "-dM", "-E", "-x", "c++", os.devnull)) if cxx else "")
    return {
        "cmake": cmake,
        "cmake_version": read_version(ask((cmake, "--version")) if cmake else ""),
        "ninja": find_tool("ninja", "ninja-build"),
        "make": find_tool("make", "gmake"),
        "c_compiler": find_compiler("cc", "gcc", "clang"),
        "cxx_compiler": cxx if kind else "",
        "compiler_kind": kind,
        "compiler_version": version,
        "package_manager": os.path.basename(find_tool(*PACKAGE_MANAGERS)),
        **gpu_tools(),
    }


def gpu_tools() -> dict[str, str]:
    """What builds for GPUs need beside: paths, "" for what is not there."""
    nvcc = find_nvcc()
    sdk = os.environ.get("VULKAN_SDK", "")
    roots = [root for root in (sdk, "/usr", "/usr/local") if root]
    return {
        "nvcc": nvcc,
        "nvcc_version": read_nvcc_version(ask((nvcc, "--version")) if nvcc else ""),
        "nvcc_knows": read_capabilities(ask((nvcc, "--list-gpu-arch")) if nvcc else ""),
        "cublas": find_file([cuda_root(nvcc), "/usr"] if nvcc else [], CUDA_FOLDERS, "libcublas.so*"),
        "glslc": find_tool("glslc") or find_file(roots, ("bin",), "glslc"),
        "vulkan_headers": find_file(roots, ("include/vulkan",), "vulkan.hpp"),
        "vulkan_loader": find_file(roots, LIBRARY_FOLDERS, "libvulkan.so"),
        "spirv_headers": find_file(roots, SPIRV_FOLDERS, "SPIRV-HeadersConfig.cmake"),
    }


LIBRARY_FOLDERS = ("lib64", "lib", "lib/*-linux-gnu*")
CUDA_FOLDERS = (*LIBRARY_FOLDERS, "targets/*/lib")
SPIRV_FOLDERS = ("share/cmake/SPIRV-Headers", "lib*/cmake/SPIRV-Headers")


def find_nvcc() -> str:
    """Packages put it where a login without a terminal does not look."""
    named = os.environ.get("CUDACXX", "")
    roots = [
        root for root in (os.environ.get("CUDA_HOME", ""), "/usr/local/cuda", "/opt/cuda", "/usr/local/cuda-*") if root
    ]
    return (named if os.path.isfile(named) else "") or find_tool("nvcc") or find_file(roots, ("bin",), "nvcc")


def read_nvcc_version(text: str) -> str:
    """The toolkit's, such as "12.8"."""
    found = re.search(r"release (\d+\.\d+)", text)
    return found.group(1) if found else ""


def read_capabilities(text: str) -> str:
    """Compute capabilities such as "8.6 12.0", of lines such as "compute_120"; toolkits before 11 do not tell."""
    return " ".join(f"{major}.{minor}" for major, minor in re.findall(r"^compute_(\d+)(\d)$", text, re.MULTILINE))


def cuda_root(nvcc: str) -> str:
    """The toolkit's folder; nvcc itself tells, since what is called is often a link or a small script."""
    told = re.search(r"^#\$ TOP=(.+)$", dry_run(nvcc), re.MULTILINE)
    top = told.group(1).strip() if told else os.path.dirname(os.path.dirname(os.path.realpath(nvcc)))
    return os.path.realpath(top)


def dry_run(nvcc: str) -> str:
    """What it says that it would do; it says that on stderr."""
    words = (nvcc, "--dryrun", "-x", "cu", "-c", os.devnull, "-o", os.devnull)
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=30, check=False)
        return done.stderr.decode(errors="replace")
    return ""


def find_file(roots: Iterable[str], folders: Iterable[str], name: str) -> str:
    """The first that is there; folders and name may have `*` in them."""
    folders = list(folders)
    places = (os.path.join(root, folder, name) for root in roots for folder in folders)
    return next((path for place in places for path in sorted(glob.glob(place))), "")


def gpu_runtime(library: str) -> list[str]:
    """What a backend's library needs of CUDA at run time, so that a host needs no more than NVIDIA's driver."""
    if "cuda" not in os.path.basename(library):
        return []
    nvcc = find_nvcc()
    if not nvcc:
        return []
    folders = [folder for part in CUDA_FOLDERS for folder in glob.glob(os.path.join(cuda_root(nvcc), part))]
    search = os.pathsep.join((*folders, os.environ.get("LD_LIBRARY_PATH", "")))
    text = ask(("env", f"LD_LIBRARY_PATH={search}", "ldd", library), timeout_s=30.0)
    return re.findall(r"=> (/\S*/lib(?:cudart|cublas|cublasLt)\.so\S*)", text)


def find_tool(*names: str) -> str:
    """The first of these programs that is there. On a Mac a login without a terminal does not look where brew puts
    them."""
    more = ("/opt/homebrew/bin", "/usr/local/bin") if is_mac() else ()
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), *more))
    return next(filter(None, (shutil.which(name, path=path) for name in names)), "")


def find_compiler(*names: str) -> str:
    # On a Mac without developer tools these open a dialog on the screen of whoever sits there.
    return "" if is_mac() and not ask(("xcode-select", "-p")) else find_tool(*names)


def read_version(text: str) -> str:
    found = re.search(r"\d+(\.\d+)+", text)
    return found.group() if found else ""


def read_compiler(macros: str) -> tuple[str, str]:
    """Kind and major version by the macros it predefines; clang also claims to be an old gcc. Two "" for none."""
    for kind, macro in (("clang", "__clang_major__"), ("gcc", "__GNUC__")):
        found = re.search(rf"^#define {macro} (\d+)$", macros, re.MULTILINE)
        if found:
            return kind, found.group(1)
    return "", ""


def answer_collect(options: argparse.Namespace, words: list[str]) -> None:
    """Make an engine's folder of a finished build, whole or not at all: programs, libraries, manifest.

    `manifest` is JSON with what is known of it already; files and the oldest C library are filled in here.
    """
    folder = os.path.abspath(options.folder)
    fresh = f"{folder}.tmp-{os.getpid()}"
    try:
        os.makedirs(fresh)
        for source in built_files(options.binaries, options.programs):
            shutil.copy(source, fresh)
        write_manifest(fresh, json.loads(options.manifest))
        with locked(folder + ".lock"):
            replace_folder(folder, fresh)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    say({"folder": folder})


def built_files(binaries: str, programs: Iterable[str]) -> list[str]:
    libraries = [name for name in sorted(os.listdir(binaries)) if re.search(r"\.(so|dylib)(\.|$)", name)]
    paths = [os.path.join(binaries, name) for name in (*programs, *libraries)]
    missing = [os.path.basename(path) for path in paths if not os.path.isfile(path)]
    if missing:
        raise AgentError(f"the build made no {', '.join(missing)}")
    more = [runtime for name in libraries for runtime in gpu_runtime(os.path.join(binaries, name))]
    return paths + openmp_runtime() + more


def openmp_runtime() -> list[str]:
    """GCC's OpenMP library: the engine shall still run here when the compiler is removed."""
    folders = ("/lib", "/usr/lib", "/lib64", "/usr/lib64")
    names = (f"{platform.machine()}-linux-gnu*/libgomp.so.1", "libgomp.so.1")
    return [path for folder in folders for name in names for path in glob.glob(os.path.join(folder, name))][:1]


def write_manifest(folder: str, manifest: dict[str, Any]) -> None:
    places = [os.path.join(folder, name) for name in sorted(os.listdir(folder))]
    files = [
        {"path": os.path.basename(place), "sha256": sha256_of(place), "size_bytes": os.path.getsize(place)}
        for place in places
    ]
    with open(os.path.join(folder, "manifest.json"), "w", encoding="ascii") as file:
        json.dump({**manifest, "libc": oldest_libc(places), "files": files}, file, indent=2)


def oldest_libc(places: Iterable[str]) -> str:
    """The newest glibc that any of these files asks for; "" when none does."""
    asked: set[tuple[int, int]] = set()
    for place in places:
        before = b""
        with open(place, "rb") as file:
            for block in iter(lambda: file.read(16 * MIB), b""):
                found = re.findall(rb"GLIBC_(\d+)\.(\d+)", before + block)
                asked.update((int(major), int(minor)) for major, minor in found)
                before = block[-32:]
    return "glibc {}.{}".format(*max(asked)) if asked else ""


# programs that nobody holds


def answer_orphans(options: argparse.Namespace, words: list[str]) -> None:
    """End, in order, what still serves from another engine than those of `keep` although no agent holds it any more."""
    found = orphans(options.root, options.keep)
    for number, wait_s in STOP_STAGES:
        left = set(found) & set(orphans(options.root, options.keep))
        for pid in left:
            with contextlib.suppress(OSError):
                os.kill(pid, number)
        end = time.monotonic() + wait_s
        while left & set(running_processes()) and time.monotonic() < end:
            time.sleep(0.05)
    say({"ended": [{"pid": pid, "program": one[0], "engine": one[1]} for pid, one in sorted(found.items())]})


def orphans(root: str, keep: Collection[str]) -> dict[int, tuple[str, str]]:
    """Program and engine of our user's processes that serve from our folder of engines and have lost whoever held them.

    What a controller that lives holds is the child of a leash, or of its own; when that is gone without having ended
    it, it is init's. What somebody has started by hand is let be. An engine that was replaced under a running program
    counts as another one. Linux only: elsewhere the leash's keeper has to be enough.
    """
    if is_mac():
        return {}
    engines = os.path.realpath(os.path.join(root, "engines"))
    processes = running_processes()
    found = {}
    for pid, process in processes.items():
        place = program_of(pid)
        folder, program = os.path.split(place)
        engine = os.path.basename(folder)
        if os.path.dirname(folder) != engines or program.partition(" ")[0] not in SERVING:
            continue
        is_other = engine not in keep or program not in SERVING
        if is_other and is_init(process.parent) and was_leashed(pid):
            found[pid] = (program.partition(" ")[0], engine)
    return found


def was_leashed(pid: int) -> bool:
    """Whether it was started as we start what serves: with our variables, and not to show its help."""
    variables, words = (read_text(f"/proc/{pid}/{name}").split("\0") for name in ("environ", "cmdline"))
    return OUR_VARIABLE in variables and "--help" not in words


def program_of(pid: int) -> str:
    """The file that a process of our user runs, with " (deleted)" behind it when that is gone; "" for others'."""
    try:
        return os.readlink(f"/proc/{pid}/exe") if os.stat(f"/proc/{pid}").st_uid == os.getuid() else ""
    except OSError:
        return ""


def is_init(pid: int) -> bool:
    """Whether it is who adopts processes that have lost their parent: the first one, or the one of a user's session."""
    return pid == 1 or read_text(f"/proc/{pid}/comm").strip() == "systemd"


def answer_tail(options: argparse.Namespace, words: list[str]) -> None:
    if options.since_s is None:
        parts = [last_bytes(path) for path in (options.file + ".1", options.file)]
    else:
        parts = [written_since(path, time.time() - options.since_s) for path in (options.file + ".1", options.file)]
    if all(part is None for part in parts):
        raise AgentError(f"{options.file}: there is no such log")
    say({"text": last_lines(b"".join(part or b"" for part in parts), options.lines)})


def last_bytes(path: str, limit_bytes: int = 256 * KIB) -> bytes | None:
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.path.getsize(path) - limit_bytes))
            return file.read(limit_bytes)
    except FileNotFoundError:
        return None


def written_since(path: str, moment_s: float) -> bytes | None:
    """What was written to a log from that moment on, or up to a second before; None when there is no such log."""
    try:
        with open(path, "rb") as file:
            file.seek(size_at(path, moment_s))
            return file.read()
    except FileNotFoundError:
        return None


def size_at(path: str, moment_s: float) -> int:
    """How large a log was then, by its times; one without them has all of its lines from when it was changed last."""
    whole, earliest_s = os.path.getsize(path), moment_s - LOG_TIMES_S
    times = [pair for pair in (line.split() for line in read_text(path + ".times").splitlines()) if len(pair) == 2]
    if not times:
        return 0 if os.path.getmtime(path) >= earliest_s else whole
    later = (int(size) for written_s, size in times if float(written_s) >= earliest_s)
    return min(whole, next(later, whole))


# logs that are followed


def follow_logs(options: argparse.Namespace, words: list[str]) -> int:
    ago = None if options.since_s is None else time.time() - options.since_s
    since_s = ago if options.from_clock_s is None else options.from_clock_s
    Follower(options.folder, options.heartbeat_s).run(options.lines, since_s)
    return 0


class FollowedLog:
    """One log as it grows, on through its rotations and the runs that start it anew.

    A file that was replaced is read to its end first. A line that is not whole yet is held back.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.file: BinaryIO | None = None
        self.rest = b""

    def first(self, lines: int, since_s: float | None) -> list[str]:
        """The last lines that are there already, of those written since then if that is said."""
        older = last_bytes(self.path + ".1") if since_s is None else written_since(self.path + ".1", since_s)
        start = 0 if since_s is None else size_at(self.path, since_s)
        self.open()
        if self.file is None:
            return []
        self.file.seek(start)
        found = self.whole_lines((older or b"") + self.file.read())
        return found[-lines:] if lines > 0 else []

    def more(self) -> list[str]:
        """The whole lines that have come since the last time."""
        data = self.file.read(FOLLOW_BYTES) if self.file is not None else b""
        if len(data) < FOLLOW_BYTES and self.is_replaced():
            data += self.go_on()
        return self.whole_lines(data)

    def is_replaced(self) -> bool:
        try:
            return self.file is None or not os.path.samestat(os.stat(self.path), os.fstat(self.file.fileno()))
        except FileNotFoundError:
            return False

    def go_on(self) -> bytes:
        """The end of the file that was followed, one that came and went meanwhile, and the beginning of the new one."""
        data = b""
        if self.file is not None:
            held = os.fstat(self.file.fileno())
            data = self.file.read()
            self.file.close()
            older = self.path + ".1"
            with contextlib.suppress(FileNotFoundError):
                if not os.path.samestat(os.stat(older), held):
                    data += last_bytes(older) or b""
            if not os.path.exists(older) and (self.rest + data)[-1:] not in (b"", b"\n"):
                data += b"\n"  # a new run: what the one before did not finish is a line
        self.open()
        return data + (self.file.read(FOLLOW_BYTES) if self.file is not None else b"")

    def open(self) -> None:
        try:
            self.file = os.fdopen(os.open(self.path, os.O_RDONLY), "rb")
        except FileNotFoundError:
            self.file = None

    def whole_lines(self, data: bytes) -> list[str]:
        *lines, self.rest = (self.rest + data).split(b"\n")
        if len(self.rest) > FOLLOW_BYTES:
            lines, self.rest = [*lines, self.rest], b""
        return [line.decode(errors="replace") for line in lines]


class Follower:
    """Every log of a folder, followed as long as somebody asks for it: a heartbeat is any input.

    Nothing more is read while what was read before is not taken: a slow reader fills no memory here.
    """

    def __init__(self, folder: str, heartbeat_s: float) -> None:
        self.folder = folder
        self.heartbeat_s = heartbeat_s
        self.heard = time.monotonic()
        self.logs: dict[str, FollowedLog] = {}
        self.events = EventWriter(1)

    def run(self, lines: int, since_s: float | None) -> None:
        for log in self.fresh_logs():
            self.say_lines(log, log.first(lines, since_s))
        self.events.send({"event": "following", "clock_s": time.time()})
        while self.is_wanted():
            self.events.flush()
            if not self.events.waiting:
                self.look()

    def look(self) -> None:
        self.fresh_logs()
        for log in self.logs.values():
            self.say_lines(log, log.more())

    def fresh_logs(self) -> list[FollowedLog]:
        paths = sorted(glob.glob(os.path.join(glob.escape(self.folder), "*.log")))
        fresh = [FollowedLog(path) for path in paths if path not in self.logs]
        self.logs.update({log.path: log for log in fresh})
        return fresh

    def say_lines(self, log: FollowedLog, lines: list[str]) -> None:
        if lines:
            name = os.path.basename(log.path)
            self.events.send({"event": "lines", "log": name, "lines": lines, "clock_s": time.time()})

    def is_wanted(self) -> bool:
        """Waits a moment for heartbeats, or for room for what waits; False when they have stopped, or nobody reads."""
        full = [self.events.descriptor] if self.events.waiting else []
        readable, _, _ = select.select([0], full, [], FOLLOW_EVERY_S)
        if readable:
            if not os.read(0, 64 * KIB):
                return False
            self.heard = time.monotonic()
        return not self.events.broken and time.monotonic() - self.heard <= self.heartbeat_s


def answer_tidy(options: argparse.Namespace, words: list[str]) -> None:
    say({"removed": tidy(os.path.abspath(options.root), time.time() - STALE_S)})


def tidy(root: str, before_s: float) -> list[str]:
    """Remove our own temporary files and folders last changed before that moment; gives their relative paths."""
    removed = []
    dead = dead_sockets(os.path.join(root, SOCKETS))
    for folder, folders, files in os.walk(root):
        stale = [name for name in folders + files if is_stale(folder, name, before_s) or name in dead]
        folders[:] = [name for name in folders if name not in stale]
        for name in stale:
            place = os.path.join(folder, name)
            remove(place)
            removed.append(os.path.relpath(place, root))
    return sorted(removed)


def is_stale(folder: str, name: str, before_s: float) -> bool:
    is_weight = os.path.basename(folder) == COMING and not is_temporary(name)
    kept_s = COMING_KEPT_S if is_weight else RESUMED_S if name.endswith(RESUMED) else 0.0
    return (is_weight or is_temporary(name)) and newest_s(os.path.join(folder, name)) < before_s - kept_s


def socket_name(hostname: str, token: str) -> str:
    """Of a socket in our folder, which may be on a disk that other hosts share."""
    return f"{hashlib.sha256(hostname.encode()).hexdigest()[:6]}-{token}.sock"


def dead_sockets(folder: str) -> set[str]:
    """The names of this host's sockets there at which nobody listens any more; macOS does not tell which these are."""
    looked_s, ours = time.time(), glob.glob(os.path.join(glob.escape(folder), socket_name(socket.gethostname(), "*")))
    bound = bound_sockets() if ours and not is_mac() else None
    if bound is None:
        return set()
    return {os.path.basename(one) for one in ours if one not in bound and newest_s(one) < looked_s}


def bound_sockets() -> set[str] | None:
    """The paths at which sockets are bound, in whatever network; None where that cannot be known of every one."""
    networks: dict[int, list[str]] = {os.stat("/proc/self/ns/net").st_ino: ["self"]}
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            networks.setdefault(os.stat(f"/proc/{name}/ns/net").st_ino, []).append(name)
    tables = [first_text(f"/proc/{name}/net/unix" for name in names) for names in networks.values()]
    return {word for table in tables for word in table.split()} if all(tables) else None


def first_text(paths: Iterable[str]) -> str:
    """Of the first of these files that has one: a process may end just before it is asked."""
    return next((text for text in map(read_text, paths) if text), "")


def is_temporary(name: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in TEMPORARY_NAMES)


def newest_s(place: str) -> float:
    """When it, or anything in it, was last changed."""
    places = [place, *(os.path.join(at, name) for at, folders, files in os.walk(place) for name in folders + files)]
    times = [0.0]
    for one in places:
        with contextlib.suppress(FileNotFoundError):
            times.append(os.lstat(one).st_mtime)
    return max(times)


def remove(place: str) -> None:
    if os.path.isdir(place) and not os.path.islink(place):
        shutil.rmtree(place, ignore_errors=True)
    else:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(place)


# what is kept here


def mark_of(item: str) -> str:
    """The file beside a cached item that says what was put there, whose time is when it was last used."""
    return item + MARK


def touch(path: str) -> None:
    with contextlib.suppress(OSError):
        os.utime(path)


class Recorded(NamedTuple):
    """A file of an item as it was when it was put; `name` is its path in the item, "" where that is the file.

    `digest` is in hexadecimal: a sha256, or, twice as long, a blake2b. `changed_ns`: when it had last been changed when
    its digest was known to be right (its ctime), 0 where nobody knows.
    """

    name: str
    size_bytes: int
    digest: str
    changed_ns: int = 0

    def place(self, item: str) -> str:
        return os.path.join(item, self.name) if self.name else item

    @property
    def kind(self) -> str:
        return "blake2b" if len(self.digest) == BLAKE2B_DIGITS else "sha256"

    def is_right(self, item: str) -> bool:
        """Whether it has this digest: every byte of it is read. What cannot be read has not."""
        place = self.place(item)
        try:
            return self.digest == (blake2b_of(place) if self.kind == "blake2b" else sha256_of(place))
        except OSError:  # a sector that cannot be read; or somebody has just removed it
            return False


def read_record(item: str) -> list[Recorded]:
    """What was put there: by the engine's manifest, else by the mark; nothing where neither says it."""
    manifest = os.path.join(item, MANIFEST)
    try:
        with open(manifest if os.path.isfile(manifest) else mark_of(item), "rb") as file:
            entries = json.load(file)["files"]
        return [
            Recorded(str(one["path"]), int(one["size_bytes"]), read_digest(one), int(one.get("changed_ns", 0)))
            for one in entries
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def read_digest(entry: dict[str, Any]) -> str:
    return str(entry["blake2b"] if "blake2b" in entry else entry["sha256"])


def write_record(item: str, recorded: Recorded) -> None:
    known = [one for one in read_record(item) if one.name != recorded.name]
    now = recorded if recorded.changed_ns else recorded._replace(changed_ns=changed_ns(recorded.place(item)))
    write_records(item, [*known, now])


def write_records(item: str, records: Iterable[Recorded]) -> None:
    """In the mark in place, never by a new file: those who use the item hold a lock on that one. A pack, which is
    changed while others read what is said of it, has a manifest of its own, which is replaced whole."""
    files = [
        {"path": one.name, "size_bytes": one.size_bytes, one.kind: one.digest, "changed_ns": one.changed_ns}
        for one in records
    ]
    data = json.dumps({"files": files}).encode()
    if is_pack(item):
        replace_file(os.path.join(item, MANIFEST), data)
        return
    with open(os.open(mark_of(item), os.O_WRONLY | os.O_CREAT, 0o600), "wb") as file:
        file.write(data)
        file.truncate()


def is_pack(item: str) -> bool:
    return os.path.isdir(os.path.join(item, PACKED))


def replace_file(path: str, data: bytes) -> None:
    beside = f"{path}.tmp-{os.getpid()}"
    try:
        with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(data)
        os.replace(beside, path)
    finally:
        remove(beside)


def changed_ns(place: str) -> int:
    """When anything of a file was last changed, which no program can choose as it can the time in `ls`; 0: it is not
    there."""
    try:
        return os.stat(place).st_ctime_ns
    except OSError:
        return 0


def is_damaged(item: str, one: Recorded) -> bool:
    """Whether a file has other bytes than were put there: read only where it was changed since they were last right,
    because a model takes minutes."""
    place = one.place(item)
    return one.changed_ns != changed_ns(place) and not record_if_right(item, one)


def record_if_right(item: str, one: Recorded) -> bool:
    """Read a file, and write down that it is right if it has this digest; when changed meanwhile it is read again."""
    before_ns = changed_ns(one.place(item))
    if not one.is_right(item):
        return False
    write_record(item, one._replace(changed_ns=before_ns))
    return True


def problems(item: str, hashes: bool) -> list[dict[str, str]]:
    """What is not as recorded; without `hashes` only sizes are compared."""
    found = []
    for one in read_record(item):
        place = one.place(item)
        if not os.path.isfile(place):
            found.append({"path": one.name, "why": "is missing"})
        elif os.path.getsize(place) != one.size_bytes:
            size = os.path.getsize(place)
            found.append({"path": one.name, "why": f"has {size} bytes, not the {one.size_bytes} that were put there"})
        elif hashes and not one.is_right(item):
            found.append({"path": one.name, "why": f"has changed: its {one.kind} is not the one it was put with"})
    return found


def hold_mark(item: str) -> int:
    """Say that an item is in use, for as long as this process lives."""
    descriptor = os.open(mark_of(item), os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    touch(mark_of(item))
    return descriptor


def hold_item(item: str) -> int:
    """`hold_mark` of what was put there; AgentError when it is not whole any more."""
    descriptor = hold_mark(item)
    wrong = problems(item, hashes=False)
    unknown = is_pack(item) and not os.path.isfile(os.path.join(item, MANIFEST))
    if wrong or unknown or not os.path.exists(item):
        what = "; ".join(f"{one['path'] or 'it'} {one['why']}" for one in wrong) or "it is not there"
        raise AgentError(f"{item} is not whole: {what}; start again, it is then put there anew")
    return descriptor


def hold_logs(path: str) -> list[int]:
    """Say that the logs of a cluster are in use, if this is one of them (logs/CLUSTER/HOST/FILE in our folder): other
    controllers do not know of it. A disk that refuses is no reason to hold the program up."""
    item = os.path.dirname(os.path.dirname(os.path.abspath(path)))
    if os.path.basename(os.path.dirname(item)) != LOGS:
        return []
    try:
        os.makedirs(os.path.dirname(item), exist_ok=True)
        return [hold_mark(item)]
    except OSError:
        return []


def is_in_use(item: str) -> bool:
    """Whether a leash that lives holds it."""
    try:
        with open(mark_of(item), "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def answer_look(options: argparse.Namespace, words: list[str]) -> None:
    """The size of a file that was put (null: it is not there), whether its digest is known, and whether it has another
    one by now; marks it as used."""
    place = Recorded(options.name, 0, "").place(options.item)
    known = [one for one in read_record(options.item) if one.name == options.name]
    touch(mark_of(options.item))
    size = os.path.getsize(place) if os.path.isfile(place) else None
    damaged = any(one.size_bytes == size and is_damaged(options.item, one) for one in known)
    say({"size_bytes": size, "recorded": bool(known), "damaged": damaged})


def answer_record(options: argparse.Namespace, words: list[str]) -> None:
    """Every byte is read for it: what was put may have been damaged on its way, or changed since."""
    say({"right": record_if_right(options.item, Recorded(options.name, options.size, options.sha256))})


def answer_stored(options: argparse.Namespace, words: list[str]) -> None:
    root = os.path.abspath(options.root)
    items = []
    for kind, name in stored_items(root):
        with contextlib.suppress(FileNotFoundError):  # removed by somebody else at this moment
            items.append(describe_item(root, kind, name, options.check or "none"))
    say({"items": items, "disk_free_bytes": disk_facts(root)["disk_free_bytes"]})


def stored_items(root: str) -> list[tuple[str, str]]:
    """(folder, name) of everything that can go by itself: in some folders every entry, else the folder ("") whole.

    What lies behind a symbolic link was put there by somebody else, for some reason: it is left alone.
    """
    found = []
    for kind in sorted(os.listdir(root) if os.path.isdir(root) else []):
        folder = os.path.join(root, kind)
        if kind == SOCKETS or os.path.islink(folder) or not is_item(root, kind):
            continue
        names = sorted(os.listdir(folder)) if kind in ITEM_FOLDERS and os.path.isdir(folder) else [""]
        found += [(kind, name) for name in names if is_item(folder, name)]
    return found


def is_item(folder: str, name: str) -> bool:
    hidden = name.startswith(".") or name.endswith(BESIDE_ITEMS) or is_temporary(name)
    return not hidden and not os.path.islink(os.path.join(folder, name))


def item_place(root: str, kind: str, name: str) -> str:
    return os.path.join(root, kind, name) if name else os.path.join(root, kind)


def describe_item(root: str, kind: str, name: str, check: str) -> dict[str, Any]:
    place = item_place(root, kind, name)
    mark = mark_of(place)
    return {
        "kind": kind,
        "name": name,
        "size_bytes": sum(size_below(path) for path in parts_of(place)),
        "used_s": max(newest_s(path) for path in (mark, place) if os.path.lexists(path)),
        "in_use": is_in_use(place),
        "recorded": bool(read_record(place)),
        "is_folder": os.path.isdir(place),
        "problems": [] if check == "none" else problems(place, check == "hashes"),
        "files": sorted(os.listdir(place)) if kind == "models" and os.path.isdir(place) else [],
        "capabilities": engine_capabilities(place) if kind == "engines" else [],
    }


def engine_capabilities(folder: str) -> list[str]:
    """The compute capabilities that an engine's CUDA code is for, by its manifest; none where that does not tell."""
    try:
        named = json.loads(read_text(os.path.join(folder, "manifest.json")) or "{}").get("capabilities", [])
    except (ValueError, AttributeError):
        return []
    return [one for one in named if re.match(r"\d+\.\d$", str(one))] if isinstance(named, list) else []


def parts_of(place: str) -> list[str]:
    """An item with what lies beside it, without locks: those may be held."""
    beside = [place + suffix for suffix in BESIDE_ITEMS if suffix != ".lock"]
    return [place, *(path for path in beside if os.path.lexists(path))]


def size_below(place: str) -> int:
    if not os.path.isdir(place) or os.path.islink(place):
        return disk_bytes(place)
    total = 0
    for folder, _, files in os.walk(place):
        for name in files:
            with contextlib.suppress(FileNotFoundError):
                total += disk_bytes(os.path.join(folder, name))
    return total


def disk_bytes(path: str) -> int:
    """What a file takes of the disk: where it has holes, less than its size."""
    facts = os.lstat(path)
    return min(facts.st_size, facts.st_blocks * 512)


def answer_forget(options: argparse.Namespace, words: list[str]) -> None:
    """Remove items, each named "FOLDER/NAME" or "FOLDER"; those in use stay."""
    root = os.path.abspath(options.root)
    there = {f"{kind}/{name}".rstrip("/"): item_place(root, kind, name) for kind, name in stored_items(root)}
    removed = [item for item in options.items if item in there and forget_item(there[item])]
    say({"removed": removed})


def forget_item(place: str) -> bool:
    """Whether it could be removed; nobody can begin to use it meanwhile. A pack that is being filled stays."""
    if any(newest_s(coming) > time.time() - FRESH_PACK_S for coming in glob.glob(f"{glob.escape(place)}/{COMING}/*")):
        return False
    descriptor = os.open(mark_of(place), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        for path in parts_of(place):
            remove(path)
        return True
    finally:
        os.close(descriptor)


# packs of weights


class Packed(NamedTuple):
    """A tensor, or a piece of one, that a worker shall find: its name in the cache, and where it lies in the model's
    files; in one, or in runs of `run_bytes`, each `stride_bytes` after the one before."""

    name: str
    size_bytes: int
    blake2b: str
    shard: str
    offset: int
    run_bytes: int = 0
    stride_bytes: int = 0

    @property
    def path(self) -> str:
        """In the pack."""
        return os.path.join(PACKED, self.name)

    @property
    def record(self) -> Recorded:
        return Recorded(self.path, self.size_bytes, self.blake2b)


def read_packed(data: bytes) -> list[Packed]:
    """Names are of 16 hexadecimal digits: none leads out of the pack."""
    wanted = [Packed(**one) for one in json.loads(data)]
    for one in wanted:
        if not re.fullmatch("[0-9a-f]{16}", one.name) or leaves(one.shard) or os.sep in one.shard:
            raise AgentError(f"{one.name} of {one.shard} is no tensor of a pack")
    return wanted


def answer_place(options: argparse.Namespace, words: list[str]) -> None:
    """Which folder this is: the same for all who reach it, by whatever name of the machine, until that starts anew."""
    there = os.stat(options.folder)
    start = boot()
    place = f"{start} {there.st_dev} {there.st_ino}"
    say({"place": hashlib.sha256(place.encode()).hexdigest() if start else ""})


def answer_pack(options: argparse.Namespace, words: list[str]) -> None:
    """Look at a pack before a start: what of the tensors named on stdin is there and right, and remove what is not, and
    whatever no record speaks of: the engine loads what it finds, unread.

    With `--every-byte` those named are read whole, the others where they were changed since they were last right; with
    `--tell` it says before its answer how far that has come.
    """
    wanted = read_packed(sys.stdin.buffer.read())
    item = os.path.abspath(options.item)
    for folder in (PACKED, COMING):
        os.makedirs(os.path.join(item, folder), mode=0o700, exist_ok=True)
    named = {one.path for one in wanted} if options.every_byte else set()
    total_bytes = sum(one.size_bytes for one in read_record(item) if one.name in named)
    read = read_again(item, named, Teller(options.tell, total_bytes))
    with locked(item + ".lock"):
        damaged = remove_wrong(item, read)
        adopt(item, wanted)
        clear_pack(item)
    touch(mark_of(item))
    there = {one.name for one in read_record(item)}
    missing = [one.name for one in wanted if one.path not in there]
    say(
        {
            "missing": missing,
            "coming": coming_bytes(item, missing, options.token),
            "damaged": damaged,
            "spare_bytes": sum(one.size_bytes for one in spare_records(item, wanted)),
        }
    )


def read_again(item: str, named: set[str], teller: Teller) -> dict[str, Recorded]:
    """The recorded files that are `named`, have changed, or are not whole, each with the time of its last change and,
    where it is other than was recorded, no digest. What takes long is done here, without a lock."""
    found = {}
    for one in read_record(item):
        place = one.place(item)
        now = one._replace(changed_ns=changed_ns(place))
        whole = os.path.isfile(place) and os.path.getsize(place) == one.size_bytes
        if not whole:
            found[one.name] = now._replace(digest="")
        elif now != one or one.name in named:
            found[one.name] = now if one.is_right(item) else now._replace(digest="")
        if one.name in named:
            teller.add(one.size_bytes)
    return found


def remove_wrong(item: str, read: dict[str, Recorded]) -> list[str]:
    """Remove what was read and is wrong, unless it has been put anew since; the names of what went."""
    kept, gone = [], []
    for one in read_record(item):
        seen, now_ns = read.get(one.name, one), changed_ns(one.place(item))
        if seen.changed_ns != now_ns:  # changed since: by whoever put it anew, or nobody knows how
            right = one.changed_ns == now_ns or one.is_right(item)
            seen = one._replace(changed_ns=now_ns, digest=one.digest if right else "")
        if seen.digest:
            kept.append(seen)
        else:
            gone.append(one)
    remove_records(item, kept, gone)
    return [os.path.basename(one.name) for one in gone]


def remove_records(item: str, kept: Iterable[Recorded], gone: Iterable[Recorded]) -> None:
    """The manifest first: a worker that starts meanwhile asks for what it says, and what it does not say is cleared."""
    write_records(item, kept)
    for one in gone:
        remove(one.place(item))


def adopt(item: str, wanted: Iterable[Packed]) -> None:
    """Record what is there without a record, whole: whoever put it was ended just before that."""
    known = {one.name for one in read_record(item)}
    for one in wanted:
        place = one.record.place(item)
        if one.path not in known and os.path.isfile(place) and os.path.getsize(place) == one.size_bytes:
            record_if_right(item, one.record)


def clear_pack(item: str) -> None:
    """Remove all that does not belong there, and transfers that nobody goes on with."""
    known = {one.name for one in read_record(item)}
    for name in os.listdir(item):
        if name not in (PACKED, COMING, MANIFEST):
            remove(os.path.join(item, name))
    for name in os.listdir(os.path.join(item, PACKED)):
        if os.path.join(PACKED, name) not in known:
            remove(os.path.join(item, PACKED, name))
    for name in os.listdir(os.path.join(item, COMING)):
        place = os.path.join(item, COMING, name)
        if newest_s(place) < time.time() - COMING_KEPT_S:
            remove(place)


def coming_bytes(item: str, missing: Iterable[str], token: str) -> dict[str, int]:
    """How far the transfers of this sender have come."""
    places = {name: coming_place(item, name, token) for name in missing}
    return {name: os.path.getsize(place) for name, place in places.items() if os.path.isfile(place)}


def coming_place(item: str, name: str, token: str) -> str:
    return os.path.join(item, COMING, f"{name}.{token}")


def spare_records(item: str, wanted: Iterable[Packed]) -> list[Recorded]:
    """Those of other plans."""
    named = {one.path for one in wanted}
    return [one for one in read_record(item) if one.name not in named]


def answer_thin(options: argparse.Namespace, words: list[str]) -> None:
    """Keep the tensors named on stdin, and what was put there just now: there is no room for those of other plans."""
    wanted, item = read_packed(sys.stdin.buffer.read()), os.path.abspath(options.item)
    with locked(item + ".lock"):
        old_s = time.time() - FRESH_PACK_S
        spare = [one for one in spare_records(item, wanted) if newest_s(one.place(item)) < old_s]
        remove_records(item, [one for one in read_record(item) if one not in spare], spare)
    say({"removed_bytes": sum(one.size_bytes for one in spare)})


def answer_drop(options: argparse.Namespace, words: list[str]) -> None:
    """Remove what has come of this sender's transfers: nobody goes on with them, and the disk may be full."""
    item = os.path.abspath(options.item)
    for place in glob.glob(coming_place(glob.escape(item), "*", options.token)):
        remove(place)
    say({"disk_free_bytes": disk_facts(item)["disk_free_bytes"]})


def answer_mend(options: argparse.Namespace, words: list[str]) -> None:
    """Remove what is damaged of a pack, every byte of which is read: the next start has only that brought again."""
    item = os.path.abspath(options.item)
    read = read_again(item, {one.name for one in read_record(item)}, Teller(False, 0))
    with locked(item + ".lock"):
        say({"removed": remove_wrong(item, read)})


def answer_carve(options: argparse.Namespace, words: list[str]) -> None:
    """Copy tensors named on stdin from the model's files in a folder of this host; tells which could be had, and, where
    the disk took no more of them, why."""
    item, carved, full = os.path.abspath(options.item), [], ""
    wanted = read_packed(sys.stdin.buffer.read())
    teller = Teller(options.tell, sum(one.size_bytes for one in wanted))
    try:
        for one in wanted:
            if carve(item, one, options.model):
                carved.append(one.name)
                teller.add(one.size_bytes)
    except OSError as error:
        full = disk_message(error, item)
    say({"carved": carved, "full": full})


def carve(item: str, one: Packed, model: str) -> bool:
    partial = coming_place(item, one.name, f"carved-{os.getpid()}.part")
    try:
        with open(os.path.join(model, one.shard), "rb") as source, open(partial, "wb") as target:
            for block in blocks_of(one, source):
                target.write(block)
        return take(item, one.record, partial)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        return False
    finally:
        remove(partial)


def blocks_of(one: Packed, source: BinaryIO) -> Iterator[bytes]:
    """Its bytes as they lie in the model's file, a MiB or so at once; fewer than it has where that is too short."""
    run = one.run_bytes or one.size_bytes
    stride = one.stride_bytes or run
    step = max(1, MIB // stride)
    for first in range(0, one.size_bytes // run, step):
        runs = min(step, one.size_bytes // run - first)
        source.seek(one.offset + first * stride)
        if runs == 1:
            yield from (source.read(min(MIB, run - done)) for done in range(0, run, MIB))
        else:
            data = source.read((runs - 1) * stride + run)
            yield b"".join(data[at : at + run] for at in range(0, len(data), stride))


def answer_take(options: argparse.Namespace, words: list[str]) -> None:
    """Make a tensor that has come whole one of the pack's, once every byte of it has been read; else it is removed."""
    one, item = Packed(options.name, options.size, options.blake2b, "", 0), os.path.abspath(options.item)
    partial = coming_place(item, one.name, options.token)
    if os.path.exists(partial):
        say({"right": take(item, one.record, partial)})
    else:  # asked once more, since the answer was lost
        say({"right": any(known[:3] == one.record[:3] for known in read_record(item)) and one.record.is_right(item)})


def take(item: str, one: Recorded, partial: str) -> bool:
    """What is in the file is on the disk before it gets its name: a name never stands for half a tensor."""
    came = Recorded("", one.size_bytes, one.digest)
    if os.path.getsize(partial) != one.size_bytes or not came.is_right(partial):
        remove(partial)
        return False
    os.chmod(partial, 0o600)  # as our folder is closed to others anyway; changed later, it would be read again
    with open(partial, "rb") as file:
        os.fsync(file.fileno())
    with locked(item + ".lock"):
        os.replace(partial, one.place(item))
        write_record(item, one)
    return True


# weights for another host


class Introduced(NamedTuple):
    """What the controller tells each of two hosts that do not know each other: a key and certificate of its own, made
    for this once (PEM), the certificate of the other, and the weights that this is about."""

    identity: str
    other: str
    weights: list[Packed]


def read_introduced(data: bytes) -> Introduced:
    told = json.loads(data)
    return Introduced(told["identity"], told["other"], read_packed(json.dumps(told["weights"]).encode()))


def tls_context(mine: Introduced, is_server: bool) -> Any:
    """Both ends must show the very certificate that was told; names and dates mean nothing then."""
    try:
        import ssl
    except ImportError as error:
        raise AgentError(f"this Python has no TLS: {error}") from error
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if is_server else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=mine.other)
    with tempfile.NamedTemporaryFile() as file:  # mode 600; the module reads keys from files only
        file.write(mine.identity.encode())
        file.flush()
        context.load_cert_chain(file.name)
    return context


def answer_held(options: argparse.Namespace, words: list[str]) -> None:
    """Which of the weights named on stdin are here: in a pack, or in a copy of the model."""
    wanted = read_packed(sys.stdin.buffer.read())
    say({"held": [one.name for one in wanted if held_at(os.path.abspath(options.item), options.model, one)]})


def held_at(item: str, model: str, one: Packed) -> str:
    """The file that has it, "" where none has. The other side compares what it gets with its digest."""
    pack, shard = one.record.place(item), os.path.join(model, one.shard)
    if os.path.isfile(pack) and os.path.getsize(pack) == one.size_bytes:
        return pack
    return shard if os.path.isfile(shard) else ""


def give_weights(options: argparse.Namespace, words: list[str]) -> None:
    """Let the host `peer` fetch the weights that the first line on stdin names, as long as life signs come after it."""
    mine = read_introduced(sys.stdin.buffer.readline())
    context = tls_context(mine, is_server=True)
    with socket.socket(family_of_address(options.address)) as server:
        server.bind((options.address, 0))
        server.listen(1)
        say({"port": server.getsockname()[1]})
        item = os.path.abspath(options.item)
        given = {one.name: (one, held_at(item, options.model, one)) for one in mine.weights}
        threading.Thread(target=serve_weights, args=(server, context, options.peer, given), daemon=True).start()
        while select.select((0,), (), (), LINK_PATIENCE_S)[0] and os.read(0, 4 * KIB):
            pass


def serve_weights(server: socket.socket, context: Any, peer: str, given: dict[str, tuple[Packed, str]]) -> None:
    """One connection after the other, from that host only."""
    while True:
        try:
            connection, origin = server.accept()
        except OSError:
            return
        with connection, contextlib.suppress(OSError):  # errors of TLS are such
            if origin[0] != peer:
                continue
            connection.settimeout(LINK_PATIENCE_S)
            with context.wrap_socket(connection, server_side=True) as secured:
                while name := receive(secured, bytearray(16)):
                    if not send_weight(secured, given.get(bytes(name).decode("ascii", "replace"))):
                        break


def send_weight(connection: Any, given: tuple[Packed, str] | None) -> bool:
    """Eight bytes with its size (0: it is not here), then itself. False where it may not be given, or is cut short."""
    if given is None:
        return False
    one, place = given
    connection.sendall(struct.pack(">Q", one.size_bytes if place else 0))
    if not place:
        return True
    where = one if os.path.basename(place) == one.shard else one._replace(offset=0, run_bytes=0, stride_bytes=0)
    sent = 0
    with open(place, "rb") as file:
        for block in blocks_of(where, file):
            connection.sendall(block)
            sent += len(block)
    return sent == one.size_bytes


def answer_fetch(options: argparse.Namespace, words: list[str]) -> None:
    """Get the weights named on stdin from the host that gives them, within `--seconds`; tells which came, how long that
    took, and why no more did."""
    mine = read_introduced(sys.stdin.buffer.read())
    context = tls_context(mine, is_server=False)
    item, fetched, why = os.path.abspath(options.item), [], ""
    teller = Teller(options.tell, sum(one.size_bytes for one in mine.weights))
    begun = time.monotonic()
    try:
        place, end_s = (options.address, options.port), begun + (options.seconds or float("inf"))
        with context.wrap_socket(socket.create_connection(place, timeout=QUESTION_TIMEOUT_S)) as connection:
            connection.settimeout(LINK_PATIENCE_S)
            for one in mine.weights:
                if fetch_weight(connection, item, one, end_s):
                    fetched.append(one.name)
                    teller.add(one.size_bytes)
    except OSError as error:
        why = disk_message(error, item) if error.errno in (errno.ENOSPC, errno.EDQUOT) else describe(error)
    say({"fetched": fetched, "seconds": time.monotonic() - begun, "why": why})


def fetch_weight(connection: Any, item: str, one: Packed, end_s: float) -> bool:
    """Whether it came, whole and right; TimeoutError when it takes longer than until then."""
    connection.sendall(one.name.encode())
    header = receive(connection, bytearray(8))
    size = None if header is None else struct.unpack(">Q", header)[0]
    if size == 0:
        return False
    if size != one.size_bytes:
        raise ConnectionError("the other host does not give it")
    partial = coming_place(item, one.name, f"fetched-{os.getpid()}.part")
    try:
        with open(partial, "wb") as file:
            buffer = bytearray(MIB)
            for done in range(0, one.size_bytes, MIB):
                if time.monotonic() > end_s:
                    raise TimeoutError("too slow")
                part = memoryview(buffer)[: min(MIB, one.size_bytes - done)]
                if receive(connection, part) is None:
                    raise ConnectionError("the other host has ended the connection")
                file.write(part)
        return take(item, one.record, partial)
    finally:
        remove(partial)


# who else is here


def answer_others(options: argparse.Namespace, words: list[str]) -> None:
    """Who beside us and root may log in here, and who has processes: all of them reach this host's loopback."""
    login = {user.pw_uid for user in pwd.getpwall() if may_log_in(user)} - {os.getuid()}
    running = running_users() - {0, os.getuid()}
    say({"login": sorted(map(name_of, login)), "running": sorted(map(name_of, running - login))})


def may_log_in(user: pwd.struct_passwd) -> bool:
    first = 500 if is_mac() else FIRST_USER
    return first <= user.pw_uid < NO_USER and not user.pw_shell.endswith(("/nologin", "/false"))


def running_users() -> set[int]:
    if is_mac():
        return {int(word) for word in ask(("ps", "-axo", "uid=")).split()}
    found = set()
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            found.add(os.stat(f"/proc/{name}").st_uid)
    return found


def name_of(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return str(user)


# who listens


def answer_listen(options: argparse.Namespace, words: list[str]) -> None:
    if is_mac():
        found = read_lsof(ask(("lsof", "-nP", "-a", "-u", str(os.getuid()), "-iTCP", "-sTCP:LISTEN", "-Fpcn")))
    else:
        owners, network = socket_owners(), options.network or "self"
        tables = (read_text(f"/proc/{network}/net/{name}") for name in ("tcp", "tcp6"))
        sockets = [one for table in tables for one in read_tcp(table)]
        found = [listener(one.address, one.port, *owners.get(one.inode, (0, ""))) for one in sockets if one.is_ours()]
    say({"listening": found})


def listener(address: str, port: int, pid: int, program: str) -> dict[str, Any]:
    """`pid` 0 and `program` "" where the owner cannot be seen."""
    return {"address": address, "port": port, "pid": pid, "program": program}


class ListeningSocket(NamedTuple):
    address: str
    port: int
    user: int
    inode: str

    def is_ours(self) -> bool:
        return self.user == os.getuid()


def read_tcp(text: str) -> list[ListeningSocket]:
    """Sockets in LISTEN (state 0A) of /proc/net/tcp or tcp6 (proc_net_tcp: addresses in host byte order per word)."""
    found = []
    for line in text.splitlines()[1:]:
        fields = line.split()
        if len(fields) > 9 and fields[3] == "0A":
            address, _, port = fields[1].partition(":")
            found.append(ListeningSocket(read_address(address), int(port, 16), int(fields[7]), fields[9]))
    return found


def read_address(text: str) -> str:
    data = b"".join(struct.pack("=I", int(text[at : at + 8], 16)) for at in range(0, len(text), 8))
    return socket.inet_ntop(socket.AF_INET if len(data) == 4 else socket.AF_INET6, data)


def socket_owners() -> dict[str, tuple[int, str]]:
    owners = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            for descriptor in os.listdir(f"/proc/{name}/fd"):
                target = os.readlink(f"/proc/{name}/fd/{descriptor}")
                if target.startswith("socket:["):
                    owners[target[8:-1]] = (int(name), read_text(f"/proc/{name}/comm").strip())
    return owners


def read_lsof(text: str) -> list[dict[str, Any]]:
    """`lsof -F pcn`: a line per field, the process before its files; names are `address:port`, `*` for any."""
    found = []
    pid, program = 0, ""
    for line in text.splitlines():
        kind, value = line[:1], line[1:]
        if kind == "p":
            pid = int(value)
        elif kind == "c":
            program = value
        elif kind == "n":
            address, _, port = value.rpartition(":")
            found.append(listener(address.strip("[]").replace("*", "0.0.0.0"), int(port), pid, program))
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
