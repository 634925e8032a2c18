"""The same against OpenSSH's own server: shells, tunnels, jumps, and what is left afterwards (nothing)."""

import asyncio
import ctypes
import os
import pwd
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncssh
import pytest

from orchestrator.errors import BringUpError, CommandError, DeadlineError, HostKeyError
from orchestrator.inventory import Host
from orchestrator.shell.connect import connect
from orchestrator.shell.host_keys import add_lines, key_line
from orchestrator.shell.local import LocalProcess, LocalShell
from orchestrator.shell.ssh_config import SshFiles
from orchestrator.trust import compare, scan_keys, trust
from orchestrator.tunnel import free_local_port, listening_ports, tunnel_command, wait_open
from tests.orchestrator.shell.ssh_server import write_login_key

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
ME = pwd.getpwuid(os.getuid()).pw_name

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(SSHD is None, reason="OpenSSH's sshd is not installed (Debian: openssh-server)"),
]


@dataclass(frozen=True)
class Daemon:
    """A running sshd; logins are for the account that runs the tests."""

    port: int
    key: Path

    @property
    def name(self) -> str:
        return f"[127.0.0.1]:{self.port}"

    def host(self, login: Path, jump: str | None = None) -> Host:
        return Host("desk", "ssh", address="127.0.0.1", port=self.port, user=ME, key=str(login), jump=jump)

    def line(self) -> str:
        return key_line(self.name, asyncssh.read_private_key(self.key))


@asynccontextmanager
async def running_sshd(folder: Path, login: Path, *options: str) -> AsyncIterator[Daemon]:
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd refuses to start as root without it
    key = write_login_key(folder / "host_key")
    port = free_local_port()
    lines = (
        f"ListenAddress 127.0.0.1:{port}",
        f"HostKey {key}",
        f"PidFile {folder / 'pid'}",
        f"AuthorizedKeysFile {login.with_suffix('.pub')}",
        "StrictModes no",
        "UsePAM no",
        "Subsystem sftp internal-sftp",
        *options,
    )
    (folder / "config").write_text("".join(f"{line}\n" for line in lines))
    with (folder / "log").open("wb") as log:
        words = (str(SSHD), "-D", "-e", "-f", str(folder / "config"))
        daemon = await asyncio.create_subprocess_exec(*words, stderr=log, start_new_session=True)
    try:
        async with asyncio.timeout(10):
            while port not in await listening_ports():
                assert daemon.returncode is None
                await asyncio.sleep(0.02)
        yield Daemon(port, key)
    finally:
        daemon.terminate()
        await daemon.wait()


@pytest.fixture
async def daemon(tmp_path: Path, login: Path) -> AsyncIterator[Daemon]:
    async with running_sshd(tmp_path / "sshd", login, "MaxSessions 3") as running:
        yield running


@asynccontextmanager
async def running_tunnel(host: Host, ssh: SshFiles, far: str, folder: Path) -> AsyncIterator[Path]:
    """The tunnel's near end once it listens; afterwards no process of it is left. Its talk is in folder/log."""
    local = LocalShell("here", folder, folder)
    near = folder / f"{len(list(folder.glob('*.sock')))}.sock"
    ssh_words = tunnel_command(host, ssh, str(near), far)
    process = await local.start((ssh_words[0], "-v", "-E", str(folder / "log"), *ssh_words[1:]))
    assert isinstance(process, LocalProcess)
    running = asyncio.create_task(process.wait(deadline_s=60))
    try:
        await wait_open(near, 20, lambda: not running.done())
        assert near.stat().st_mode & 0o077 == 0
        yield near
    finally:
        await process.kill()
        await running
        await nothing_names(str(ssh.config))


@asynccontextmanager
async def echo_server() -> AsyncIterator[str]:
    """Its address and port."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


async def echoed(near: Path, data: bytes) -> bytes:
    async with asyncio.timeout(20):
        reader, writer = await asyncio.open_unix_connection(near)
        writer.write(data)
        writer.write_eof()
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        return answer


def connections_at(port: int) -> list[socket.socket]:
    """Copies of the sockets that processes here have as the near end of connections to this port (Linux 5.6, root)."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            sshd = "sshd" in (folder / "comm").read_text()
            numbers = [int(fd.name) for fd in (folder / "fd").iterdir() if os.readlink(fd).startswith("socket:")]
        except OSError:  # it has just ended
            continue
        for number in numbers if sshd else ():
            process = os.pidfd_open(int(folder.name))
            copy = ctypes.CDLL(None, use_errno=True).syscall(PIDFD_GETFD, process, number, 0)
            os.close(process)
            if copy >= 0:
                one = socket.socket(fileno=copy)
                if one.family == socket.AF_INET and one.getsockname()[1] == port and not one.getsockopt(*LISTENS):
                    found.append(one)
                else:
                    one.close()
    return found


PIDFD_GETFD = 438
LISTENS = socket.SOL_SOCKET, socket.SO_ACCEPTCONN


@pytest.mark.skipif(os.getuid() != 0, reason="looks into sshd's sockets: needs root")
async def test_the_far_end_of_a_tunnel_holds_no_packet_back(
    daemon: Daemon, login: Path, ssh: SshFiles, tmp_path: Path
) -> None:
    """Without TCP_NODELAY 32 KiB there and back took 57 ms now and then instead of 0.5."""
    host = daemon.host(login)
    trust(compare((await scan_keys(host, ssh)).keys, ssh), ssh)
    async with echo_server() as far, running_tunnel(host, ssh, far, tmp_path) as near:
        assert await echoed(near, b"x" * 100_000) == b"x" * 100_000
        async with asyncio.timeout(20):
            while not (options := no_delays_at(daemon.port)) or not all(options):
                await asyncio.sleep(0.05)  # the session may be opened after the forwarding


def no_delays_at(port: int) -> list[int]:
    options = []
    for one in connections_at(port):
        with one:
            options.append(one.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
    return options


async def nothing_names(word: str) -> None:
    """Wait until no process has this word in its command line."""
    async with asyncio.timeout(15):
        while any(word in line for line in command_lines()):
            await asyncio.sleep(0.05)


def command_lines() -> list[str]:
    lines = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                lines.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
            except OSError:  # it has just ended
                continue
    return lines


async def test_a_host_is_trusted_then_reached_and_late_commands_are_ended_there(
    daemon: Daemon, login: Path, ssh: SshFiles, tmp_path: Path
) -> None:
    host = daemon.host(login)
    trust(compare((await scan_keys(host, ssh)).keys, ssh), ssh)
    assert ssh.known_hosts.read_text() == f"{daemon.line()}\n"
    shell = await connect(host, ssh)
    try:
        assert shell.root == f"{pwd.getpwuid(os.getuid()).pw_dir}/.cache/meshctl"
        await shell.put_bytes(b"data" * 100_000, str(tmp_path / "far" / "file"))
        await shell.get(str(tmp_path / "far" / "file"), tmp_path / "near")
        assert (tmp_path / "near").read_bytes() == b"data" * 100_000
        assert (await shell.run(("sh", "-c", "kill -9 $$"), deadline_s=10, check=False)).status == -9
        with pytest.raises(DeadlineError):
            await shell.run(("sh", "-c", f"sleep 97; : {tmp_path}"), deadline_s=0.5)
        await nothing_names(f": {tmp_path}")
    finally:
        await shell.close()


async def test_a_server_that_lost_its_trusted_key_type_has_changed(daemon: Daemon, login: Path, ssh: SshFiles) -> None:
    """Here sshd hangs up, because no key of the type we ask for is left."""
    add_lines(ssh.known_hosts, [key_line(daemon.name, asyncssh.generate_private_key("ecdsa-sha2-nistp256"))])
    with pytest.raises(HostKeyError, match="HAS CHANGED"):
        await connect(daemon.host(login), ssh)


async def test_more_processes_than_the_host_allows_is_a_clear_error(daemon: Daemon, login: Path, ssh: SshFiles) -> None:
    add_lines(ssh.known_hosts, [daemon.line()])
    async with AsyncExitStack() as opened:
        shell = await connect(daemon.host(login), ssh)
        opened.push_async_callback(shell.close)
        for _ in range(2):
            process = await shell.start(("cat",))
            opened.push_async_callback(process.kill)
        with pytest.raises(CommandError, match="allows no further session") as caught:
            await shell.start(("cat",))
        assert "MaxSessions" in caught.value.hint


async def test_a_tunnel_carries_data_under_aes_gcm_and_leaves_nothing(
    daemon: Daemon, login: Path, ssh: SshFiles, tmp_path: Path
) -> None:
    add_lines(ssh.known_hosts, [daemon.line()])
    data = os.urandom(3_000_000)
    async with echo_server() as far, running_tunnel(daemon.host(login), ssh, far, tmp_path) as near:
        assert await echoed(near, data) == data
    assert "cipher: aes128-gcm@openssh.com" in (tmp_path / "log").read_text()


async def test_a_tunnel_to_a_changed_key_never_listens(
    daemon: Daemon, login: Path, ssh: SshFiles, tmp_path: Path
) -> None:
    """Although the user's configuration says that anything goes."""
    ssh.config.with_name("user_config").write_text("StrictHostKeyChecking no\nUserKnownHostsFile /dev/null\n")
    add_lines(ssh.known_hosts, [key_line(daemon.name, asyncssh.generate_private_key("ssh-ed25519"))])
    with pytest.raises(BringUpError, match="ended before it listened"):
        async with running_tunnel(daemon.host(login), ssh, "127.0.0.1:9", tmp_path):
            pass
    assert "REMOTE HOST IDENTIFICATION HAS CHANGED" in (tmp_path / "log").read_text()


async def test_a_tunnel_through_a_jump_checks_the_jump_too(
    daemon: Daemon, login: Path, ssh: SshFiles, tmp_path: Path
) -> None:
    careless = "StrictHostKeyChecking no\nUserKnownHostsFile /dev/null\n"
    ssh.config.with_name("user_config").write_text(f"{careless}IdentityFile {login}\n")
    add_lines(ssh.known_hosts, [daemon.line()])
    async with running_sshd(tmp_path / "jump", login) as jump, echo_server() as far:
        host = daemon.host(login, jump=f"{ME}@127.0.0.1:{jump.port}")
        with pytest.raises(BringUpError, match="ended before it listened"):
            async with running_tunnel(host, ssh, far, tmp_path):
                pass
        add_lines(ssh.known_hosts, [jump.line()])
        async with running_tunnel(host, ssh, far, tmp_path) as near:
            assert await echoed(near, b"through two") == b"through two"


async def test_a_pinned_key_holds_for_shell_and_tunnel(
    daemon: Daemon, login: Path, ssh: SshFiles, tmp_path: Path
) -> None:
    pin = asyncssh.read_private_key(daemon.key).get_fingerprint()
    host = Host("desk", "ssh", address="127.0.0.1", port=daemon.port, user=ME, key=str(login), host_key=pin)
    shell = await connect(host, ssh)
    await shell.close()
    async with echo_server() as far, running_tunnel(host, ssh, far, tmp_path) as near:
        assert await echoed(near, b"pinned") == b"pinned"
