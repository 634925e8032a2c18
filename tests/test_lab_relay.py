"""The lab's relay delays bytes by the time it was told, keeps all of them in order, and passes on ends."""

import socket
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread

from lab_relay import relay

DEADLINE_S = 20


@contextmanager
def connected(delay_s: float) -> Iterator[socket.socket]:
    """A connection through the relay to a server that echoes until the end of what it is sent."""
    with socket.create_server(("127.0.0.1", 0)) as echo, socket.create_server(("127.0.0.1", 0)) as front:
        threads = [
            Thread(target=_echo, args=(echo,)),
            Thread(target=lambda: relay(front.accept()[0], echo.getsockname(), delay_s)),
        ]
        for thread in threads:
            thread.start()
        with socket.create_connection(front.getsockname(), timeout=DEADLINE_S) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            yield connection
        for thread in threads:
            thread.join(DEADLINE_S)
            assert not thread.is_alive()


def _echo(server: socket.socket) -> None:
    connection, _ = server.accept()
    with connection:
        while data := connection.recv(65536):
            connection.sendall(data)


def _send_whole(connection: socket.socket, data: bytes) -> None:
    connection.sendall(data)
    connection.shutdown(socket.SHUT_WR)


def test_a_round_trip_takes_twice_the_delay_and_little_more() -> None:
    with connected(0.003) as connection:
        times = []
        for _ in range(50):
            start = time.monotonic()
            connection.sendall(b"x")
            assert connection.recv(1) == b"x"
            times.append(time.monotonic() - start)
    assert min(times) >= 0.006
    assert statistics.median(times) < 0.030


def test_all_bytes_arrive_in_order_and_then_the_end() -> None:
    data = bytes(range(256)) * 4096 * 4
    with connected(0.0005) as connection:
        sender = Thread(target=_send_whole, args=(connection, data))
        sender.start()
        received = bytearray()
        while chunk := connection.recv(1 << 20):
            received += chunk
        sender.join(DEADLINE_S)
    assert bytes(received) == data


def test_the_relay_ends_when_the_client_goes_away() -> None:
    with connected(0.001) as connection:
        connection.sendall(b"x" * 1000)
