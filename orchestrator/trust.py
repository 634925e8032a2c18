"""Look at the host keys that machines offer, compare them with what was trusted before, and trust them.

Nothing is trusted by looking: `scan_keys` and `compare` change nothing, `trust` writes what the user agreed to.
"""

from collections.abc import Collection
from contextlib import AsyncExitStack
from dataclasses import dataclass

import asyncssh

from orchestrator.errors import MeshctlError
from orchestrator.fanout import all_or_raise
from orchestrator.inventory import Host
from orchestrator.shell import host_keys
from orchestrator.shell.ssh_config import SshFiles
from orchestrator.shell.ssh_login import Hop, find_hops, offered_keys, open_hop


@dataclass(frozen=True)
class OfferedKey:
    """A key that a server showed. `host` is the inventory's name, `address` the server's (a jump's, perhaps)."""

    host: str
    address: str  # such as "desk" or "[desk]:2222"
    type: str
    fingerprint: str  # "SHA256:..."
    line: str  # for the known-hosts file

    @property
    def known_as(self) -> str:
        return self.line.partition(" ")[0]

    @property
    def key(self) -> asyncssh.SSHKey:
        return asyncssh.import_public_key(self.line.partition(" ")[2])


@dataclass(frozen=True)
class Scan:
    """What was seen on the way to a host. `waits_for` is the jump to trust first, then scan again; "" when done."""

    host: str
    keys: tuple[OfferedKey, ...]
    waits_for: str = ""


@dataclass(frozen=True)
class ChangedKey:
    """A key that is not the one trusted before; `trusted` holds the fingerprints of those."""

    offered: OfferedKey
    trusted: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """Offered keys beside our file: to be asked about, fine already, and dangerous."""

    new: tuple[OfferedKey, ...] = ()
    known: tuple[OfferedKey, ...] = ()
    changed: tuple[ChangedKey, ...] = ()


async def scan_keys(host: Host, ssh: SshFiles) -> Scan:
    """One key of each type of every server on the way to the host (none for a local one); changes nothing.

    A jump must be trusted before we log in to it to see what lies behind. A pinned host shows only its pinned key:
    HostKeyError when it does not offer that. ConnectError when it cannot be reached.
    """
    if host.connection == "local":
        return Scan(host.name, ())
    seen: list[OfferedKey] = []
    *jumps, last = await find_hops(host, ssh)
    async with AsyncExitStack() as opened:
        via: asyncssh.SSHClientConnection | None = None
        for jump in jumps:
            seen += await _offered(jump, via)
            if not host_keys.known_keys(ssh.known_hosts, jump.target.known_as).keys:
                return Scan(host.name, tuple(seen), waits_for=jump.target.plain_name)
            via = await open_hop(jump, ssh, via, opened)
        seen += await _offered(last, via)
    return Scan(host.name, tuple(seen))


def compare(keys: Collection[OfferedKey], ssh: SshFiles) -> Comparison:
    """Sort offered keys by what our known-hosts file says of them."""
    new: list[OfferedKey] = []
    known: list[OfferedKey] = []
    changed: list[ChangedKey] = []
    for offered in dict.fromkeys(keys):
        trusted = host_keys.known_keys(ssh.known_hosts, offered.known_as)
        if trusted.accepts(offered.key):
            known.append(offered)
        elif _contradicts(offered, trusted, keys):
            changed.append(ChangedKey(offered, tuple(map(host_keys.fingerprint, trusted.keys))))
        else:
            new.append(offered)
    return Comparison(tuple(new), tuple(known), tuple(changed))


def trust(comparison: Comparison, ssh: SshFiles, *, replace: Collection[str] = ()) -> tuple[OfferedKey, ...]:
    """Write the new keys, and for the hosts named in `replace` what they offer now instead of what was trusted.

    Returns what was written. HostKeyError (HostsError for several) when a changed host is not in `replace`; then
    nothing is written.
    """
    all_or_raise(_unconfirmed(comparison, ssh, replace))
    forget = {changed.offered.known_as for changed in comparison.changed}
    again = tuple(key for key in comparison.known if key.known_as in forget)
    written = (*comparison.new, *(changed.offered for changed in comparison.changed))
    host_keys.add_lines(ssh.known_hosts, [key.line for key in (*again, *written)], forget=forget)
    return written


async def _offered(hop: Hop, via: asyncssh.SSHClientConnection | None) -> list[OfferedKey]:
    keys = await offered_keys(hop, via)
    wanted = [key for key in keys if hop.pin in (None, host_keys.fingerprint(key))]
    if hop.pin is not None and not wanted:
        raise host_keys.not_the_pinned(hop.host, hop.target.plain_name, hop.pin, keys)
    return [
        OfferedKey(
            host=hop.host,
            address=hop.target.plain_name,
            type=host_keys.type_of(key),
            fingerprint=host_keys.fingerprint(key),
            line=host_keys.key_line(hop.target.known_as, key),
        )
        for key in wanted
    ]


def _contradicts(offered: OfferedKey, trusted: host_keys.KnownKeys, all_offered: Collection[OfferedKey]) -> bool:
    """Another key of the same type was trusted, or the server shows none of the keys that were."""
    if not trusted.keys:
        return False
    same_type = offered.type in map(host_keys.type_of, trusted.keys)
    beside = [key for key in all_offered if key.known_as == offered.known_as]
    return same_type or not any(trusted.accepts(key.key) for key in beside)


def _unconfirmed(comparison: Comparison, ssh: SshFiles, replace: Collection[str]) -> dict[str, MeshctlError]:
    return {
        changed.offered.host: host_keys.refused(
            changed.offered.host,
            host_keys.known_keys(ssh.known_hosts, changed.offered.known_as),
            changed.offered.key,
            ssh.inventory,
        )
        for changed in comparison.changed
        if changed.offered.host not in replace
    }
