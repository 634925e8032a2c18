"""Conversations kept as q8_0 and q4_0: the bytes that were planned, and answers."""

import re
from collections.abc import Iterable
from pathlib import Path

import pytest

from orchestrator.cluster import ALL_DEVICES
from orchestrator.engine.store import Engine
from orchestrator.memory import plain_kv
from quant.gguf_file import read_model
from tests.end_to_end.answers import answers, counting, plain_head, plain_workers
from tests.end_to_end.inventories import write_local
from tests.program import Meshctl, processes_with
from workers.engine_commands import Placement, attention_words, placement_words
from workers.head_log import MIB, read_buffers

pytestmark = pytest.mark.engine

CONTEXT = 1024
HALF = "80MiB"
"""Too little for the whole demo model."""

CLUSTER = "kept-types"
"""No other test has one of this name: the logs of all lie in one cache."""

LOGGED_BYTES = MIB // 200 + 1
"""The engine writes hundredths of a MiB."""


def test_a_cluster_in_q8_0_takes_the_bytes_planned_and_begins_its_answer_as_with_f16(
    meshctl: Meshctl, engine: Engine, demo_model: Path
) -> None:
    """30 layers of 3 heads, keys and values of 64 elements each, as the head's own log says."""
    path = meshctl.folder / "inventory.yaml"
    inventory = str(write_local(path, memory=HALF, context=CONTEXT, cache_type="q8_0", cluster=CLUSTER))
    meshctl.ok("up", inventory, "--detach", "--mode", "layers")
    state = meshctl.ok("status", "--json").json
    answer = counting(state["gateway"].removesuffix("/v1"), meshctl.key())
    shown = meshctl.ok("status").stdout
    kept = kept_bytes(head_log(meshctl).splitlines())
    meshctl.ok("down")
    assert (state["plan"]["mode"], state["plan"]["cache_type"]) == ("layers", "q8_0")
    assert "contexts in q8_0" in shown
    planned = [share["kv_bytes"] for share in state["plan"]["groups"][0]["shares"]]
    assert (len(planned), sum(planned)) == (2, 30 * CONTEXT * 3 * 2 * 64 // 32 * 34)
    assert sorted(kept.values()) == pytest.approx(sorted(planned), abs=LOGGED_BYTES)
    with plain_head(engine, demo_model) as plain:
        assert answer == counting(plain)
    assert processes_with(str(meshctl.folder)) == []


def test_a_cluster_without_flash_attention_is_counted_timed_and_run_so(meshctl: Meshctl) -> None:
    """As the head's own log says; no layer is cut, and the reason is told."""
    path = meshctl.folder / "inventory.yaml"
    inventory = str(write_local(path, memory=HALF, context=512, flash_attention="off", cluster=CLUSTER))
    meshctl.ok("up", inventory, "--detach")
    state = meshctl.ok("status", "--json").json
    log = head_log(meshctl)
    meshctl.ok("down")
    assert (state["plan"]["mode"], state["plan"]["flash_attention"]) == ("layers", "off")
    assert re.search(r"flash_attn += disabled", log)
    assert "flash attention is off, as the inventory has it" in state["plan"]["reasons"]
    asked = meshctl.run("plan", inventory, "--mode", "tensor")
    assert (asked.status, "flash attention only, and that is off in the inventory" in asked.stderr) == (1, True)


def test_a_head_over_workers_keeps_q4_0_in_the_bytes_counted(engine: Engine, demo_model: Path, tmp_path: Path) -> None:
    """It answers, if not as with f16: a model of this size loses too much for that."""
    log, model = tmp_path / "head.log", read_model(demo_model)
    with plain_workers(engine, 2, tmp_path) as endpoints:
        split = Placement(tuple(endpoints), (12, 19), output_on_head=False, output_tied=model.output_tied)
        words = (*attention_words("q4_0", split), *placement_words(split), "--log-verbosity", "4")
        with plain_head(engine, demo_model, *words, log=log) as head:
            assert all(len(answer.split()) > 3 for answer in answers(head))
    counted = plain_kv(model, context=CONTEXT, parallel=1, cache_type="q4_0")
    kept = kept_bytes(log.read_text().splitlines())
    expected = {endpoints[0]: sum(counted[:12]), endpoints[1]: sum(counted[12:])}
    assert kept == pytest.approx(expected, abs=LOGGED_BYTES)


def test_layers_that_are_cut_keep_q8_0_too(engine: Engine, demo_model: Path, tmp_path: Path) -> None:
    """Half on either device; the engine tells of the larger one."""
    log, model = tmp_path / "head.log", read_model(demo_model)
    with plain_workers(engine, 2, tmp_path) as endpoints:
        cut = Placement(tuple(endpoints), (1, 1), output_on_head=False, output_tied=model.output_tied, mode="tensor")
        words = (*attention_words("q8_0", cut), *placement_words(cut), "--log-verbosity", "4")
        with plain_head(engine, demo_model, *words, log=log) as head, plain_head(engine, demo_model) as plain:
            assert counting(head) == counting(plain)
    counted = sum(plain_kv(model, context=CONTEXT, parallel=1, cache_type="q8_0"))
    kept = kept_bytes(log.read_text().splitlines())
    assert kept == pytest.approx({ALL_DEVICES: counted // 2}, abs=LOGGED_BYTES)


def head_log(meshctl: Meshctl) -> str:
    """Of the cluster of this file that was started last."""
    logs = Path(meshctl.environment["XDG_CACHE_HOME"], "meshctl/logs", CLUSTER).rglob("head.log")
    return max(logs, key=lambda path: path.stat().st_mtime).read_text()


def kept_bytes(lines: Iterable[str]) -> dict[str, int]:
    """Bytes of keys and values on each device that has any, as the head says."""
    return {name: held.kv_bytes for name, held in read_buffers(lines).items() if held.kv_bytes}
