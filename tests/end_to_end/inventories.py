"""Inventories of local hosts for end-to-end tests."""

import random
import socket
from pathlib import Path

import yaml

HOST_MEMORY = "160MiB"
"""Too little for the demo model at 4,096 tokens (203 MiB with its margin), enough for any part of it."""


def free_port() -> int:
    """A port for the gateway, below the ephemeral range of Linux; by chance, since other runs choose theirs too."""
    for port in random.SystemRandom().sample(range(20000, 32000), 100):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError("no port is free")


def write_local(path: Path, *, hosts: int = 2, memory: str = HOST_MEMORY, **changes: object) -> Path:
    """An inventory of local hosts; `changes` are top-level keys."""
    inventory = {
        "cluster": "test",
        "model": "smollm2-135m",
        "context": 4096,
        "gateway": {"port": free_port()},
        "hosts": [
            {"name": f"part{number}", "connection": "local", "backend": "cpu", "memory": memory, "threads": 1}
            for number in range(1, hosts + 1)
        ],
        **changes,
    }
    path.write_text(yaml.safe_dump(inventory, sort_keys=False))
    return path
