"""One request on its way through the gateway, as an ASGI response.

It watches its client all the time, so that an answer nobody waits for any more is cancelled at the head at once and
not at the next token. An error before the first byte is JSON with its status; after it, an SSE event.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from time import monotonic
from typing import Literal

import httpx
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from orchestrator.gateway.api_error import ApiError, unavailable
from orchestrator.gateway.events import Answer, error_event, whole_events
from orchestrator.gateway.fields import Body
from orchestrator.gateway.head import HEAD_DOWN, Head, lost, read_answer
from orchestrator.gateway.line import Line
from orchestrator.gateway.routing import Router, Ticket, read_question
from orchestrator.gateway.state import Counters

FAREWELL_S = 1.0
"""How long a stopping gateway tries to tell a client that does not read."""

ANSWERED_BY = "x-meshctl-head"
"""The header that names the head which answered."""

_STREAM_HEADERS = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}


class Relay(Response):
    """Passes `body` to the `path` of a head and the answer back, as long as the `client` is there.

    It waits in the line for its turn; then the router chooses the head, and one that cannot be reached at all is passed
    over for the next best. `body_bytes` is the size of the body as it came.
    """

    def __init__(
        self,
        heads: Mapping[str, Head],
        router: Router,
        line: Line,
        path: str,
        body: Body,
        counters: Counters,
        *,
        client: str,
        body_bytes: int,
        reader_s: float,
    ) -> None:
        super().__init__()
        self._heads = heads
        self._router = router
        self._line = line
        self._path = path
        self._question = body
        self._counters = counters
        self._client = client
        self._body_bytes = body_bytes
        self._reader_s = reader_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        work = asyncio.create_task(self._run(_Out(send, self._reader_s)))
        leaving = asyncio.create_task(_client_leaves(receive))
        # A cancelled request is one whose gateway stops: `work` tells the client so, and nothing is left to cancel.
        with suppress(asyncio.CancelledError):
            await asyncio.wait((work, leaving), return_when=asyncio.FIRST_COMPLETED)
        work.cancel()
        leaving.cancel()
        await asyncio.wait((work, leaving))
        work.result()

    async def _run(self, out: "_Out") -> None:
        answer = Answer(str(self._question["model"]))
        end: Literal["finished", "failed", "cancelled"] = "failed"
        begun, choices, arrived_s = False, self._question.get("n"), monotonic()
        self._counters.arrive()
        try:
            slots = choices if isinstance(choices, int) else 1
            async with _telling(out), self._line.turn(self._client, slots=slots, body_bytes=self._body_bytes):
                self._counters.begin()
                begun = True
                await self._answer(out, answer, arrived_s)
                end = "failed" if answer.failed else "finished"
            if end == "finished":
                self._counters.request_s.observe(monotonic() - arrived_s)
        except ReaderGoneError:
            end = "cancelled"
        except asyncio.CancelledError:
            end = "cancelled"
            await _say_farewell(out)
        finally:
            self._counters.end(end, answer.tokens.prompt, answer.tokens.generated, begun=begun)

    async def _answer(self, out: "_Out", answer: Answer, arrived_s: float) -> None:
        async with self._asked(answer) as (name, response):
            if self._question.get("stream"):
                await self._stream(name, response, out, answer, arrived_s)
                return
            whole = read_answer(await self._heads[name].read(response))
        answer.tokens.see(whole)
        await out.json(200, {**whole, "model": self._question["model"]}, {ANSWERED_BY: name})

    @asynccontextmanager
    async def _asked(self, answer: Answer) -> AsyncIterator[tuple[str, httpx.Response]]:
        """A head that has taken the question, by name, and the answer it begins with."""
        question, down = read_question(self._question), list[str]()
        async with AsyncExitStack() as stack:
            while True:
                ticket = self._router.choose(question, monotonic(), without=down)
                assert ticket is not None, "the last head that is down has raised"
                stack.callback(self._router.release, ticket)
                asking = self._heads[ticket.head].ask(self._path, self._question)
                try:
                    response = await stack.enter_async_context(asking)
                except ApiError as problem:
                    down.append(ticket.head)
                    if problem.code == HEAD_DOWN:
                        self._router.lost(ticket, monotonic())
                    if problem.code != HEAD_DOWN or len(down) == len(self._heads):
                        raise
                else:
                    stack.callback(self._release, ticket, answer)  # before the callback above: ends run backwards
                    yield ticket.head, response
                    return

    def _release(self, ticket: Ticket, answer: Answer) -> None:
        """At the end of the request, when its timings are known."""
        self._router.release(ticket, answer.tokens.timings)

    async def _stream(self, name: str, response: httpx.Response, out: "_Out", answer: Answer, arrived_s: float) -> None:
        await out.begin_stream({ANSWERED_BY: name})
        silent = True
        async for event in whole_events(self._heads[name].chunks(response)):
            if passed := answer.see(event):
                await out.event(passed)
            if silent and answer.tokens.generated:
                silent = False
                self._counters.first_token_s.observe(monotonic() - arrived_s)
        if not answer.ended:
            raise lost()
        await out.end()


@asynccontextmanager
async def _telling(out: "_Out") -> AsyncIterator[None]:
    """What goes wrong is told to the client."""
    try:
        yield
    except ApiError as problem:
        await out.fail(problem)


async def _client_leaves(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _say_farewell(out: "_Out") -> None:
    """When it is the client who has left, this goes nowhere."""
    with suppress(TimeoutError):
        async with asyncio.timeout(FAREWELL_S):
            await out.fail(unavailable("the gateway stops", code="stopping"))


class ReaderGoneError(Exception):
    """The client has taken nothing for too long: its answer is given up, and its slot is free for others."""


class _Out:
    """The response to the client, which remembers how far it is.

    What is not read yet is held in buffers of a bounded size; then nothing more is taken from the head either.
    """

    def __init__(self, send: Send, reader_s: float) -> None:
        self._to_client = send
        self._reader_s = reader_s
        self._begun = False
        self._ended = False

    async def json(self, status: int, body: Mapping[str, object], headers: Mapping[str, str]) -> None:
        payload = json.dumps(body).encode()
        length = {"content-type": "application/json", "content-length": str(len(payload))}
        await self._begin(status, {**length, **headers})
        await self._body(payload, more=False)

    async def begin_stream(self, headers: Mapping[str, str]) -> None:
        await self._begin(200, {**_STREAM_HEADERS, "x-accel-buffering": "no", **headers})

    async def event(self, event: bytes) -> None:
        await self._body(event, more=True)

    async def end(self) -> None:
        await self._body(b"", more=False)

    async def fail(self, problem: ApiError) -> None:
        """An error, in the form that is still possible."""
        if not self._begun:
            await self.json(problem.status, problem.body, problem.headers)
        elif not self._ended:
            await self._body(error_event(problem), more=False)

    async def _begin(self, status: int, headers: Mapping[str, str]) -> None:
        self._begun = True
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})

    async def _body(self, payload: bytes, *, more: bool) -> None:
        self._ended = not more
        await self._send({"type": "http.response.body", "body": payload, "more_body": more})

    async def _send(self, message: Message) -> None:
        try:
            async with asyncio.timeout(self._reader_s):
                await self._to_client(message)
        except TimeoutError as error:
            raise ReaderGoneError from error
