"""What one plain local head answers: the yardstick for every cluster."""

import math
import os
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from orchestrator.engine.store import Engine
from orchestrator.head_client import SOCKET
from tests.end_to_end.inventories import free_port
from workers.engine_commands import worker_command

PROMPTS = ("What is the capital of France?", "Write one sentence about the sea.", "Count from one to ten.")
TOKENS = 48
TEXT = (
    "The sea covers most of the surface of the earth. Its water is salty, and it moves with the wind and the moon. "
    "Many animals live in it, from small fish to the largest whales, and people have sailed across it for years."
)
MOST_PROBABLE = 5000


@contextmanager
def plain_head(engine: Engine, model: Path, *more: str, log: Path = Path(os.devnull)) -> Iterator[str]:
    """A `llama-server` on this machine's CPU alone, without repacked kernels, as the RPC workers have none; or as
    `more` words have it."""
    port = free_port()
    words = [str(engine.program("llama-server")), "--model", str(model), "--port", str(port), "--no-repack"]
    words += ["--ctx-size", "1024", "--parallel", "1", "--ubatch-size", "64", "--fit", "off", "--no-ui", "-ngl", "0"]
    with log.open("wb") as writes:
        head = subprocess.Popen([*words, *more], stdout=writes, stderr=writes)
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_healthy(url, head)
        yield url
    finally:
        head.terminate()
        head.wait(timeout=30)


@contextmanager
def plain_workers(engine: Engine, count: int, folder: Path) -> Iterator[list[str]]:
    """Endpoints of workers on this machine, whose logs are in this folder."""
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


def answers(url: str, key: str = "") -> list[str]:
    """The texts of greedy answers to the fixed prompts."""
    with _client(url, key) as client:
        return [_answer(client, prompt) for prompt in PROMPTS]


def counting(url: str, key: str = "") -> str:
    """The first tokens of an answer that the model is sure of."""
    body = {
        "messages": [{"role": "user", "content": "Count from one to ten."}],
        "temperature": 0,
        "max_tokens": 12,
    }
    with _client(url, key) as client:
        reply = client.post("/v1/chat/completions", json=body)
    assert reply.status_code == 200, reply.text
    return str(reply.json()["choices"][0]["message"]["content"])


def perplexity(url: str, key: str = "") -> float:
    """How surprised a head is by a text, token by token: exp of the mean negative log-probability."""
    with _client(url, key) as client:
        tokens = client.post("/tokenize", json={"content": TEXT}).json()["tokens"]
        surprises = [-_log_probability(client, tokens[:place], tokens[place]) for place in range(8, len(tokens))]
    return math.exp(statistics.mean(surprises))


def _client(url: str, key: str) -> httpx.Client:
    """At an address, or at a head's socket."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    path = url.removeprefix(SOCKET) if url.startswith(SOCKET) else None
    way, place = httpx.HTTPTransport(uds=path), "http://head" if path else url
    return httpx.Client(base_url=place, headers=headers, timeout=120, transport=way)


def _log_probability(client: httpx.Client, before: list[int], token: int) -> float:
    body = {"prompt": before, "n_predict": 1, "n_probs": MOST_PROBABLE, "temperature": 0, "cache_prompt": True}
    reply = client.post("/completion", json=body)
    assert reply.status_code == 200, reply.text
    (told,) = reply.json()["completion_probabilities"]
    return float(next(one["logprob"] for one in told["top_logprobs"] if one["id"] == token))


def _answer(client: httpx.Client, prompt: str) -> str:
    body = {"messages": [{"role": "user", "content": prompt}], "temperature": 0, "max_tokens": TOKENS}
    reply = client.post("/v1/chat/completions", json=body)
    assert reply.status_code == 200, reply.text
    return str(reply.json()["choices"][0]["message"]["content"])


def _wait_healthy(url: str, head: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and head.poll() is None:
        try:
            if httpx.get(f"{url}/health").status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    raise AssertionError(f"the plain head does not come up (status {head.poll()})")


def _wait_listening(port: int, process: "subprocess.Popen[bytes]") -> None:
    """By the kernel's table, without a connection."""
    wanted = f":{port:04X}"
    while process.poll() is None:
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        if any(row[1].endswith(wanted) and row[3] == "0A" for row in rows):
            return
    raise AssertionError(f"the worker ended with {process.returncode}")
