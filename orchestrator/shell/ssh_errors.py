"""The one seam where errors of asyncssh and of sockets become ours: what happened to which host, and the next move."""

import errno
import socket

import asyncssh

from orchestrator.errors import CommandError, ConnectError, HostError, RefusedError, TransferError
from orchestrator.shell.protocol import Words
from orchestrator.shell.ssh_config import SshTarget
from orchestrator.shell.words import shown
from orchestrator.view.sizes import bytes_text

FOREIGN = (OSError, asyncssh.Error)
"""Everything that opening or using a connection raises; TimeoutError and socket.gaierror are OSErrors."""

_ROOM_BYTES = 1024 * 1024  # with less than this left, a file that could not be written met a full disk
_NO_ROUTE = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EHOSTDOWN, errno.ENETDOWN)


def login_error(host: str, target: SshTarget, tried: str, error: Exception, *, deadline_s: float) -> HostError:
    """The error for a connection that did not come about; `tried` says which keys were offered."""
    place = f"{target.hostname} port {target.port}"
    match error:
        case asyncssh.PermissionDenied():
            return denied(host, target, tried)
        case socket.gaierror():
            hint = "correct `address` in the inventory, or use the machine's IP address"
            return ConnectError(host, f"the name {target.hostname} is not known ({error.strerror})", hint=hint)
        case TimeoutError():
            hint = f"is the machine on, and does a firewall let port {target.port} through?"
            return ConnectError(host, f"no answer from {place} within {deadline_s:g} s", hint=hint)
        case ConnectionRefusedError():
            hint = "start its SSH server (Debian: `sudo systemctl start ssh`; macOS: Remote Login) or set `port`"
            return ConnectError(host, f"nothing listens at {place} (connection refused)", hint=hint)
        case OSError() if error.errno in _NO_ROUTE:
            return ConnectError(host, f"no route to {place}", hint="is this machine on the same network?")
        case asyncssh.ChannelOpenError():
            hint = "check the address as seen from the jump host, and AllowTcpForwarding there"
            return ConnectError(host, f"the jump host cannot reach {place}: {error.reason}", hint=hint)
        case asyncssh.ConnectionLost() | ConnectionResetError():
            hint = "try again; when it stays so, the log of sshd there says why"
            return ConnectError(host, f"{place} closed the connection during login", hint=hint)
        case asyncssh.Error():
            return ConnectError(host, f"{place} speaks no SSH that we can use: {error.reason}")
        case _:
            return ConnectError(host, f"{place} cannot be reached: {error}")


def denied(host: str, target: SshTarget, tried: str) -> ConnectError:
    """The server let none of our keys in."""
    reach = f"-p {target.port} {target.user}@{target.hostname}"
    return ConnectError(
        host,
        f"login as {target.user} at {target.hostname} port {target.port} was refused; tried {tried}",
        hint=f"put a key there with `ssh-copy-id {reach}`, or set `user` and `key` in the inventory",
    )


def lost(host: str, words: Words) -> CommandError:
    """The connection went away while a command ran; whether the command goes on is not known."""
    message = f"the connection was lost while `{shown(words)}` ran"
    return CommandError(host, message, status=None, hint="check the network and that the machine is on")


def no_session(host: str, words: Words, error: asyncssh.ChannelOpenError) -> CommandError:
    """The connection stands, but the host opens no further session on it: the command was never started."""
    message = f"`{shown(words)}` was not started: the host allows no further session ({error.reason})"
    hint = "raise MaxSessions (10 unless set) in its sshd_config and restart sshd there"
    return CommandError(host, message, status=None, hint=hint)


def no_sftp(host: str, error: Exception) -> ConnectError:
    """Commands work, file transfer does not."""
    return ConnectError(
        host,
        f"the host accepts our login but offers no file transfer (SFTP): {error or type(error).__name__}",
        hint="add `Subsystem sftp internal-sftp` to its sshd_config and restart sshd; its shell start-up files must"
        " print nothing",
    )


def transfer_error(host: str, what: str, error: Exception, free_bytes: int | None, size_bytes: int) -> TransferError:
    """A file that did not arrive. SFTP says only "Failure" for a full disk, hence the free space beside it."""
    if is_full(error, free_bytes, size_bytes):
        return disk_full(host, what, free_bytes or 0, size_bytes)
    match error:
        case asyncssh.SFTPNoSuchFile():
            return RefusedError(host, f"{what}: no such file")
        case asyncssh.SFTPPermissionDenied():
            return RefusedError(host, f"{what}: permission denied")
        case asyncssh.SFTPConnectionLost() | asyncssh.SFTPNoConnection() | asyncssh.ConnectionLost():
            return TransferError(host, f"{what}: the connection was lost", hint="check the network and try again")
        case asyncssh.SFTPError():
            return RefusedError(host, f"{what}: {error.reason or type(error).__name__}")
        case asyncssh.Error():
            return TransferError(host, f"{what}: {error.reason or type(error).__name__}")
        case OSError():
            return TransferError(host, f"{what}: {error.strerror or error}")
        case _:
            return TransferError(host, f"{what}: {error}")


def is_full(error: Exception, free_bytes: int | None, size_bytes: int) -> bool:
    """Whether it was for want of room that a file of this size was not written."""
    no_space = isinstance(error, asyncssh.SFTPNoSpaceOnFilesystem | asyncssh.SFTPQuotaExceeded)
    return no_space or (free_bytes is not None and free_bytes < min(size_bytes, _ROOM_BYTES))


def disk_full(host: str, what: str, free_bytes: int, size_bytes: int) -> TransferError:
    """The file is larger than the free space where it should go."""
    return RefusedError(
        host,
        f"{what} does not fit: {bytes_text(size_bytes)} needed, {bytes_text(free_bytes)} free",
        hint="free some space on that host's disk and try again",
    )
