"""Our known-hosts file, and whether an offered host key is the trusted one. Talks with nobody.

The file has OpenSSH's format, because the `ssh` children of the tunnels read it too. A pinned host stands in it under
a name of its own (`pinned_name`), so that the pinned key is the only one accepted there, by asyncssh and by ssh.
"""

import base64
import os
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import asyncssh
from filelock import FileLock

from orchestrator.errors import HostKeyError, MeshctlError

_LOCK_S = 10.0

ALGORITHMS: dict[str, tuple[str, ...]] = {
    "ssh-ed25519": ("ssh-ed25519",),
    "ecdsa-sha2-nistp256": ("ecdsa-sha2-nistp256",),
    "ecdsa-sha2-nistp384": ("ecdsa-sha2-nistp384",),
    "ecdsa-sha2-nistp521": ("ecdsa-sha2-nistp521",),
    "ssh-rsa": ("rsa-sha2-512", "rsa-sha2-256"),
}
"""The key types we accept and the signature algorithms of each (RFC 8332 for RSA: never with SHA-1)."""

_CHECK = "ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub"


@dataclass(frozen=True)
class KnownKeys:
    """What our file says of one name: the keys to accept, and keys marked as revoked."""

    name: str
    keys: tuple[asyncssh.SSHKey, ...] = ()
    revoked: tuple[asyncssh.SSHKey, ...] = ()

    def accepts(self, key: asyncssh.SSHKey) -> bool:
        return key in self.keys and key not in self.revoked

    @property
    def algorithms(self) -> tuple[str, ...]:
        """What to ask the server for: the types of the trusted keys, or every type when none is trusted yet."""
        types = [type_of(key) for key in self.keys] or list(ALGORITHMS)
        return tuple(dict.fromkeys(name for known in types for name in ALGORITHMS.get(known, ())))


def known_keys(file: Path, name: str) -> KnownKeys:
    """Read what is known under exactly this name (such as `desk` or `[desk]:2222`); a missing file knows nothing."""
    try:
        text = file.read_text() if file.exists() else ""
        keys, _, revoked, *_ = asyncssh.import_known_hosts(text).match(name, "", None)
    except (OSError, ValueError) as error:
        raise MeshctlError(f"{file} cannot be read: {error}", hint="correct or remove the line or file") from error
    return KnownKeys(name, tuple(keys), tuple(revoked))


def pinned_name(pin: str) -> str:
    """The name under which the one key with this fingerprint stands; ssh compares names without case, so it is hex."""
    return "pinned-" + base64.b64decode(pin.removeprefix("SHA256:") + "==").hex()[:40]


def fingerprint(key: asyncssh.SSHKey) -> str:
    """As `ssh-keygen -l` prints it, such as "SHA256:..."."""
    return key.get_fingerprint("sha256")


def type_of(key: asyncssh.SSHKey) -> str:
    """Such as "ssh-ed25519"."""
    return key.get_algorithm()


def key_line(name: str, key: asyncssh.SSHKey) -> str:
    """The line of a known-hosts file."""
    kind, data = key.export_public_key("openssh").decode().split()[:2]
    return f"{name} {kind} {data}"


def add_lines(file: Path, lines: Iterable[str], *, forget: Iterable[str] = ()) -> None:
    """Put lines into the file, after dropping what it says of the names in `forget`; whole or not at all, 0600."""
    with FileLock(f"{file}.lock", timeout=_LOCK_S):
        old = file.read_text().splitlines() if file.exists() else []
        kept = [line for line in old if not _names(line) & set(forget)]
        new = [line for line in dict.fromkeys(lines) if line not in kept]
        _write(file, "".join(f"{line}\n" for line in (*kept, *new)))


def refused(host: str, known: KnownKeys, offered: asyncssh.SSHKey | None, inventory: Path) -> HostKeyError:
    """The error for a key that our file does not have for this name: unknown, revoked or changed.

    `inventory` is the file that the command in the hint names.
    """
    trust = f"meshctl trust {shlex.quote(str(inventory))}"
    scan = f"run `{trust}` and compare the fingerprint with what the machine itself says"
    if offered is None:
        return HostKeyError(host, f"the host key of {known.name} could not be checked", hint=scan)
    print_ = fingerprint(offered)
    if offered in known.revoked:
        return HostKeyError(host, f"the host key of {known.name} is marked as revoked: {print_}")
    if not known.keys:
        return HostKeyError(host, f"the host key of {known.name} is not known yet: {print_}", hint=scan)
    return HostKeyError(
        host,
        f"THE HOST KEY OF {known.name} HAS CHANGED; somebody may be in between\n"
        f"  trusted: {_prints(known.keys)}\n  offered: {print_}",
        hint=f"on the machine itself run `{_CHECK}`; only if it prints the offered fingerprint (the machine was set up"
        f" anew) run `{trust} --replace {host}`",
    )


def not_the_pinned(host: str, name: str, pin: str, seen: Iterable[asyncssh.SSHKey]) -> HostKeyError:
    """The error for a pinned host whose offered or trusted keys are others."""
    return HostKeyError(
        host,
        f"THE HOST KEY OF {name} IS NOT THE PINNED ONE; somebody may be in between\n"
        f"  pinned:  {pin}\n  offered: {_prints(seen) or 'no key of a type we accept'}",
        hint=f"on the machine itself run `{_CHECK}`; correct `host_key` in the inventory only if it prints another"
        " fingerprint than the pinned one",
    )


def _prints(keys: Iterable[asyncssh.SSHKey]) -> str:
    return ", ".join(f"{fingerprint(key)} ({type_of(key)})" for key in keys)


def _names(line: str) -> set[str]:
    words = line.split()
    if not words or words[0].startswith(("#", "@")):
        return set()
    return set(words[0].split(","))


def _write(file: Path, text: str) -> None:
    partial = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        partial.touch(mode=0o600)
        partial.write_text(text)
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
