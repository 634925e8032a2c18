"""Which GPUs are used, with an engine that is a shell script: it lists devices and computes on some of them."""

from pathlib import Path

import pytest

from orchestrator.engine.gpus import Wanted, usable_gpus
from orchestrator.engine.smoke import PROOFS
from orchestrator.errors import EngineError
from orchestrator.shell.local import LocalShell
from tests.orchestrator.engine.conftest import Heard

MIB = 1024**2

_BENCH = """#!/bin/sh
case "$*" in
*--list-devices*)
    echo "Available devices:"
    {listed}
    exit 0 ;;
*"--device {bad} "*) echo "device is lost" >&2; exit 1 ;;
esac
echo "$*" >>"$(dirname "$0")/../runs"
one='{{"avg_ts": 1.5}}'
echo "[$one, $one, $one, $one, $one, $one]"
"""

TWO_CARDS = """echo "  CUDA0: RTX 4090 (24080 MiB, 23622 MiB free)"
    echo "  CUDA1: GTX 1080 (8192 MiB, 8000 MiB free)" """
SOFTWARE = """[ -z "$GGML_VK_VISIBLE_DEVICES" ] || echo "  Vulkan0: llvmpipe (2048 MiB, 2048 MiB free)" """
NOTHING = 'echo "  (none)"'


@pytest.fixture
def shell(tmp_path: Path) -> LocalShell:
    return LocalShell("desk", tmp_path / "root", tmp_path)


def engine(folder: Path, listed: str, bad: str = "nothing") -> str:
    folder.mkdir()
    (folder / "llama-bench").write_text(_BENCH.format(listed=listed, bad=bad))
    (folder / "llama-bench").chmod(0o755)
    return str(folder)


def runs(folder: str) -> list[str]:
    log = Path(folder).with_name("runs")
    return [line.split("--device ")[1].split()[0] for line in log.read_text().splitlines()] if log.exists() else []


async def test_every_gpu_computes_once_and_is_then_known(shell: LocalShell, heard: Heard, tmp_path: Path) -> None:
    folder = engine(tmp_path / "engine", TWO_CARDS)
    for _ in range(2):
        gpus = await usable_gpus(shell, folder, Wanted("cuda"), heard)
        assert [(gpu.name, gpu.memory_free_bytes) for gpu in gpus] == [("CUDA0", 23622 * MIB), ("CUDA1", 8000 * MIB)]
    assert runs(folder) == ["CUDA0", "CUDA1"]
    assert heard.warnings == []


async def test_one_that_does_not_compute_is_told_and_left_out(shell: LocalShell, heard: Heard, tmp_path: Path) -> None:
    folder = engine(tmp_path / "engine", TWO_CARDS, bad="CUDA1")
    (gpu,) = await usable_gpus(shell, folder, Wanted("cuda", wished=True), heard)
    assert gpu.name == "CUDA0"
    assert heard.warnings == [
        "desk: not used by cuda: CUDA1 (GTX 1080): it ended with exit status 1: device is lost",
    ]


async def test_none_at_all_is_an_error_only_where_one_was_wished_for(
    shell: LocalShell, heard: Heard, tmp_path: Path
) -> None:
    folder = engine(tmp_path / "engine", NOTHING)
    assert await usable_gpus(shell, folder, Wanted("cuda"), heard) == ()
    assert heard.warnings == ["desk: not used by cuda: the engine sees no GPU there"]
    with pytest.raises(EngineError) as caught:
        await usable_gpus(shell, folder, Wanted("cuda", wished=True), heard)
    assert str(caught.value) == "desk: the engine finds no GPU there that it can use by cuda"
    assert caught.value.hint.endswith("; or set `backend: cpu` for it")


async def test_a_driver_that_computes_on_the_processor_is_used_only_where_it_is_wished_for(
    shell: LocalShell, heard: Heard, tmp_path: Path
) -> None:
    folder = engine(tmp_path / "engine", SOFTWARE)
    assert await usable_gpus(shell, folder, Wanted("vulkan"), heard) == ()
    (gpu,) = await usable_gpus(shell, folder, Wanted("vulkan", wished=True), heard)
    assert (gpu.description, gpu.in_software) == ("llvmpipe", True)


async def test_nothing_is_written_into_a_users_own_engine(shell: LocalShell, heard: Heard, tmp_path: Path) -> None:
    folder = engine(tmp_path / "engine", TWO_CARDS)
    for times in (1, 2):
        await usable_gpus(shell, folder, Wanted("cuda", is_own=True), heard)
        assert runs(folder) == ["CUDA0", "CUDA1"] * times
    assert [path.name for path in Path(folder).iterdir()] == ["llama-bench"]
    assert not Path(folder, PROOFS).exists()


async def test_without_a_gpus_backend_nobody_is_asked(shell: LocalShell, heard: Heard, tmp_path: Path) -> None:
    assert await usable_gpus(shell, str(tmp_path / "nowhere"), Wanted("cpu"), heard) == ()
