"""One request on its way through the gateway, as an ASGI response.

It watches its client all the time, so that an answer nobody waits for any more is cancelled at the head at once and
not at the next token. An error before the first byte is JSON with its status; after it, an SSE event.
"""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from time import monotonic
from typing import Literal

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from orchestrator.gateway.api_error import ApiError, bad_field, unavailable
from orchestrator.gateway.backends import Backends
from orchestrator.gateway.events import Answer, error_event, whole_events
from orchestrator.gateway.exchange import Exchange
from orchestrator.gateway.fields import Body
from orchestrator.gateway.head import HEAD_DOWN, HEAD_LOST, Head, down, lost, read_answer
from orchestrator.gateway.resume import continued, is_complete
from orchestrator.gateway.routing import Router, Ticket, choices_of, read_question
from orchestrator.gateway.state import Counters

FAREWELL_S = 1.0
"""How long a stopping gateway tries to tell a client that does not read."""

MOST_ATTEMPTS = {HEAD_DOWN: 10, HEAD_LOST: 2}
"""How often a request is asked without any text: one that was with a head when that was lost may be what ended it."""

GONE = frozenset({HEAD_DOWN, HEAD_LOST})
"""Whoever asks next is better off with another head. A remote one that has ended is reached as long as its tunnel."""

MOST_HEADS = 5
"""So many heads may be lost under one answer, however much each of them has said."""

LIFE_SIGN_S = 5.0
NOTICED_S = 0.5
"""After so long the supervisor has noticed, too, and nobody is let in to a head that is gone."""

ANSWERED_BY = "x-meshctl-head"
"""The header that names the head which answered."""

_STREAM_HEADERS = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}


class Relay(Response):
    """Passes `body` to the `path` of a head and the answer back, as long as the `client` is there.

    It waits in the line for its turn; then the router chooses the head, and one that cannot be reached at all is passed
    over for the next best. When the head is lost before any of its answer has been passed on, the request goes back to
    the line and is asked again: the client notices nothing but the time. `body_bytes` is the body's size as it came;
    whatever happens the answer has ended, or it is said why not, after `answer_s`.
    """

    def __init__(
        self,
        backends: Backends,
        path: str,
        body: Body,
        counters: Counters,
        *,
        client: str,
        body_bytes: int,
        answer_s: float,
    ) -> None:
        super().__init__()
        self._backends = backends
        self._path = path
        # Heads are asked to count their tokens as they go: a piece of text may be several of them.
        self._question: Body = {**body, **({"timings_per_token": True} if body.get("stream") else {})}
        self._timings = bool(body.get("timings_per_token"))
        self._asking = self._question
        self._counters = counters
        self._client = client
        self._body_bytes = body_bytes
        self._answer_s = answer_s
        self._arrived_s = monotonic()
        self._begun = False
        self._had_turn = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        work = asyncio.create_task(self._run(_Out(send)))
        leaving = asyncio.create_task(_client_leaves(receive))
        # A cancelled request is one whose gateway stops: `work` tells the client so, and nothing is left to cancel.
        with suppress(asyncio.CancelledError):
            await asyncio.wait((work, leaving), return_when=asyncio.FIRST_COMPLETED)
        work.cancel()
        leaving.cancel()
        await asyncio.wait((work, leaving))
        work.result()

    async def _run(self, out: "_Out") -> None:
        answer = Answer(str(self._question["model"]), timings=self._timings, choices=choices_of(self._question))
        end: Literal["finished", "failed", "cancelled"] = "failed"
        self._counters.arrive()
        try:
            async with _telling(out), _in_time(self._answer_s):
                await self._until_answered(out, answer)
                end = "failed" if answer.failed else "finished"
                self._counters.request_s.observe(monotonic() - self._arrived_s)
        except asyncio.CancelledError:
            end = "cancelled"
            await _say_farewell(out)
        finally:
            self._counters.end(end, answer.tokens.prompt, answer.tokens.generated, begun=self._begun)

    async def _until_answered(self, out: "_Out", answer: Answer) -> None:
        """By the first head that does; asked again as long as nobody can have noticed."""
        attempts, heard, heads = Counter[str | None](), 0, 0
        while True:
            try:
                await self._in_turn(out, answer)
            except ApiError as problem:
                heads += problem.code == HEAD_LOST
                if answer.tokens.generated > heard and heads < MOST_HEADS:
                    heard = answer.tokens.generated
                    attempts.clear()
                attempts[problem.code] += 1
                if attempts[problem.code] >= MOST_ATTEMPTS.get(problem.code or "", 1):
                    raise
                if answer.tokens.generated and await self._is_over(out, answer, problem):
                    return
                if problem.code == HEAD_LOST and not answer.tokens.generated:
                    self._counters.replay()
                self._counters.wait_again()
                self._begun = False
                await asyncio.sleep(NOTICED_S)
            else:
                return

    async def _is_over(self, out: "_Out", answer: Answer, problem: ApiError) -> bool:
        """Work out how another head can go on with what has been passed on; raises `problem` where none can.

        Whether nothing was left to say.
        """
        if not answer.stopped:
            said = answer.text, answer.tokens.generated
            asking = continued(self._path, self._question, *said) if answer.plain else None
            if asking is None:
                raise problem
            if not is_complete(asking):
                answer.go_on()
                self._counters.resume()
                self._asking = asking
                return False
        await out.end(answer.end("length", usage=_wants_usage(self._question)))
        return True

    async def _in_turn(self, out: "_Out", answer: Answer) -> None:
        slots, serving = choices_of(self._question), self._backends.serving
        if serving is not None:  # it is at one head, and what goes beyond that one's slots waits there
            slots = min(slots, max(1, serving.most_choices))
        turn = self._backends.line.turn(self._client, slots=slots, body_bytes=self._body_bytes, again=self._had_turn)
        async with AsyncExitStack() as stack:
            async with _alive(out):
                await stack.enter_async_context(turn)
            self._counters.begin()
            self._begun = self._had_turn = True
            await self._answer(out, answer)

    async def _answer(self, out: "_Out", answer: Answer) -> None:
        asked_s = monotonic()
        async with self._asked(answer) as (name, head, response):
            with self._counters.at_head(name):
                if self._question.get("stream"):
                    await self._stream(head, name, response, out, answer)
                    return
                whole = read_answer(await head.read(response))
        answer.tokens.see(whole)
        self._counters.generate(name, answer.tokens.generated, monotonic() - asked_s)
        await out.json(200, {**whole, "model": self._question["model"]}, {ANSWERED_BY: name})

    @asynccontextmanager
    async def _asked(self, answer: Answer) -> AsyncIterator[tuple[str, Head, Exchange]]:
        """A head that has taken the question, with its name, and the answer it begins with.

        Which heads there are is asked each time: they come and go.
        """
        question, tried = read_question(self._asking), list[str]()
        async with AsyncExitStack() as stack:
            while True:
                serving = self._backends.serving
                if serving is None:  # they were taken away since it was let in
                    raise down()
                router = serving.router
                ticket = router.choose(question, monotonic(), without=tried)
                if ticket is None and tried:  # none is left
                    raise down()
                if ticket is None:
                    raise bad_field("n", f"no head takes more than {serving.most_choices} choices at once now")
                stack.callback(router.release, ticket)
                head = serving.heads[ticket.head]
                try:
                    response = await stack.enter_async_context(head.ask(self._path, self._asking))
                except ApiError as problem:
                    tried.append(ticket.head)
                    if problem.code in GONE:
                        router.lost(ticket, monotonic())
                    if problem.code != HEAD_DOWN:
                        raise
                else:
                    stack.callback(_release, router, ticket, answer)  # before the callback above: ends run backwards
                    try:
                        yield ticket.head, head, response
                    except ApiError as problem:
                        if problem.code in GONE:
                            router.lost(ticket, monotonic())
                        raise
                    return

    async def _stream(self, head: Head, name: str, response: Exchange, out: "_Out", answer: Answer) -> None:
        beginning = _Beginning(answer)
        async for events in whole_events(head.chunks(response)):
            before = answer.tokens.generated
            passed = b"".join(map(beginning.let_out, events))
            generated = answer.tokens.generated
            self._counters.generate(name, generated - before)
            if generated and not before:
                self._counters.first_token_s.observe(monotonic() - self._arrived_s)
            await out.begin_stream({ANSWERED_BY: name})
            if answer.ended:
                await out.end(passed)
                return
            if passed:
                await out.event(passed)
        raise lost()


class _Beginning:
    """What comes before a head's first text is held back until that is there, but for signs of life and progress.

    Of a head that goes on with another one's answer it is left out: it has been said.
    """

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._before = answer.tokens.generated
        self._held = list[bytes]()
        self._over = False

    def let_out(self, event: bytes) -> bytes:
        """What to send on at this event of the head."""
        answer = self._answer
        passed = answer.see(event) or b""
        if self._over or not passed:
            return passed
        if answer.tokens.generated == self._before and not (answer.ended or answer.stopped):
            if event.startswith(b":") or b'"prompt_progress"' in event:
                return passed
            self._held.append(passed)
            return b""
        self._over = True
        return passed if self._before else b"".join([*self._held, passed])


def _wants_usage(question: Body) -> bool:
    options = question.get("stream_options")
    return isinstance(options, dict) and bool(options.get("include_usage"))


def _release(router: Router, ticket: Ticket, answer: Answer) -> None:
    """At the end of the request, when its timings are known."""
    router.release(ticket, answer.tokens.timings)


@asynccontextmanager
async def _alive(out: "_Out") -> AsyncIterator[None]:
    """Meanwhile tell the client of a stream that has begun that it is not forgotten."""

    async def tell() -> None:
        while True:
            await asyncio.sleep(LIFE_SIGN_S)
            await out.event(b": the answer goes on when the cluster has recovered\n\n")

    telling = asyncio.create_task(tell()) if out.begun else None
    try:
        yield
    finally:
        if telling is not None:
            telling.cancel()
            await asyncio.wait((telling,))


@asynccontextmanager
async def _telling(out: "_Out") -> AsyncIterator[None]:
    """What goes wrong is told to the client."""
    try:
        yield
    except ApiError as problem:
        await out.fail(problem)


@asynccontextmanager
async def _in_time(seconds: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        message = f"the answer was not complete within {seconds:g} s (`gateway.deadline` in the inventory)"
        raise ApiError(504, message, kind="server_error", code="deadline_exceeded") from error


async def _client_leaves(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _say_farewell(out: "_Out") -> None:
    """When it is the client who has left, this goes nowhere."""
    with suppress(TimeoutError):
        async with asyncio.timeout(FAREWELL_S):
            await out.fail(unavailable("the gateway stops", code="stopping"))


class _Out:
    """The response to the client, which remembers how far it is.

    What is not read yet is held in buffers of a bounded size; then nothing more is taken from the head either. A client
    that reads nothing for long is disconnected (`connections`).
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self.begun = False
        self._ended = False

    async def json(self, status: int, body: Mapping[str, object], headers: Mapping[str, str]) -> None:
        payload = json.dumps(body).encode()
        length = {"content-type": "application/json", "content-length": str(len(payload))}
        await self._begin(status, {**length, **headers})
        await self._body(payload, more=False)

    async def begin_stream(self, headers: Mapping[str, str]) -> None:
        """Once; a request that is asked again goes on with what has begun."""
        if self.begun:
            return
        await self._begin(200, {**_STREAM_HEADERS, "x-accel-buffering": "no", **headers})

    async def event(self, event: bytes) -> None:
        await self._body(event, more=True)

    async def end(self, event: bytes) -> None:
        """With the last event goes the end of the response: clients that have `[DONE]` wait for no more."""
        await self._body(event, more=False)

    async def fail(self, problem: ApiError) -> None:
        """An error, in the form that is still possible."""
        if not self.begun:
            await self.json(problem.status, problem.body, problem.headers)
        elif not self._ended:
            await self._body(error_event(problem), more=False)

    async def _begin(self, status: int, headers: Mapping[str, str]) -> None:
        self.begun = True
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})

    async def _body(self, payload: bytes, *, more: bool) -> None:
        self._ended = not more
        await self._send({"type": "http.response.body", "body": payload, "more_body": more})
