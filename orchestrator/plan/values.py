"""What planning takes and gives: the engine's memory arithmetic of a model, and a plan."""

from dataclasses import dataclass
from typing import Literal

from workers.engine_commands import CacheType, FlashAttention

GroupMode = Literal["single", "layers", "tensor"]
PlanMode = Literal["single", "layers", "tensor", "replicas"]
Known = Literal["predicted", "corrected", "measured"]

MODES: tuple[PlanMode, ...] = ("single", "layers", "tensor", "replicas")
GOALS = ("latency", "throughput")

PROMPT_TOKENS = 1024
"""The prompt that predicted prefill speeds and times to first token are for; the whole context where that is less."""


@dataclass(frozen=True)
class ModelMemory:
    """What a model takes at one context, parallel, micro-batch, cache type and flash attention, counted by the engine;
    all in bytes.

    `layer_weights_bytes[i]` and `layer_kv_bytes[i]` belong to block i; `layer_kv_fixed_bytes[i]` is what of the latter
    a shorter context leaves as it is: windows, recurrent states (empty: nothing anywhere). `output_bytes` is the output
    layer as a device holds it (a copy of the token embedding where the two are tied). `input_bytes` stays on the head.
    The compute buffers are those of a device that is not last, of one that is last and makes logits, and of the head
    itself.
    `logits_bytes` cross the link per token when the output layer is remote; `hidden_bytes` per token at each stage.
    `kv_heads` is the smallest number of KV heads of any layer that has attention: mode `tensor` cuts no finer. How much
    coarser it cuts follows from `head_groups`, of layers that differ in it: query elements per KV head, and those in a
    block of the attention's quantised output. `attention_bytes` are the weights of all layers that are cut by heads,
    `mirrored_bytes` those that every device holds whole. `compute_tensor_bytes` are the compute buffers of a device
    that has all of a layer in that mode, of which `cut_compute_bytes` are cut like the layer; `tensor_refused` is the
    engine's reason when it cannot cut this model.
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
    kv_heads: int = 1
    compute_tensor_bytes: int = 0
    tensor_refused: str = ""
    head_groups: tuple[tuple[int, int], ...] = ()
    attention_bytes: int = 0
    mirrored_bytes: int = 0
    cut_compute_bytes: int = 0
    cache_type: CacheType = "f16"
    layer_kv_fixed_bytes: tuple[int, ...] = ()
    flash_attention: FlashAttention = "auto"

    @property
    def total_bytes(self) -> int:
        """What one device needs to hold everything."""
        return sum(self.layer_weights_bytes) + sum(self.layer_kv_bytes) + self.output_bytes + self.compute_last_bytes

    @property
    def blocks(self) -> int:
        return len(self.layer_weights_bytes)

    @property
    def prompt_tokens(self) -> int:
        """The length of the prompt that prefill is predicted for."""
        return min(PROMPT_TOKENS, self.context)


@dataclass(frozen=True)
class Share:
    """What one device holds, in bytes by kind, and its part of the time.

    Modes `single` and `layers`: `layers` blocks from `first_layer` on, and the output layer if `output`. Mode
    `tensor`: `part` of the sum of all parts of every layer; `first_layer` is 0 and `layers` all of them. `native`: the
    head computes it itself, without a worker; in a layer split on a GPU of its own host where `gpu` has the engine's
    name for that, such as "CUDA0", and else on its CPU. `own_memory`: the budget is a card's, not its machine's main
    memory. `time_s` is this device's part of the predicted time per token,
    link included (mode `tensor`: all devices work at the same time, each has the time of the group).
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
    part: int = 0
    native: bool = False
    gpu: str = ""
    own_memory: bool = False

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.kv_bytes + self.compute_bytes


@dataclass(frozen=True)
class Traffic:
    """What one generated token of one conversation costs on the network, all links of a group together.

    `hops`: stages behind a link, one after the other. `synchronisations`: round trips that a token waits for, one after
    the other; mode "tensor" asks all devices at once in each. Bytes are sent to (`up`) and from (`down`) the hosts.
    """

    hops: int = 0
    synchronisations: int = 0
    up_bytes: int = 0
    down_bytes: int = 0


@dataclass(frozen=True)
class Group:
    """One head and all that computes for it; `head` is its host's name, "" for the controller.

    mode "single": the head runs everything natively; `shares` has that one device, `native`.
    mode "layers": one RPC worker per share in pipeline order, but for those that are `native`: the head's own CPU,
    which is the first one then, and GPUs of its own host.
    mode "tensor": one RPC worker per share, each layer cut across all of them.
    `output_on_head` keeps the output layer in the head's own memory (`head_bytes` counts it) and off the wire.
    `head_compute_bytes` is the part of `head_bytes` that is compute buffers; `head_time_s` the head's own computing per
    token. Predicted: `token_s` per token of one conversation, `step_s` for one step of all `parallel` conversations
    (each gets a token), `prefill_s` for a prompt of `ModelMemory.prompt_tokens`. `known` says how: "predicted",
    "corrected" by earlier measurements of others, or "measured" (this very group has run before). `context_s` is the
    part of `prefill_s` that the growing context adds. `corrected_by`: what `token_s`, `step_s` and `prefill_s` were
    multiplied with by measurements. `beside`: how many times as long `step_s` is as it is while other heads rest.
    """

    mode: GroupMode
    head: str
    shares: tuple[Share, ...]
    parallel: int
    micro_batch: int
    output_on_head: bool
    head_bytes: int
    head_compute_bytes: int
    head_time_s: float
    token_s: float
    step_s: float
    prefill_s: float
    prompt_tokens: int
    traffic: Traffic = Traffic()
    notes: tuple[str, ...] = ()
    known: Known = "predicted"
    context_s: float = 0.0
    corrected_by: tuple[float, float, float] = (1.0, 1.0, 1.0)
    beside: float = 1.0

    @property
    def step_alone_s(self) -> float:
        """`step_s` while the other heads rest."""
        return self.step_s / self.beside

    @property
    def decode_tokens_per_s(self) -> float:
        return 1 / self.token_s

    @property
    def aggregate_tokens_per_s(self) -> float:
        """All `parallel` conversations together."""
        return self.parallel / self.step_s

    @property
    def aggregate_alone_tokens_per_s(self) -> float:
        """The same while the other heads rest."""
        return self.parallel / self.step_alone_s

    @property
    def prefill_tokens_per_s(self) -> float:
        return self.prompt_tokens / self.prefill_s

    @property
    def first_token_s(self) -> float:
        """From the question to the first token, for a prompt of `prompt_tokens`."""
        return self.prefill_s + self.token_s

    @property
    def workers(self) -> tuple[Share, ...]:
        """The shares that have a worker, in the order of the engine's devices."""
        return tuple(share for share in self.shares if not share.native)

    @property
    def placed(self) -> tuple[Share, ...]:
        """The shares that the engine is told a device for, in its order: workers, and GPUs of the head of a split."""
        return tuple(share for share in self.shares if share.gpu or not share.native)

    @property
    def head_layers(self) -> int:
        """The first layers, computed by the head of a layer split itself on its CPU."""
        own = (share.layers for share in self.shares if share.native and not share.gpu)
        return sum(own) if self.mode == "layers" else 0

    @property
    def tensor_split(self) -> tuple[int, ...]:
        """For `--tensor-split`, an integer per device that the engine is told: its part, or its layers and one more for
        the output layer."""
        if self.mode == "tensor":
            return tuple(share.part for share in self.shares)
        counts = [share.layers for share in self.placed]
        if counts:
            counts[-1] += 1
        return tuple(counts)


@dataclass(frozen=True)
class LeftOut:
    """A device the plan does not use, and why, in numbers."""

    device: str
    reason: str


@dataclass(frozen=True)
class Plan:
    """How the model will run: one group, or several of them behind the gateway (mode "replicas").

    `cache_type` is what all of them keep keys and values as, `flash_attention` what was asked for.

    `fallbacks` are kept for the loss of each host, where the inventory asks for that.
    """

    mode: PlanMode
    goal: str
    model: str
    context: int
    parallel: int
    groups: tuple[Group, ...]
    left_out: tuple[LeftOut, ...] = ()
    reasons: tuple[str, ...] = ()
    fallbacks: tuple["Fallback", ...] = ()
    cache_type: CacheType = "f16"
    flash_attention: FlashAttention = "auto"

    @property
    def shares(self) -> tuple[Share, ...]:
        return tuple(share for group in self.groups for share in group.shares)

    @property
    def fastest(self) -> Group:
        """The group that one conversation alone is sent to."""
        return min(self.groups, key=lambda group: group.token_s)

    @property
    def token_s(self) -> float:
        return self.fastest.token_s

    @property
    def decode_tokens_per_s(self) -> float:
        return self.fastest.decode_tokens_per_s

    @property
    def prefill_tokens_per_s(self) -> float:
        return self.fastest.prefill_tokens_per_s

    @property
    def first_token_s(self) -> float:
        return self.fastest.first_token_s

    @property
    def aggregate_tokens_per_s(self) -> float:
        """All conversations of all groups together."""
        return sum(group.aggregate_tokens_per_s for group in self.groups)

    @property
    def goal_s(self) -> float:
        """What plans are compared by: seconds per token of one conversation, or of all together, by the goal."""
        return self.token_s if self.goal == "latency" else 1 / self.aggregate_tokens_per_s


@dataclass(frozen=True)
class Fallback:
    """What the others would do without this host."""

    host: str
    plan: Plan


@dataclass(frozen=True)
class Ranking:
    """Every plan that was considered, best first for the goal; `plans[0]` is the one to run."""

    plans: tuple[Plan, ...]

    @property
    def chosen(self) -> Plan:
        return self.plans[0]


def plan_key(plan: Plan) -> str:
    """The same text for plans that run the same processes: what a measurement of a plan is kept under."""
    return " + ".join(group_key(group) for group in plan.groups)


def group_key(group: Group) -> str:
    """Such as "layers a/cpu*10 b/cpu*20 out=head ub=64 np=4"."""
    shares = (
        f"{share.device}*{share.part if group.mode == 'tensor' else share.layers}{'n' if share.native else ''}"
        for share in group.shares
    )
    output = "head" if group.output_on_head else "last"
    return f"{group.mode} {' '.join(shares)} out={output} ub={group.micro_batch} np={group.parallel}"


def alike_key(key: str) -> str:
    """A `group_key`, or several in a `plan_key`, that is the same for groups whose devices only stand in another order.

    The last one of several stays last where it makes the logits.
    """
    return " + ".join(_alike_group(one) for one in key.split(" + "))


def _alike_group(key: str) -> str:
    mode, *words = key.split(" ")
    shares, rest = words[:-3], words[-3:]
    kept = shares[-1:] if mode == "layers" and "out=last" in rest else []
    return " ".join((mode, *sorted(shares[: len(shares) - len(kept)]), *kept, *rest))
