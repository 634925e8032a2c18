"""The life of workers, links and heads, with plain programs under a real leash in their place."""

import os
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from orchestrator import processes
from orchestrator.host_agent import ask_facts, ensure_agent
from orchestrator.hosts import OpenHost, OpenHosts
from orchestrator.inventory import Host
from orchestrator.processes import Started, open_link
from orchestrator.shell.local import LocalShell
from orchestrator.shell.ssh_config import write_ssh_files
from orchestrator.tunnel import free_local_port


@pytest.fixture
async def shell(tmp_path: Path) -> AsyncIterator[LocalShell]:
    one = LocalShell("desk", tmp_path / "root", tmp_path)
    yield one
    await one.close()


SSH = """#!{python}
import socket, sys, time
near = int(sys.argv[sys.argv.index("-L") + 1].split(":")[1])
time.sleep(0.6)
server = socket.socket()
try:
    server.bind(("127.0.0.1", near))
except OSError:
    sys.exit("bind: Address already in use")
server.listen()
time.sleep(99)
"""
"""Stands for `ssh -N -L`: listens only after it would have logged in."""


async def test_a_link_whose_port_another_program_took_first_gets_another_port(
    shell: LocalShell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That program's socket is not taken for the tunnel's, and the tunnel that failed is not watched any more."""
    (tmp_path / "ssh").write_text(SSH.format(python=sys.executable))
    (tmp_path / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    agent = await ensure_agent(shell)
    facts = await ask_facts(shell, agent)
    controller = OpenHost(Host("controller", "local"), shell, agent, facts)
    far = OpenHost(Host("desk", "ssh", address="desk.invalid"), shell, agent, facts)
    hosts = OpenHosts(controller, {"desk": far}, write_ssh_files(tmp_path / "state", tmp_path / "inventory.yaml"))
    started = Started()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = iter((taken.getsockname()[1], free_local_port()))
        monkeypatch.setattr(processes, "free_local_port", lambda: next(ports))
        try:
            link = await open_link(started, hosts, "demo", far, 20000)
            assert link.port != taken.getsockname()[1]
            assert started.processes == [link.process]
            assert link.process.running
        finally:
            await started.stop()
