"""What a running cluster says of itself on disk, and the lock that says whether it runs at all.

The supervisor is the only writer. The lock, held for its whole life, is the truth about "running": a state file may
be left over from a supervisor that was killed.
"""

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout
from pydantic import TypeAdapter, ValidationError

from orchestrator.errors import ClusterStateError
from orchestrator.folders import ClusterFolder, Folders
from orchestrator.plan.values import GroupMode, Plan

LOCK_WAIT_S = 1.0
"""Longer than `is_held` of another process takes the lock to look; a supervisor keeps it for its whole life."""

Phase = Literal["starting", "ready", "degraded", "recovering", "stopping", "stopped", "failed"]
SERVING: tuple[Phase, ...] = ("ready", "degraded")


@dataclass(frozen=True)
class ProcessState:
    """One process of the cluster: where, what, and its memory in bytes (None until first reported)."""

    host: str
    name: str
    pid: int
    memory_bytes: int | None


@dataclass(frozen=True)
class GroupSpeed:
    """One head of the cluster, `host` being its own: predicted tokens per second and those measured after load."""

    name: str
    host: str
    mode: GroupMode
    predicted_decode_tokens_per_s: float
    measured_decode_tokens_per_s: float
    predicted_aggregate_tokens_per_s: float
    measured_aggregate_tokens_per_s: float
    predicted_prefill_tokens_per_s: float
    measured_prefill_tokens_per_s: float


@dataclass(frozen=True)
class ClusterState:
    """Everything `status` shows; no secret is ever in here."""

    cluster: str
    inventory: str
    pid: int
    phase: Phase
    message: str
    since: str  # ISO 8601, UTC: when this phase began
    gateway: str = ""  # such as "http://127.0.0.1:11435/v1"
    plan: Plan | None = None
    processes: tuple[ProcessState, ...] = ()
    speeds: tuple[GroupSpeed, ...] = ()  # one per group of the plan, measured right after load
    requests_running: int = 0
    requests_waiting: int = 0
    requests_finished: int = 0
    key_file: str = ""  # where the gateway's API key is kept
    inventory_sha256: str = ""  # of the inventory file as it was at `up`
    supervised: bool = False  # a supervisor goes on with it: "failed" then means that it tries again by itself


_STATE = TypeAdapter(ClusterState)


def state_json(state: ClusterState) -> str:
    """The state as indented JSON, as `status --json` prints it."""
    return _STATE.dump_json(state, indent=2).decode()


def inventory_digest(path: Path) -> str:
    """The sha256 of an inventory file, to tell whether it has changed since."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_state(folder: ClusterFolder, state: ClusterState) -> None:
    """Replace the state file whole, readable by its owner only."""
    write_private(folder.state, state_json(state))


def write_private(path: Path, text: str) -> None:
    """Write a file of mode 0600 beside and rename it, so that nobody ever reads half of it."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    beside.replace(path)


def read_state(folder: ClusterFolder) -> ClusterState | None:
    """The last state written, None when there is none; a state that cannot be read is an error."""
    try:
        return _STATE.validate_json(folder.state.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise ClusterStateError(
            f"{folder.state} cannot be read: it was written by another version of meshctl",
            hint="stop the cluster with the version that started it, or delete the file",
        ) from error


@contextmanager
def hold(folder: ClusterFolder) -> Iterator[None]:
    """Hold the cluster; ClusterStateError when another supervisor holds it."""
    refused = ClusterStateError(
        f"cluster {folder.path.name} is already running",
        hint="see it with `meshctl status`, stop it with `meshctl down`",
    )
    with _locked(folder, folder.lock, refused):
        yield


@contextmanager
def measuring(folder: ClusterFolder) -> Iterator[None]:
    """Be the only `bench` or `tune` of a cluster: two at once would measure each other. ClusterStateError if not."""
    with _locked(folder, folder.measuring_lock, being_measured(folder)):
        yield


@contextmanager
def _locked(folder: ClusterFolder, path: Path, refused: ClusterStateError) -> Iterator[None]:
    folder.prepare()
    lock = FileLock(path, timeout=LOCK_WAIT_S)
    try:
        lock.acquire()
    except Timeout as error:
        raise refused from error
    try:
        yield
    finally:
        lock.release()


def being_measured(folder: ClusterFolder) -> ClusterStateError:
    """The error of whoever would disturb a `bench` or `tune` that runs."""
    return ClusterStateError(
        f"{folder.path.name} is being measured: a `meshctl tune` or `meshctl bench` of it runs",
        hint="wait until it is done, or stop it with Ctrl-C",
    )


def is_measured(folder: ClusterFolder) -> bool:
    """Whether a `bench` or `tune` of this cluster runs now."""
    return _is_locked(folder.measuring_lock)


def is_held(folder: ClusterFolder) -> bool:
    """Whether a supervisor lives for this cluster."""
    return _is_locked(folder.lock)


def _is_locked(path: Path) -> bool:
    """Several may look at once, hence the shared lock."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def known_clusters(folders: Folders) -> tuple[str, ...]:
    """Names of all clusters that have a folder."""
    if not folders.clusters.is_dir():
        return ()
    return tuple(sorted(path.name for path in folders.clusters.iterdir() if path.is_dir()))


def running_clusters(folders: Folders) -> tuple[str, ...]:
    """Names of the clusters that run now."""
    return tuple(name for name in known_clusters(folders) if is_held(folders.cluster(name)))


def the_running_cluster(folders: Folders, name: str | None) -> ClusterState:
    """The state of the named cluster, or of the only one that runs; ClusterStateError says what to do otherwise."""
    running = running_clusters(folders)
    if name is None and len(running) > 1:
        raise ClusterStateError(f"{len(running)} clusters run: {', '.join(running)}", hint="name one: --cluster NAME")
    chosen = name if name is not None else next(iter(running), None)
    if chosen is None or chosen not in running:
        what = "no cluster runs" if name is None else f"cluster {name} does not run"
        raise ClusterStateError(what, hint="start it with `meshctl up inventory.yaml`")
    state = read_state(folders.cluster(chosen))
    if state is None:
        raise ClusterStateError(f"cluster {chosen} has just begun to start", hint="try again in a moment")
    return state


def serving_cluster(folders: Folders, name: str | None) -> ClusterState:
    """Like `the_running_cluster`, but ClusterStateError unless it answers already."""
    state = the_running_cluster(folders, name)
    if state.phase not in (*SERVING, "recovering"):
        raise ClusterStateError(f"cluster {state.cluster} is {state.phase}", hint="wait: `meshctl status`")
    return state
