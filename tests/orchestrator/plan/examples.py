"""Surveys and models for the tests of planning and its views: round numbers, so that results can be checked by hand."""

from collections.abc import Sequence
from dataclasses import replace

from orchestrator.plan.values import ModelMemory
from orchestrator.survey.values import NOT_MEASURED, Device, HostSurvey, Link, PassTime, Speed, Survey, TensorTime
from workers.budget import MIB, Budget
from workers.facts import HostFacts

GIB = 1024 * MIB

FACTS = HostFacts(
    os="Linux",
    os_name="Debian GNU/Linux 12 (bookworm)",
    architecture="x86_64",
    libc="glibc 2.36",
    python="3.11.2",
    hostname="desk",
    user="ada",
    cpu_name="AMD Ryzen 7 5800X",
    cpu_features=("avx2",),
    cores_physical=8,
    cores_logical=16,
    cpu_quota=None,
    memory_total_bytes=64 * GIB,
    memory_available_bytes=48 * GIB,
    memory_limited_by="",
    disk_total_bytes=500 * GIB,
    disk_free_bytes=100 * GIB,
    root="/home/ada/.cache/meshctl",
    clock_s=0.0,
    compiler="",
    gpus=(),
)

FAST_LINK = Link("tunnel", round_trip_s=0.000_25, up_bytes_per_s=110 * MIB, down_bytes_per_s=110 * MIB)
LOOPBACK = Link("loopback", round_trip_s=0.000_01, up_bytes_per_s=1700 * MIB, down_bytes_per_s=1700 * MIB)


PASS_COST = {1: 1.0, 8: 2.0, 64: 6.4, 256: 25.6, 512: 51.2}
"""Tokens of a pass, and how much longer than one of one token it takes: prefill is ten times as fast as decode."""

MICRO_BATCHES = (64, 256, 512)


def make_speed(gib_per_s: float = 10.0, *, fixed_s: float = 0.0, spread: float = 0.02, prefill: float = 1.0) -> Speed:
    """Every pass takes `fixed_s` and time in proportion to the bytes; those of 64 tokens and more `prefill` as fast."""
    return Speed(
        passes=tuple(
            make_pass(tokens, cost / gib_per_s / (prefill if tokens >= 64 else 1.0), fixed_s, spread=spread)
            for tokens, cost in PASS_COST.items()
        ),
        output_s=1 / gib_per_s,
        output_bytes=GIB,
        source="slice",
        layers=(4, 8),
    )


def make_pass(tokens: int, gib_s: float, fixed_s: float = 0.0, *, spread: float = 0.0) -> PassTime:
    """A pass that takes `fixed_s`, and `gib_s` seconds more for each GiB of weights, which is four layers."""
    return PassTime(tokens, fixed_s, (GIB, 2 * GIB), (fixed_s + gib_s, fixed_s + 2 * gib_s), spread)


def make_device(
    name: str,
    budget_mib: int,
    *,
    gib_per_s: float = 10.0,
    fixed_s: float = 0.0,
    spread: float = 0.02,
    link: Link = FAST_LINK,
    kind: str = "cpu",
    native_gib_per_s: float | None = None,
) -> Device:
    """A device whose host is what stands before the slash; natively as fast as through RPC unless told (0: unknown)."""
    native = gib_per_s if native_gib_per_s is None else native_gib_per_s
    return Device(
        name=name,
        host=name.split("/")[0],
        kind=kind,
        description="AMD Ryzen 7 5800X",
        threads=8,
        budget=Budget(free_bytes=2 * budget_mib * MIB, capped_bytes=budget_mib * MIB, reserve_bytes=0),
        link=link,
        speed=make_speed(gib_per_s, fixed_s=fixed_s, spread=spread) if gib_per_s else NOT_MEASURED,
        native=make_speed(native, spread=spread) if native else NOT_MEASURED,
    )


def make_gpu(
    name: str,
    budget_mib: int,
    *,
    gib_per_s: float,
    native_gib_per_s: float,
    kind: str = "cuda",
    link: Link = FAST_LINK,
) -> Device:
    """A card with memory of its own, which the engine calls by its kind and the number at the end of our name."""
    device = make_device(name, budget_mib, gib_per_s=gib_per_s, native_gib_per_s=native_gib_per_s, kind=kind, link=link)
    return replace(device, engine_name=f"{ENGINE_KINDS[kind]}{name[-1]}")


ENGINE_KINDS = {"cuda": "CUDA", "vulkan": "Vulkan", "metal": "MTL"}


def make_survey(
    devices: Sequence[Device],
    *,
    local: Sequence[str] = (),
    controller_mib: int = 48 * 1024,
    host_mib: int = 48 * 1024,
    controller_gib_per_s: float = 10.0,
    tensor: Sequence[TensorTime] = (),
    tensor_refused: str = "",
) -> Survey:
    """One host per host name of the devices; those in `local` are the controller itself."""
    facts = replace(FACTS, memory_available_bytes=host_mib * MIB)
    hosts = dict.fromkeys(device.host for device in devices)
    return Survey(
        cluster="demo",
        taken_at="2026-11-22T18:00:00Z",
        engine="cpu-linux-x86_64-1a2b3c4d5e6f",
        controller=replace(FACTS, memory_available_bytes=controller_mib * MIB),
        hosts=tuple(
            HostSurvey(name, name in local, facts, tuple(device for device in devices if device.host == name))
            for name in hosts
        ),
        model="llama.gguf",
        controller_speed=make_speed(controller_gib_per_s) if controller_gib_per_s else NOT_MEASURED,
        tensor=tuple(tensor),
        tensor_refused=tensor_refused,
    )


def make_tensor_time(
    devices: Sequence[str], parts: Sequence[int], gib_per_s: float, *, fixed_s: float = 0.0
) -> TensorTime:
    """A group that computes like one device of this speed."""
    speed = make_speed(gib_per_s, fixed_s=fixed_s)
    return TensorTime(tuple(devices), tuple(parts), speed.passes, speed.output_s)


def make_memory(
    layers: int | Sequence[int] = 10,
    *,
    layer_mib: int = 100,
    kv_mib: int = 10,
    output_mib: int = 100,
    logits_bytes: int = 200_000,
    tied: bool = False,
    parallel: int = 1,
    micro_batch: int = 64,
    kv_heads: int = 8,
) -> ModelMemory:
    """A model of uniform layers, or of layers of the given MiB; compute buffers 40, last 60 and head 20 MiB."""
    sizes = [layer_mib] * layers if isinstance(layers, int) else layers
    return ModelMemory(
        model="llama.gguf",
        path="/models/llama.gguf",
        context=4096,
        parallel=parallel,
        micro_batch=micro_batch,
        layer_weights_bytes=tuple(size * MIB for size in sizes),
        layer_kv_bytes=(kv_mib * MIB,) * len(sizes),
        output_bytes=output_mib * MIB,
        output_tied=tied,
        input_bytes=50 * MIB,
        compute_bytes=40 * MIB,
        compute_last_bytes=60 * MIB,
        compute_tensor_bytes=60 * MIB,
        compute_head_bytes=20 * MIB,
        logits_bytes=logits_bytes,
        hidden_bytes=8192,
        kv_heads=kv_heads,
    )


def make_memories(memory: ModelMemory) -> tuple[ModelMemory, ...]:
    """The model at every micro-batch, the buffers in proportion to it; `memory` is the first, at the smallest."""
    return tuple(
        replace(
            memory,
            micro_batch=micro_batch,
            compute_bytes=memory.compute_bytes * micro_batch // MICRO_BATCHES[0],
            compute_last_bytes=memory.compute_last_bytes * micro_batch // MICRO_BATCHES[0],
            compute_tensor_bytes=memory.compute_tensor_bytes * micro_batch // MICRO_BATCHES[0],
            compute_head_bytes=memory.compute_head_bytes * micro_batch // MICRO_BATCHES[0],
        )
        for micro_batch in MICRO_BATCHES
    )
