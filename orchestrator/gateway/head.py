"""Questions to the head, and what its failures mean to whoever asked the gateway. No answer is waited for for ever.

The head sends a comment every few seconds while it reads a prompt or generates, so silence inside a stream means that
it is gone. Before the status line it is silent while a request queues for a slot, and a whole answer without streaming
comes only at its end: there the request's own deadline (`relay`) is the only one. Whether the head computes at all is
the supervisor's to watch.
"""

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import h11

from orchestrator.gateway.api_error import ApiError, unavailable
from orchestrator.gateway.events import is_answer
from orchestrator.gateway.exchange import Exchange, exchange
from orchestrator.gateway.fields import Body

_BROKEN = (OSError, h11.ProtocolError)


@dataclass(frozen=True)
class Deadlines:
    """How long the gateway waits: for a connection to a head, inside a stream, for a body, and for a whole answer."""

    connect_s: float = 5.0
    silence_s: float = 120.0
    body_s: float = 60.0
    answer_s: float = 3600.0


@dataclass(frozen=True)
class Head:
    """The `llama-server` behind the gateway at this address, with its own key. Each request has its own connection,
    since closing it is what cancels the request, and a kept one may belong to a head that has been replaced."""

    url: str
    key: str = field(repr=False)
    deadlines: Deadlines

    @asynccontextmanager
    async def ask(self, path: str, body: Body) -> AsyncIterator[Exchange]:
        """The head's answer with status 200, its body still to be read; an ApiError for everything else."""
        async with AsyncExitStack() as stack:
            try:
                answer = await stack.enter_async_context(exchange(self.url, within_s=self.deadlines.connect_s))
            except OSError as error:
                raise down() from error
            status = await self._status(answer, path, body)
            if status != 200:
                raise _refusal(status, await self.read(answer))
            yield answer

    async def read(self, answer: Exchange) -> bytes:
        """The whole body of an answer."""
        try:
            return await answer.whole()
        except _BROKEN as error:
            raise lost() from error

    async def chunks(self, answer: Exchange) -> AsyncIterator[bytes]:
        """The body as it comes; it simply ends when the head is gone or silent for too long."""
        with answer.given_up_after(self.deadlines.silence_s), suppress(*_BROKEN):
            async for part in answer.parts():
                yield part

    async def _status(self, answer: Exchange, path: str, body: Body) -> int:
        headers = {
            "host": "head",
            "authorization": f"Bearer {self.key}",
            "content-type": "application/json",
        }
        try:
            return await answer.ask(path, headers, json.dumps(body).encode(), within_s=self.deadlines.body_s)
        except _BROKEN as error:
            raise lost() from error


HEAD_DOWN = "head_down"
"""The code of the error for a head that could not be reached: nothing has been asked of it."""

HEAD_LOST = "head_lost"
"""The code of the error for a head that was lost while it answered."""


def down() -> ApiError:
    """No head could be reached: nothing has been asked of one."""
    return unavailable("the model's head cannot be reached; it may be restarting", code=HEAD_DOWN)


def lost() -> ApiError:
    """The head was lost in the middle of an answer."""
    message = "the model's head was lost before the answer was complete; ask again"
    return ApiError(502, message, kind="server_error", code=HEAD_LOST)


def read_answer(raw: bytes) -> dict[str, Any]:
    """A whole answer of the head."""
    try:
        answer = json.loads(raw)
    except ValueError as error:
        raise lost() from error
    if not isinstance(answer, dict) or not is_answer(answer):
        raise lost()
    return answer


def _refusal(status: int, raw: bytes) -> ApiError:
    """The head's own error in OpenAI's shape. That it refuses the gateway's key is no fault of the client's."""
    try:
        error = json.loads(raw)["error"]
        message, kind = str(error["message"]), str(error["type"])
    except (ValueError, TypeError, LookupError):
        return _head_error(f"the head answered with status {status} and no reason")
    match kind:
        case "exceed_context_size_error":
            return _context_full(error)
        case "authentication_error":
            return _head_error("the head refuses the gateway's own key")
        case "unavailable_error":
            return unavailable(f"the head is not ready: {message}", code="head_not_ready")
    return _head_error(message) if status >= 500 else ApiError(400, message, kind=kind)


def _head_error(message: str) -> ApiError:
    return ApiError(502, message, kind="server_error", code="head_error")


def _context_full(error: dict[str, Any]) -> ApiError:
    tokens, context = error.get("n_prompt_tokens"), error.get("n_ctx")
    message = (
        f"the request has {tokens} tokens, but a conversation may hold {context}; "
        "shorten it, or raise `context` in the inventory and start the cluster again"
    )
    more = {"n_prompt_tokens": tokens, "n_ctx": context}
    return ApiError(400, message, param="messages", code="context_length_exceeded", more=more)
