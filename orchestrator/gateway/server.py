"""Runs an application on an address inside the supervisor's own event loop.

uvicorn's signal handlers stay out: stopping is the supervisor's decision. Nothing is logged or configured globally.
"""

import asyncio
import errno
import math
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial

import uvicorn
from starlette.types import ASGIApp

from orchestrator.errors import BringUpError
from orchestrator.gateway.connections import Connection, ConnectionLimits, bounded_headers

BACKLOG = 512
CLOSE_S = 5.0
"""For what remains after draining: telling the last clients, and closing."""


@dataclass(frozen=True)
class Listening:
    """Where the application is served; `port` is the real one, also when 0 was asked for."""

    host: str
    port: int
    scheme: str = "http"

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


@asynccontextmanager
async def serve(
    app: ASGIApp,
    host: str,
    port: int,
    *,
    tls: ssl.SSLContext | None = None,
    limits: ConnectionLimits | None = None,
    drain_s: float = 10.0,
) -> AsyncIterator[Listening]:
    """Serve `app` until the block ends; then take no new connection and give running answers `drain_s` to finish.

    BringUpError when the address cannot be had.
    """
    listener = _bind(host, port)
    server = _Server(_config(app, tls, limits or ConnectionLimits(), drain_s))
    task = asyncio.create_task(server.serve(sockets=[listener]), name="gateway server")
    try:
        await _until_ready(server, task)
        yield Listening(host, listener.getsockname()[1], "http" if tls is None else "https")
    finally:
        await _stop(server, task, drain_s)
        listener.close()


def check_address(host: str, port: int) -> None:
    """BringUpError when the address cannot be had now; `serve` may still find it taken later."""
    _bind(host, port).close()


class _Server(uvicorn.Server):
    """uvicorn's server without its signal handlers, and with an event instead of a flag for being ready."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()


def _config(app: ASGIApp, tls: ssl.SSLContext | None, limits: ConnectionLimits, drain_s: float) -> uvicorn.Config:
    """Headers that proxies add are not believed: anybody can add them, and clients are told apart by address."""
    config = uvicorn.Config(
        bounded_headers(app, limits),
        http=partial(Connection, limits),  # type: ignore[arg-type] # is called as a class is
        h11_max_incomplete_event_size=limits.header_bytes,
        interface="asgi3",
        proxy_headers=False,
        lifespan="on",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=math.ceil(drain_s),
    )
    config.load()
    config.ssl = tls
    return config


def _bind(host: str, port: int) -> socket.socket:
    """Connections inherit that small pieces are sent at once: asyncio asks for it only where a socket says that it is
    TCP's, which this one does not. Without it each token may wait 40 ms for the one before it to be acknowledged."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except OSError as error:
        raise _bind_error(host, port, error) from error


def _bind_error(host: str, port: int, error: OSError) -> BringUpError:
    match error.errno:
        case errno.EADDRINUSE:
            hint = f"choose another `gateway.port` in the inventory, or end what holds it: ss -ltnp 'sport = :{port}'"
            return BringUpError(f"port {port} on {host} is taken: the gateway cannot listen there", hint=hint)
        case errno.EACCES:
            return BringUpError(
                f"port {port} on {host} is not allowed to this user", hint="choose a `gateway.port` above 1023"
            )
    reason = error.strerror or str(error)
    hint = "`gateway.host` in the inventory must be an address of this machine, such as 127.0.0.1"
    return BringUpError(f"the gateway cannot listen on {host} port {port}: {reason}", hint=hint)


async def _until_ready(server: _Server, task: asyncio.Task[None]) -> None:
    ready = asyncio.create_task(server.ready.wait())
    try:
        await asyncio.wait((ready, task), return_when=asyncio.FIRST_COMPLETED)
    finally:
        ready.cancel()
    if task.done():
        task.result()
        raise BringUpError("the gateway ended while it started", hint="its log says why")


async def _stop(server: _Server, task: asyncio.Task[None], drain_s: float) -> None:
    server.should_exit = True
    await asyncio.wait((task,), timeout=math.ceil(drain_s) + CLOSE_S)
    task.cancel()
    await asyncio.wait((task,))
    if requests := server.server_state.tasks:
        await asyncio.wait(requests, timeout=CLOSE_S)
