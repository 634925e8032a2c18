"""The inventory as frozen values: what the user wrote, checked and with every default filled in."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from workers.budget import MemoryCap

CONTROLLER = "controller"
"""The name of the machine where meshctl runs; no host of an inventory has it."""

DEFAULT_MEMORY = MemoryCap(share=0.8)


@dataclass(frozen=True)
class Host:
    """One machine of the inventory. `threads` None means auto; `key` is an absolute path or None."""

    name: str
    connection: Literal["local", "ssh"]
    address: str = ""
    user: str | None = None
    port: int | None = None
    key: str | None = None
    jump: str | None = None  # as for `ssh -J`
    host_key: str | None = None  # "SHA256:..."
    backend: Literal["auto", "cpu", "cuda", "metal", "vulkan"] = "auto"
    memory: MemoryCap = DEFAULT_MEMORY
    threads: int | None = None
    link: Literal["tunnel", "direct"] = "tunnel"
    plaintext_rpc: Literal["refuse", "accept"] = "refuse"  # what `link: direct` asks to be accepted
    run_with: tuple[str, ...] = ()  # words before every command of ours there
    cache: MemoryCap | None = None  # what our folder there may hold of the disk; None: half of what is free


@dataclass(frozen=True)
class GatewayAddress:
    """Where the gateway listens; port 0 is not allowed."""

    host: str = "127.0.0.1"
    port: int = 11435


@dataclass(frozen=True)
class Inventory:
    """A whole inventory; `path` is the file it came from, for messages."""

    path: Path
    cluster: str
    model: str
    hosts: tuple[Host, ...]
    context: int = 4096  # tokens one conversation may hold
    parallel: int = 1  # conversations at once
    goal: Literal["latency", "throughput"] = "latency"
    gateway: GatewayAddress = GatewayAddress()
    cache: MemoryCap | None = None  # of the controller, and of every host that does not say otherwise
