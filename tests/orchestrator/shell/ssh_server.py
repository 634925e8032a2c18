"""A real SSH server on loopback for tests: commands are real processes, files lie in a folder of the test."""

import asyncio
import errno
import os
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

import asyncssh

from orchestrator.inventory import Host
from orchestrator.shell.ssh_config import SshFiles, write_ssh_files

USER = "ada"


@dataclass
class Server:
    """A running server; `port` and `keys` are what clients meet.

    `full` makes its disk have no room; `fills_up` makes it run full with the next write. `written_modes` are those
    that files had when something was written to them.
    """

    home: Path
    keys: list[asyncssh.SSHKey]
    full: bool = False
    fills_up: bool = False
    port: int = 0
    connections: list[asyncssh.SSHServerConnection] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    forwards: list[tuple[str, int]] = field(default_factory=list)
    written_modes: list[int] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"[127.0.0.1]:{self.port}"


@asynccontextmanager
async def running_server(
    home: Path, *, types: tuple[str, ...] = ("ssh-ed25519",), port: int = 0, login: Path, **options: Any
) -> AsyncIterator[Server]:
    """Serve `home` to whoever holds the private key at `login`, and end every process at the end."""
    home.mkdir(parents=True, exist_ok=True)
    server = Server(home, [asyncssh.generate_private_key(kind) for kind in types])
    children: set[asyncio.subprocess.Process] = set()
    wanted: dict[str, Any] = {
        "process_factory": lambda process: _run(server, process, children),
        "sftp_factory": lambda channel: _Files(channel, server),
        "encoding": None,
        **options,
    }
    allowed = asyncssh.read_public_key(login.with_suffix(".pub"))
    acceptor = await asyncssh.listen(
        "127.0.0.1",
        port,
        server_factory=lambda: _Door(server, allowed),
        server_host_keys=server.keys,
        config=None,
        **wanted,
    )
    server.port = acceptor.get_port()
    try:
        yield server
    finally:
        acceptor.close()
        await acceptor.wait_closed()
        for connection in server.connections:
            connection.abort()
            await connection.wait_closed()
        for child in children:
            _end(child)
            await child.wait()


def write_login_key(folder: Path, *, passphrase: str = "") -> Path:
    """A new ed25519 key pair for logging in; the path of the private one."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "login"
    words = ("ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-C", "test", "-f", str(path))
    subprocess.run(words, check=True, stdin=subprocess.DEVNULL, timeout=30)
    return path


def ssh_files(folder: Path, user_config: str = "") -> SshFiles:
    """Our files in `folder`, with this text in the place of ~/.ssh/config."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "user_config").write_text(user_config)
    return write_ssh_files(
        folder, Path("my inventory.yaml"), user_config=folder / "user_config", system_config=folder / "no_system_config"
    )


def host_of(server: Server, login: Path, **changes: Any) -> Host:
    """The inventory's entry for a server."""
    values = {"address": "127.0.0.1", "port": server.port, "user": USER, "key": str(login), **changes}
    return Host(name="desk", connection="ssh", **values)


class _Door(asyncssh.SSHServer):
    def __init__(self, server: Server, allowed: asyncssh.SSHKey) -> None:
        self._server = server
        self._allowed = allowed

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._server.connections.append(conn)

    def public_key_auth_supported(self) -> bool:
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        return username == USER and key == self._allowed

    def connection_requested(self, dest_host: str, dest_port: int, orig_host: str, orig_port: int) -> bool:
        self._server.forwards.append((dest_host, dest_port))
        return True


class _Files(asyncssh.SFTPServer):
    """Relative paths lie in the server's home; a full disk can be had for tests."""

    def __init__(self, channel: "asyncssh.SSHServerChannel[bytes]", server: Server) -> None:
        super().__init__(channel)
        self._server = server

    def map_path(self, path: bytes) -> bytes:
        return os.path.join(os.fsencode(self._server.home), path)

    def realpath(self, path: bytes) -> bytes:
        return os.path.realpath(self.map_path(path))

    def write(self, file_obj: object, offset: int, data: bytes) -> int:
        self._server.written_modes.append(os.fstat(cast("BinaryIO", file_obj).fileno()).st_mode & 0o777)
        if self._server.fills_up:
            self._server.full = True
            raise OSError(errno.EIO, "Failure")
        answer = super().write(file_obj, offset, data)
        assert isinstance(answer, int)
        return answer

    def statvfs(self, path: bytes) -> os.statvfs_result:
        values = list(os.statvfs(self.map_path(path)))
        if self._server.full:
            values[3] = values[4] = 0
        return os.statvfs_result(values)


async def _run(
    server: Server, process: "asyncssh.SSHServerProcess[bytes]", children: set[asyncio.subprocess.Process]
) -> None:
    assert process.command is not None
    server.commands.append(process.command)
    pipe = asyncio.subprocess.PIPE
    child = await asyncio.create_subprocess_shell(
        process.command, stdin=pipe, stdout=pipe, stderr=pipe, cwd=server.home, start_new_session=True
    )
    children.add(child)
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stderr is not None
    feeding = asyncio.create_task(_feed(process.stdin, child.stdin))
    try:
        await asyncio.gather(_show(child.stdout, process.stdout), _show(child.stderr, process.stderr))
        _report(process, await child.wait())
    finally:
        feeding.cancel()
        _end(child)


async def _feed(source: "asyncssh.SSHReader[bytes]", target: asyncio.StreamWriter) -> None:
    with suppress(OSError, asyncssh.Error):
        while data := await source.read(65536):
            target.write(data)
            await target.drain()
    target.close()


async def _show(source: asyncio.StreamReader, target: "asyncssh.SSHWriter[bytes]") -> None:
    with suppress(OSError, asyncssh.Error):
        while data := await source.read(65536):
            target.write(data)
            await target.drain()


def _report(process: "asyncssh.SSHServerProcess[bytes]", status: int) -> None:
    with suppress(OSError, asyncssh.Error):
        if status < 0:
            process.exit_with_signal(signal.Signals(-status).name.removeprefix("SIG"))
        else:
            process.exit(status)


def _end(child: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
