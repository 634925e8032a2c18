"""Read what `llama-server --log-jsonl --log-verbosity 4` says about its buffers; nothing here opens a file."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

MIB = 1024 * 1024
_BUFFER = re.compile(
    r"(?:load_tensors|llama_kv_cache|sched_reserve):\s+(?P<name>\S+)\s+(?P<what>model|KV|compute) buffer size"
    r" =\s+(?P<mib>[\d.]+) MiB"
)
_ENDPOINT = re.compile(r"RPC\d+\[(?P<endpoint>[^\]]+)\]")


@dataclass(frozen=True)
class Buffers:
    """What the engine allocated on one device, in bytes."""

    model_bytes: int = 0
    kv_bytes: int = 0
    compute_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        return self.model_bytes + self.kv_bytes + self.compute_bytes


def read_buffers(lines: Iterable[str]) -> Mapping[str, Buffers]:
    """Buffers by device: RPC devices by "host:port" (the engine calls every one RPC0), others by their own name.

    A later line about the same buffer replaces an earlier one: the scheduler reserves more than once.
    """
    found: dict[str, dict[str, float]] = {}
    for line in lines:
        match = _BUFFER.search(_message(line))
        if match is None:
            continue
        endpoint = _ENDPOINT.match(match["name"])
        device = endpoint["endpoint"] if endpoint else match["name"]
        found.setdefault(device, {})[match["what"]] = float(match["mib"]) * MIB
    return {
        device: Buffers(int(sizes.get("model", 0)), int(sizes.get("KV", 0)), int(sizes.get("compute", 0)))
        for device, sizes in found.items()
    }


def plain_log(text: str) -> str:
    """The log as a person reads it: messages instead of JSON objects."""
    return "\n".join(_message(line).rstrip() for line in text.splitlines())


def _message(line: str) -> str:
    try:
        entry = json.loads(line)
    except ValueError:
        return line
    return str(entry.get("msg", "")) if isinstance(entry, dict) else line
