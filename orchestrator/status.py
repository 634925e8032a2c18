"""Which cluster's state `status` shows, running or last seen."""

from dataclasses import replace

from orchestrator.errors import ClusterStateError
from orchestrator.folders import Folders
from orchestrator.state import ClusterState, is_held, known_clusters, read_state, running_clusters


def last_state(folders: Folders, name: str | None) -> ClusterState:
    """The named cluster's state, or the only running one's, or the only known one's.

    A state that says "ready" although no supervisor holds the cluster is told as what it is: the supervisor died.
    """
    chosen = name or _only(running_clusters(folders)) or _only(known_clusters(folders))
    state = read_state(folders.cluster(chosen)) if chosen else None
    if state is None:
        known = ", ".join(known_clusters(folders)) or "none"
        raise ClusterStateError(
            f"no cluster {name} is known (known: {known})" if name else f"no single cluster to show (known: {known})",
            hint="start one with `meshctl up inventory.yaml`, or name one with --cluster",
        )
    if state.phase in ("starting", "ready", "stopping") and not is_held(folders.cluster(state.cluster)):
        return replace(state, phase="failed", message="the supervisor ended without a word", processes=())
    return state


def _only(names: tuple[str, ...]) -> str | None:
    return names[0] if len(names) == 1 else None
