"""What OpenSSH makes of our configuration and the user's."""

import asyncio
import os
from pathlib import Path

import pytest

from orchestrator.errors import ConnectError
from orchestrator.inventory import Host
from orchestrator.shell.ssh_config import (
    SshTarget,
    config_text,
    destination_words,
    question,
    read_target,
    resolve_route,
)
from tests.orchestrator.shell.ssh_server import ssh_files

CARELESS = """\
UserKnownHostsFile /dev/null
GlobalKnownHostsFile /dev/null
StrictHostKeyChecking no
NoHostAuthenticationForLocalhost yes
KnownHostsCommand /bin/echo %H
VerifyHostKeyDNS yes
UpdateHostKeys yes
ControlMaster auto
ControlPath /tmp/control-%C
ForwardAgent yes
ForkAfterAuthentication yes
RemoteCommand reboot
BatchMode no
"""


async def ask(words: tuple[str, ...]) -> str:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*words, stdout=pipe, stderr=pipe)
    async with asyncio.timeout(20):
        answer, _ = await process.communicate()
    return answer.decode()


@pytest.mark.parametrize("wrapped", [CARELESS, "Host *\n" + CARELESS, "Match all\n" + CARELESS])
async def test_nothing_in_the_users_configuration_weakens_ours(tmp_path: Path, wrapped: str) -> None:
    ssh = ssh_files(tmp_path / "50% of a folder [x]", wrapped)
    host = Host("desk", "ssh", address="localhost")
    options = (await ask(question(ssh, destination_words(host)))).splitlines()
    assert {
        f"userknownhostsfile {ssh.known_hosts}",
        "globalknownhostsfile none",
        "stricthostkeychecking true",
        "nohostauthenticationforlocalhost no",
        "verifyhostkeydns false",
        "updatehostkeys false",
        "controlmaster false",
        "forwardagent no",
        "forkafterauthentication no",
        "batchmode yes",
    } <= set(options)
    assert not [line for line in options if line.startswith(("knownhostscommand", "controlpath", "remotecommand"))]
    assert ssh.config.stat().st_mode & 0o777 == 0o600


async def test_the_users_options_count_as_with_ssh(tmp_path: Path) -> None:
    config = """\
Host desk
  HostName 10.9.8.7
  User ada
  Port 2200
  IdentityFile /keys/first
  IdentityFile "/keys/%h and %r"
  IdentitiesOnly yes
  IdentityAgent none
  HostKeyAlias the-desk
  CertificateFile /keys/cert
Host *
  User nobody
  IdentityFile /keys/last
"""
    ssh = ssh_files(tmp_path, config)
    given_key = tmp_path / "given"
    given_key.touch()
    (target,) = await resolve_route(Host("desk", "ssh", address="desk", key=str(given_key)), ssh)
    assert target == SshTarget(
        hostname="10.9.8.7",
        port=2200,
        user="ada",
        identity_files=(str(given_key), "/keys/first", "/keys/10.9.8.7 and ada", "/keys/last"),
        certificate_files=("/keys/cert",),
        identity_agent="none",
        identities_only=True,
        host_key_alias="the-desk",
    )
    assert target.known_as == "the-desk"
    (given,) = await resolve_route(Host("desk", "ssh", address="desk", user="bob", port=22), ssh)
    assert (given.user, given.port, given.plain_name) == ("bob", 22, "10.9.8.7")


async def test_jumps_are_resolved_hop_by_hop_in_the_order_of_travel(tmp_path: Path) -> None:
    config = "Host first\n  HostName 10.0.0.1\n  ProxyJump zero@gate:2022\nHost far\n  ProxyJump first,x@[fd00::2]:33\n"
    route = await resolve_route(Host("far", "ssh", address="far"), ssh_files(tmp_path, config))
    assert [(hop.hostname, hop.port) for hop in route] == [
        ("gate", 2022),
        ("10.0.0.1", 22),
        ("fd00::2", 33),
        ("far", 22),
    ]
    assert (route[0].user, route[2].user) == ("zero", "x")


async def test_a_circle_of_jumps_is_an_error(tmp_path: Path) -> None:
    config = "Host a\n  ProxyJump b\nHost b\n  ProxyJump a\n"
    with pytest.raises(ConnectError, match="is a circle"):
        await resolve_route(Host("a", "ssh", address="a"), ssh_files(tmp_path, config))


async def test_a_proxy_command_gets_its_tokens_and_forwards_are_seen(tmp_path: Path) -> None:
    ssh = ssh_files(tmp_path, "ProxyCommand nc %h %p 100%%\nLocalForward 8000 far:80\n")
    (target,) = await resolve_route(Host("desk", "ssh", address="desk"), ssh)
    assert (target.proxy_command, target.forwards) == ("nc desk 22 100%", ("localforward 8000 [far]:80",))


def test_an_answer_without_the_main_options_is_refused() -> None:
    with pytest.raises(ValueError, match="no hostname, port and user"):
        read_target("usage: ssh\n", Path("/home/ada"))


def test_a_leading_tilde_is_the_accounts_home() -> None:
    answer = "host desk\nhostname desk\nport 22\nuser ada\nidentityfile ~/.ssh/id_%i\nidentityagent SSH_AUTH_SOCK\n"
    target = read_target(answer, Path("/home/ada"))
    assert target == SshTarget("desk", 22, "ada", identity_files=(f"/home/ada/.ssh/id_{os.getuid()}",))


def test_paths_with_spaces_and_percents_are_quoted() -> None:
    text = config_text(Path("/a b/50%/known_hosts"), (Path("/c d/[e]"),))
    assert 'UserKnownHostsFile "/a b/50%%/known_hosts"\n' in text
    assert text.endswith('Include "/c d/[[]e]"\n')
