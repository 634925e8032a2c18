"""Read what the engine says while it quantises, or says what it would do. Pure; tests read recorded lines.

Lines of `llama_model_quantize_impl` in the pinned engine's `llama-quant.cpp`.
"""

import re
from dataclasses import dataclass

_TENSOR = re.compile(r"\[ *(\d+)/ *(\d+)\] (\S+) +- \[[^]]*\], type = +(\S+), (.*)")
_TARGET = re.compile(r"converting to (\S+) \.\.|-> +[\d.]+ MiB \((\S+)\)$")
_REFUSAL = re.compile(r"failed to quantize: (.+)")
_FALLBACKS = re.compile(r"(\d+) of \d+ tensor\(s\) required fallback quantization")
_NEEDS_IMPORTANCE = "will require an imatrix"


@dataclass(frozen=True)
class TensorLine:
    """Tensor `number` of `count`, done or looked at: the ggml type it has, and the one it gets (the same: copied)."""

    number: int
    count: int
    name: str
    source_type: str
    target_type: str


def read_tensor_line(line: str) -> TensorLine | None:
    """What a line says of a tensor; None for every other line. Types by the names of GGUF, such as "Q6_K"."""
    match = _TENSOR.search(line)
    if match is None:
        return None
    source = match[4].upper()
    target = _TARGET.search(match[5])
    return TensorLine(
        int(match[1]), int(match[2]), match[3], source, (target[1] or target[2]).upper() if target else source
    )


def read_refusal(line: str) -> str:
    """Why the engine gives up; "" for every other line."""
    match = _REFUSAL.search(line)
    return match[1].strip() if match else ""


def read_fallbacks(line: str) -> int:
    """How many tensors get another type since no block of the wanted one divides their rows; 0 for other lines."""
    match = _FALLBACKS.search(line)
    return int(match[1]) if match else 0


def says_importance_needed(line: str) -> bool:
    """Whether the engine, asked what it would do, says that it would need an importance matrix for that."""
    return _NEEDS_IMPORTANCE in line
