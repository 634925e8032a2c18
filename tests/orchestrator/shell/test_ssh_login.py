"""Who is let in, what is refused, and what the user is told."""

import asyncio
import socket
from pathlib import Path

import asyncssh
import pytest

from orchestrator.errors import ConnectError, HostKeyError
from orchestrator.shell.connect import connect
from orchestrator.shell.host_keys import add_lines, fingerprint, key_line, known_keys, pinned_name
from orchestrator.shell.ssh_config import SshFiles
from tests.orchestrator.shell.ssh_server import (
    USER,
    Server,
    host_of,
    running_server,
    ssh_files,
    write_login_key,
)

CARELESS = (
    "Host *\n  UserKnownHostsFile /dev/null\n  StrictHostKeyChecking no\n  NoHostAuthenticationForLocalhost yes\n"
)


async def test_an_unknown_key_is_refused_with_its_fingerprint(ssh: SshFiles, server: Server, login: Path) -> None:
    with pytest.raises(HostKeyError) as caught:
        await connect(host_of(server, login), ssh)
    assert str(caught.value) == (f"desk: the host key of {server.name} is not known yet: {fingerprint(server.keys[0])}")
    assert "meshctl trust 'my inventory.yaml'" in caught.value.hint


async def test_the_users_configuration_cannot_turn_the_check_off(tmp_path: Path, server: Server, login: Path) -> None:
    ssh = ssh_files(tmp_path / "careless", CARELESS)
    with pytest.raises(HostKeyError, match="is not known yet"):
        await connect(host_of(server, login), ssh)


@pytest.mark.parametrize("other", ["ssh-ed25519", "ecdsa-sha2-nistp256"])
async def test_a_changed_key_is_a_hard_error_with_both_fingerprints(
    ssh: SshFiles, server: Server, login: Path, other: str
) -> None:
    before = asyncssh.generate_private_key(other)
    add_lines(ssh.known_hosts, [key_line(server.name, before)])
    with pytest.raises(HostKeyError) as caught:
        await connect(host_of(server, login), ssh)
    assert str(caught.value) == (
        f"desk: THE HOST KEY OF {server.name} HAS CHANGED; somebody may be in between\n"
        f"  trusted: {fingerprint(before)} ({other})\n  offered: {fingerprint(server.keys[0])}"
    )
    assert "ssh-keygen -lf" in caught.value.hint
    assert "meshctl trust 'my inventory.yaml' --replace desk" in caught.value.hint


async def test_a_revoked_key_is_refused(ssh: SshFiles, server: Server, login: Path) -> None:
    line = key_line(server.name, server.keys[0])
    add_lines(ssh.known_hosts, [line, f"@revoked {line}"])
    with pytest.raises(HostKeyError, match="marked as revoked"):
        await connect(host_of(server, login), ssh)


async def test_a_pinned_key_is_learnt_on_first_contact(ssh: SshFiles, tmp_path: Path, login: Path) -> None:
    async with running_server(tmp_path / "home2", types=("ssh-ed25519", "ssh-rsa"), login=login) as server:
        pin = fingerprint(server.keys[1])
        for _ in range(2):
            shell = await connect(host_of(server, login, host_key=pin), ssh)
            await shell.close()
    assert list(map(fingerprint, known_keys(ssh.known_hosts, pinned_name(pin)).keys)) == [pin]
    assert len(ssh.known_hosts.read_text().splitlines()) == 1


async def test_another_key_than_the_pinned_one_is_a_hard_error(ssh: SshFiles, server: Server, login: Path) -> None:
    pin = fingerprint(asyncssh.generate_private_key("ssh-ed25519"))
    with pytest.raises(HostKeyError) as caught:
        await connect(host_of(server, login, host_key=pin), ssh)
    assert pin in str(caught.value)
    assert fingerprint(server.keys[0]) in str(caught.value)
    assert ssh.known_hosts.read_text() == ""


async def test_a_trusted_key_that_is_not_the_pinned_one_is_a_hard_error(
    trusted: SshFiles, server: Server, login: Path
) -> None:
    pin = fingerprint(asyncssh.generate_private_key("ssh-ed25519"))
    with pytest.raises(HostKeyError, match="IS NOT THE PINNED ONE"):
        await connect(host_of(server, login, host_key=pin), trusted)


async def test_a_wrong_user_is_told_which_keys_were_tried(trusted: SshFiles, server: Server, login: Path) -> None:
    with pytest.raises(ConnectError) as caught:
        await connect(host_of(server, login, user="eve"), trusted)
    assert f"login as eve at 127.0.0.1 port {server.port} was refused; tried {login}" in str(caught.value)
    assert "ssh-copy-id" in caught.value.hint


async def test_a_key_behind_a_passphrase_is_named(
    trusted: SshFiles, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    locked = write_login_key(tmp_path / "locked", passphrase="secret")
    with pytest.raises(ConnectError, match=f"passphrase: `ssh-add {locked}` helps"):
        await connect(host_of(server, locked), trusted)


async def test_a_missing_key_file_is_named(trusted: SshFiles, server: Server, tmp_path: Path) -> None:
    with pytest.raises(ConnectError, match=r"the key .*gone does not exist"):
        await connect(host_of(server, tmp_path / "gone"), trusted)


async def test_a_closed_port_an_unknown_name_and_a_silent_server_are_told_apart(
    trusted: SshFiles, server: Server, login: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as closed, socket.create_server(("127.0.0.1", 0)) as silent:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        with pytest.raises(ConnectError, match=rf"nothing listens at 127\.0\.0\.1 port {port}"):
            await connect(host_of(server, login, port=port), trusted)
        with pytest.raises(ConnectError, match=r"the name nowhere\.invalid is not known"):
            await connect(host_of(server, login, address="nowhere.invalid"), trusted)
        monkeypatch.setattr("orchestrator.shell.ssh_login.CONNECT_S", 0.3)
        with pytest.raises(ConnectError, match=r"no answer from 127\.0\.0\.1 port \d+ within 0\.3 s"):
            await connect(host_of(server, login, port=silent.getsockname()[1]), trusted)


async def test_the_users_configuration_gives_name_user_port_and_key(
    tmp_path: Path, server: Server, login: Path
) -> None:
    config = f"Host desk\n  HostName 127.0.0.1\n  Port {server.port}\n  User {USER}\n  IdentityFile {login}\n"
    ssh = ssh_files(tmp_path / "folder with space", CARELESS + config)
    add_lines(ssh.known_hosts, [key_line(server.name, server.keys[0])])
    shell = await connect(host_of(server, login, address="desk", user=None, port=None, key=None), ssh)
    assert (await shell.run(("echo", "in"), deadline_s=10)).stdout == b"in\n"
    await shell.close()


async def test_forwards_in_the_users_configuration_are_refused_before_they_break_a_tunnel(
    tmp_path: Path, server: Server, login: Path
) -> None:
    ssh = ssh_files(tmp_path / "forwards", "LocalForward 8000 localhost:80\n")
    with pytest.raises(ConnectError, match="sets forwards for 127"):
        await connect(host_of(server, login), ssh)


async def test_a_broken_user_configuration_is_shown(tmp_path: Path, server: Server, login: Path) -> None:
    ssh = ssh_files(tmp_path / "broken", "Nonsense yes\n")
    with pytest.raises(ConnectError, match="ssh does not accept its configuration") as caught:
        await connect(host_of(server, login), ssh)
    assert "nonsense" in caught.value.details.lower()


async def test_the_agent_lets_us_in(
    trusted: SshFiles, server: Server, login: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "agent")
    agent = await asyncio.create_subprocess_exec("ssh-agent", "-D", "-a", path, stdout=asyncio.subprocess.DEVNULL)
    try:
        async with asyncio.timeout(10):
            while not Path(path).exists():
                await asyncio.sleep(0.01)
        monkeypatch.setenv("SSH_AUTH_SOCK", path)
        async with asyncssh.connect_agent(path) as client:
            await client.add_keys([str(login)])
        shell = await connect(host_of(server, login, key=None), trusted)
        await shell.close()
    finally:
        agent.terminate()
        await agent.wait()


async def test_a_jump_host_is_verified_and_used(trusted: SshFiles, server: Server, login: Path, tmp_path: Path) -> None:
    (tmp_path / "state" / "user_config").write_text(f"IdentityFile {login}\n")
    async with running_server(tmp_path / "far", login=login) as far:
        host = host_of(far, login, jump=f"{USER}@127.0.0.1:{server.port}")
        add_lines(trusted.known_hosts, [key_line(far.name, far.keys[0])])
        shell = await connect(host, trusted)
        assert (await shell.run(("pwd",), deadline_s=10)).stdout.decode().strip() == str(far.home)
        await shell.close()
        assert server.forwards == [("127.0.0.1", far.port)]
        add_lines(trusted.known_hosts, [], forget=[server.name])
        with pytest.raises(HostKeyError, match=f"of .127.0.0.1.:{server.port} is not known yet"):
            await connect(host, trusted)


async def test_a_proxy_command_carries_the_connection(trusted: SshFiles, server: Server, login: Path) -> None:
    relay = "import os,socket,sys,threading as t;s=socket.create_connection((sys.argv[1],int(sys.argv[2])));"
    relay += "t.Thread(target=lambda:[os.write(1,d) for d in iter(lambda:s.recv(9999),b'')],daemon=True).start();"
    relay += "[s.sendall(d) for d in iter(lambda:os.read(0,9999),b'')]"
    config = trusted.config.with_name("user_config")
    config.write_text(f'ProxyCommand python3 -c "{relay}" %h %p\n')
    shell = await connect(host_of(server, login), trusted)
    assert (await shell.run(("echo", "in"), deadline_s=10)).stdout == b"in\n"
    await shell.close()
