"""The inventory as frozen values: what the user wrote, checked and with every default filled in."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from workers.budget import MIB, MemoryCap
from workers.engine_commands import CacheType, FlashAttention

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
    engine: str | None = None  # absolute path there of an engine that the user has put there

    @property
    def own_words(self) -> tuple[str, ...]:
        """What the user has put under everything that runs there: a measurement with something else is another one."""
        return (*self.run_with, *((self.engine,) if self.engine else ()))


SELF_SIGNED = "self-signed"


@dataclass(frozen=True)
class TlsFiles:
    """A certificate and the private key that belongs to it: absolute paths of PEM files."""

    certificate: str
    key: str


@dataclass(frozen=True)
class GatewaySettings:
    """Where the gateway listens and what it allows; port 0 is not allowed.

    `tls` None: without encryption; "self-signed": with a certificate that meshctl makes. `allowed_origins` are the web
    pages whose scripts may ask. `waiting` requests may wait for a slot, each for `wait_s`.
    """

    host: str = "127.0.0.1"
    port: int = 11435
    tls: TlsFiles | Literal["self-signed"] | None = None
    allowed_origins: tuple[str, ...] = ()
    connections: int = 512  # open at once
    waiting: int = 128
    wait_s: int = 600
    deadline_s: int = 3600  # from a request's arrival to the end of its answer
    body_bytes: int = 8 * MIB  # of one request


@dataclass(frozen=True)
class Inventory:
    """A whole inventory; `path` is the file it came from, for messages."""

    path: Path
    cluster: str
    model: str
    hosts: tuple[Host, ...]
    context: int = 4096  # tokens one conversation may hold
    parallel: int = 1  # conversations at once
    cache_type: CacheType = "f16"  # what keys and values of the context are kept as
    flash_attention: FlashAttention = "auto"
    goal: Literal["latency", "throughput"] = "latency"
    gateway: GatewaySettings = GatewaySettings()
    minimum_context: int | None = None  # the least tokens of a conversation where `context` does not fit
    survive: int = 0  # hosts that may be lost at a time
    weights_from: Literal["controller", "nearest"] = "controller"
    cache: MemoryCap | None = None  # of the controller, and of every host that does not say otherwise
    sha256: str = field(default="", compare=False)  # of the file as it was read
