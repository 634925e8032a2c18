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
    "Many animals live in it, from small fish to the largest whales, and people have sailed across it for years. "
    "They went to find food, to trade with other countries, and to see what was on the other side.\n\n"
    "The moon goes around the earth about once every month. It pulls the water of the sea toward itself, and so the "
    "water rises and falls twice a day. These changes are called tides. When the sun and the moon pull in the same "
    "direction, the tides are higher than usual. People who live near the coast know the times of the tides, "
    "because some boats can only leave the harbor when the water is deep enough.\n\n"
    "Plants in the sea need light from the sun, just like plants on land. They live near the surface, where the "
    "water is bright and warm. Very small plants are eaten by very small animals, which are eaten by fish, and the "
    "fish are eaten by birds, by seals, and by us. In this way the energy of the sun is passed on from one living "
    "thing to the next. Scientists call this a food chain.\n\n"
    "Deep down in the ocean it is dark and cold. No plants can grow there, and the weight of the water is so great "
    "that it would crush a person at once. Even so, there are animals in the deep sea. Some of them make their own "
    "light, which helps them to find food or to find each other. Others have no eyes at all, because they do not "
    "need them.\n\n"
    "For most of history people did not know how large the ocean is. Maps showed only the coasts that sailors had "
    "seen, and the rest was left empty or filled with pictures of monsters. A ship was made of wood, and it moved "
    "only when there was wind. Sailors used the stars to find their way at night, and during the day they looked at "
    "the sun. A journey to another continent took many months, and not everyone came home again.\n\n"
    "Today large ships are made of steel and have engines. They carry most of the things that are sold from one "
    "country to another, such as oil, grain, cars, and clothes. Satellites tell the captain where the ship is, and "
    "what the weather will be like tomorrow. A journey that once took half a year now takes two weeks. The sea "
    "itself has not changed so much: storms are still dangerous, and waves can be as high as a house.\n\n"
    "The ocean is also important for the weather on land. Water warms up slowly and cools down slowly, so places "
    "near the coast have mild winters and cool summers. When the sun shines on the sea, some of the water becomes a "
    "gas and rises into the air. High above the ground it becomes cold again and forms clouds. The wind carries the "
    "clouds over the land, and there the water falls as rain or as snow. Rivers bring it back to the sea, and the "
    "cycle starts again.\n\n"
    "Many people are worried about the ocean. Plastic that is thrown away does not disappear, and much of it ends "
    "up in the water, where animals eat it by mistake. Some kinds of fish have become rare because too many of them "
    "were caught. As the air becomes warmer, so does the sea, and coral reefs, which are home to thousands of "
    "species, begin to die. If we want our children to enjoy the sea as we do, we have to take care of it."
)
MOST_PROBABLE = (100, 5000)
"""How many tokens a head is asked for, until the one that comes is among them: to write more takes it as long as to
compute them."""


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
    for count in MOST_PROBABLE:
        body = {"prompt": before, "n_predict": 1, "n_probs": count, "temperature": 0, "cache_prompt": True}
        reply = client.post("/completion", json=body)
        assert reply.status_code == 200, reply.text
        (told,) = reply.json()["completion_probabilities"]
        for one in told["top_logprobs"]:
            if one["id"] == token:
                return float(one["logprob"])
    raise AssertionError(f"token {token} is not among the {MOST_PROBABLE[-1]} most probable ones")


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
