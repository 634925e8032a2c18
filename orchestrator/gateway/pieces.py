"""Pieces of one streamed answer that are alike but for their text and timings; no I/O.

All but a few chunks of a stream are such. One has been read and written in full; as the others are equal to it byte by
byte around the text, they are what it was, and are told as it was, at a fraction of the cost.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Chunk = dict[str, Any]

_STRING = re.compile(rb'(?:[^"\\\x00-\x1f]+|\\.)+')
"""What stands between the quotes of a JSON string."""

_TEXT = re.compile(rb'"(?:content|text)": ?"')
_TIMINGS = re.compile(rb', ?"timings": ?(\{[^{}]*\})(\}\s*)')
_MARK = "\0text\0"
"""Stands for the text where it is to be put; no chunk has it."""

_MARK_JSON = json.dumps(_MARK)[1:-1].encode()


@dataclass(frozen=True)
class Piece:
    """The text of a chunk, the head's timings if there are any, and what to send on for it."""

    text: str
    timings: Mapping[str, Any] | None
    told: bytes


@dataclass(frozen=True)
class Alike:
    """What is before a text, after it and at the end of such chunks; and what is told before and after it."""

    before: bytes
    after: bytes
    end: bytes
    told_before: bytes
    told_after: bytes

    def read(self, event: bytes) -> Piece | None:
        """None for what is not alike, or cannot be read."""
        start = len(self.before)
        if not event.startswith(self.before) or (string := _STRING.match(event, start)) is None:
            return None
        raw, rest = string[0], string.end() + len(self.after)
        if not event.startswith(self.after, string.end()):
            return None
        try:
            text = raw.decode() if b"\\" not in raw else json.loads(b'"%b"' % raw)
            timings = self._timings(event, rest)
        except ValueError:
            return None
        return None if timings is None else Piece(text, timings or None, self.told_before + raw + self.told_after)

    def _timings(self, event: bytes, rest: int) -> Mapping[str, Any] | None:
        """Empty when the chunk ends without; None when something else follows."""
        if event[rest:] == self.end:
            return {}
        found = _TIMINGS.fullmatch(event, rest)
        if found is None or found[2] != self.end:
            return None
        timings: dict[str, Any] = json.loads(found[1])
        counts = (timings.get("prompt_n"), timings.get("predicted_n"))
        return timings if all(type(count) is int for count in counts) else None


def alike_to(event: bytes, tell: Callable[[Chunk], bytes]) -> Alike | None:
    """What other chunks must be like to be told as `tell` tells this one; None for one with more than a piece of text.

    `event` is a chunk that has been read; its timings are not told.
    """
    begun = _TEXT.search(event)
    if begun is None or (string := _STRING.match(event, begun.end())) is None:
        return None
    before, rest = event[: begun.end()], event[string.end() :]
    after, end = _split(rest)
    chunk = json.loads(before.removeprefix(b"data:") + _MARK_JSON + after + end)
    if not _is_plain(chunk):
        return None
    told_before, _, told_after = tell(chunk).partition(_MARK_JSON)
    return Alike(before, after, end, told_before, told_after)


def _split(rest: bytes) -> tuple[bytes, bytes]:
    """What is after the text without the timings, and the end behind those."""
    timings = _TIMINGS.search(rest)
    if timings is not None and timings.end() == len(rest):
        return rest[: timings.start()], timings[2]
    closing = rest.rindex(b"}")
    return rest[:closing], rest[closing:]


def _is_plain(chunk: Chunk) -> bool:
    """Whether nothing is said but one piece of text, of the only choice, with more to come."""
    choices = chunk.get("choices") or [{}]
    choice, delta = choices[0], choices[0].get("delta") or {}
    return (
        len(choices) == 1
        and not choice.get("index")
        and not choice.get("finish_reason")
        and not choice.get("logprobs")
        and (choice.get("text") == _MARK or (delta.get("content") == _MARK and not delta.keys() - {"content", "role"}))
        and not chunk.keys() & {"error", "usage", "timings", "prompt_progress"}
    )
