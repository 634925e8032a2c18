"""What a head in mode `tensor` sends to its workers: the very pieces that we have foreseen it asks for by a hash."""

import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from orchestrator.engine.store import Engine
from orchestrator.pack_source import asked_for
from quant.gguf_file import read_model
from quant.model import Model
from quant.pack import engine_name, read_piece
from quant.piece import device_pieces
from quant.synthetic import Shape, write_random_model
from tests.end_to_end.inventories import free_port
from workers.engine_commands import PACK_VARIABLE, Placement, bench_command, worker_command

pytestmark = pytest.mark.engine

SHAPE = Shape(layers=3, embedding=1024, feed_forward=4096, heads=16, kv_heads=8, vocabulary=2048)
MESSAGE_BYTES = 1024
"""What is sent around a piece, at most."""


class CountingRelay:
    """Carries connections to a port of loopback and counts what the clients send."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.sent_bytes = 0
        self.server = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self.accept, daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.server.getsockname()[1]}"

    def accept(self) -> None:
        while True:
            try:
                client, _ = self.server.accept()
            except OSError:
                return
            worker = socket.create_connection(("127.0.0.1", self.target))
            for source, sink, counts in ((client, worker, True), (worker, client, False)):
                source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=self.carry, args=(source, sink, counts), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown(socket.SHUT_RDWR)
        self.server.close()

    def carry(self, source: socket.socket, sink: socket.socket, counts: bool) -> None:
        with source, suppress(OSError):  # either end may be killed
            while data := source.recv(1024 * 1024):
                self.sent_bytes += len(data) if counts else 0
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)


@contextmanager
def worker(engine: Engine, pack: Path) -> Iterator[CountingRelay]:
    port = free_port()
    words = worker_command(str(engine.program("ggml-rpc-server")), port=port, threads=1, cached=True)
    environment = {**os.environ, PACK_VARIABLE: str(pack)}
    with subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        relay = CountingRelay(port)
        try:
            wait_until_it_listens(process, port)
            yield relay
        finally:
            relay.close()
            process.kill()


def wait_until_it_listens(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            time.sleep(0.05)
        else:
            return
    raise AssertionError(f"the worker does not come up (status {process.poll()})")


def sent_bytes(engine: Engine, model: Path, packs: Sequence[Path], parts: Sequence[int]) -> list[int]:
    """What a head sends to each worker, fresh ones, to load the model and compute one token."""
    with ExitStack() as stack:
        relays = [stack.enter_context(worker(engine, pack)) for pack in packs]
        placement = Placement(tuple(relay.endpoint for relay in relays), tuple(parts), False, False, mode="tensor")
        words = bench_command(
            str(engine.program("llama-bench")),
            models=[str(model)],
            prompt=0,
            generate=1,
            repetitions=1,
            threads=1,
            micro_batch=64,
            placement=placement,
        )
        subprocess.run((*words, "--no-warmup"), check=True, capture_output=True, timeout=120)
        return [relay.sent_bytes for relay in relays]


def foreseen(model: Model, parts: Sequence[int], device: int) -> Mapping[str, bytes]:
    pieces = (read_piece(model, piece) for piece in asked_for(device_pieces(model, parts, device)))
    return {engine_name(data): data for data in pieces}


@pytest.mark.parametrize(("parts", "kind"), [((1, 1), "Q8_0"), ((5, 3), "Q4_0"), ((3, 2, 2), "Q4_K")])
def test_no_foreseen_piece_crosses_the_network(
    engine: Engine, tmp_path: Path, parts: tuple[int, ...], kind: str
) -> None:
    write_random_model(tmp_path / "random.gguf", SHAPE, kind)
    model = read_model(tmp_path / "random.gguf")
    packs = [tmp_path / f"pack{device}" for device in range(len(parts))]
    for pack in packs:
        (pack / "rpc").mkdir(parents=True)
    before = sent_bytes(engine, model.path, packs, parts)
    saved = []
    for device, pack in enumerate(packs):
        files = foreseen(model, parts, device)
        saved.append((len(files), sum(map(len, files.values()))))
        for name, data in files.items():
            (pack / "rpc" / name).write_bytes(data)
    after = sent_bytes(engine, model.path, packs, parts)
    assert sum(size for _, size in saved) > model.size_bytes / 2
    for was, now, (count, size) in zip(before, after, saved, strict=True):
        assert 0 <= was - now - size < count * MESSAGE_BYTES
