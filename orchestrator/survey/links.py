"""Measure a link end to end: round trip and throughput between this machine and a place that leads to `agent.py link`.

The place is the near end of whatever carries the tensors later (plain loopback, or an OpenSSH tunnel), so what is
measured is what the engine will see, but for bridges into private networks (10 microseconds each). Blocking sockets in
a thread: the event loop would add its own delays.
"""

import asyncio
import socket
import statistics
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from time import perf_counter
from typing import TypeVar

from orchestrator.errors import ConnectError
from orchestrator.survey.values import Link

T = TypeVar("T")

ROUND_TRIP_BYTES = 16 * 1024
ROUND_TRIPS = 20
FIRST_BULK_BYTES = 256 * 1024
MOST_BULK_BYTES = 64 * 1024 * 1024
BULK_TARGET_S = 0.3

ECHO_OF_ONE_BYTE = struct.pack(">cQQ", b"E", 1, 1) + b"x"
"""A request to the measuring server with its payload; the answer is the last byte."""


Place = tuple[str, int] | str
"""An address and a port, or the path of a socket."""


class Line:
    """What links share near this machine, its own network card say.

    Round trips of one link have it to themselves, for a few KiB behind another link's bulk would wait in its queue;
    bulk of several goes side by side.
    """

    def __init__(self) -> None:
        self._changed = asyncio.Condition()
        self._waiting, self._moving, self._is_taken = 0, 0, False

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Nothing else moves; those who want this go before those who move bulk."""
        self._waiting += 1
        try:
            async with self._changed:
                await self._changed.wait_for(lambda: not self._is_taken and self._moving == 0)
                self._is_taken = True
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._is_taken = False
            await self._tell()

    @asynccontextmanager
    async def shared(self) -> AsyncIterator[None]:
        """Nobody is alone, or waits to be."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self._is_taken and self._waiting == 0)
            self._moving += 1
        try:
            yield
        finally:
            self._moving -= 1
            await self._tell()

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()


async def measure_link(
    host: str, kind: str, place: Place, *, line: Line | None = None, medium: str = "", deadline_s: float = 30
) -> Link:
    """Measure through `place`; ConnectError when the far end does not answer.

    `line` is shared with links that are measured at the same time. `medium` is what the host says of its interface
    (`HostFacts.medium`).
    """
    try:
        return await _measured(line or Line(), kind, place, medium, deadline_s)
    except (OSError, EOFError, TimeoutError) as error:
        raise ConnectError(
            host,
            f"the {kind} link carries nothing: {_what_happened(error)}",
            hint=_DIRECT_HINT.format(address=place[0], host=host) if kind == "direct" else _TUNNEL_HINT,
        ) from error


_TUNNEL_HINT = (
    "the host's sshd must allow forwarding to sockets and ports (AllowStreamLocalForwarding and AllowTcpForwarding yes "
    "in its sshd_config)"
)
_DIRECT_HINT = (
    "this machine must reach ports from 20000 on at {address}: see its firewall, or use `link: tunnel` for {host}"
)


def _what_happened(error: Exception) -> str:
    """A far end that closes shows as the end of the stream, a reset or a broken pipe, whichever comes first."""
    if isinstance(error, EOFError | ConnectionResetError | BrokenPipeError):
        return "the far end closed the connection"
    return str(getattr(error, "strerror", None) or error) or "nothing came back in time"


async def _measured(line: Line, kind: str, place: Place, medium: str, deadline_s: float) -> Link:
    """Blocking sockets in threads; each part ends within its own time, so that nobody waits for a line for ever."""
    async with line.alone():
        connection = await _in_thread(deadline_s, lambda: _connected(place, deadline_s))
        try:
            round_trip_s = await _in_thread(deadline_s, lambda: _round_trip(connection))
        except BaseException:
            connection.close()
            raise
    with connection:
        async with line.shared():
            return Link(
                kind=kind,
                round_trip_s=round_trip_s,
                up_bytes_per_s=await _in_thread(deadline_s, lambda: _bulk(connection, _send_to_sink)),
                down_bytes_per_s=await _in_thread(deadline_s, lambda: _bulk(connection, _fetch_from_source)),
                medium=medium,
            )


async def _in_thread(deadline_s: float, blocking: Callable[[], T]) -> T:
    return await asyncio.wait_for(asyncio.to_thread(blocking), deadline_s + 5)


def _connected(place: Place, deadline_s: float) -> socket.socket:
    if isinstance(place, str):
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(deadline_s)
        connection.connect(place)
        return connection
    connection = socket.create_connection(place, timeout=deadline_s)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _round_trip(connection: socket.socket) -> float:
    payload = bytes(ROUND_TRIP_BYTES)
    connection.sendall(_request(b"E", ROUND_TRIP_BYTES, ROUND_TRIPS))
    times = []
    for _ in range(ROUND_TRIPS):
        began = perf_counter()
        connection.sendall(payload)
        _receive(connection, ROUND_TRIP_BYTES)
        times.append(perf_counter() - began)
    return statistics.median(times)


def _bulk(connection: socket.socket, move: Callable[[socket.socket, int], None]) -> float:
    """Bytes per second, with as many bytes as take about BULK_TARGET_S."""
    took = _timed(connection, FIRST_BULK_BYTES, move)
    size = min(MOST_BULK_BYTES, max(FIRST_BULK_BYTES, int(FIRST_BULK_BYTES * BULK_TARGET_S / took)))
    return size / _timed(connection, size, move)


def _timed(connection: socket.socket, size: int, move: Callable[[socket.socket, int], None]) -> float:
    began = perf_counter()
    move(connection, size)
    return perf_counter() - began


def _send_to_sink(connection: socket.socket, size: int) -> None:
    connection.sendall(_request(b"S", size, 1))
    block = memoryview(bytes(min(size, FIRST_BULK_BYTES)))
    left = size
    while left > 0:
        connection.sendall(block[:left])
        left -= len(block)
    _receive(connection, 1)


def _fetch_from_source(connection: socket.socket, size: int) -> None:
    connection.sendall(_request(b"R", size, 1))
    _receive(connection, size)


def _request(operation: bytes, size: int, count: int) -> bytes:
    return operation + struct.pack(">QQ", size, count)


def _receive(connection: socket.socket, size: int) -> None:
    buffer = bytearray(min(size, FIRST_BULK_BYTES))
    left = size
    while left > 0:
        got = connection.recv_into(buffer, min(left, len(buffer)))
        if got == 0:
            raise EOFError
        left -= got
