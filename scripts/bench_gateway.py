"""The command line of `scripts/bench-gateway`: what the gateway costs, against the head directly, side by side.

A real head with the demo model answers streams, asked directly and through a gateway in a process of its own, in turn.
Then the gateway alone: its memory while it passes on many requests.
"""

import argparse
import asyncio
import json
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from orchestrator.engine.build import local_platform
from orchestrator.engine.store import find_engine
from orchestrator.folders import user_folders
from orchestrator.gateway.app import create_app
from orchestrator.gateway.backends import Backends
from orchestrator.gateway.head import Deadlines
from orchestrator.gateway.keys import ApiKeys, known_key
from orchestrator.gateway.routing import HeadAddress
from orchestrator.gateway.server import serve
from orchestrator.tunnel import free_local_port
from quant.fetch import fetch_model
from workers.engine_commands import ENVIRONMENT

STREAMS = (1, 32)
TOKENS = {1: 64, 32: 16}
"""Of each answer, by the number of streams."""

CONTEXT = 256
READY_S = 120.0
MOST_LOSS, MOST_LATER_S = 0.03, 0.002
MIB = 2**20
NAME = "smollm2-135m"


@dataclass(frozen=True)
class Target:
    """Where to ask, and with which key."""

    name: str
    url: str
    key: str


@dataclass(frozen=True)
class Timed:
    """One round: tokens of all streams together per second, and the first token's seconds of each."""

    tokens_per_s: float
    first_s: tuple[float, ...]


def main(words: Sequence[str]) -> int:
    options = _parser().parse_args(words)
    if options.serve:
        asyncio.run(_serve(json.loads(os.environ["MESHCTL_BENCH_GATEWAY"])))
        return 0
    return asyncio.run(_bench(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/bench-gateway", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="of each kind, in turn (default: 7)")
    parser.add_argument("--requests", type=int, default=10_000, metavar="N", help="for its memory (default: 10000)")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    return parser


async def _bench(options: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory() as folder:
        head_key, key = secrets.token_hex(16), secrets.token_hex(16)
        with _head(Path(folder), head_key, await _model()) as url:
            head = Target("head", url, head_key)
            with _gateway(head, key) as (process, gateway_url):
                gateway = Target("gateway", gateway_url, key)
                for target in (head, gateway):
                    await _ready(target)
                missed = await _cost(head, gateway, options.rounds)
                missed += await _memory(gateway, process.pid, options.requests)
    return 1 if missed else 0


async def _cost(head: Target, gateway: Target, rounds: int) -> int:
    """Print the table; how many targets were missed."""
    print("| streams | tokens/s directly | through the gateway | loss | first token directly | later by | met |")
    print("| --: | --: | --: | --: | --: | --: | --- |")
    missed = 0
    for streams in STREAMS:
        timed: dict[str, list[Timed]] = {head.name: [], gateway.name: []}
        for number in range(rounds):
            pair = (head, gateway) if number % 2 else (gateway, head)
            for target in pair:
                timed[target.name].append(await _round(target, streams))
        losses = [1 - far.tokens_per_s / near.tokens_per_s for near, far in _pairs(timed, head, gateway)]
        firsts = {
            name: statistics.median(first for one in every for first in one.first_s) for name, every in timed.items()
        }
        rates = {name: statistics.median(one.tokens_per_s for one in every) for name, every in timed.items()}
        loss, later_s = statistics.median(losses), firsts[gateway.name] - firsts[head.name]
        met = loss <= MOST_LOSS and (later_s <= MOST_LATER_S or streams > 1)
        missed += not met
        cells = (
            str(streams),
            f"{rates[head.name]:.1f}",
            f"{rates[gateway.name]:.1f}",
            f"{loss:.1%}",
            f"{firsts[head.name] * 1000:.1f} ms",
            f"{later_s * 1000:.1f} ms",
            "yes" if met else "no",
        )
        print(f"| {' | '.join(cells)} |", flush=True)
    return missed


def _pairs(timed: dict[str, list[Timed]], head: Target, gateway: Target) -> Iterator[tuple[Timed, Timed]]:
    """Round by round: what drifts meanwhile is the same for both."""
    return zip(timed[head.name], timed[gateway.name], strict=True)


async def _round(target: Target, streams: int) -> Timed:
    async with _client(target) as client:
        began_s = time.perf_counter()
        answers = await asyncio.gather(*(_stream(client, number, TOKENS[streams]) for number in range(streams)))
        seconds = time.perf_counter() - began_s
    return Timed(sum(count for count, _ in answers) / seconds, tuple(first_s for _, first_s in answers))


async def _stream(client: httpx.AsyncClient, number: int, tokens: int) -> tuple[int, float]:
    """Its tokens, and when the first one came."""
    body = {
        "messages": [{"role": "user", "content": f"Tell me story {number}."}],
        "max_tokens": tokens,
        "stream": True,
        "ignore_eos": True,
        "cache_prompt": False,
    }
    began_s, first_s, count = time.perf_counter(), 0.0, 0
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if line.startswith("data: {") and '"content":"' in line.replace('": "', '":"'):
                count += 1
                first_s = first_s or time.perf_counter() - began_s
    return count, first_s


async def _memory(gateway: Target, pid: int, requests: int) -> int:
    """Print the resident memory as requests go by; 1 when it grows from the first tenth to the last."""
    print("\n| requests | memory of the gateway |\n| --: | --: |")
    sizes, step = [], max(1, requests // 10)
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    async with _client(gateway) as client:
        gate = asyncio.Semaphore(STREAMS[-1])

        async def one() -> None:
            async with gate:
                (await client.post("/v1/chat/completions", json=body)).raise_for_status()

        for done in range(step, requests + 1, step):
            await asyncio.gather(*(one() for _ in range(step)))
            sizes.append(_resident_bytes(pid))
            print(f"| {done} | {sizes[-1] / MIB:.1f} MiB |", flush=True)
    return int(len(sizes) > 1 and sizes[-1] > 1.05 * sizes[0])


def _resident_bytes(pid: int) -> int:
    """Linux only: statm(5) of proc."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@asynccontextmanager
async def _client(target: Target) -> AsyncIterator[httpx.AsyncClient]:
    limits = httpx.Limits(max_connections=None)
    headers = {"authorization": f"Bearer {target.key}"}
    async with httpx.AsyncClient(
        base_url=target.url, headers=headers, timeout=READY_S, limits=limits, trust_env=False
    ) as client:
        yield client


async def _ready(target: Target) -> None:
    end = time.monotonic() + READY_S
    async with _client(target) as client:
        while time.monotonic() < end:
            try:
                if (await client.get("/health")).status_code == 200:
                    await _stream(client, 0, 1)
                    return
            except httpx.HTTPError:
                pass
            await asyncio.sleep(0.1)
    raise SystemExit(f"the {target.name} does not come up")


async def _model() -> Path:
    return await fetch_model(NAME, user_folders().cache, lambda done, total: None)


@contextmanager
def _head(folder: Path, key: str, model: Path) -> Iterator[str]:
    """A head on one thread: the other processors are left to the gateway and to whoever asks."""
    engine = find_engine(user_folders().cache, "cpu", local_platform())
    if engine is None:
        raise SystemExit("no engine is built: run `meshctl engine build`")
    key_file, port = folder / "key", free_local_port()
    key_file.write_text(key + "\n")
    words = [str(engine.program("llama-server")), "--model", str(model), "--port", str(port), "--threads", "1"]
    words += ["--parallel", str(STREAMS[-1]), "--ctx-size", str(CONTEXT * STREAMS[-1]), "--fit", "off", "--no-ui"]
    words += ["-ngl", "0", "--api-key-file", str(key_file), "--cache-ram", "0", "--sse-ping-interval", "5"]
    with _running(words, {**os.environ, **ENVIRONMENT}):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def _gateway(head: Target, key: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    port = free_local_port()
    asked = {"url": head.url, "head_key": head.key, "key": key, "port": port}
    environment = {**os.environ, "MESHCTL_BENCH_GATEWAY": json.dumps(asked)}
    with _running([sys.executable, __file__, "--serve"], environment) as process:
        yield process, f"http://127.0.0.1:{port}"


@contextmanager
def _running(words: Sequence[str], environment: dict[str, str]) -> Iterator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


async def _serve(asked: dict[str, str]) -> None:
    """The gateway as a supervisor opens it, before that one head, until it is ended."""
    backends = Backends(Deadlines())
    backends.replace([HeadAddress("head", asked["url"], asked["head_key"], STREAMS[-1])])
    keys = ApiKeys((known_key("bench", asked["key"]),))
    app = create_app(backends, lambda: keys, NAME, parallel=STREAMS[-1])
    async with serve(app, "127.0.0.1", int(asked["port"])):
        await asyncio.Event().wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
