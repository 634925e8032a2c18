"""Stand-ins for the head, for what a real one cannot be asked to do: break off, hang, refuse, or be watched."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from orchestrator.gateway.app import create_app
from orchestrator.gateway.backends import Backends
from orchestrator.gateway.connections import ConnectionLimits
from orchestrator.gateway.head import Deadlines
from orchestrator.gateway.keys import ApiKeys, known_key
from orchestrator.gateway.line import LineLimits
from orchestrator.gateway.routing import HeadAddress
from orchestrator.gateway.server import serve
from orchestrator.gateway.state import Counters, GatewayState, Situation
from orchestrator.host_state import HostState

KEY = "mesh-test"
HEAD_KEY = "head-test"
MODEL = "tiny"


def chunk(text: str, **more: object) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
    return b"data: " + json.dumps({"choices": [choice], "model": "head-name", **more}).encode() + b"\n\n"


def last_chunk(tokens: int) -> bytes:
    choice = {"index": 0, "delta": {}, "finish_reason": "stop"}
    timings = {"prompt_n": 7, "prompt_per_second": 70.0, "predicted_n": tokens, "predicted_per_second": 5.0}
    return b"data: " + json.dumps({"choices": [choice], "model": "head-name", "timings": timings}).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


@dataclass
class FakeHead:
    """Answers streams with `parts`, plain requests with `whole`; notes what it was asked and when it was left.

    A stream that should hang ends with `hang`; one that should break off ends without `DONE`, the connection torn.
    """

    parts: tuple[bytes, ...] = ()
    hang: bool = False
    tear: bool = False
    whole: Response | None = None
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    left: asyncio.Event = field(default_factory=asyncio.Event)
    _released: asyncio.Event = field(default_factory=asyncio.Event)

    def release(self, parts: tuple[bytes, ...]) -> None:
        """Let a hanging stream go on with these last parts."""
        self.parts = parts
        self._released.set()

    def app(self) -> Starlette:
        paths = ("/v1/chat/completions", "/v1/completions")
        return Starlette(routes=[Route(path, self._answer, methods=["POST"]) for path in paths])

    async def _answer(self, request: Request) -> Response:
        self.bodies.append(await request.json())
        self.keys.append(request.headers["authorization"])
        if self.whole is not None:
            return self.whole
        if not self.bodies[-1].get("stream"):
            return _UntilLeft(self.left)
        return StreamingResponse(self._stream(), media_type="text/event-stream")

    async def _stream(self) -> AsyncIterator[bytes]:
        try:
            for part in self.parts:
                yield part
            if self.hang:
                await self._released.wait()
                for part in self.parts:
                    yield part
            if self.tear:
                raise ConnectionAbortedError
        finally:
            self.left.set()


class _UntilLeft(Response):
    """Never answers; notes when the client has gone."""

    def __init__(self, left: asyncio.Event) -> None:
        super().__init__()
        self._left = left

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._left.set()


@dataclass(frozen=True)
class Gateway:
    """A running gateway, and everything a test may look at."""

    http: httpx.AsyncClient
    url: str
    state: GatewayState
    counters: Counters
    backends: Backends


@asynccontextmanager
async def gateway_for(
    head: FakeHead,
    *,
    parallel: int = 2,
    deadlines: Deadlines | None = None,
    keys: Callable[[], ApiKeys] | None = None,
    limits: LineLimits | None = None,
    hosts: Callable[[], Iterable[HostState]] = tuple,
    connections: ConnectionLimits | None = None,
    tls: ssl.SSLContext | None = None,
    allowed_origins: Sequence[str] = (),
) -> AsyncIterator[Gateway]:
    """A gateway before `head`, both on real sockets."""
    async with AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(serve(head.app(), "127.0.0.1", 0, drain_s=1))
        yield await stack.enter_async_context(
            gateway_at(
                upstream.url,
                parallel=parallel,
                deadlines=deadlines,
                keys=keys,
                limits=limits,
                hosts=hosts,
                connections=connections,
                tls=tls,
                allowed_origins=allowed_origins,
            )
        )


@asynccontextmanager
async def gateway_at(
    head_url: str,
    *,
    head_key: str = HEAD_KEY,
    parallel: int = 2,
    deadlines: Deadlines | None = None,
    drain_s: float = 1,
    others: Sequence[HeadAddress] = (),
    keys: Callable[[], ApiKeys] | None = None,
    limits: LineLimits | None = None,
    hosts: Callable[[], Iterable[HostState]] = tuple,
    connections: ConnectionLimits | None = None,
    tls: ssl.SSLContext | None = None,
    allowed_origins: Sequence[str] = (),
) -> AsyncIterator[Gateway]:
    state, counters = GatewayState(Situation("ready")), Counters()
    backends = Backends(deadlines or Deadlines(), limits, state.told)
    backends.replace([HeadAddress("head", head_url, head_key, parallel), *others])
    app = create_app(
        backends,
        keys or (lambda: ApiKeys((known_key("other", "mesh-other"), known_key("test", KEY)))),
        MODEL,
        context=4096,
        created=1700000000,
        state=state,
        counters=counters,
        deadlines=deadlines,
        hosts=hosts,
        allowed_origins=allowed_origins,
    )
    async with serve(app, "127.0.0.1", 0, tls=tls, limits=connections, drain_s=drain_s) as listening:
        headers = {"authorization": f"Bearer {KEY}"}
        async with httpx.AsyncClient(base_url=listening.url, headers=headers, timeout=20, trust_env=False) as http:
            yield Gateway(http, listening.url, state, counters, backends)


def json_answer(body: object, status: int = 200) -> Response:
    return JSONResponse(body, status)
