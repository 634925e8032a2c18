"""The words of a tunnel, its port, and waiting for it without connecting."""

import os
import random
import socket
from pathlib import Path

import pytest

from orchestrator.errors import BringUpError
from orchestrator.inventory import Host
from orchestrator.shell.ssh_config import SshFiles
from orchestrator.tunnel import (
    free_local_port,
    listening_ports,
    read_netstat,
    read_proc_tcp,
    tunnel_command,
    wait_open,
)

SSH = SshFiles(known_hosts=Path("/state/known_hosts"), config=Path("/state/ssh_config"))

PROC_TCP = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:5028 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 17 1 0 100 0 0 10 0
   1: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 18 1 0 100 0 0 10 0
   2: 0100007F:5029 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 19 1 0 20 4 0 10 -1
   3: 0200000A:5030 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 20 1 0 100 0 0 10 0
"""
NETSTAT = """\
Active Internet connections (including servers)
Proto Recv-Q Send-Q  Local Address          Foreign Address        (state)
tcp4       0      0  127.0.0.1.20520        *.*                    LISTEN
tcp4       0      0  192.168.1.5.52144      17.57.146.84.5223      ESTABLISHED
tcp4       0      0  *.22                   *.*                    LISTEN
tcp4       0      0  192.168.1.5.5000       *.*                    LISTEN
udp4       0      0  *.5353                 *.*
"""


def test_the_words_of_a_tunnel() -> None:
    host = Host("desk", "ssh", address="10.0.0.2", user="ada", port=2222, key="/keys/id", jump="bastion")
    assert " ".join(tunnel_command(host, SSH, "/run/near.sock", "/run/far.sock")) == (
        "ssh -F /state/ssh_config -T -o BatchMode=yes -o ExitOnForwardFailure=yes -o ConnectTimeout=15"
        " -o ServerAliveInterval=5 -o ServerAliveCountMax=3 -o Compression=no -o IPQoS=none -o ControlMaster=no"
        " -o ControlPath=none -o StrictHostKeyChecking=yes -o GatewayPorts=no -o StreamLocalBindMask=0177"
        " -c aes128-gcm@openssh.com,aes256-gcm@openssh.com,chacha20-poly1305@openssh.com"
        " -L /run/near.sock:/run/far.sock -l ada -p 2222 -i /keys/id -J bastion -- 10.0.0.2 exec cat > /dev/null"
    )


def test_a_pinned_host_is_looked_up_under_its_pin() -> None:
    host = Host("desk", "ssh", address="desk", host_key="SHA256:" + "A" * 43)
    words = tunnel_command(host, SSH, "/run/near.sock", "127.0.0.1:20200")
    alias = f"HostKeyAlias=pinned-{'0' * 40}"
    assert words[-6:-1] == ("/run/near.sock:127.0.0.1:20200", "-o", alias, "--", "desk")


def test_listening_ports_are_read_from_linux_and_macos() -> None:
    assert read_proc_tcp(PROC_TCP) == {0x5028, 22}
    assert read_netstat(NETSTAT) == {20520, 22}


def test_a_free_port_is_below_the_ephemeral_range_and_not_taken() -> None:
    first = free_local_port(choice=random.Random(1))
    assert 20000 <= first < 32000
    assert free_local_port({first}, choice=random.Random(1)) != first
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", first))
        assert free_local_port(choice=random.Random(1)) != first


async def test_a_near_end_is_seen_without_being_connected_to(tmp_path: Path) -> None:
    near = tmp_path / "near.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(near))
        listener.listen()
        await wait_open(near, 5, lambda: True)
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()


async def test_a_tunnel_that_ends_or_never_listens_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BringUpError, match="it ended before it listened"):
        await wait_open(tmp_path / "near.sock", 5, lambda: False)
    with pytest.raises(BringUpError, match=r"it does not listen after 0\.1 s"):
        await wait_open(tmp_path / "near.sock", 0.1, lambda: True)


async def test_ports_of_this_machine_and_of_a_process_are_told_apart() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert listener.getsockname()[1] in await listening_ports()
        assert listener.getsockname()[1] in await listening_ports(os.getpid())
