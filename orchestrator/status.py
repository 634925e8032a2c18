"""Which cluster's state `status` shows, running or last seen."""

from dataclasses import replace
from pathlib import Path

from orchestrator.errors import ClusterStateError
from orchestrator.folders import Folders
from orchestrator.state import (
    WITHOUT_A_WORD,
    ClusterState,
    at_rest,
    is_held,
    known_clusters,
    read_state,
    running_clusters,
)


def last_state(folders: Folders, name: str | None) -> ClusterState:
    """The named cluster's state, or the only running one's, or, when none runs, that of the one that changed last.

    A state that says "ready" although no supervisor holds the cluster is told as what it is: the supervisor died.
    """
    state = read_state(folders.cluster(name)) if name else _only_running(folders) or _changed_last(folders)
    if state is None:
        were_up = [one for one in known_clusters(folders) if folders.cluster(one).state.exists()]
        known = f"no cluster {name} is known, or it was never up (known: {', '.join(were_up) or 'none'})"
        raise ClusterStateError(
            known if name else "no cluster to show: none was ever up",
            hint="start one with `meshctl up inventory.yaml`" + (", or name a known one" if were_up else ""),
        )
    if state.phase not in ("stopped", "failed") and not is_held(folders.cluster(state.cluster)):
        return replace(at_rest(state), phase="failed", message=WITHOUT_A_WORD)
    return state


def inventory_running(folders: Folders) -> Path | None:
    """The inventory of the only cluster that runs; None where none does. ClusterStateError where several do."""
    state = _only_running(folders)
    return None if state is None else Path(state.inventory)


def _only_running(folders: Folders) -> ClusterState | None:
    running = running_clusters(folders)
    if len(running) > 1:
        raise ClusterStateError(f"{len(running)} clusters run: {', '.join(running)}", hint="name one: --cluster NAME")
    return read_state(folders.cluster(running[0])) if running else None


def _changed_last(folders: Folders) -> ClusterState | None:
    """After a failure this is the cluster whose reason the user wants to read."""
    states = (read_state(folders.cluster(name)) for name in known_clusters(folders))
    return max((state for state in states if state is not None), key=lambda state: state.since, default=None)
