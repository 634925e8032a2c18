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
from dataclasses import replace
from time import perf_counter
from typing import TypeVar

from orchestrator.errors import ConnectError
from orchestrator.survey.values import Link

T = TypeVar("T")

ROUND_TRIP_BYTES = 16 * 1024
ROUND_TRIPS, TRIPS_AT_ONCE = 20, 5
ENOUGH_TRIPS_S = 0.25
"""Round trips end then, when they are fewer: the others wait for the line."""

FIRST_BULK_BYTES = 256 * 1024
MOST_BULK_BYTES = 64 * 1024 * 1024
MOST_BULK_S, LEAST_BULK_S, BULK_OF_ALL_S = 0.3, 0.1, 2.4
"""How long bulk goes each way: of up to eight hosts, of any number, and of all together."""

BULK_AT_ONCE = 2

ALIKE = 1.4
"""A round trip that is at most so many times another one: the link is as it was. One of 16 KiB tells of the rate, too:
at 1 Gbit/s half of it is the bytes, at 100 Mbit/s nearly all."""

MUCH_LESS = 5.0
"""So many times less: that is to be seen by the round trip where rates are kept."""

ECHO_OF_ONE_BYTE = struct.pack(">cQQ", b"E", 1, 1) + b"x"
"""A request to the measuring server with its payload; the answer is the last byte."""


Place = tuple[str, int] | str
"""An address and a port, or the path of a socket."""


class Line:
    """What links share near this machine, its own network card say.

    Round trips of one link have it to themselves, for a few KiB behind another link's bulk would wait in its queue;
    bulk of a few (`BULK_AT_ONCE`) goes side by side.
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
            await self._changed.wait_for(lambda: self._is_free_for_bulk)
            self._moving += 1
        try:
            yield
        finally:
            self._moving -= 1
            await self._tell()

    @property
    def _is_free_for_bulk(self) -> bool:
        return not self._is_taken and self._waiting == 0 and self._moving < BULK_AT_ONCE

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()


def bulk_s(links: int) -> float:
    """How long bulk is to go each way over each of so many."""
    return min(MOST_BULK_S, max(LEAST_BULK_S, BULK_OF_ALL_S / max(1, links)))


async def measure_link(
    host: str,
    kind: str,
    place: Place,
    *,
    line: Line | None = None,
    medium: str = "",
    deadline_s: float = 30,
    before: Link | None = None,
    target_s: float = MOST_BULK_S,
) -> Link:
    """Measure through `place`; ConnectError when the far end does not answer.

    `line` is shared with links that are measured at the same time. `medium` is what the host says of its interface
    (`HostFacts.medium`). `before` is what it was lately: where the round trip is as it was then, so are the rates, if
    it tells of them.
    `target_s` is how long bulk goes each way.
    """
    line = line or Line()
    try:
        round_trip_s = await _round_trip(line, place, deadline_s)
        if before is not None and is_alike(round_trip_s, before.round_trip_s) and tells_of_rates(before):
            return replace(before, kind=kind, round_trip_s=round_trip_s, medium=medium)
        up, down = await _rates(line, place, deadline_s, target_s)
    except (OSError, EOFError, TimeoutError) as error:
        raise ConnectError(
            host,
            f"the {kind} link carries nothing: {_what_happened(error)}",
            hint=_DIRECT_HINT.format(address=place[0], host=host) if kind == "direct" else _TUNNEL_HINT,
        ) from error
    return Link(kind, round_trip_s, up, down, medium)


def is_alike(seconds: float, others: float) -> bool:
    return max(seconds, others) <= ALIKE * min(seconds, others)


def tells_of_rates(link: Link) -> bool:
    """Whether its round trip would be another one if it carried so much less: not where it is long by itself. Within
    this machine nothing is between."""
    if link.kind == "loopback":
        return True
    bytes_s = 2 * ROUND_TRIP_BYTES / max(link.up_bytes_per_s, link.down_bytes_per_s)
    return not is_alike(link.round_trip_s + (MUCH_LESS - 1) * bytes_s, link.round_trip_s)


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


async def _round_trip(line: Line, place: Place, deadline_s: float) -> float:
    """Seconds, the median. Blocking sockets in threads, which end within their own time, so that nobody waits for a
    line for ever; a connection for this and another for bulk, since the far end closes one that is idle for long."""

    def measured() -> float:
        with _connected(place, deadline_s) as connection:
            return _median_trip(connection)

    async with line.alone():
        return await _in_thread(deadline_s, measured)


async def _rates(line: Line, place: Place, deadline_s: float, target_s: float) -> tuple[float, float]:
    """Bytes per second, up and down."""

    def measured() -> tuple[float, float]:
        with _connected(place, deadline_s) as connection:
            return _bulk(connection, _send_to_sink, target_s), _bulk(connection, _fetch_from_source, target_s)

    async with line.shared():
        return await _in_thread(2 * deadline_s, measured)


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


def _median_trip(connection: socket.socket) -> float:
    payload, times = bytes(ROUND_TRIP_BYTES), list[float]()
    while len(times) < ROUND_TRIPS and sum(times) < ENOUGH_TRIPS_S:
        connection.sendall(_request(b"E", ROUND_TRIP_BYTES, TRIPS_AT_ONCE))
        for _ in range(TRIPS_AT_ONCE):
            began = perf_counter()
            connection.sendall(payload)
            _receive(connection, ROUND_TRIP_BYTES)
            times.append(perf_counter() - began)
    return statistics.median(times)


def _bulk(connection: socket.socket, move: Callable[[socket.socket, int], None], target_s: float) -> float:
    """Bytes per second, with as many bytes as take about `target_s`."""
    took = _timed(connection, FIRST_BULK_BYTES, move)
    size = min(MOST_BULK_BYTES, max(FIRST_BULK_BYTES, int(FIRST_BULK_BYTES * target_s / took)))
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
