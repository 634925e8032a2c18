"""One connection to the gateway: how many there may be, how long a request's header may take, and who reads nothing.

uvicorn bounds none of that by itself. What a client gets wrong below the level of requests is answered in the form of
every other error, and never becomes a traceback: a public door is knocked at by all kinds of programs.
"""

import asyncio
import json
import logging
import sys
from dataclasses import dataclass
from typing import Any

import h11
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from orchestrator.gateway.api_error import ApiError, unavailable

_LOG = logging.getLogger(__name__)
_LOG.setLevel(logging.ERROR)  # what strangers send is no news; the gateway's own defects are
_TELLABLE = (h11.IDLE, h11.SEND_RESPONSE)


@dataclass(frozen=True)
class ConnectionLimits:
    """How many connections may be open, how large a request's header may be, how long it may take, and how long a
    client may take nothing of what was sent to it."""

    connections: int = 512
    header_bytes: int = 32 * 1024
    header_fields: int = 100
    header_s: float = 15.0
    reader_s: float = 120.0


class Connection(H11Protocol):
    """As uvicorn's, with an end to everything a client may leave undone."""

    def __init__(self, limits: ConnectionLimits, **made_by_uvicorn: Any) -> None:
        super().__init__(**made_by_uvicorn)
        self.logger = _LOG
        self._limits = limits
        self._header_timer: asyncio.TimerHandle | None = None
        self._reader_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        super().connection_made(transport)
        if len(self.connections) > self._limits.connections:
            self._refuse(unavailable("too many connections are open; ask again later", code="too_many_connections"))
        self._watch_header()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._header_timer = _stopped(self._header_timer)
        self._reader_timer = _stopped(self._reader_timer)

    def data_received(self, data: bytes) -> None:
        """Nothing is taken any more when it is being closed, although TLS may still have something to give."""
        if not self.transport.is_closing():
            super().data_received(data)
            self._watch_header()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.transport.is_closing():
            self._reader_timer = _stopped(self._reader_timer)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self._watch_reader()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._watch_reader()

    def send_400_response(self, msg: str) -> None:
        """uvicorn calls this where it handles h11's error, which says what else than 400 it may be."""
        status = getattr(sys.exception(), "error_status_hint", 400)
        self._refuse(_header_too_large() if status == 431 else ApiError(400, "this is not HTTP/1.1", code="bad_http"))

    def _watch_header(self) -> None:
        """Between requests the next one's header, and what is left of the last one's body, must come in time."""
        if self.transport.is_closing() or not (self.cycle is None or self.cycle.response_complete):
            self._header_timer = _stopped(self._header_timer)
        elif self._header_timer is None:
            self._header_timer = self.loop.call_later(self._limits.header_s, self._header_is_late)

    def _header_is_late(self) -> None:
        self._header_timer = None
        begun = bool(self.conn.trailing_data[0])
        message = f"the header did not arrive within {self._limits.header_s:g} s"
        self._refuse(ApiError(408, message, code="request_timeout") if begun else None)

    def _watch_reader(self) -> None:
        """What waits in the buffer must go out in time, also when the connection is closed behind it."""
        if self._reader_timer is None:
            self._reader_timer = self.loop.call_later(self._limits.reader_s, self.transport.abort)

    def _refuse(self, problem: ApiError | None) -> None:
        """Close the connection, with the reason if nothing else has been begun."""
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if problem is not None and self.conn.our_state in _TELLABLE:
            self._tell(problem)
        self.transport.close()
        self._watch_reader()

    def _tell(self, problem: ApiError) -> None:
        payload = json.dumps(problem.body).encode()
        headers = {"content-type": "application/json", "content-length": str(len(payload)), "connection": "close"}
        raw = [(name.encode(), value.encode()) for name, value in {**headers, **problem.headers}.items()]
        for event in (h11.Response(status_code=problem.status, headers=raw), h11.Data(payload), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")


def bounded_headers(app: ASGIApp, limits: ConnectionLimits) -> ASGIApp:
    """The application for headers within the limits; h11 bounds only what it has to wait for."""

    async def bounded(scope: Scope, receive: Receive, send: Send) -> None:
        headers = scope.get("headers", ())
        size = sum(len(name) + len(value) for name, value in headers) + len(scope.get("raw_path", b""))
        if len(headers) > limits.header_fields or size > limits.header_bytes:
            problem = _header_too_large()
            await JSONResponse(problem.body, problem.status, {"connection": "close"})(scope, receive, send)
        else:
            await app(scope, receive, send)

    return bounded


def _header_too_large() -> ApiError:
    return ApiError(431, "the request's header is too large, or has too many fields", code="header_too_large")


def _stopped(timer: asyncio.TimerHandle | None) -> asyncio.TimerHandle | None:
    """None, as what is stopped is not there any more."""
    if timer is not None:
        timer.cancel()
    return None
