"""The life of workers, links and heads, with plain programs under a real leash in their place."""

import os
import socket
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from orchestrator import processes
from orchestrator.errors import BringUpError, HostError
from orchestrator.host_agent import ask_facts
from orchestrator.host_door import ensure_agent
from orchestrator.hosts import OpenHost, OpenHosts
from orchestrator.inventory import Host
from orchestrator.network import PrivateNetwork
from orchestrator.processes import Started, open_worker_link, start_worker
from orchestrator.shell.local import LocalShell
from orchestrator.shell.ssh_config import write_ssh_files
from orchestrator.survey.values import DeviceSpec
from orchestrator.tunnel import free_local_port, listening_ports
from workers.commands import enter_words, in_network


@pytest.fixture
async def shell() -> AsyncIterator[LocalShell]:
    """In a folder whose path is short enough for sockets."""
    with TemporaryDirectory(prefix="m-") as folder:
        one = LocalShell("desk", Path(folder), Path(folder))
        yield one
        await one.close()


class FarShell(LocalShell):
    """As if it were another machine's: its folder is then where the user's home is."""

    def __init__(self, host: str, root: Path, home: Path) -> None:
        super().__init__(host, root, home)
        self.is_local = False


@pytest.mark.parametrize(
    ("kind", "fix"),
    [
        (LocalShell, "set XDG_CACHE_HOME to a shorter path"),
        (FarShell, "log in there as a user whose home has a shorter path (`user` of desk)"),
    ],
)
async def test_a_folder_that_is_too_deep_for_sockets_is_told_with_the_fix(
    shell: LocalShell, tmp_path: Path, kind: type[LocalShell], fix: str
) -> None:
    agent = await ensure_agent(shell)
    deep = kind("desk", tmp_path / ("d" * 100), tmp_path)
    host = OpenHost(Host("desk", "local"), deep, agent, await ask_facts(shell, agent))
    with pytest.raises(HostError, match="103 bytes at most, not ") as caught:
        host.new_socket()
    assert caught.value.hint == fix


SSH = """#!{python}
import socket, sys, time
near = sys.argv[sys.argv.index("-L") + 1].split(":")[0]
time.sleep(0.3)
server = socket.socket(socket.AF_UNIX)
server.bind(near)
server.listen()
while True:
    connection, _ = server.accept()
    connection.sendall(b"far end")
    connection.close()
"""
"""Stands for `ssh -L`: listens only after it would have logged in."""


@pytest.fixture
async def far(shell: LocalShell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OpenHost:
    (tmp_path / "ssh").write_text(SSH.format(python=sys.executable))
    (tmp_path / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    agent = await ensure_agent(shell)
    return OpenHost(Host("desk", "ssh", address="desk.invalid"), shell, agent, await ask_facts(shell, agent))


def hosts_of(far: OpenHost, tmp_path: Path, refused: str) -> OpenHosts:
    controller = replace(far, host=Host("controller", "local"))
    ssh = write_ssh_files(tmp_path / "state", tmp_path / "inventory.yaml")
    return OpenHosts(controller, {"desk": far}, ssh, PrivateNetwork(far.shell, far.agent, refused))


async def test_a_link_whose_port_another_program_took_first_gets_another_port(
    far: OpenHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is no private network. The tunnel that failed is not watched any more, and leaves no socket."""
    hosts, started = hosts_of(far, tmp_path, "none here"), Started()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = iter((taken.getsockname()[1], free_local_port()))
        monkeypatch.setattr(processes, "free_local_port", lambda: next(ports))
        try:
            link = await open_worker_link(started, hosts, "demo", far, "127.0.0.1:20000")
            assert link.port != taken.getsockname()[1]
            assert started.processes == [link.process]
            assert link.process.running
            with socket.create_connection(("127.0.0.1", link.port), 5) as connection:
                assert connection.recv(99) == b"far end"
            assert [path.name for path in Path(far.shell.root, "run").iterdir()] == [Path(link.near).name]
        finally:
            await started.stop()
    assert list(Path(far.shell.root, "run").iterdir()) == []


async def test_a_link_ends_in_the_private_network_of_heads(far: OpenHost, tmp_path: Path) -> None:
    if far.facts.private_network_refused:
        pytest.skip(f"this system has no private networks: {far.facts.private_network_refused}")
    hosts, started = hosts_of(far, tmp_path, ""), Started()
    try:
        one, two = [await open_worker_link(started, hosts, "demo", far, "127.0.0.1:20000") for _ in range(2)]
        assert one.port != two.port
        pid = await hosts.network.pid()
        assert {one.port, two.port} <= await listening_ports(pid)
        assert not {one.port, two.port} & await listening_ports()
        code = f"import socket; print(socket.create_connection(('127.0.0.1', {two.port})).recv(9))"
        words = enter_words(far.agent, in_network(pid), (sys.executable, "-c", code))
        assert (await far.shell.run(words, deadline_s=20)).stdout == b"b'far end'\n"
    finally:
        await started.stop()
        await hosts.network.close()


@pytest.mark.parametrize(
    ("program", "said"), [("kill -ILL $$", "ended by signal 4"), ("echo no such device; exit 3", "no such device")]
)
async def test_a_worker_that_ends_at_once_is_told_by_its_last_words_or_else_by_how_it_ended(
    shell: LocalShell, tmp_path: Path, program: str, said: str
) -> None:
    """Seen: of a worker that its processor cannot run nothing was told, since it had written nothing."""
    (tmp_path / "ggml-rpc-server").write_text(f"#!/bin/sh\n{program}\n")
    (tmp_path / "ggml-rpc-server").chmod(0o755)
    agent = await ensure_agent(shell)
    desk = OpenHost(Host("desk", "local"), shell, agent, await ask_facts(shell, agent))
    started = Started()
    with pytest.raises(BringUpError, match="desk: worker-cpu does not start") as caught:
        await start_worker(
            started, hosts_of(desk, tmp_path, "not here"), "test", DeviceSpec("desk/cpu", 1), desk, str(tmp_path)
        )
    assert (caught.value.details.strip(), started.processes) == (said, [])
