"""A host that seems to have a card of NVIDIA's, where no engine for it can be had: with `auto`, and by name."""

import os
from pathlib import Path

import pytest
import yaml

from orchestrator.engine.build import lacking_here
from orchestrator.engine.store import Engine
from tests.end_to_end.inventories import write_local
from tests.program import Meshctl
from workers.engine import RECIPES

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(
        not lacking_here(RECIPES["cuda"]), reason="this machine could build a CUDA engine, which takes an hour"
    ),
]

NVIDIA_SMI = """#!/bin/sh
echo "24564, 23011, 0, 8.9, NVIDIA GeForce RTX 4090"
"""


@pytest.fixture
def with_card(meshctl: Meshctl, tmp_path: Path) -> Meshctl:
    """The program on a machine whose `nvidia-smi` lists a card."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "nvidia-smi").write_text(NVIDIA_SMI)
    (tools / "nvidia-smi").chmod(0o755)
    path = f"{tools}{os.pathsep}{os.environ['PATH']}"
    return Meshctl(meshctl.folder, {**meshctl.environment, "PATH": path})


def inventory(folder: Path, backend: str) -> str:
    path = write_local(folder / f"{backend}.yaml", hosts=1)
    written = yaml.safe_load(path.read_text())
    written["hosts"][0]["backend"] = backend
    path.write_text(yaml.safe_dump(written))
    return str(path)


def test_a_card_that_cannot_be_used_is_told_with_the_way_to_use_it(with_card: Meshctl, engine: Engine) -> None:
    installed = with_card.ok("engine", "install", "-i", inventory(with_card.folder, "auto"), "--json")
    (one,) = installed.json
    assert (one["backend"], one["gpus"], one["folder"].endswith(engine.folder.name)) == ("cpu", [], True)
    told = " ".join(installed.stderr.split())
    assert "part1: its GPU is not used. cuda: there is no cuda engine on this machine: no " in told
    assert "(install the CUDA toolkit, cuBLAS with it" in told
    assert "With `backend: cpu` this is not said again" in told
    examined = with_card.run("doctor", inventory(with_card.folder, "auto"))
    assert examined.status == 0, examined.stderr
    assert "its GPU will not be used" in " ".join(examined.stdout.split())


def test_a_backend_that_was_named_and_cannot_be_had_is_an_error(with_card: Meshctl, engine: Engine) -> None:
    refused = with_card.run("engine", "install", "-i", inventory(with_card.folder, "cuda"))
    assert refused.status == 1
    assert "there is no cuda engine on this machine" in refused.stderr
    assert "developer.nvidia.com" in refused.stderr
    examined = with_card.run("doctor", inventory(with_card.folder, "cuda"))
    assert examined.status == 1
