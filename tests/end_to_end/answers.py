"""What one plain local head answers: the yardstick for every cluster."""

import math
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

PROMPTS = ("What is the capital of France?", "Write one sentence about the sea.", "Count from one to ten.")
TOKENS = 48
TEXT = (
    "The sea covers most of the surface of the earth. Its water is salty, and it moves with the wind and the moon. "
    "Many animals live in it, from small fish to the largest whales, and people have sailed across it for years."
)
MOST_PROBABLE = 5000


@contextmanager
def plain_head(engine: Engine, model: Path) -> Iterator[str]:
    """A `llama-server` on this machine's CPU alone, without repacked kernels, as the RPC workers have none."""
    port = free_port()
    words = [str(engine.program("llama-server")), "--model", str(model), "--port", str(port), "--no-repack"]
    words += ["--ctx-size", "1024", "--parallel", "1", "--ubatch-size", "64", "--fit", "off", "--no-ui", "-ngl", "0"]
    head = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_healthy(url, head)
        yield url
    finally:
        head.terminate()
        head.wait(timeout=30)


def answers(url: str, key: str = "") -> list[str]:
    """The texts of greedy answers to the fixed prompts."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with httpx.Client(base_url=url, headers=headers, timeout=120) as client:
        return [_answer(client, prompt) for prompt in PROMPTS]


def perplexity(url: str, key: str = "") -> float:
    """How surprised a head is by a text, token by token: exp of the mean negative log-probability."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    path = url.removeprefix(SOCKET) if url.startswith(SOCKET) else None
    way, place = httpx.HTTPTransport(uds=path), "http://head" if path else url
    with httpx.Client(base_url=place, headers=headers, timeout=120, transport=way) as client:
        tokens = client.post("/tokenize", json={"content": TEXT}).json()["tokens"]
        surprises = [-_log_probability(client, tokens[:place], tokens[place]) for place in range(8, len(tokens))]
    return math.exp(statistics.mean(surprises))


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
