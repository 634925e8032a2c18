from dataclasses import replace

import pytest

from tests.orchestrator.plan.examples import FACTS
from workers.devices import SOFTWARE_TOO, EngineGpu, list_devices_command, read_devices, wanted_backends
from workers.errors import FactsError
from workers.facts import Gpu

MIB = 1024**2

TWO_CARDS = b"""load_backend: loaded CUDA backend from /e/libggml-cuda.so
Available devices:
  CUDA0: NVIDIA GeForce RTX 4090 (24080 MiB, 23622 MiB free)
  CUDA1: NVIDIA GeForce GTX 1080 Ti (11165 MiB, 11004 MiB free)
"""
SOFTWARE = b"""Available devices:
  Vulkan0: llvmpipe (LLVM 15.0.6, 256 bits) (2048 MiB, 2048 MiB free)
"""
MAC = b"""Available devices:
  MTL0: Apple M2 Pro (21845 MiB, 21845 MiB free)
  BLAS: Accelerate (0 MiB, 0 MiB free)
"""


def test_the_engine_names_its_devices_with_total_and_free_memory() -> None:
    assert list_devices_command("/e/llama-bench") == ("/e/llama-bench", "--list-devices")
    assert read_devices(TWO_CARDS, "cuda", {}) == (
        EngineGpu("CUDA0", "NVIDIA GeForce RTX 4090", 24080 * MIB, 23622 * MIB),
        EngineGpu("CUDA1", "NVIDIA GeForce GTX 1080 Ti", 11165 * MIB, 11004 * MIB),
    )
    assert [(gpu.kind, gpu.number) for gpu in read_devices(TWO_CARDS, "cuda", {})] == [("cuda", "0"), ("cuda", "1")]


def test_a_name_with_brackets_is_read_whole_and_keeps_what_the_engine_needs_to_see_it() -> None:
    (gpu,) = read_devices(SOFTWARE, "vulkan", SOFTWARE_TOO)
    assert gpu == EngineGpu(
        "Vulkan0",
        "llvmpipe (LLVM 15.0.6, 256 bits)",
        2048 * MIB,
        2048 * MIB,
        (("GGML_VK_VISIBLE_DEVICES", "0"),),
    )
    assert gpu.in_software


def test_devices_of_other_backends_are_not_taken() -> None:
    assert [gpu.name for gpu in read_devices(MAC, "metal", {})] == ["MTL0"]
    assert read_devices(TWO_CARDS, "vulkan", {}) == ()
    assert read_devices(b"Available devices:\n  (none)\n", "cuda", {}) == ()


@pytest.mark.parametrize("said", [b"", b"CUDA0: something\n", b"error: unknown argument\n"])
def test_what_is_no_list_is_an_error(said: bytes) -> None:
    with pytest.raises(FactsError, match="the engine's list of devices cannot be read"):
        read_devices(said, "cuda", {})


CARD = Gpu("cuda", 0, "NVIDIA GeForce RTX 4090", 24 * 1024 * MIB, 23 * 1024 * MIB, "8.9")
SAME_BY_VULKAN = replace(CARD, kind="vulkan", compute_capability="")


@pytest.mark.parametrize(
    ("wish", "gpus", "backends"),
    [
        ("auto", (), ("cpu",)),
        ("auto", (SAME_BY_VULKAN, CARD), ("cuda", "vulkan", "cpu")),
        ("auto", (SAME_BY_VULKAN,), ("vulkan", "cpu")),
        ("cpu", (CARD,), ("cpu",)),
        ("vulkan", (), ("vulkan",)),
    ],
)
def test_the_backend_is_the_users_wish_else_what_the_host_has_the_best_first(
    wish: str, gpus: tuple[Gpu, ...], backends: tuple[str, ...]
) -> None:
    assert wanted_backends(wish, replace(FACTS, gpus=gpus)) == backends
