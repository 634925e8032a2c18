"""Private networks and the bridges between them, with real processes: what listens there, and who reaches it."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.workers.held import AGENT, PYTHON, Hold, alive, wait_until
from tests.workers.test_agent import run_agent
from workers import agent
from workers.commands import PRIVATE, bridged, enter_words, in_network

PORT = 20000
ECHO = f"""
import socket
server = socket.create_server(("127.0.0.1", {PORT}))
while True:
    connection, _ = server.accept()
    while data := connection.recv(65536):
        connection.sendall(data)
    connection.close()
"""
ASK = f"import socket; c = socket.create_connection(('127.0.0.1', {PORT}), 5); c.sendall(b'hello'); print(c.recv(9))"


@pytest.fixture(autouse=True)
def _possible() -> None:
    if reason := agent.private_network_refused():
        pytest.skip(f"this system gives us no private network: {reason}")


def words_of(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


def is_listening(pid: int) -> bool:
    return any(one["port"] == PORT for one in run_agent("listen", "--network", str(pid))["listening"])


def echoes(place: Path, data: bytes) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(str(place))
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: client.recv(65536), b"")) == data


@contextmanager
def network() -> Iterator[int]:
    """A network that is held, by the number of its holder."""
    with subprocess.Popen(
        (PYTHON, "-I", "-S", str(AGENT), "network"), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        yield int(json.loads(holder.stdout.readline())["pid"])
        assert holder.stdin is not None
        holder.stdin.close()
        assert holder.wait(timeout=10) == 0


def test_what_listens_in_a_private_network_is_reached_by_its_bridge_only(hold: Hold, tmp_path: Path) -> None:
    door = tmp_path / "run" / "door.sock"
    held = hold(*words_of(ECHO), options=(*PRIVATE, *bridged(f"unix:{door}", f"tcp:127.0.0.1:{PORT}")))
    pid = held.wait_for("started")["pid"]
    wait_until(lambda: is_listening(pid))
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", PORT), 5)
    assert door.stat().st_mode & 0o077 == 0
    assert door.parent.stat().st_mode & 0o077 == 0
    assert echoes(door, b"x" * 3_000_000)
    assert echoes(door, b"again")


def test_programs_share_a_network_that_is_held(hold: Hold) -> None:
    with network() as pid:
        one = hold(*words_of(ECHO), options=in_network(pid))
        one.wait_for("started")
        wait_until(lambda: is_listening(pid))
        words = enter_words(str(AGENT), in_network(pid), words_of(ASK))
        assert subprocess.run((PYTHON, *words[1:]), capture_output=True, check=True).stdout == b"b'hello'\n"


def test_a_bridge_leads_into_a_network_from_outside(hold: Hold, tmp_path: Path) -> None:
    """As from a tunnel's near end to a head: the program of the leash is in the host's own network."""
    place = tmp_path / "near.sock"
    outside = f"""
import socket
server = socket.socket(socket.AF_UNIX); server.bind({str(place)!r}); server.listen()
connection, _ = server.accept()
connection.sendall(connection.recv(9).upper())
connection.recv(1)
"""
    with network() as pid:
        options = bridged(f"tcp:127.0.0.1:{PORT}", f"unix:{place}", pid)
        hold(*words_of(outside), options=options).wait_for("started")
        assert is_listening(pid)
        wait_until(place.exists)
        words = enter_words(str(AGENT), in_network(pid), words_of(ASK))
        assert subprocess.run((PYTHON, *words[1:]), capture_output=True, check=True).stdout == b"b'HELLO'\n"


def test_a_bridge_and_its_program_end_together(hold: Hold, tmp_path: Path) -> None:
    options = (*PRIVATE, *bridged(f"unix:{tmp_path / 'a.sock'}", f"tcp:127.0.0.1:{PORT}"))
    held = hold(*words_of(ECHO), options=options)
    started = held.wait_for("started")
    (bridge,) = children_of(started["leash"]) - {started["pid"]}
    held.process.kill()
    wait_until(lambda: not alive(started["pid"]) and not alive(bridge))


def test_a_program_is_ended_when_its_bridge_is_gone(hold: Hold, tmp_path: Path) -> None:
    options = (*PRIVATE, *bridged(f"unix:{tmp_path / 'a.sock'}", f"tcp:127.0.0.1:{PORT}"))
    held = hold(*words_of(ECHO), options=options)
    started = held.wait_for("started")
    (bridge,) = children_of(started["leash"]) - {started["pid"]}
    os.kill(bridge, signal.SIGKILL)
    assert held.wait_for("exit")["reason"] == "its bridge ended"
    assert not alive(started["pid"])


def test_a_bridge_that_cannot_listen_is_the_reason_of_the_end(hold: Hold, tmp_path: Path) -> None:
    (tmp_path / "taken.sock").touch()
    options = (*PRIVATE, *bridged(f"unix:{tmp_path / 'taken.sock'}", f"tcp:127.0.0.1:{PORT}"))
    ended = hold(*words_of(ECHO), options=options).wait_for("exit")
    assert ended["reason"].endswith("taken.sock=tcp:127.0.0.1:20000 does not listen: Address already in use")


def test_a_network_that_is_gone_is_the_last_word_of_the_program(hold: Hold) -> None:
    ended = hold(*words_of(ECHO), options=in_network(2**22 - 1)).wait_for("exit")
    assert ended["status"] == 126
    assert "no private network" in ended["tail"]


def test_memory_is_that_of_the_program_without_its_bridge(hold: Hold, tmp_path: Path) -> None:
    options = (*PRIVATE, *bridged(f"unix:{tmp_path / 'a.sock'}", f"tcp:127.0.0.1:{PORT}"))
    held = hold(*words_of(ECHO), options=options, heartbeat_s=10.0)
    pid = held.wait_for("started")["pid"]
    assert abs(held.wait_for("alive")["rss_bytes"] - agent.running_processes()[pid].rss_bytes) < 1_000_000


def children_of(pid: int) -> set[int]:
    """But for the keeper, which is a shell."""
    children = {number for number, one in agent.running_processes().items() if one.parent == pid}
    return {one for one in children if b"/bin/sh" not in Path(f"/proc/{one}/cmdline").read_bytes()}
