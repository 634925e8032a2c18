"""Read what `llama-server --log-jsonl --log-verbosity 4` says about its buffers; nothing here opens a file."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

MIB = 1024 * 1024
_BUFFER = re.compile(
    r"(?:load_tensors|llama_kv_cache|llama_memory_recurrent|sched_reserve):\s+(?P<name>\S+)\s+"
    r"(?P<what>model|KV|RS|compute) buffer size =\s+(?P<mib>[\d.]+) MiB"
)
_PINNED = "_Host"
"""Memory for copies to and from a GPU is the host's: "CUDA_Host", "Vulkan_Host"."""

_MAPPED = "_Mapped"
"""A model's file that the CPU, or a GPU without memory of its own, reads where it lies: "MTL0_Mapped"."""

CPU = "CPU"
_ENDPOINT = re.compile(r"RPC\d+\[(?P<endpoint>[^\]]+)\]")


@dataclass(frozen=True)
class Buffers:
    """What the engine allocated on one device, in bytes; recurrent states count as keys and values."""

    model_bytes: int = 0
    kv_bytes: int = 0
    compute_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        return self.model_bytes + self.kv_bytes + self.compute_bytes


def read_buffers(lines: Iterable[str]) -> Mapping[str, Buffers]:
    """Buffers of the last load by device: RPC devices by "host:port" (the engine calls every one RPC0), GPUs by their
    own names, what is in the host's memory as "CPU".

    A device has several caches where some layers have windows, or states, and of weights as many buffers as they need.
    Of compute buffers a later line replaces an earlier one: the scheduler reserves more than once.
    """
    told = [match for line in lines if (match := _BUFFER.search(_message(line)))]
    found: dict[str, list[tuple[str, str, float]]] = {}
    for before, match in zip((None, *told), told, strict=False):
        if match["what"] == "model" and before is not None and before["what"] != "model":
            found.clear()
        rows = found.setdefault(_device(match["name"]), [])
        if match["what"] == "compute":
            rows[:] = [row for row in rows if row[:2] != ("compute", match["name"])]
        rows.append((match["what"], match["name"], float(match["mib"]) * MIB))
    return {device: _sum(rows) for device, rows in found.items()}


def _sum(rows: Iterable[tuple[str, str, float]]) -> Buffers:
    sizes = dict.fromkeys(("model", "KV", "RS", "compute"), 0.0)
    for what, _, size in rows:
        sizes[what] += size
    return Buffers(int(sizes["model"]), int(sizes["KV"] + sizes["RS"]), int(sizes["compute"]))


def _device(name: str) -> str:
    endpoint = _ENDPOINT.match(name)
    if endpoint:
        return endpoint["endpoint"]
    return CPU if name.endswith(_PINNED) else name.removesuffix(_MAPPED)


def plain_log(text: str) -> str:
    """The log as a person reads it: messages instead of JSON objects."""
    return "\n".join(_message(line).rstrip() for line in text.splitlines())


def _message(line: str) -> str:
    try:
        entry = json.loads(line)
    except ValueError:
        return line
    return str(entry.get("msg", "")) if isinstance(entry, dict) else line
