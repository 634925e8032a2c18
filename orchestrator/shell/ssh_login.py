"""Open one verified SSH connection to a host, through its jumps; or only look at the keys that it offers.

Every hop is checked against our own known-hosts file, whatever the user's configuration says: asyncssh gets an empty
list of trusted keys and no configuration, and the decision is made in `_Client.validate_host_public_key`.
"""

import asyncio
import socket
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncssh

from orchestrator.errors import ConnectError
from orchestrator.inventory import Host
from orchestrator.shell import host_keys
from orchestrator.shell.client_keys import ClientKeys, client_keys
from orchestrator.shell.host_keys import KnownKeys
from orchestrator.shell.ssh_config import SshFiles, SshTarget, resolve_route
from orchestrator.shell.ssh_errors import FOREIGN, login_error

CONNECT_S = 15.0
_CLOSE_S = 5.0
_KEEPALIVE_S = 5
_KEEPALIVE_COUNT = 3
# Without a key of a type we ask for sshd hangs up, which may reach us before the failed negotiation does.
_NO_COMMON_KEY = (asyncssh.KeyExchangeFailed, asyncssh.ConnectionLost, ConnectionResetError)
_FAMILIES = {"inet": socket.AF_INET, "inet6": socket.AF_INET6}


@dataclass(frozen=True)
class Hop:
    """One place to log in to, on behalf of an inventory host; `pin` is the fingerprint its key must have, or None."""

    host: str
    target: SshTarget
    pin: str | None = None


@dataclass(frozen=True)
class Login:
    """An open connection and the jumps below it; `close` ends them all."""

    connection: asyncssh.SSHClientConnection
    opened: AsyncExitStack

    async def close(self) -> None:
        await self.opened.aclose()


async def find_hops(host: Host, ssh: SshFiles) -> tuple[Hop, ...]:
    """The way to the host, itself last. ConnectError when ssh's configuration or the key file is not usable."""
    if host.key is not None and not Path(host.key).is_file():
        raise ConnectError(host.name, f"the key {host.key} does not exist", hint="correct `key` in the inventory")
    *jumps, last = await resolve_route(host, ssh)
    return (*(Hop(host.name, target) for target in jumps), Hop(host.name, last, host.host_key))


async def open_login(host: Host, ssh: SshFiles) -> Login:
    """Log in through every hop; each has CONNECT_S seconds. HostKeyError or ConnectError, with nothing left open."""
    hops = await find_hops(host, ssh)
    _refuse_forwards(host, hops[-1].target)
    way = [(hop.target.hostname, hop.target.port) for hop in hops]
    async with ssh.turns.first(host.name, way), AsyncExitStack() as opened:
        via: asyncssh.SSHClientConnection | None = None
        for hop in hops[:-1]:
            via = await open_hop(hop, ssh, via, opened)
        connection = await open_hop(hops[-1], ssh, via, opened)
        return Login(connection, opened.pop_all())


async def open_hop(
    hop: Hop, ssh: SshFiles, via: asyncssh.SSHClientConnection | None, opened: AsyncExitStack
) -> asyncssh.SSHClientConnection:
    """Log in to one hop through the one before it; `opened` closes it. HostKeyError or ConnectError."""
    known = await _trusted_keys(hop, ssh, via)
    client = _Client(known)
    async with AsyncExitStack() as agents:
        keys = await client_keys(hop.target, agents)
        try:
            async with asyncio.timeout(CONNECT_S):
                connection, _ = await asyncssh.create_connection(
                    lambda: client, **_place(hop.target, via), **_login_options(hop.target, known, keys)
                )
        except asyncssh.HostKeyNotVerifiable as error:
            raise host_keys.refused(hop.host, known, client.offered, ssh.inventory) from error
        except FOREIGN as error:
            if isinstance(error, _NO_COMMON_KEY) and client.offered is None:
                await _refuse_if_changed(hop, known, ssh, via)
            raise login_error(hop.host, hop.target, keys.tried, error, deadline_s=CONNECT_S) from error
    opened.push_async_callback(_close, connection)
    return connection


async def offered_keys(hop: Hop, via: asyncssh.SSHClientConnection | None) -> tuple[asyncssh.SSHKey, ...]:
    """One key of each type that the server at the end of the hop has; no login takes place, nothing is trusted.

    ConnectError when it cannot be reached or has none of a type that we accept.
    """
    families = (("ssh-ed25519",), ("ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521"), ("ssh-rsa",))
    asked = [[name for known in family for name in host_keys.ALGORITHMS[known]] for family in families]
    answers = [await _offered_key(hop, via, algorithms) for algorithms in asked]
    for answer in answers:
        if isinstance(answer, Exception) and not any(isinstance(other, asyncssh.SSHKey) for other in answers):
            raise login_error(hop.host, hop.target, "no key", answer, deadline_s=CONNECT_S) from answer
    return tuple(answer for answer in answers if isinstance(answer, asyncssh.SSHKey))


class _Client(asyncssh.SSHClient):
    """Decides about the host key, and remembers what was offered for the message."""

    def __init__(self, known: KnownKeys) -> None:
        self._known = known
        self.offered: asyncssh.SSHKey | None = None

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        self.offered = key
        return self._known.accepts(key)


def _place(target: SshTarget, via: asyncssh.SSHClientConnection | None) -> dict[str, Any]:
    """Where to connect and through what, for asyncssh; `config=None` keeps it from reading any configuration."""
    proxy = ("/bin/sh", "-c", f"exec {target.proxy_command}") if target.proxy_command and via is None else None
    return {
        "host": target.hostname,
        "port": target.port,
        "tunnel": via,
        "proxy_command": proxy,
        "family": _FAMILIES.get(target.address_family, 0),
        "config": None,
    }


def _login_options(target: SshTarget, known: KnownKeys, keys: ClientKeys) -> dict[str, Any]:
    return {
        "username": target.user,
        "client_keys": list(keys.pairs) or None,  # an empty list would mean asyncssh's own choice of files
        "agent_path": None,
        "known_hosts": ([], [], []),
        "x509_trusted_certs": None,
        "server_host_key_algs": list(known.algorithms),
        "preferred_auth": ("publickey",),
        "gss_auth": False,
        "gss_kex": False,
        "keepalive_interval": _KEEPALIVE_S,
        "keepalive_count_max": _KEEPALIVE_COUNT,
        "connect_timeout": CONNECT_S,
        "login_timeout": CONNECT_S,
    }


async def _trusted_keys(hop: Hop, ssh: SshFiles, via: asyncssh.SSHClientConnection | None) -> KnownKeys:
    """What our file says of the hop; the pinned key is learnt on first contact."""
    known = host_keys.known_keys(ssh.known_hosts, hop.target.known_as)
    if hop.pin is None or known.keys:
        return known
    before = host_keys.known_keys(ssh.known_hosts, hop.target.plain_name).keys
    if before and hop.pin not in map(host_keys.fingerprint, before):
        raise host_keys.not_the_pinned(hop.host, hop.target.plain_name, hop.pin, before)
    offered = await offered_keys(hop, via)
    pinned = [key for key in offered if host_keys.fingerprint(key) == hop.pin]
    if not pinned:
        raise host_keys.not_the_pinned(hop.host, hop.target.plain_name, hop.pin, offered)
    host_keys.add_lines(ssh.known_hosts, [host_keys.key_line(known.name, key) for key in pinned])
    return host_keys.known_keys(ssh.known_hosts, known.name)


async def _refuse_if_changed(
    hop: Hop, known: KnownKeys, ssh: SshFiles, via: asyncssh.SSHClientConnection | None
) -> None:
    """HostKeyError when the server has keys, but none of a type that was trusted."""
    offered = await offered_keys(hop, via)
    if known.keys and not any(known.accepts(key) for key in offered):
        raise host_keys.refused(hop.host, known, offered[0], ssh.inventory)


async def _offered_key(
    hop: Hop, via: asyncssh.SSHClientConnection | None, algorithms: list[str]
) -> asyncssh.SSHKey | Exception:
    """The key that the server shows when asked for these algorithms, or the error that may mean it has none of them."""
    try:
        async with asyncio.timeout(CONNECT_S):
            key = await asyncssh.get_server_host_key(**_place(hop.target, via), server_host_key_algs=algorithms)
            return key or asyncssh.KeyExchangeFailed("no host key was shown")
    except _NO_COMMON_KEY as error:
        return error
    except FOREIGN as error:
        raise login_error(hop.host, hop.target, "no key", error, deadline_s=CONNECT_S) from error


def _refuse_forwards(host: Host, target: SshTarget) -> None:
    if target.forwards and host.link == "tunnel":
        raise ConnectError(
            host.name,
            f"ssh's configuration sets forwards for {host.address} that each of our tunnels would open again:"
            f" {'; '.join(target.forwards)}",
            hint="move them to another Host name in ~/.ssh/config, or use another `address` for the same machine",
        )


async def _close(connection: asyncssh.SSHClientConnection) -> None:
    connection.close()
    with suppress(TimeoutError):
        async with asyncio.timeout(_CLOSE_S):
            await connection.wait_closed()
            return
    connection.abort()
