"""One host of a lab that is up: what runs and listens there, its link and its key. Makes and removes no host."""

import os
import re
import signal
import socket
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import lab_kernel as kernel
from lab_folder import LabHost, make_key
from lab_kernel import LabError, Names

READY_DEADLINE_S = 20.0


class Listener(NamedTuple):
    """A listening TCP socket of a host, and the program that holds it."""

    address: str
    port: int
    program: str


class LabProcess(NamedTuple):
    """A process in a host's cgroup, by its number on the real machine, and its command line."""

    pid: int
    command: str


@dataclass(frozen=True)
class RunningHost:
    """One host of a lab that is up."""

    spec: LabHost
    number: int
    address: str
    user: str
    folder: Path
    names: Names

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def namespace(self) -> str:
        return self.names.host(self.name)

    def listening(self) -> tuple[Listener, ...]:
        """Every listening TCP socket in the host's network namespace; a delayed link shows as `lab_relay`."""
        lines = kernel.run(*kernel.within(self.namespace, "ss", "-H", "-l", "-t", "-n", "-p")).splitlines()
        return tuple(sorted(_listener(line) for line in lines))

    def processes(self) -> tuple[LabProcess, ...]:
        """Every process of the host but the first: its sshd, the sessions and all they started."""
        pids = (pid for pid in kernel.cgroup_pids(self.namespace) if not _is_first_inside(pid))
        found = (LabProcess(pid, _command(pid)) for pid in pids)
        return tuple(process for process in found if process.command)

    def memory_used_bytes(self) -> int:
        """What the kernel counts against the host's memory limit."""
        return kernel.memory_used_bytes(self.namespace)

    def carried_bytes(self) -> int:
        """What has crossed its link since it was made, both ways, as its network card counts."""
        statistics = Path("/sys/class/net", self.names.link(self.number), "statistics")
        return sum(int((statistics / name).read_text()) for name in ("rx_bytes", "tx_bytes"))

    def cut_link(self) -> None:
        """Pull the cable: packets are lost, both ways, until `restore_link`; the host's network card sees it."""
        kernel.run("ip", "link", "set", self.names.link(self.number), "down")

    def black_hole_link(self) -> None:
        """Every packet is lost in silence, both ways, until `restore_link`: the cable is fine, what it leads to not."""
        kernel.run("ip", "link", "set", self.names.link(self.number), "nomaster")

    def restore_link(self) -> None:
        kernel.run("ip", "link", "set", self.names.link(self.number), "master", self.names.bridge, "up")

    def slow_link(self, rate: str) -> None:
        """Hold the link to this rate from now on, in tc's words, both ways."""
        kernel.shape_link(self.names, self.name, self.number, rate)

    def public_key(self) -> str:
        """The host's own public key, `ssh-ed25519 AAAA...`."""
        return " ".join((self.folder / "run" / "host_key.pub").read_text().split()[:2])

    def fingerprint(self) -> str:
        """The host key's `SHA256:...`."""
        return kernel.run("ssh-keygen", "-l", "-f", str(self.folder / "run" / "host_key.pub")).split()[1]

    def new_host_key(self) -> None:
        """Let sshd go on with another host key; open sessions stay."""
        make_key(self.folder / "run" / "host_key", f"{self.name} again")
        os.kill(self._listener(), signal.SIGHUP)
        if not kernel.wait_until(lambda: self.public_key() in self._shown_key(), READY_DEADLINE_S):
            raise LabError(f"{self.name}: sshd does not show its new key; {self._log_tail()}")

    def restart_sshd(self) -> None:
        """End the listener and every session at once; return when another listener is there."""
        old = [one.pid for one in self.processes() if "sshd" in one.command]
        for pid in old:
            with suppress(ProcessLookupError):  # a session ends with the half of it that was ended first
                os.kill(pid, signal.SIGKILL)
        self._listener(but=old)

    def wait_until_ready(self) -> None:
        """Return when sshd greets at the host's address and nothing else runs; LabError with its log otherwise."""
        if not kernel.wait_until(lambda: _greets(self.address), READY_DEADLINE_S):
            raise LabError(f"{self.name}: no sshd at {self.address}:22; {self._log_tail()}")
        if not kernel.wait_until(lambda: len(self.processes()) == 1, READY_DEADLINE_S):
            raise LabError(f"{self.name}: sshd does not let go of the greeting; {self._log_tail()}")

    def _listener(self, but: Collection[int] = ()) -> int:
        """The process that listens; it may be away for a moment."""
        found: list[int] = []

        def is_there() -> bool:
            found[:] = [one.pid for one in self.processes() if _is_listener(one) and one.pid not in but]
            return bool(found)

        if not kernel.wait_until(is_there, READY_DEADLINE_S):
            raise LabError(f"{self.name}: no sshd listens; {self._log_tail()}")
        return found[0]

    def _shown_key(self) -> str:
        with suppress(LabError):
            return kernel.run("ssh-keyscan", "-T", "5", "-t", "ed25519", self.address)
        return ""

    def _log_tail(self) -> str:
        return "its log ends:\n" + "\n".join((self.folder / "log").read_text().splitlines()[-10:])


def _greets(address: str) -> bool:
    try:
        with socket.create_connection((address, 22), timeout=2) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


def _listener(line: str) -> Listener:
    """`LISTEN 0 128 127.0.0.1:22 0.0.0.0:* users:(("sshd",pid=1,fd=3))`"""
    words = line.split()
    address, _, port = words[3].rpartition(":")
    program = re.search(r'\(\("([^"]*)"', line)
    return Listener(address, int(port), program[1] if program else "")


def _is_listener(process: LabProcess) -> bool:
    return "sshd" in process.command and "listener" in process.command


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def _is_first_inside(pid: int) -> bool:
    with suppress(OSError):
        status = Path(f"/proc/{pid}/status").read_text()
        return bool(re.search(r"^NSpid:\s+\d+\s+1$", status, re.MULTILINE))
    return False
