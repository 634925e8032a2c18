"""The real engine computes, lies in a folder that can be moved, and serves RPC from there."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from orchestrator.engine.smoke import PROOFS, prove_engine
from orchestrator.engine.store import EXCLUDED, Engine, check_engine
from orchestrator.shell.local import LocalShell

pytestmark = pytest.mark.engine


def test_every_file_is_what_the_manifest_says(engine: Engine) -> None:
    assert check_engine(engine) == ()
    assert engine.manifest.commit == "0c1e57098"


async def test_a_copy_elsewhere_computes_with_its_own_libraries(engine: Engine, tmp_path: Path) -> None:
    copy = tmp_path / "moved"
    shutil.copytree(engine.folder, copy, ignore=shutil.ignore_patterns(PROOFS, EXCLUDED))
    proven = await prove_engine(LocalShell("desk", tmp_path, tmp_path), str(copy), engine.manifest, "a cpu")
    assert proven == engine.manifest
    assert '"loaded": "libggml-cpu-' in (copy / PROOFS).read_text()


@pytest.mark.skipif(shutil.which("readelf") is None, reason="needs readelf of binutils")
def test_no_program_remembers_where_it_was_built(engine: Engine) -> None:
    for program in ("llama-server", "ggml-rpc-server"):
        words = ("readelf", "--dynamic", str(engine.program(program)))
        said = subprocess.run(words, capture_output=True, text=True, check=True, timeout=30).stdout
        assert "[$ORIGIN]" in said
        assert str(engine.folder.parent) not in said
    assert os.access(engine.program("llama-quantize"), os.X_OK)
