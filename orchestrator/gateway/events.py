"""Server-sent events of the head: cut at their ends, understood as far as the gateway must; no I/O."""

import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ValidationError

from orchestrator.gateway.api_error import ApiError
from orchestrator.gateway.pieces import Alike, Chunk, alike_to

DONE = b"data: [DONE]\n\n"


async def whole_events(chunks: AsyncIterator[bytes]) -> AsyncIterator[list[bytes]]:
    """Those that came together, each with its closing blank line; one cut short by the end of the stream is dropped."""
    rest = b""
    async for chunk in chunks:
        *events, rest = (rest + chunk).split(b"\n\n")
        if whole := [event + b"\n\n" for event in events if event]:
            yield whole


class _Delta(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    index: int = 0
    text: str | None = None
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Timings(BaseModel):
    prompt_n: int = 0
    predicted_n: int = 0


class _Usage(BaseModel):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Chunk(BaseModel):
    choices: list[_Choice] | None = None
    timings: _Timings | None = None
    usage: _Usage | None = None


def is_answer(chunk: object) -> bool:
    """Whether all that is looked at here is of its kind, in a whole answer of a head or in a piece of one."""
    try:
        _Chunk.model_validate(chunk)
    except ValidationError:
        return False
    return True


def error_event(problem: ApiError) -> bytes:
    """How an error is told once the status line is out: what OpenAI's clients raise as an API error."""
    return _event(problem.body)


@dataclass
class Tokens:
    """The tokens of one answer, counted by the head's own timings, else by the pieces of text that came."""

    prompt: int = 0
    timings: Mapping[str, Any] = field(default_factory=dict)
    before: int = 0
    """Of earlier heads, which were lost."""

    _pieces: dict[int, int] = field(default_factory=dict)
    _timed: dict[int, int] = field(default_factory=dict)

    @property
    def generated(self) -> int:
        return self.before + sum(
            max(self._pieces.get(index, 0), self._timed.get(index, 0)) for index in self._pieces | self._timed
        )

    def see(self, answer: Mapping[str, Any]) -> None:
        """Take one chunk of a stream, or a whole answer, into account."""
        choices = answer.get("choices") or []
        index = choices[0].get("index", 0) if choices else 0
        self._count(index, any(_has_text(choice) for choice in choices), answer.get("timings"))

    def see_piece(self, timings: Mapping[str, Any] | None) -> None:
        """Take a piece of text of the only choice into account."""
        self._count(0, True, timings)

    def _count(self, index: int, has_text: bool, timings: Mapping[str, Any] | None) -> None:
        if has_text:
            self._pieces[index] = self._pieces.get(index, 0) + 1
        if timings:
            self._timed[index] = int(timings.get("predicted_n", 0))
            self.prompt = int(timings.get("prompt_n", 0))
            self.timings = timings

    @property
    def usage(self) -> dict[str, int]:
        """What the last head would have said at its end, of all of them: what it read of the answer is no prompt."""
        prompt = max(0, self.prompt + int(self.timings.get("cache_n", 0)) - self.before)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": self.generated,
            "total_tokens": prompt + self.generated,
        }


class Answer:
    """One streamed answer as it passes by: its tokens and text, and whether the head has brought it to an end.

    `plain`: all that was said is text, so that another head may go on with it. `stopped`: it has been said why the
    answer ends, of each of its `choices`.
    """

    def __init__(self, model: str, *, timings: bool = True, choices: int = 1) -> None:
        """`timings`: the client is told those that come with every token, too; else only those at the end."""
        self._timings = timings
        self._choices = choices
        self._finished = set[int]()
        self.tokens = Tokens()
        self.text = ""
        self.plain = True
        self.ended = False
        self.failed = False
        self._model = model
        self._same: Chunk = {}
        self._alike: Alike | None = None
        self._usage_told = False

    @property
    def stopped(self) -> bool:
        return len(self._finished) >= self._choices

    def go_on(self) -> None:
        """Another head takes over: its chunks are told as the first one's."""
        self.tokens = Tokens(self.tokens.prompt, before=self.tokens.generated)

    def end(self, reason: str, *, usage: bool) -> bytes:
        """What a lost head did not come to send, up to the end; `usage`: that was asked for, too."""
        said: Chunk = {"text": ""} if self._same.get("object") == "text_completion" else {"delta": {}}
        missing = list[Chunk]()
        if not self.stopped:
            missing.append({"choices": [{"index": 0, **said, "finish_reason": reason}]})
        if usage and not self._usage_told:
            missing.append({"choices": [], "usage": self.tokens.usage})
        return b"".join(_event({**self._same, **chunk, "model": self._model}) for chunk in missing) + DONE

    def see(self, event: bytes) -> bytes | None:
        """What to send on for this event; None for what is no piece of an answer, which would break clients: some heads
        send `data: null`."""
        if self._alike is not None and (piece := self._alike.read(event)) is not None:
            self.tokens.see_piece(piece.timings)
            self.text += piece.text
            return piece.told
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
        return self._see_chunk(chunk, event) if is_answer(chunk) else None

    def _see_chunk(self, chunk: Chunk, event: bytes) -> bytes:
        if "error" in chunk:
            self.ended = self.failed = True
            return event
        follows = bool(self.text)  # nothing is learnt before the first text is out
        self.tokens.see(chunk)
        self._hear(chunk)
        self._same = self._same or {name: chunk[name] for name in _SAME if name in chunk}
        self._usage_told = self._usage_told or bool(chunk.get("usage"))
        learns = follows and not self._timings
        self._alike = alike_to(event, lambda other: _event(self._told(other))) if learns else None
        told = self._told(chunk)
        return event if told == chunk else _event(told)

    def _told(self, chunk: Chunk) -> Chunk:
        told = {**chunk, **self._same, "model": self._model}
        if not self._timings and _goes_on(chunk):
            told.pop("timings", None)
        if self.tokens.before and isinstance(usage := chunk.get("usage"), dict):
            told["usage"] = self._whole_usage(usage)
        return told

    def _hear(self, chunk: Mapping[str, Any]) -> None:
        for choice in chunk.get("choices") or []:
            delta = choice.get("delta") or {}
            self.text += choice.get("text") or delta.get("content") or ""
            if choice.get("finish_reason"):
                self._finished.add(choice.get("index") or 0)
            if choice.get("index") or any(delta.get(name) for name in ("tool_calls", "reasoning_content")):
                self.plain = False

    def _whole_usage(self, usage: Mapping[str, Any]) -> dict[str, Any]:
        """Of both heads: what the second one read of the first one's answer is no prompt."""
        prompt, generated = int(usage.get("prompt_tokens", 0)), int(usage.get("completion_tokens", 0))
        before = self.tokens.before
        return {**usage, "prompt_tokens": max(0, prompt - before), "completion_tokens": generated + before}


_SAME = ("id", "created", "system_fingerprint", "object")


def _event(chunk: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def _goes_on(chunk: Mapping[str, Any]) -> bool:
    """Whether more is to come behind this chunk."""
    choices = chunk.get("choices") or []
    return bool(choices) and not any(choice.get("finish_reason") for choice in choices)


def _has_text(choice: Mapping[str, Any]) -> bool:
    delta = choice.get("delta") or {}
    return bool(choice.get("text") or delta.get("content") or delta.get("reasoning_content") or delta.get("tool_calls"))
