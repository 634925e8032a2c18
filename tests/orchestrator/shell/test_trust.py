"""Looking at offered keys, comparing them, and trusting them."""

from dataclasses import replace
from pathlib import Path

import asyncssh
import pytest

from orchestrator.errors import HostKeyError
from orchestrator.shell.connect import connect
from orchestrator.shell.host_keys import add_lines, fingerprint, key_line
from orchestrator.shell.ssh_config import SshFiles
from orchestrator.trust import ChangedKey, Comparison, OfferedKey, Scan, compare, scan_keys, trust
from tests.orchestrator.shell.ssh_server import USER, Server, host_of, running_server

TYPES = ("ssh-ed25519", "ecdsa-sha2-nistp256", "ssh-rsa")


def offered_by(server: Server, key: asyncssh.SSHKey) -> OfferedKey:
    return OfferedKey("desk", server.name, key.get_algorithm(), fingerprint(key), key_line(server.name, key))


async def test_every_key_type_is_shown_then_trusted_then_known(ssh: SshFiles, tmp_path: Path, login: Path) -> None:
    async with running_server(tmp_path / "home", types=TYPES, login=login) as server:
        host = host_of(server, login)
        expected = tuple(offered_by(server, key) for key in server.keys)
        assert await scan_keys(host, ssh) == Scan("desk", expected)
        assert ssh.known_hosts.read_text() == ""
        assert compare(expected, ssh) == Comparison(new=expected)
        assert trust(compare(expected, ssh), ssh) == expected
        assert compare(expected, ssh) == Comparison(known=expected)
        assert ssh.known_hosts.stat().st_mode & 0o777 == 0o600
        await (await connect(host, ssh)).close()


async def test_a_changed_key_needs_an_explicit_replace(ssh: SshFiles, server: Server, login: Path) -> None:
    before = asyncssh.generate_private_key("ssh-ed25519")
    add_lines(ssh.known_hosts, [key_line(server.name, before), key_line("other", before)])
    scan = await scan_keys(host_of(server, login), ssh)
    comparison = compare(scan.keys, ssh)
    assert comparison == Comparison(changed=(ChangedKey(scan.keys[0], (fingerprint(before),)),))
    with pytest.raises(HostKeyError, match="HAS CHANGED"):
        trust(comparison, ssh)
    assert trust(comparison, ssh, replace={"desk"}) == scan.keys
    assert ssh.known_hosts.read_text() == f"{key_line('other', before)}\n{scan.keys[0].line}\n"


async def test_a_server_without_any_of_the_trusted_keys_has_changed(ssh: SshFiles, server: Server, login: Path) -> None:
    before = asyncssh.generate_private_key("ecdsa-sha2-nistp256")
    add_lines(ssh.known_hosts, [key_line(server.name, before)])
    comparison = compare((await scan_keys(host_of(server, login), ssh)).keys, ssh)
    assert [changed.trusted for changed in comparison.changed] == [(fingerprint(before),)]


async def test_a_further_type_beside_a_trusted_key_is_new(ssh: SshFiles, tmp_path: Path, login: Path) -> None:
    async with running_server(tmp_path / "home", types=TYPES[:2], login=login) as server:
        add_lines(ssh.known_hosts, [key_line(server.name, server.keys[0])])
        first, second = (await scan_keys(host_of(server, login), ssh)).keys
    assert compare((first, second), ssh) == Comparison(new=(second,), known=(first,))


async def test_what_lies_behind_a_jump_waits_until_the_jump_is_trusted(
    ssh: SshFiles, server: Server, login: Path, tmp_path: Path
) -> None:
    ssh.config.with_name("user_config").write_text(f"IdentityFile {login}\n")
    async with running_server(tmp_path / "far", login=login) as far:
        host = host_of(far, login, jump=f"{USER}@127.0.0.1:{server.port}")
        scan = await scan_keys(host, ssh)
        assert scan == Scan("desk", (offered_by(server, server.keys[0]),), waits_for=server.name)
        trust(compare(scan.keys, ssh), ssh)
        scan = await scan_keys(host, ssh)
        assert scan == Scan("desk", (offered_by(server, server.keys[0]), offered_by(far, far.keys[0])))
        trust(compare(scan.keys, ssh), ssh)
        await (await connect(host, ssh)).close()


async def test_a_pinned_host_shows_only_its_pinned_key(ssh: SshFiles, tmp_path: Path, login: Path) -> None:
    async with running_server(tmp_path / "home", types=TYPES[:2], login=login) as server:
        host = host_of(server, login, host_key=fingerprint(server.keys[1]))
        assert [key.fingerprint for key in (await scan_keys(host, ssh)).keys] == [fingerprint(server.keys[1])]
        wrong = fingerprint(asyncssh.generate_private_key("ssh-ed25519"))
        with pytest.raises(HostKeyError, match="IS NOT THE PINNED ONE"):
            await scan_keys(replace(host, host_key=wrong), ssh)


async def test_a_local_host_has_no_keys(ssh: SshFiles, server: Server, login: Path) -> None:
    assert await scan_keys(replace(host_of(server, login), connection="local"), ssh) == Scan("desk", ())
