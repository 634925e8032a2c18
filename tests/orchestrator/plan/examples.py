"""Surveys and models for the tests of planning and its views: round numbers, so that results can be checked by hand."""

from collections.abc import Sequence
from dataclasses import replace

from orchestrator.plan.values import ModelMemory
from orchestrator.survey.values import Device, HostSurvey, Link, Speed, Survey
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


def make_device(
    name: str,
    budget_mib: int,
    *,
    gib_per_s: float = 10.0,
    fixed_s: float = 0.0,
    spread: float = 0.02,
    link: Link = FAST_LINK,
    kind: str = "cpu",
) -> Device:
    """A device whose host is what stands before the slash; prefill is ten times as fast as decode."""
    return Device(
        name=name,
        host=name.split("/")[0],
        kind=kind,
        description="AMD Ryzen 7 5800X",
        threads=8,
        budget=Budget(free_bytes=2 * budget_mib * MIB, capped_bytes=budget_mib * MIB, reserve_bytes=0),
        link=link,
        speed=Speed(gib_per_s * GIB, 10 * gib_per_s * GIB, fixed_s, spread),
    )


def make_survey(
    devices: Sequence[Device], *, local: Sequence[str] = (), controller_mib: int = 48 * 1024, host_mib: int = 48 * 1024
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
    )


def make_memory(
    layers: int | Sequence[int] = 10,
    *,
    layer_mib: int = 100,
    kv_mib: int = 10,
    output_mib: int = 100,
    logits_bytes: int = 200_000,
    tied: bool = False,
) -> ModelMemory:
    """A model of uniform layers, or of layers of the given MiB; compute buffers 40, last 60 and head 20 MiB."""
    sizes = [layer_mib] * layers if isinstance(layers, int) else layers
    return ModelMemory(
        model="llama.gguf",
        path="/models/llama.gguf",
        context=4096,
        parallel=1,
        micro_batch=512,
        layer_weights_bytes=tuple(size * MIB for size in sizes),
        layer_kv_bytes=(kv_mib * MIB,) * len(sizes),
        output_bytes=output_mib * MIB,
        output_tied=tied,
        input_bytes=50 * MIB,
        compute_bytes=40 * MIB,
        compute_last_bytes=60 * MIB,
        compute_head_bytes=20 * MIB,
        logits_bytes=logits_bytes,
        hidden_bytes=8192,
    )
