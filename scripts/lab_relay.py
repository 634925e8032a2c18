"""A TCP relay that delays every byte by a fixed time in each direction, for lab links on kernels without `netem`.

Standard library only, threads and time stamps: asyncio's timers are too coarse for a delay below a millisecond. It
keeps the order and the amount of bytes, passes on the end of each direction, and never drops anything.

    python lab_relay.py LISTEN_ADDRESS LISTEN_PORT TARGET_ADDRESS TARGET_PORT DELAY_SECONDS
"""

import ctypes
import socket
import sys
import time
from contextlib import suppress
from queue import Queue
from threading import Thread

CHUNK_BYTES = 64 * 1024
QUEUED_CHUNKS = 512
PR_SET_TIMERSLACK = 29
PR_SET_NAME = 15

Late = tuple[float, bytes]
"""When to send (monotonic seconds), and what; no bytes: the end of the direction."""


def main(words: list[str]) -> None:
    listen_address, listen_port, target_address, target_port, delay_s = words
    _sleep_precisely()
    with socket.create_server((listen_address, int(listen_port)), backlog=128) as server:
        while True:
            client, _ = server.accept()
            target = (target_address, int(target_port))
            Thread(target=relay, args=(client, target, float(delay_s)), daemon=True).start()


def relay(client: socket.socket, target: tuple[str, int], delay_s: float) -> None:
    """Serve one connection until both of its directions have ended."""
    with client:
        try:
            server = socket.create_connection(target, timeout=10)
        except OSError:
            return
        with server:
            server.settimeout(None)
            pairs = ((client, server), (server, client))
            queues: list[Queue[Late]] = [Queue(QUEUED_CHUNKS) for _ in pairs]
            threads = [
                Thread(target=function, args=(one, queue, *extra), daemon=True)
                for (source, sink), queue in zip(pairs, queues, strict=True)
                for function, one, extra in ((_receive, source, (delay_s,)), (_send, sink, ()))
            ]
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()


def _receive(source: socket.socket, queue: Queue[Late], delay_s: float) -> None:
    data = b"?"
    while data:
        try:
            data = source.recv(CHUNK_BYTES)
        except OSError:
            data = b""
        queue.put((time.monotonic() + delay_s, data))


def _send(sink: socket.socket, queue: Queue[Late]) -> None:
    """Send each chunk when it is due; when the sink is gone, keep emptying the queue so that nobody waits on it."""
    broken = False
    while True:
        due, data = queue.get()
        wait_s = due - time.monotonic()
        if wait_s > 0:
            time.sleep(wait_s)
        if not data:
            with suppress(OSError):
                sink.shutdown(socket.SHUT_WR)
            return
        if not broken:
            try:
                sink.sendall(data)
            except OSError:
                broken = True
                with suppress(OSError):
                    sink.shutdown(socket.SHUT_RDWR)


def _sleep_precisely() -> None:
    """Ask Linux for wake-ups within a microsecond instead of 50, and take a name that `ss` shows."""
    library = ctypes.CDLL(None)
    library.prctl(PR_SET_TIMERSLACK, 1000, 0, 0, 0)
    library.prctl(PR_SET_NAME, b"lab_relay", 0, 0, 0)


if __name__ == "__main__":
    main(sys.argv[1:])
