"""How many bytes of a device a plan may use: the user's cap applied to what is measured free, less a reserve."""

from dataclasses import dataclass

MIB = 1024 * 1024

RESERVE_BYTES = 26 * MIB
"""Kept free on every device: what the agent, the session and the worker program itself take.

Measured on Linux: agent 11 MiB and 2 MiB for its bridge, sshd session 8 MiB, idle `ggml-rpc-server` 8 MiB resident.
"""


GPU_RESERVE_BYTES = 300 * MIB
"""Kept free of a GPU's own memory: what its driver takes for a program's context and for products of matrices comes on
top of what the engine counts. Hundreds of MiB with CUDA by public accounts; not measured here."""


def reserve_of(*, in_main_memory: bool) -> int:
    """What is kept free where a device works, by whether that is its machine's main memory."""
    return RESERVE_BYTES if in_main_memory else GPU_RESERVE_BYTES


@dataclass(frozen=True)
class MemoryCap:
    """The user's limit on one device: a part of what is free (0 < share <= 1), or bytes; exactly one is set."""

    share: float | None = None
    limit_bytes: int | None = None

    def __str__(self) -> str:
        if self.share is not None:
            return f"{self.share * 100:g}%"
        return f"{(self.limit_bytes or 0) / MIB:g} MiB"


@dataclass(frozen=True)
class Budget:
    """What a plan may use of one device, and how that came about; all in bytes."""

    free_bytes: int
    capped_bytes: int
    reserve_bytes: int

    @property
    def usable_bytes(self) -> int:
        """The budget: never below 0."""
        return max(0, self.capped_bytes - self.reserve_bytes)


def budget(cap: MemoryCap, free_bytes: int, reserve_bytes: int = RESERVE_BYTES) -> Budget:
    """Apply the cap to the measured free bytes.

    A cap in bytes is what the user gives to the plan, so the reserve is only taken off as far as the cap leaves less
    than the reserve free; a share is of what is free, and the reserve comes off on top.
    """
    if cap.share is not None:
        return Budget(free_bytes, int(free_bytes * cap.share), reserve_bytes)
    limit = cap.limit_bytes or 0
    if limit + reserve_bytes <= free_bytes:
        return Budget(free_bytes, limit, 0)
    return Budget(free_bytes, min(limit, free_bytes), max(0, reserve_bytes - max(0, free_bytes - limit)))
