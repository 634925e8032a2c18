"""Every error meshctl reports, as a tree; `cli` alone catches them and chooses the exit code.

MeshctlError
├── UsageError          the command was used wrongly (exit code 2)
├── InventoryError      inventory.yaml has problems, all of them listed
├── HostError           one host, or what was asked of it
│   ├── ConnectError        it cannot be reached or does not let us in
│   ├── HostKeyError        its host key is unknown or has changed
│   ├── CommandError        a command there failed
│   ├── DeadlineError       it did not answer in time
│   └── TransferError       a file could not be put or fetched
│       └── RefusedError        because the host itself refuses it: its disk is full, a folder is not ours
├── HostsError          several hosts failed, each with its own error
├── EngineError         the engine cannot be fetched, built, checked or used
├── PlanError           no plan exists for this model on these devices
├── BringUpError        a process that should run does not
├── ClusterStateError   the cluster is not in the state the command needs
└── GatewayError        the gateway did not answer as it should
"""

import errno
from collections.abc import Mapping

from quant.errors import QuantError
from workers.errors import WorkersError


class MeshctlError(Exception):
    """A problem a user can act on: what happened to what, and `hint`, the next move.

    `details` holds longer evidence, such as the last lines of a log, shown below the message.
    """

    def __init__(self, message: str, *, hint: str = "", details: str = "") -> None:
        super().__init__(message)
        self.hint = hint
        self.details = details


class UsageError(MeshctlError):
    """The command was used wrongly."""


class InventoryError(MeshctlError):
    """The inventory has problems; the message lists every one of them with its path and fix."""


class HostError(MeshctlError):
    """Something concerning one host; `host` is its name in the inventory."""

    def __init__(self, host: str, message: str, *, hint: str = "", details: str = "") -> None:
        super().__init__(f"{host}: {message}", hint=hint, details=details)
        self.host = host


class ConnectError(HostError):
    """The host cannot be reached or does not let us in."""


class HostKeyError(HostError):
    """The host key is unknown or is not the one that was trusted."""


class CommandError(HostError):
    """A command ended with another exit status than 0; `status` is None when the connection was lost."""

    def __init__(self, host: str, message: str, *, status: int | None, hint: str = "", details: str = "") -> None:
        super().__init__(host, message, hint=hint, details=details)
        self.status = status


class DeadlineError(HostError):
    """The host did not answer in time."""


class TransferError(HostError):
    """A file could not be put on the host or fetched from it."""


class RefusedError(TransferError):
    """The host itself says that it cannot: its disk is full, or a folder there is not ours. It can still be reached."""


class HostsError(MeshctlError):
    """Several hosts failed; each one's error is kept."""

    def __init__(self, errors: Mapping[str, MeshctlError]) -> None:
        lines = [str(error) for error in errors.values()]
        details = "\n".join(error.details for error in errors.values() if error.details)
        super().__init__("\n".join(lines), hint="\n".join(_hints(errors)), details=details)
        self.errors = dict(errors)


def _hints(errors: Mapping[str, MeshctlError]) -> list[str]:
    """Each hint once, after the names of the hosts it is for unless it is for all of them."""
    hosts: dict[str, list[str]] = {}
    for host, error in errors.items():
        if error.hint:
            hosts.setdefault(error.hint, []).append(host)
    return [hint if len(names) == len(errors) else f"{', '.join(names)}: {hint}" for hint, names in hosts.items()]


def of_system(error: OSError) -> MeshctlError:
    """What this machine's own system refuses, such as a full disk or a folder that nobody may write to."""
    place = f"{error.filename}: " if error.filename else ""
    return MeshctlError(f"{place}{error.strerror or error}", hint=_SYSTEM_HINTS.get(error.errno or 0, ""))


def reason_of(error: Exception) -> str:
    """What is said of a failure of `FAILED`."""
    return str(of_system(error) if isinstance(error, OSError) else error)


_OTHER_FOLDERS = "meshctl writes below XDG_CACHE_HOME and XDG_STATE_HOME: set them to folders that are yours"
_SYSTEM_HINTS = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free some space on that disk and try again"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR), _OTHER_FOLDERS),
}


class EngineError(MeshctlError):
    """The engine cannot be fetched, built, checked or used."""

    @property
    def logged(self) -> str:
        """The first line of the engine's log that is an error; "" where none is, as of a program that was killed."""
        lines = (line.strip() for line in self.details.splitlines())
        return next((line for line in lines if "error" in line.lower() or "not supported" in line.lower()), "")

    @property
    def engine_words(self) -> str:
        """What the engine logged of it, or the message."""
        return self.logged or str(self)


class PlanError(MeshctlError):
    """No plan exists for this model on these devices; the message has the numbers of every shortfall."""


class BringUpError(MeshctlError):
    """A process of the cluster did not come up, or did not stay up; `host` is where, if that is known."""

    def __init__(self, message: str, *, hint: str = "", details: str = "", host: str = "") -> None:
        super().__init__(message, hint=hint, details=details)
        self.host = host


class ClusterStateError(MeshctlError):
    """The cluster is not in the state the command needs, such as not running."""


class GatewayError(MeshctlError):
    """The gateway did not answer as it should."""


REPORTED = (MeshctlError, QuantError, WorkersError)
"""What the command line reports as `error:` and `hint:` instead of a traceback."""

FAILED = (*REPORTED, OSError)
"""All of these, and what this machine's own system refuses: what is no defect of ours."""
