"""Encrypted links for data: the `ssh -L` command of a tunnel, its near end, and when that listens.

Starts no process: the words run under the agent's leash on the controller. The near end is a socket in a folder of
ours, which no other user can reach. Nothing here ever connects to it, because the connection would reach the worker
behind it, which serves only one.
"""

import asyncio
import random
import socket
from collections.abc import Callable, Collection
from pathlib import Path

from orchestrator.errors import BringUpError
from orchestrator.inventory import Host
from orchestrator.shell.local import LocalShell
from orchestrator.shell.protocol import Words
from orchestrator.shell.ssh_config import SshFiles, destination_words

_LOOPBACK = "127.0.0.1"
_CIPHERS = "aes128-gcm@openssh.com,aes256-gcm@openssh.com,chacha20-poly1305@openssh.com"
_OPTIONS = (
    "BatchMode=yes",
    "ExitOnForwardFailure=yes",
    "ConnectTimeout=15",
    "ServerAliveInterval=5",
    "ServerAliveCountMax=3",
    "Compression=no",
    "IPQoS=none",
    "ControlMaster=no",
    "ControlPath=none",
    "StrictHostKeyChecking=yes",
    "GatewayPorts=no",
    "StreamLocalBindMask=0177",
)
_PORTS = range(20000, 32000)  # below the ephemeral ranges of Linux (from 32768) and macOS (from 49152)
_LOOK_S = 0.02
_NETSTAT_S = 10.0


def tunnel_command(host: Host, ssh: SshFiles, near: str, far: str) -> Words:
    """The words that carry what comes in at the socket `near` here to `far` there until they are ended.

    `far` is another socket's path, or such as "127.0.0.1:20000".

    Strict host keys by our own configuration, which jumps inherit through -F. AES-GCM comes first because the default
    cipher costs more than three times its round trip where the CPU has AES.

    It runs a command there, which waits for the end of a stdin that nobody writes to and so goes with the connection:
    sshd turns Nagle's algorithm off (TCP_NODELAY) only where a session is opened. With `-N` the far end held the last
    packet of an answer back until the one before was acknowledged, which the near end may put off by 40 ms: measured
    over 1 Gbit/s, 32 KiB there and back took 2.4 ms on the mean and 57 at most instead of 0.5 and 0.9.
    """
    options = tuple(word for option in _OPTIONS for word in ("-o", option))
    forward = ("-L", f"{near}:{far}")
    words = ("ssh", "-F", str(ssh.config), "-T", *options, "-c", _CIPHERS, *forward, *destination_words(host))
    return (*words, "exec cat > /dev/null")


def free_local_port(taken: Collection[int] = (), *, choice: random.Random | None = None) -> int:
    """A port on 127.0.0.1 that nothing is bound to now, below the ephemeral range, and not in `taken`.

    Another program may still take it before it is used; then choose again. BringUpError when none is free.
    """
    ports = [port for port in _PORTS if port not in taken]
    (choice or random.SystemRandom()).shuffle(ports)
    for port in ports:
        if _can_bind(port):
            return port
    raise BringUpError(f"no port between {_PORTS.start} and {_PORTS.stop - 1} is free on this machine")


async def wait_open(near: Path, deadline_s: float, still_running: Callable[[], bool]) -> None:
    """Return once there is a socket at `near`, without connecting to it.

    BringUpError when `still_running` (the tunnel's process) says no first, or there is none in time. That the far end
    answers is not shown by this: with -L a missing far end shows only when it is used.
    """
    clock = asyncio.get_running_loop().time
    end = clock() + deadline_s
    while not near.is_socket():
        if not still_running():
            raise BringUpError("it ended before it listened")
        if clock() > end:
            raise BringUpError(f"it does not listen after {deadline_s:g} s")
        await asyncio.sleep(_LOOK_S)


async def listening_ports(network: int = 0) -> frozenset[int]:
    """The TCP ports on which something listens at 127.0.0.1 of this machine, or in the network of a process."""
    table = Path(f"/proc/{network or 'self'}/net/tcp")
    if table.exists():
        return read_proc_tcp(table.read_text())
    shell = LocalShell("this machine", Path("/"), Path("/"))
    answer = await shell.run(("netstat", "-an", "-p", "tcp"), deadline_s=_NETSTAT_S)
    return read_netstat(answer.stdout.decode(errors="replace"))


def read_proc_tcp(text: str) -> frozenset[int]:
    """Read /proc/net/tcp (proc_pid_net(5)): hexadecimal address:port in column 2, state 0A (listening) in column 4."""
    rows = [line.split() for line in text.splitlines()[1:]]
    places = [row[1].split(":") for row in rows if row[3] == "0A"]
    return frozenset(int(port, 16) for address, port in places if address in _LOOPBACK_HEX)


def read_netstat(text: str) -> frozenset[int]:
    """Read `netstat -an -p tcp` of macOS: local address with a dot before the port in column 4, state in column 6."""
    rows = [line.split() for line in text.splitlines()]
    places = [row[3].rpartition(".") for row in rows if len(row) >= 6 and row[5] == "LISTEN"]
    return frozenset(int(port) for address, _, port in places if address in (_LOOPBACK, "*"))


_LOOPBACK_HEX = ("0100007F", "7F000001", "00000000")  # 127.0.0.1 on little- and big-endian machines, and every address


def _can_bind(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((_LOOPBACK, port))
        except OSError:
            return False
    return True
