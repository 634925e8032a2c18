"""The command line of `scripts/bench-gateway`: what the gateway costs, against the head directly, side by side.

A real head with the demo model answers streams, asked directly and through a gateway in a process of its own, in turn.
Then the gateway alone: its memory while it passes on many requests.

Linux only: the head computes on one thread and has a processor to itself; the gateway and whoever asks share the rest.
Without that the three of them push each other aside on a small machine, and what is measured is the scheduler. Both are
asked the same way, over connections that are kept as clients do, and prompts are in the head's cache: a prompt's time
varies more than what is looked for. The gateway's own processor time is told, too: it takes that wherever it runs. For
the first token whoever asks moves to the head's processor: one of the two always waits for the other, while the gateway
works between them.
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
from orchestrator.head_client import SOCKET, socket_of
from orchestrator.tunnel import free_local_port
from quant.fetch import fetch_model
from workers.engine_commands import ENVIRONMENT

STREAMS = (1, 32)
TOKENS = {1: 64, 32: 64}
"""Of each answer, by the number of streams."""

FIRSTS = 8
"""So many answers of a single token for each round: they are short, and what is looked for is small."""

CONTEXT = 256
READY_S = 120.0
MOST_LOSS, MOST_LATER_S = 0.03, 0.002
MIB = 2**20
NAME = "smollm2-135m"
CHAT = "/v1/chat/completions"


@dataclass(frozen=True)
class Address:
    """Where a process listens, with which key, and which process it is."""

    url: str
    key: str
    pid: int


@dataclass(frozen=True)
class Target:
    """Who is asked, and which process it is."""

    name: str
    http: httpx.AsyncClient
    pid: int


@dataclass(frozen=True)
class Timed:
    """One round: tokens of all streams together per second, the processor's seconds that the target took for them, and
    the median of the streams' seconds to their first token."""

    tokens_per_s: float
    cpu_s: float
    first_s: float


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
        with _head(Path(folder), head_key, await _model()) as near, _gateway(near, key) as far:
            async with _target("head", near) as head, _target("gateway", far) as gateway:
                missed = await _cost(head, gateway, options.rounds)
                missed += await _memory(gateway, options.requests)
    return 1 if missed else 0


async def _cost(head: Target, gateway: Target, rounds: int) -> int:
    """Print the tables; how many targets were missed."""
    print("| streams | tokens/s directly | through the gateway | loss | gateway's CPU per 1,000 tokens | met |")
    print("| --: | --: | --: | --: | --: | --- |")
    missed = 0
    for streams in STREAMS:
        pairs = await _in_turn(head, gateway, rounds, streams, TOKENS[streams])
        rates = [statistics.median(pair[which].tokens_per_s for pair in pairs) for which in (0, 1)]
        loss = statistics.median(1 - far.tokens_per_s / near.tokens_per_s for near, far in pairs)
        cpu_s = statistics.mean(far.cpu_s for _, far in pairs) / (streams * TOKENS[streams]) * 1000
        cells = (str(streams), *(f"{rate:.1f}" for rate in rates), f"{loss:.1%}", f"{cpu_s:.2f} s")
        missed += _print_row(cells, loss <= MOST_LOSS)
    print("\n| first token directly | through the gateway | later by | met |\n| --: | --: | --: | --- |")
    os.sched_setaffinity(0, os.sched_getaffinity(head.pid))
    pairs = await _in_turn(head, gateway, rounds * FIRSTS, 1, 1)
    firsts = [statistics.median(pair[which].first_s for pair in pairs) for which in (0, 1)]
    later_s = statistics.median(far.first_s - near.first_s for near, far in pairs)
    cells = (*(f"{first_s * 1000:.1f} ms" for first_s in firsts), f"{later_s * 1000:.1f} ms")
    return missed + _print_row(cells, later_s <= MOST_LATER_S)


def _print_row(cells: Sequence[str], met: bool) -> int:
    """1 when the target was missed."""
    print(f"| {' | '.join(cells)} | {'yes' if met else 'no'} |", flush=True)
    return int(not met)


async def _in_turn(head: Target, gateway: Target, rounds: int, streams: int, tokens: int) -> list[tuple[Timed, Timed]]:
    """Round by round directly and through the gateway: what drifts meanwhile is the same for both. A first round, in
    which everything is touched for the first time, does not count."""
    pairs = list[tuple[Timed, Timed]]()
    for number in range(rounds + 1):
        order = (head, gateway) if number % 2 else (gateway, head)
        timed = {target: await _round(target, streams, tokens) for target in order}
        pairs.append((timed[head], timed[gateway]))
    return pairs[1:]


async def _round(target: Target, streams: int, tokens: int) -> Timed:
    cpu_s, began_s = _cpu_s(target.pid), time.perf_counter()
    firsts = await asyncio.gather(*(_kept_stream(target, number, tokens) for number in range(streams)))
    seconds = time.perf_counter() - began_s
    return Timed(streams * tokens / seconds, _cpu_s(target.pid) - cpu_s, statistics.median(firsts))


async def _kept_stream(target: Target, number: int, tokens: int) -> float:
    """The head closes a connection after a hundred requests; then it is asked again over another one."""
    try:
        return await _stream(target, number, tokens)
    except httpx.RemoteProtocolError:
        return await _stream(target, number, tokens)


async def _stream(target: Target, number: int, tokens: int) -> float:
    """After how many seconds the first of so many tokens came."""
    body = {**_question(f"Tell me story {number}.", tokens), "stream": True}
    began_s, first_s = time.perf_counter(), 0.0
    async with target.http.stream("POST", CHAT, json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if not first_s and line.startswith("data: {") and '"content":"' in line.replace('": "', '":"'):
                first_s = time.perf_counter() - began_s
    return first_s


def _question(text: str, tokens: int) -> dict[str, object]:
    """Exactly so many tokens, and the same ones each time."""
    messages = [{"role": "user", "content": text}]
    return {"messages": messages, "max_tokens": tokens, "ignore_eos": True, "temperature": 0}


async def _memory(gateway: Target, requests: int) -> int:
    """Print the resident memory as requests go by, every other one a stream; 1 when it grows from the first tenth to
    the last."""
    print("\n| requests | memory of the gateway |\n| --: | --: |")
    sizes, step = [], max(1, requests // 10)
    gate = asyncio.Semaphore(STREAMS[-1])

    async def one(number: int) -> None:
        async with gate:
            body = {**_question("hi", 2), "stream": bool(number % 2)}
            (await gateway.http.post(CHAT, json=body)).raise_for_status()

    for done in range(step, requests + 1, step):
        await asyncio.gather(*(one(number) for number in range(step)))
        sizes.append(_resident_bytes(gateway.pid))
        print(f"| {done} | {sizes[-1] / MIB:.1f} MiB |", flush=True)
    return int(len(sizes) > 1 and sizes[-1] > 1.05 * sizes[0])


def _cpu_s(pid: int) -> float:
    """Of all its threads; Linux only: stat(5) of proc."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _resident_bytes(pid: int) -> int:
    """Linux only: statm(5) of proc."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@asynccontextmanager
async def _target(name: str, process: Address) -> AsyncIterator[Target]:
    """Once it answers."""
    path, headers = socket_of(process.url), {"authorization": f"Bearer {process.key}"}
    way = httpx.AsyncHTTPTransport(uds=path or None, limits=httpx.Limits(max_connections=None), trust_env=False)
    async with httpx.AsyncClient(
        base_url="http://head" if path else process.url, headers=headers, timeout=READY_S, transport=way
    ) as http:
        target, end_s = Target(name, http, process.pid), time.monotonic() + READY_S
        while not await _answers(target):
            if time.monotonic() > end_s:
                raise SystemExit(f"the {name} does not come up")
            await asyncio.sleep(0.1)
        yield target


async def _answers(target: Target) -> bool:
    try:
        return (await target.http.get("/health")).status_code == 200
    except httpx.HTTPError:
        return False


async def _model() -> Path:
    return await fetch_model(NAME, user_folders().cache, lambda done, total: None)


@contextmanager
def _head(folder: Path, key: str, model: Path) -> Iterator[Address]:
    engine = find_engine(user_folders().cache, "cpu", local_platform())
    if engine is None:
        raise SystemExit("no engine is built: run `meshctl engine build`")
    key_file, door = folder / "key", folder / "head.sock"
    key_file.write_text(key + "\n")
    words = [str(engine.program("llama-server")), "--model", str(model), "--host", str(door), "--threads", "1"]
    words += ["--parallel", str(STREAMS[-1]), "--ctx-size", str(CONTEXT * STREAMS[-1]), "--fit", "off", "--no-ui"]
    words += ["-ngl", "0", "--api-key-file", str(key_file), "--cache-ram", "0", "--sse-ping-interval", "5"]
    first, *others = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {first})  # what is started has the processors of who starts it
    with _running(words, {**os.environ, **ENVIRONMENT}) as process:
        os.sched_setaffinity(0, others or {first})
        yield Address(f"{SOCKET}{door}", key, process.pid)


@contextmanager
def _gateway(head: Address, key: str) -> Iterator[Address]:
    port = free_local_port()
    asked = {"url": head.url, "head_key": head.key, "key": key, "port": port}
    environment = {**os.environ, "MESHCTL_BENCH_GATEWAY": json.dumps(asked)}
    with _running([sys.executable, __file__, "--serve"], environment) as process:
        yield Address(f"http://127.0.0.1:{port}", key, process.pid)


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
