"""Where meshctl keeps things on the controller; nothing here creates or reads anything but `prepare`."""

from dataclasses import dataclass
from pathlib import Path

import platformdirs


@dataclass(frozen=True)
class ClusterFolder:
    """One cluster's own folder; everything in it is readable by its owner only."""

    path: Path

    @property
    def lock(self) -> Path:
        return self.path / "lock"

    @property
    def start_lock(self) -> Path:
        return self.path / "start.lock"

    @property
    def measuring_lock(self) -> Path:
        return self.path / "measuring.lock"

    @property
    def state(self) -> Path:
        return self.path / "state.json"

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def history(self) -> Path:
        return self.path / "history.jsonl"

    @property
    def gateway_key(self) -> Path:
        return self.path / "gateway.key"

    @property
    def gateway_keys(self) -> Path:
        """What the gateway knows of its keys; `gateway_key` is this user's own one."""
        return self.path / "gateway.keys.json"

    @property
    def gateway_certificate(self) -> Path:
        """What the gateway shows, alone and without its key: what clients of this user trust."""
        return self.path / "gateway.crt"

    @property
    def self_signed(self) -> Path:
        """The certificate that meshctl made for the gateway, with its key."""
        return self.path / "self-signed.pem"

    @property
    def head_key(self) -> Path:
        return self.path / "head.key"

    @property
    def rebalance_request(self) -> Path:
        return self.path / "rebalance.json"

    @property
    def rebalance_outcome(self) -> Path:
        return self.path / "rebalanced.json"

    @property
    def supervisor_log(self) -> Path:
        return self.path / "supervisor.log"

    def prepare(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)


@dataclass(frozen=True)
class Folders:
    """`cache` may be deleted at any time; `state` has what must not be lost."""

    cache: Path
    state: Path

    @property
    def descriptions(self) -> Path:
        """What was read of models."""
        return self.cache / "descriptions"

    @property
    def chat_history(self) -> Path:
        return self.state / "chat_history"

    @property
    def clusters(self) -> Path:
        return self.state / "clusters"

    def cluster(self, name: str) -> ClusterFolder:
        return ClusterFolder(self.clusters / name)


def user_folders() -> Folders:
    """The platform's folders for this user (XDG on Linux, ~/Library on macOS)."""
    return Folders(platformdirs.user_cache_path("meshctl"), platformdirs.user_state_path("meshctl"))
