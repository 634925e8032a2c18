"""Asks a gateway, for `chat`, `bench` and `status`: typed values out, every failure a GatewayError with the next move.

Knows HTTP and the gateway's shapes only; nothing about terminals or clusters.
"""

import json
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import httpx

from orchestrator.errors import GatewayError
from orchestrator.gateway.tls import pinning_context

CONNECT_S = 5.0
READ_S = 86_460.0
"""Longer than any `gateway.deadline`, so that the gateway is the one to say what went wrong."""


@dataclass(frozen=True)
class Message:
    """One message of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True)
class PromptProgress:
    """The head has read `processed` of the prompt's `total` tokens."""

    processed: int
    total: int


@dataclass(frozen=True)
class Thought:
    """A piece of what the model thinks before it answers."""

    text: str


@dataclass(frozen=True)
class TextDelta:
    """A piece of the answer."""

    text: str


@dataclass(frozen=True)
class FinishReason:
    """Why the answer ended: "stop", or "length" when it hit `max_tokens` or the end of the context."""

    reason: str


@dataclass(frozen=True)
class Usage:
    """Tokens of the whole prompt, cached ones included, and of the answer."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Timings:
    """The engine's own figures: tokens read (`prompt_n`; `cache_n` more were cached) and generated, and per second."""

    prompt_n: int
    prompt_per_second: float
    predicted_n: int
    predicted_per_second: float
    cache_n: int = 0


ChatEvent = PromptProgress | Thought | TextDelta | FinishReason | Usage | Timings


@dataclass(frozen=True)
class ServedModel:
    """The model a gateway serves; `context` is the tokens one conversation may hold, None when it does not say."""

    name: str
    context: int | None


class GatewayClient:
    """Talks with one gateway; use as an async context manager. `url` is without the /v1.

    `certificate` is the file with the only certificate that is trusted; without one, those of the system's authorities.
    """

    def __init__(self, url: str, key: str, *, certificate: Path | None = None) -> None:
        self.url = url
        self._http = httpx.AsyncClient(
            base_url=url,
            headers={"authorization": f"Bearer {key}"},
            timeout=httpx.Timeout(READ_S, connect=CONNECT_S),
            trust_env=False,
            verify=True if certificate is None else _pinned(certificate),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def model(self) -> ServedModel:
        """The model that is served."""
        async with self._ask("GET", "/v1/models", None) as response:
            listed = _object(await response.aread())
        try:
            entry = listed["data"][0]
            return ServedModel(str(entry["id"]), entry.get("context_length"))
        except (LookupError, TypeError, AttributeError) as error:
            raise GatewayError(f"{self.url} lists no model", hint="is this the address of a gateway?") from error

    async def chat(
        self,
        messages: Sequence[Message],
        *,
        temperature: float | None = None,
        max_tokens: int | None = None,
        seed: int | None = None,
    ) -> AsyncGenerator[ChatEvent, None]:
        """The events of one answer, as they come. Leaving the loop early (`aclose`) cancels the answer at the head."""
        options = {"temperature": temperature, "max_tokens": max_tokens, "seed": seed}
        body = {
            "messages": [asdict(message) for message in messages],
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_progress": True,
            **{name: value for name, value in options.items() if value is not None},
        }
        async with self._ask("POST", "/v1/chat/completions", body) as response:
            async for chunk in self._chunks(response):
                for event in read_chunk(chunk):
                    yield event

    @asynccontextmanager
    async def _ask(self, method: str, path: str, body: Mapping[str, object] | None) -> AsyncIterator[httpx.Response]:
        """A response with status 200, its body still to be read."""
        try:
            async with self._http.stream(method, path, json=body) as response:
                if response.status_code != 200:
                    raise self._refusal(response.status_code, await response.aread())
                yield response
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            if _is_about_the_certificate(error):
                message = f"what answers at {self.url} does not show the certificate of this cluster"
                raise GatewayError(message, hint=_OTHER_CERTIFICATE) from error
            hint = "is the cluster up? `meshctl status` says; `meshctl up` starts it"
            raise GatewayError(f"nothing answers at {self.url}", hint=hint) from error
        except httpx.HTTPError as error:
            raise _broken_off(self.url) from error

    async def _chunks(self, response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
        async for line in response.aiter_lines():
            if line == "data: [DONE]":
                return
            if line.startswith("data:"):
                chunk = _object(line.removeprefix("data:").encode())
                if "error" in chunk:
                    raise self._told(chunk["error"])
                yield chunk
        raise _broken_off(self.url)

    def _refusal(self, status: int, raw: bytes) -> GatewayError:
        body = _object(raw)
        if "error" in body:
            return self._told(body["error"])
        return GatewayError(f"{self.url} answered with status {status}", hint="is this the address of a gateway?")

    def _told(self, error: object) -> GatewayError:
        """What the gateway itself says is wrong."""
        told = error if isinstance(error, dict) else {}
        message = str(told.get("message", error))
        code = str(told.get("code"))
        fraction = told.get("fraction")
        if isinstance(fraction, int | float):
            message = f"{message} ({fraction:.0%})"
        return GatewayError(message, hint=_HINTS.get(code, ""))


_OTHER_CERTIFICATE = "another program may listen there: `meshctl status` shows the fingerprint that it should have"


def _pinned(certificate: Path) -> ssl.SSLContext:
    try:
        return pinning_context(certificate)
    except (OSError, ValueError) as error:
        hint = "`meshctl up` writes it each time it opens the gateway"
        raise GatewayError(f"{certificate}: the gateway's certificate cannot be read: {error}", hint=hint) from error


def _is_about_the_certificate(error: BaseException | None) -> bool:
    """The libraries between wrap the reason, each in an error of its own."""
    while error is not None and not isinstance(error, ssl.SSLCertVerificationError):
        error = error.__cause__ or error.__context__
    return error is not None


_HINTS = {
    "invalid_api_key": "the key is in the cluster's state folder; `meshctl status` shows where",
    "context_length_exceeded": "start a new conversation (/reset in the chat) or send less text",
    "starting": "wait until it is ready; `meshctl status` shows how far it is",
    "recovering": "wait until it is ready; `meshctl status` shows how far it is",
    "stopping": "`meshctl up` starts it again",
    "head_down": "wait a little and ask again; `meshctl status` says what the cluster does",
    "head_lost": "ask again; `meshctl status` and `meshctl logs HOST` say what happened",
    "deadline_exceeded": "`meshctl status` says how fast it computes; raise `gateway.deadline` for slow machines",
}


def read_chunk(chunk: Mapping[str, Any]) -> list[ChatEvent]:
    """The events in one chunk of a stream, in the order in which they happened."""
    events: list[ChatEvent] = []
    if progress := chunk.get("prompt_progress"):
        events.append(PromptProgress(progress["processed"], progress["total"]))
    for choice in chunk.get("choices") or []:
        delta = choice.get("delta") or {}
        if thought := delta.get("reasoning_content"):
            events.append(Thought(thought))
        if text := delta.get("content"):
            events.append(TextDelta(text))
        if reason := choice.get("finish_reason"):
            events.append(FinishReason(reason))
    if usage := chunk.get("usage"):
        events.append(Usage(usage["prompt_tokens"], usage["completion_tokens"]))
    if timings := chunk.get("timings"):
        events.append(_timings(timings))
    return events


def _timings(timings: Mapping[str, Any]) -> Timings:
    return Timings(
        prompt_n=timings["prompt_n"],
        prompt_per_second=timings["prompt_per_second"],
        predicted_n=timings["predicted_n"],
        predicted_per_second=timings["predicted_per_second"],
        cache_n=timings.get("cache_n", 0),
    )


def _object(raw: bytes) -> dict[str, Any]:
    """A JSON object, or an empty one for anything else."""
    try:
        value = json.loads(raw)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _broken_off(url: str) -> GatewayError:
    message = f"the connection to {url} broke off before the answer was complete"
    return GatewayError(message, hint="ask again; `meshctl status` says whether the cluster is still up")
