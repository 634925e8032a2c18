"""Server-sent events of the head: cut at their ends, understood as far as the gateway must; no I/O."""

import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.gateway.api_error import ApiError

DONE = b"data: [DONE]\n\n"


async def whole_events(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Each event with its closing blank line; an event cut short by the end of the stream is dropped."""
    rest = b""
    async for chunk in chunks:
        *events, rest = (rest + chunk).split(b"\n\n")
        for event in events:
            if event:
                yield event + b"\n\n"


def error_event(problem: ApiError) -> bytes:
    """How an error is told once the status line is out: what OpenAI's clients raise as an API error."""
    return b"data: " + json.dumps(problem.body).encode() + b"\n\n"


@dataclass
class Tokens:
    """The tokens of one answer, counted by the head's own timings, else by the pieces of text that came."""

    prompt: int = 0
    timings: Mapping[str, Any] = field(default_factory=dict)
    _pieces: dict[int, int] = field(default_factory=dict)
    _timed: dict[int, int] = field(default_factory=dict)

    @property
    def generated(self) -> int:
        return sum(max(self._pieces.get(index, 0), self._timed.get(index, 0)) for index in self._pieces | self._timed)

    def see(self, answer: Mapping[str, Any]) -> None:
        """Take one chunk of a stream, or a whole answer, into account."""
        choices = answer.get("choices") or []
        index = choices[0].get("index", 0) if choices else 0
        if any(_has_text(choice) for choice in choices):
            self._pieces[index] = self._pieces.get(index, 0) + 1
        if timings := answer.get("timings"):
            self._timed[index] = int(timings.get("predicted_n", 0))
            self.prompt = int(timings.get("prompt_n", 0))
            self.timings = timings


class Answer:
    """One streamed answer as it passes by: its tokens, and whether the head has brought it to an end."""

    def __init__(self, model: str) -> None:
        self.tokens = Tokens()
        self.ended = False
        self.failed = False
        self._model = model

    def see(self, event: bytes) -> bytes | None:
        """What to send on for this event; None for the head's empty `data: null`, which breaks clients."""
        if event == DONE:
            self.ended = True
            return event
        payload = event.removeprefix(b"data:").strip()
        if not event.startswith(b"data:"):
            return event
        try:
            chunk = json.loads(payload)
        except ValueError:
            return None
        return self._see_chunk(chunk, event) if isinstance(chunk, dict) else None

    def _see_chunk(self, chunk: dict[str, Any], event: bytes) -> bytes:
        if "error" in chunk:
            self.ended = self.failed = True
            return event
        self.tokens.see(chunk)
        if chunk.get("model") == self._model:
            return event
        return b"data: " + json.dumps({**chunk, "model": self._model}).encode() + b"\n\n"


def _has_text(choice: Mapping[str, Any]) -> bool:
    delta = choice.get("delta") or {}
    return bool(choice.get("text") or delta.get("content") or delta.get("reasoning_content") or delta.get("tool_calls"))
