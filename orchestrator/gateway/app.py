"""The gateway's HTTP application: who may ask, what may be asked, and what is said while nothing can answer.

It holds no model and no conversation; what it lets through goes to the head and back as it comes (`relay`).
"""

import logging
from collections.abc import Awaitable, Callable, Collection, Iterable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from orchestrator.errors import GatewayError
from orchestrator.gateway.api_error import ApiError, unavailable
from orchestrator.gateway.backends import Backends
from orchestrator.gateway.bodies import Bodies
from orchestrator.gateway.fields import BODY_LIMIT_BYTES, Body, chat_body, completion_body, read_body
from orchestrator.gateway.head import Deadlines
from orchestrator.gateway.keys import ApiKeys
from orchestrator.gateway.metrics import CONTENT_TYPE, Metrics
from orchestrator.gateway.openapi import api_document
from orchestrator.gateway.relay import ANSWERED_BY, Relay
from orchestrator.gateway.state import READY, Counters, GatewayState
from orchestrator.host_state import HostState

_LOG = logging.getLogger(__name__)

Endpoint = Callable[[Request], Awaitable[Response]]


def create_app(
    backends: Backends,
    keys: Callable[[], ApiKeys],
    model_name: str,
    *,
    context: int | None = None,
    parallel: int = 1,
    created: int = 0,
    state: GatewayState | None = None,
    counters: Counters | None = None,
    deadlines: Deadlines | None = None,
    hosts: Callable[[], Iterable[HostState]] = tuple,
    body_bytes: int = BODY_LIMIT_BYTES,
    allowed_origins: Collection[str] = (),
) -> Starlette:
    """The application for these heads, which the supervisor may replace while it runs.

    `keys` is asked at each request: a key may be revoked meanwhile. `context` is the tokens of one conversation,
    `parallel` the most choices of one request while no head is there to say so, and `created` the Unix time at which
    the cluster started, for /v1/models. `state` is read at each request; without one the heads are taken to be ready.
    `counters` are counted up. Requests beyond the heads' slots wait in line. `hosts` are for the metrics. A body has
    at most `body_bytes`. Scripts of web pages from `allowed_origins` may ask, those of others not.
    """
    waits, state, counters = deadlines or Deadlines(), state or GatewayState(READY), counters or Counters()
    model = _model_entry(model_name, context, created)
    metrics = Metrics(counters, state, hosts, lambda: backends.serving.heads if backends.serving else ())
    bodies = Bodies(body_bytes, waits.body_s)
    gateway = _Gateway(backends, keys, model, parallel, state, counters, metrics, bodies, waits)

    app = Starlette(
        routes=gateway.routes(),
        middleware=[_cross_origin(allowed_origins)] if allowed_origins else [],
        exception_handlers={ApiError: _answer_api_error, HTTPException: _answer_http, Exception: _answer_defect},
    )
    app.router.redirect_slashes = False
    return app


def _cross_origin(origins: Collection[str]) -> Middleware:
    """Keys come in a header of the request's own, never as cookies, so browsers send none by themselves."""
    return Middleware(
        CORSMiddleware,
        allow_origins=tuple(origins),
        allow_methods=("GET", "POST"),
        allow_headers=("*",),
        expose_headers=(ANSWERED_BY, "retry-after"),
    )


class _Gateway:
    def __init__(
        self,
        backends: Backends,
        keys: Callable[[], ApiKeys],
        model: dict[str, object],
        parallel: int,
        state: GatewayState,
        counters: Counters,
        metrics: Metrics,
        bodies: Bodies,
        waits: Deadlines,
    ) -> None:
        self._backends = backends
        self._keys = keys
        self._model = model
        self._parallel = parallel
        self._state = state
        self._counters = counters
        self._metrics = metrics
        self._bodies = bodies
        self._document = api_document(bodies.limit_bytes)
        self._waits = waits

    def routes(self) -> list[Route]:
        return [
            Route("/health", self._health, methods=["GET"]),
            Route("/openapi.json", self._describe, methods=["GET"]),
            Route("/metrics", self._keyed(self._tell_metrics), methods=["GET"]),
            Route("/v1/models", self._keyed(self._models), methods=["GET"]),
            Route("/v1/models/{name:path}", self._keyed(self._one_model), methods=["GET"]),
            Route("/v1/chat/completions", self._keyed(self._chat), methods=["POST"]),
            Route("/v1/completions", self._keyed(self._complete), methods=["POST"]),
        ]

    def _keyed(self, endpoint: Endpoint) -> Endpoint:
        async def checked(request: Request) -> Response:
            scheme, _, key = request.headers.get("authorization", "").partition(" ")
            try:
                keys = self._keys()
            except GatewayError as error:
                _LOG.error("%s", error)
                raise ApiError(503, "no key can be checked now; the log says why", code="keys_unreadable") from error
            name = keys.name_of(key.strip()) if scheme.lower() == "bearer" else None
            if name is None:
                message = "an API key is needed: `Authorization: Bearer mesh-...`, as `meshctl key add` printed it"
                raise ApiError(401, message, kind="authentication_error", code="invalid_api_key")
            request.state.key_name = name
            return await endpoint(request)

        return checked

    async def _health(self, request: Request) -> Response:
        """Open to everybody, so it tells no more than whether to come back."""
        now = self._state.now
        if now.serves:
            return JSONResponse({"status": "ok"})
        problem = unavailable("", code=now.state)
        body = {"status": now.state, "step": now.step, "fraction": now.fraction}
        return JSONResponse(body, 503, problem.headers)

    async def _describe(self, request: Request) -> Response:
        """Open to everybody: it says how to ask any gateway, and nothing of this cluster."""
        return JSONResponse(self._document)

    async def _tell_metrics(self, request: Request) -> Response:
        return Response(self._metrics.text(), media_type=CONTENT_TYPE)

    async def _models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._model_now]})

    async def _one_model(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name != self._model["id"]:
            message = f"the model `{name}` is not served here; this cluster serves `{self._model['id']}`"
            raise ApiError(404, message, param="model", code="model_not_found")
        return JSONResponse(self._model_now)

    async def _chat(self, request: Request) -> Response:
        return await self._relay(request, "/v1/chat/completions", chat_body)

    async def _complete(self, request: Request) -> Response:
        return await self._relay(request, "/v1/completions", completion_body)

    async def _relay(self, request: Request, path: str, shape: Callable[..., Body]) -> Response:
        raw = await self._bodies.receive(request)
        passed = shape(read_body(raw), model=str(self._model["id"]), parallel=self._most_choices)
        self._check_ready()
        return Relay(
            self._backends,
            path,
            passed,
            self._counters,
            client=f"{request.state.key_name} {request.client.host if request.client else ''}",
            body_bytes=len(raw),
            answer_s=self._waits.answer_s,
        )

    @property
    def _model_now(self) -> dict[str, object]:
        """A cluster that has less memory than it had may serve with a smaller context."""
        serving = self._backends.serving
        context = 0 if serving is None else serving.router.context
        return {**self._model, "context_length": context} if context else self._model

    @property
    def _most_choices(self) -> int:
        serving = self._backends.serving
        return self._parallel if serving is None else serving.most_choices

    def _check_ready(self) -> None:
        """While the cluster recovers, requests wait in line for it."""
        now = self._state.now
        if not now.serves and now.state != "recovering":
            message = now.message or f"the cluster is {now.state}"
            raise unavailable(message, code=now.state, more=self._state.told())


def _model_entry(name: str, context: int | None, created: int) -> dict[str, object]:
    entry = {"id": name, "object": "model", "created": created, "owned_by": "meshctl"}
    return entry if context is None else {**entry, "context_length": context}


async def _answer_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body, error.status, error.headers)


async def _answer_http(request: Request, error: Exception) -> Response:
    """A path or method that does not exist."""
    assert isinstance(error, HTTPException)
    problem = ApiError(error.status_code, f"{request.method} {request.url.path}: {error.detail.lower()}")
    return JSONResponse(problem.body, error.status_code, error.headers)


async def _answer_defect(request: Request, error: Exception) -> Response:
    """A defect of the gateway's own; the traceback goes to the log, not to the client."""
    problem = ApiError(500, "the gateway failed; its log says why", kind="server_error", code="defect")
    return JSONResponse(problem.body, problem.status)
