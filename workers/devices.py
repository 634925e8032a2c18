"""Which device computes: what an engine sees of a host's GPUs, and which backend a host is given. Pure.

The engine itself is asked (`--list-devices`): it counts a GPU's memory as it will allocate it, and leaves out what it
cannot use.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from workers.budget import MIB
from workers.errors import FactsError
from workers.facts import HostFacts

AUTO, CPU = "auto", "cpu"

PREFERRED = ("cuda", "metal", "vulkan")
"""Where a host's GPUs can be reached by several backends: the fastest first."""

KINDS: Mapping[str, str] = MappingProxyType({"CUDA": "cuda", "MTL": "metal", "Vulkan": "vulkan"})
"""What the engine's names of devices begin with."""

SOFTWARE_TOO: Mapping[str, str] = MappingProxyType({"GGML_VK_VISIBLE_DEVICES": "0"})
"""Vulkan drivers that compute on the processor are used only where they are asked for by their number."""

_TITLE = "Available devices:"
_DEVICE = re.compile(r"^  (?P<name>[A-Za-z]+\d+): (?P<said>.*) \((?P<total>\d+) MiB, (?P<free>\d+) MiB free\)$")


@dataclass(frozen=True)
class EngineGpu:
    """One GPU as the engine sees it: `name` is the engine's, such as "Vulkan0"; memory in bytes.

    `environment`: variables without which the engine does not see it.
    """

    name: str
    description: str
    memory_total_bytes: int
    memory_free_bytes: int
    environment: tuple[tuple[str, str], ...] = ()

    @property
    def kind(self) -> str:
        """The backend: "cuda", "metal" or "vulkan"; "" for what is none of them."""
        return KINDS.get(self.name.rstrip("0123456789"), "")

    @property
    def in_software(self) -> bool:
        """Whether it computes on the host's processor, in its memory."""
        return bool(self.environment)

    @property
    def number(self) -> str:
        return self.name[len(self.name.rstrip("0123456789")) :]


def list_devices_command(program: str) -> tuple[str, ...]:
    """`llama-bench`, or any other program of the engine that knows devices."""
    return (program, "--list-devices")


def read_devices(stdout: bytes, backend: str, environment: Mapping[str, str]) -> tuple[EngineGpu, ...]:
    """The GPUs of that backend, in the engine's order; FactsError when this is no answer to `list_devices_command`."""
    lines = stdout.decode(errors="replace").splitlines()
    if _TITLE not in lines:
        raise FactsError(f"the engine's list of devices cannot be read: no line {_TITLE!r}")
    listed = (_DEVICE.match(line) for line in lines[lines.index(_TITLE) + 1 :])
    gpus = (
        EngineGpu(
            one["name"],
            one["said"],
            int(one["total"]) * MIB,
            int(one["free"]) * MIB,
            tuple(sorted(environment.items())),
        )
        for one in listed
        if one is not None
    )
    return tuple(gpu for gpu in gpus if gpu.kind == backend)


def wanted_backends(wish: str, facts: HostFacts) -> tuple[str, ...]:
    """The backends for a host, the best first: the inventory's alone, or those that its GPUs have, then the CPU."""
    if wish != AUTO:
        return (wish,)
    there = {gpu.kind for gpu in facts.gpus}
    return (*(backend for backend in PREFERRED if backend in there), CPU)
