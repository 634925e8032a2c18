"""What planning takes and gives: the engine's memory arithmetic of a model, and a plan."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ModelMemory:
    """What a model takes at one context, parallel and micro-batch, counted by the engine; all in bytes.

    `layer_weights_bytes[i]` and `layer_kv_bytes[i]` belong to block i. `output_bytes` is the output layer as a device
    holds it (a copy of the token embedding where the two are tied). `input_bytes` stays on the head. The compute
    buffers are those of a device that is not last, of one that is last and makes logits, and of the head itself.
    `logits_bytes` cross the link per token when the output layer is remote; `hidden_bytes` per token at each stage.
    """

    model: str
    path: str
    context: int
    parallel: int
    micro_batch: int
    layer_weights_bytes: tuple[int, ...]
    layer_kv_bytes: tuple[int, ...]
    output_bytes: int
    output_tied: bool
    input_bytes: int
    compute_bytes: int
    compute_last_bytes: int
    compute_head_bytes: int
    logits_bytes: int
    hidden_bytes: int

    @property
    def total_bytes(self) -> int:
        """What one device needs to hold everything."""
        return sum(self.layer_weights_bytes) + sum(self.layer_kv_bytes) + self.output_bytes + self.compute_last_bytes


@dataclass(frozen=True)
class Share:
    """What one device holds: `layers` blocks from `first_layer` on, and the output layer if `output`; bytes by kind.

    `time_s` is this stage's part of the predicted time per token, link included.
    """

    device: str
    first_layer: int
    layers: int
    output: bool
    weights_bytes: int
    kv_bytes: int
    compute_bytes: int
    budget_bytes: int
    time_s: float

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.kv_bytes + self.compute_bytes


@dataclass(frozen=True)
class LeftOut:
    """A device the plan does not use, and why, in numbers."""

    device: str
    reason: str


@dataclass(frozen=True)
class Plan:
    """How the model will run. `head` is the host of the head: "" means the controller.

    mode "single": one head on `head` runs everything natively, `shares` has that one device.
    mode "layers": the head on the controller, one RPC worker per share, in pipeline order.
    `output_on_head` keeps the output layer in the head's own memory (`head_bytes` counts it) and off the wire.
    `head_compute_bytes` is the part of `head_bytes` that is compute buffers; `head_time_s` the head's own computing per
    token. `token_s` is all shares' `time_s` and `head_time_s`.
    """

    mode: Literal["single", "layers"]
    model: str
    context: int
    parallel: int
    micro_batch: int
    shares: tuple[Share, ...]
    head: str
    output_on_head: bool
    head_bytes: int
    token_s: float
    prefill_token_s: float
    left_out: tuple[LeftOut, ...]
    reasons: tuple[str, ...]
    head_compute_bytes: int = 0
    head_time_s: float = 0.0

    @property
    def decode_tokens_per_s(self) -> float:
        return 1 / self.token_s

    @property
    def prefill_tokens_per_s(self) -> float:
        return 1 / self.prefill_token_s

    @property
    def tensor_split(self) -> tuple[int, ...]:
        """Items per device for `--tensor-split`: its layers, and one more on the last for the output layer."""
        counts = [share.layers for share in self.shares]
        counts[-1] += 1
        return tuple(counts)
