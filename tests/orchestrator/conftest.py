"""What tests of several packages share.

A closed port; folders with the real engine; an SSH server, a key that it lets in, and our ssh files.
"""

import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from orchestrator.engine.store import Engine
from orchestrator.folders import Folders
from orchestrator.shell.host_keys import add_lines, key_line
from orchestrator.shell.ssh import SshShell, open_ssh_shell
from orchestrator.shell.ssh_config import SshFiles
from tests.orchestrator.shell.ssh_server import Server, host_of, running_server, ssh_files, write_login_key


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that refuses connections: bound, so that nobody else takes it, and never listened on."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


@pytest.fixture
def folders(tmp_path: Path, engine: Engine) -> Folders:
    """With the real engine."""
    found = Folders(tmp_path / "cache" / "meshctl", tmp_path / "state")
    found.cache.mkdir(parents=True)
    (found.cache / "engines").symlink_to(engine.folder.parent)
    return found


@pytest.fixture
def login(tmp_path: Path) -> Path:
    return write_login_key(tmp_path / "login")


@pytest.fixture
async def server(tmp_path: Path, login: Path) -> AsyncIterator[Server]:
    async with running_server(tmp_path / "home", login=login) as running:
        yield running


@pytest.fixture
def ssh(tmp_path: Path) -> SshFiles:
    return ssh_files(tmp_path / "state")


@pytest.fixture
def trusted(ssh: SshFiles, server: Server) -> SshFiles:
    add_lines(ssh.known_hosts, [key_line(server.name, key) for key in server.keys])
    return ssh


@pytest.fixture
async def shell(trusted: SshFiles, server: Server, login: Path) -> AsyncIterator[SshShell]:
    opened = await open_ssh_shell(host_of(server, login), trusted)
    yield opened
    await opened.close()
