"""A GPU beside CPUs, for real: Mesa's software driver is a Vulkan device that every machine can have.

What is asked of it is little, since it computes some twenty times as slowly as the CPU that it runs on.
"""

import glob
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from orchestrator.engine.build import lacking_here, local_platform
from orchestrator.engine.store import Engine, find_engine
from orchestrator.survey.gather import LONGEST_PASS
from quant.gguf_file import read_model
from quant.slice import write_slice
from tests.conftest import USER_CACHE
from tests.end_to_end.answers import plain_head, plain_workers
from tests.end_to_end.inventories import write_local
from tests.program import Meshctl, processes_with
from workers.devices import SOFTWARE_TOO
from workers.engine import RECIPES
from workers.engine_commands import Placement, placement_words
from workers.head_log import read_buffers

DRIVER = "/usr/share/vulkan/icd.d/lvp_icd*.json"
LAYERS = 2

PROGRAMS = {True: "llama-server", False: "ggml-rpc-server"}
"""What computes on a device that is the head's own, and on one that is not."""

APART = 0.3
"""Of log-probabilities. CPUs round what they multiply to 8 bits for these weights, Vulkan does not: 0.18 was seen."""

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(
        not glob.glob(DRIVER) or bool(lacking_here(RECIPES["vulkan"])),
        reason="Vulkan's tools and Mesa's software driver are not here (scripts/test installs them when it may)",
    ),
]


@pytest.fixture(scope="module")
def vulkan_engine() -> Engine:
    found = find_engine(USER_CACHE, "vulkan", local_platform())
    if found is None:
        pytest.fail("no Vulkan engine is built: run `meshctl engine build --backend vulkan` (scripts/test does)")
    return found


@pytest.fixture
def model(demo_model: Path, tmp_path: Path) -> Path:
    """The demo model's first layers: no good talker, but every kernel that the whole one needs."""
    path = tmp_path / "first-layers.gguf"
    write_slice(read_model(demo_model), LAYERS, path)
    return path


@pytest.fixture
def inventory(model: Path, tmp_path: Path) -> str:
    card = {"name": "card", "connection": "local", "backend": "vulkan", "memory": "400MiB"}
    plain = {"name": "plain", "connection": "local", "memory": "400MiB", "threads": 1}
    path = write_local(tmp_path / "inventory.yaml", model=str(model), context=256, parallel=1)
    written = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**written, "hosts": [plain, card]}))
    return str(path)


def test_a_gpu_and_a_cpu_answer_together_as_the_cpu_does_alone(
    meshctl: Meshctl, engine: Engine, vulkan_engine: Engine, model: Path, inventory: str
) -> None:
    """As the head's own device before a CPU's worker, as a worker behind the CPU, each where that was measured to be
    faster, and alone under the head; each time by the engine's name for it."""
    survey = meshctl.ok("survey", inventory, "--json").json
    devices = {device["name"]: device for host in survey["hosts"] for device in host["devices"]}
    assert list(devices) == ["plain/cpu", "card/cpu", "card/vulkan0"]
    gpu = devices["card/vulkan0"]
    assert (gpu["kind"], gpu["engine_name"], gpu["shares_memory"]) == ("vulkan", "Vulkan0", True)
    assert gpu["description"].startswith("llvmpipe")
    assert gpu["speed"]["passes"]
    assert gpu["native"]["passes"]

    with plain_head(engine, model) as plain:
        expected = first_token(plain)
    kept = Path(meshctl.environment["XDG_CACHE_HOME"], "meshctl/calibration")
    for options, worker_slower, own in (
        (("--split", "card/vulkan0=1,plain/cpu=1"), True, True),
        (("--split", "plain/cpu=1,card/vulkan0=1"), False, False),
        (("--devices", "card/vulkan0", "--mode", "single"), False, True),
    ):
        with ten_times_slower(kept, through_rpc=worker_slower):
            meshctl.ok("up", inventory, "--detach", *options)
        state = meshctl.ok("status", "--json").json
        told_devices = [line[line.index("--device") + 1] for line in commands(state, PROGRAMS[own])]
        assert any("Vulkan0" in devices.split(",") for devices in told_devices)
        told = first_token(state["gateway"].removesuffix("/v1"), meshctl.key())
        assert told.keys() & expected.keys() >= set(list(expected)[:5])
        assert {token: told.get(token) for token in list(expected)[:5]} == pytest.approx(
            {token: expected[token] for token in list(expected)[:5]}, abs=APART
        )
        meshctl.ok("down")
    assert processes_with(str(meshctl.folder)) == []


@pytest.mark.parametrize("names", [("Vulkan0", "RPC0"), ("RPC0", "Vulkan0")], ids=["before", "behind"])
@pytest.mark.parametrize("output_on_head", [False, True])
def test_a_head_computes_on_its_own_gpu_beside_a_worker(
    engine: Engine,
    vulkan_engine: Engine,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    names: tuple[str, str],
    output_on_head: bool,
) -> None:
    """A layer on either; whichever a plan would take, the engine does it, and gives the CPU's answer."""
    with plain_head(engine, model) as plain:
        expected = first_token(plain)
    for variable, value in SOFTWARE_TOO.items():
        monkeypatch.setenv(variable, value)
    with plain_workers(engine, 1, tmp_path) as endpoints:
        tied = read_model(model).output_tied
        placed = Placement(tuple(endpoints), (1, 2), output_on_head=output_on_head, output_tied=tied, names=names)
        words = (*placement_words(placed), "--log-verbosity", "4")
        with plain_head(vulkan_engine, model, *words, log=tmp_path / "head.log") as head:
            told = first_token(head)
    likeliest = list(expected)[:5]
    assert {token: told.get(token) for token in likeliest} == pytest.approx(
        {token: expected[token] for token in likeliest}, abs=APART
    )
    held = read_buffers((tmp_path / "head.log").read_text().splitlines())
    assert {"Vulkan0", *endpoints} <= held.keys()


def test_a_gpu_that_is_wished_for_and_not_there_is_an_error(
    meshctl: Meshctl, vulkan_engine: Engine, inventory: str, tmp_path: Path
) -> None:
    nothing = tmp_path / "no-drivers.json"
    nothing.write_text("{}")
    without = Meshctl(meshctl.folder, {**meshctl.environment, "VK_ICD_FILENAMES": str(nothing)})
    refused = without.run("survey", inventory)
    assert refused.status == 1
    assert "card: the engine finds no GPU there that it can use by vulkan" in refused.stderr
    assert "mesa-vulkan-drivers" in refused.stderr


@contextmanager
def ten_times_slower(kept: Path, *, through_rpc: bool) -> Iterator[None]:
    """What was timed on the card, as if it had been so: of two paths that hardly differ it makes one better by far."""
    timed = {path: json.loads(path.read_text()) for path in kept.glob("*.json")}
    of_card = {path: one for path, one in timed.items() if str(LONGEST_PASS) in one.get("shallow", {})}
    ((file, timings),) = ((path, one) for path, one in of_card.items() if (one["link"] is not None) is through_rpc)

    def slow(one: dict[str, float]) -> dict[str, float]:
        return {**one, "seconds": 10 * one["seconds"]}

    passes = {depth: {size: slow(one) for size, one in timings[depth].items()} for depth in ("shallow", "deep")}
    others = {name: slow(timings[name]) for name in ("in_context", "output_on_head") if timings[name]}
    file.write_text(json.dumps({**timings, **passes, **others}))
    yield
    file.write_text(json.dumps(timings))


def commands(state: dict[str, Any], program: str) -> list[list[str]]:
    """The words of the cluster's processes that run this program of the engine."""
    lines = [Path(f"/proc/{one['pid']}/cmdline").read_text().split("\0") for one in state["processes"]]
    return [line for line in lines if line[0].endswith(f"/{program}")]


def first_token(url: str, key: str = "") -> dict[str, float]:
    """The log-probabilities of the likeliest first tokens of an answer, the likeliest first."""
    body = {
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "temperature": 0,
        "max_tokens": 1,
        "logprobs": True,
        "top_logprobs": 20,
    }
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    reply = httpx.post(f"{url}/v1/chat/completions", json=body, headers=headers, timeout=120)
    assert reply.status_code == 200, reply.text
    (content,) = reply.json()["choices"][0]["logprobs"]["content"]
    return {one["token"]: one["logprob"] for one in content["top_logprobs"]}
