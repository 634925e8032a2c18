"""Every mode answers: as a plain head does where that can be promised, within a measured distance where it cannot."""

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any

import httpx
import pytest

from orchestrator.engine.store import Engine
from orchestrator.head_client import SOCKET
from tests.end_to_end.answers import answers, perplexity, plain_head
from tests.end_to_end.inventories import free_port, write_local
from tests.program import Meshctl, processes_with
from workers.engine_commands import ENVIRONMENT, worker_command

pytestmark = pytest.mark.engine

ROOMY = "400MiB"
"""The whole demo model fits each host."""

ONE_PART = {2: ROOMY, 3: "90MiB"}
"""By the number of hosts: memory at which `tensor` needs all of them, one KV head of three at least on each."""

PERPLEXITY = re.compile(r"Final estimate: PPL = ([\d.]+)")


@pytest.mark.parametrize("mode", ["single", "layers", "replicas"])
def test_a_mode_gives_the_text_of_a_plain_head(meshctl: Meshctl, engine: Engine, demo_model: Path, mode: str) -> None:
    """Greedy answers to three prompts are equal, whichever head answers, on a fresh and on a restarted cluster."""
    inventory = str(write_local(meshctl.folder / "inventory.yaml", memory=ROOMY, context=1024, parallel=2))
    with plain_head(engine, demo_model) as plain:
        expected = answers(plain)
    for _ in range(2):
        meshctl.ok("up", inventory, "--detach", "--mode", mode)
        state = meshctl.ok("status", "--json").json
        assert state["plan"]["mode"] == mode
        heads = [one for one in state["processes"] if one["name"].startswith("head")]
        assert len(heads) == (2 if mode == "replicas" else 1)
        assert answers(state["gateway"].removesuffix("/v1"), meshctl.key()) == expected
        meshctl.ok("down")
    assert processes_with(str(meshctl.folder)) == []


@pytest.mark.parametrize("hosts", [2, 3])
def test_tensor_gives_the_same_first_tokens_and_perplexity(
    meshctl: Meshctl, engine: Engine, demo_model: Path, hosts: int
) -> None:
    """Three KV heads over two and over three devices, on a fresh and on a restarted cluster."""
    inventory = str(write_local(meshctl.folder / "inventory.yaml", hosts=hosts, memory=ONE_PART[hosts], context=1024))
    with plain_head(engine, demo_model) as plain:
        expected, surprise = _counting(plain), perplexity(plain)
    for _ in range(2):
        with _head_key(meshctl) as head_key:
            meshctl.ok("up", inventory, "--detach", "--mode", "tensor")
        state = meshctl.ok("status", "--json").json
        (group,) = state["plan"]["groups"]
        assert (group["mode"], len(group["shares"])) == ("tensor", hosts)
        assert _counting(state["gateway"].removesuffix("/v1"), meshctl.key()) == expected
        assert perplexity(_head_url(state), head_key[-1]) == pytest.approx(surprise, rel=0.01)
        meshctl.ok("down")
    assert processes_with(str(meshctl.folder)) == []


@pytest.mark.parametrize("parts", [(1, 2), (1, 1, 1)])
def test_tensor_keeps_the_perplexity_within_one_percent(
    engine: Engine, demo_model: Path, tmp_path: Path, parts: tuple[int, ...]
) -> None:
    """The same over a long text by the engine's own program, for parts that come out even and for those that do not."""
    text = tmp_path / "text.txt"
    text.write_text((Path(__file__).parents[2] / "README.md").read_text())
    alone = _perplexity(engine, demo_model, text, ("--n-gpu-layers", "0", "--no-repack"))
    with _workers(engine, len(parts), tmp_path) as endpoints:
        names = ",".join(f"RPC{index}" for index in range(len(parts)))
        split = ("--split-mode", "tensor", "--flash-attn", "on", "--tensor-split", ",".join(map(str, parts)))
        together = _perplexity(
            engine,
            demo_model,
            text,
            ("--rpc", ",".join(endpoints), "--device", names, "--n-gpu-layers", "999", *split),
        )
    assert together == pytest.approx(alone, rel=0.01)


@contextmanager
def _head_key(meshctl: Meshctl) -> Iterator[list[str]]:
    """The keys of heads that are started meanwhile: their files are there until the model is loaded."""
    folder, seen, done = meshctl.folder / "state/meshctl/clusters/test", list[str](), Event()

    def look() -> None:
        while not done.wait(0.01):
            for path in folder.glob("head*.key"):
                with suppress(FileNotFoundError):
                    if (key := path.read_text().strip()) and key not in seen:
                        seen.append(key)

    looking = Thread(target=look, daemon=True)
    looking.start()
    try:
        yield seen
    finally:
        done.set()
        looking.join()


def _head_url(state: dict[str, Any]) -> str:
    """The head itself, by the socket on its command line: the gateway gives out no more than 20 probabilities."""
    pid = next(one["pid"] for one in state["processes"] if one["name"].startswith("head"))
    words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    return f"{SOCKET}{words[words.index('--host') + 1]}"


def _counting(url: str, key: str = "") -> str:
    """The first tokens of an answer that the model is sure of."""
    body = {
        "messages": [{"role": "user", "content": "Count from one to ten."}],
        "temperature": 0,
        "max_tokens": 12,
    }
    reply = httpx.post(
        f"{url}/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {key}"} if key else {}, timeout=120
    )
    assert reply.status_code == 200, reply.text
    return str(reply.json()["choices"][0]["message"]["content"])


def _perplexity(engine: Engine, model: Path, text: Path, placed: tuple[str, ...]) -> float:
    words = (str(engine.program("llama-perplexity")), "--model", str(model), "--file", str(text))
    sizes = ("--ctx-size", "256", "--batch-size", "256", "--ubatch-size", "64", "--chunks", "4", "--threads", "1")
    done = subprocess.run(
        (*words, *sizes, *placed),
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
        env={**os.environ, **ENVIRONMENT},
    )
    match = PERPLEXITY.search(done.stdout + done.stderr)
    assert match is not None, done.stderr[-2000:]
    return float(match[1])


@contextmanager
def _workers(engine: Engine, count: int, folder: Path) -> Iterator[list[str]]:
    ports = [free_port() for _ in range(count)]
    running = []
    try:
        for port in ports:
            words = worker_command(str(engine.program("ggml-rpc-server")), port=port, threads=1)
            with (folder / f"worker-{port}.log").open("wb") as log:
                running.append(subprocess.Popen(words, stdout=log, stderr=log))
        for port, process in zip(ports, running, strict=True):
            _wait_listening(port, process)
        yield [f"127.0.0.1:{port}" for port in ports]
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait(timeout=30)


def _wait_listening(port: int, process: "subprocess.Popen[bytes]") -> None:
    """By the kernel's table, without a connection."""
    wanted = f":{port:04X}"
    while process.poll() is None:
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        if any(row[1].endswith(wanted) and row[3] == "0A" for row in rows):
            return
    raise AssertionError(f"the worker ended with {process.returncode}")
