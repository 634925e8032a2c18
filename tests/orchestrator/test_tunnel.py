"""The words of a tunnel, its port, and waiting for it without connecting."""

import random
import socket
from pathlib import Path

import pytest

from orchestrator.errors import BringUpError
from orchestrator.inventory import Host
from orchestrator.shell.ssh_config import SshFiles
from orchestrator.tunnel import (
    free_local_port,
    probe_command,
    read_netstat,
    read_proc_tcp,
    tunnel_command,
    wait_listening,
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
    assert " ".join(tunnel_command(host, SSH, 20100, 20200)) == (
        "ssh -F /state/ssh_config -N -T -o BatchMode=yes -o ExitOnForwardFailure=yes -o ConnectTimeout=15"
        " -o ServerAliveInterval=5 -o ServerAliveCountMax=3 -o Compression=no -o IPQoS=none -o ControlMaster=no"
        " -o ControlPath=none -o StrictHostKeyChecking=yes -o GatewayPorts=no"
        " -c aes128-gcm@openssh.com,aes256-gcm@openssh.com,chacha20-poly1305@openssh.com"
        " -L 127.0.0.1:20100:127.0.0.1:20200 -l ada -p 2222 -i /keys/id -J bastion -- 10.0.0.2"
    )


def test_a_pinned_host_is_looked_up_under_its_pin() -> None:
    host = Host("desk", "ssh", address="desk", host_key="SHA256:" + "A" * 43)
    assert tunnel_command(host, SSH, 20100, 20200)[-4:] == ("-o", f"HostKeyAlias=pinned-{'0' * 40}", "--", "desk")


def test_forwarding_is_tried_with_the_tunnels_own_options() -> None:
    host = Host("desk", "ssh", address="desk", user="ada")
    tunnel, probe = tunnel_command(host, SSH, 20100, 20200), probe_command(host, SSH, 20200)
    assert probe[:3] == ("ssh", "-F", "/state/ssh_config")
    assert probe[probe.index("-W") :] == ("-W", "127.0.0.1:20200", *tunnel[-4:])
    assert "StrictHostKeyChecking=yes" in probe


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


async def test_a_listener_is_seen_without_being_connected_to() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        await wait_listening(listener.getsockname()[1], 5, lambda: True)
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()


async def test_a_tunnel_that_ends_or_never_listens_is_an_error() -> None:
    with pytest.raises(BringUpError, match=r"the tunnel at 127\.0\.0\.1:20001 ended before it listened"):
        await wait_listening(20001, 5, lambda: False)
    with pytest.raises(BringUpError, match=r"does not listen at 127\.0\.0\.1:20001 after 0\.1 s"):
        await wait_listening(20001, 0.1, lambda: True)
