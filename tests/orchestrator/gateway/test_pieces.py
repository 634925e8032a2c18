"""Pieces of text that are told without being read in full are told as if they had been."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.gateway.events import Answer
from orchestrator.gateway.pieces import Alike, Chunk, alike_to

TIMINGS = {"cache_n": 0, "prompt_n": 7, "prompt_ms": 1.5, "predicted_n": 3, "predicted_ms": 2.25}


def event(chunk: object, *, spaced: bool = False) -> bytes:
    separators = (", ", ": ") if spaced else (",", ":")
    return b"data: " + json.dumps(chunk, separators=separators, ensure_ascii=False).encode() + b"\n\n"


def piece(text: object, chat: bool = True, **more: object) -> Chunk:
    said = {"delta": {"content": text}} if chat else {"text": text, "logprobs": None}
    choice = {"finish_reason": None, "index": 0, **said}
    return {"choices": [choice], "created": 1, "id": "chatcmpl-a", "model": "head", "object": "o", **more}


def tell(chunk: Chunk) -> bytes:
    return event({**chunk, "model": "tiny"})


def alike(first: bytes) -> Alike:
    found = alike_to(first, tell)
    assert found is not None
    return found


TEXTS = st.text(st.characters(codec="utf-8"), min_size=1)
COUNTS = st.integers(0, 10**9)


@given(st.lists(st.tuples(TEXTS, COUNTS), min_size=2), st.booleans(), st.booleans(), st.booleans())
def test_a_stream_is_told_and_counted_as_if_each_chunk_had_been_read(
    said: list[tuple[str, int]], chat: bool, spaced: bool, timed: bool
) -> None:
    answer = Answer("tiny", timings=False)
    for number, (text, count) in enumerate(said, 1):
        timings = {"timings": {**TIMINGS, "predicted_n": count}} if timed else {}
        told = answer.see(event(piece(text, chat, **timings), spaced=spaced))
        assert told is not None
        assert json.loads(told[6:]) == {**piece(text, chat), "model": "tiny"}
        assert answer.tokens.generated == (max(number, count) if timed else number)
    assert answer.text == "".join(text for text, _ in said)
    assert answer.tokens.timings == ({**TIMINGS, "predicted_n": said[-1][1]} if timed else {})


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("text", ["b", "\n", "é", 'a "quoted" \\ text'])
def test_what_differs_in_text_and_timings_only_is_alike(text: str, chat: bool) -> None:
    found = alike(event(piece("a", chat, timings=TIMINGS))).read(event(piece(text, chat, timings=TIMINGS)))
    assert found is not None
    assert (found.text, found.timings) == (text, TIMINGS)
    assert json.loads(found.told[6:]) == {**piece(text, chat), "model": "tiny"}


@pytest.mark.parametrize(
    "other",
    [
        piece("b", created=2),
        piece("b", id="chatcmpl-b"),
        piece("b", usage={"completion_tokens": 1}),
        piece("b", timings=TIMINGS, usage={"completion_tokens": 1}),
        piece("b", timings={**TIMINGS, "predicted_n": "3"}),
        piece("b", timings={"predicted_n": 3}),
        piece("b", chat=False),
        piece(""),
        piece(None),
        {**piece("b"), "choices": [{"finish_reason": "stop", "index": 0, "delta": {"content": "b"}}]},
        {**piece("b"), "choices": [{"finish_reason": None, "index": 1, "delta": {"content": "b"}}]},
        {"error": {"message": "no"}},
    ],
)
def test_what_differs_in_anything_else_is_not(other: dict[str, Any]) -> None:
    assert alike(event(piece("a", timings=TIMINGS))).read(event(other)) is None


@pytest.mark.parametrize("raw", [b"\xff", b"\\x", b"\\ud8", b"a\nb", b'b"}},{"delta":{"content":"c'])
def test_a_text_that_is_none_is_left_to_be_read_in_full(raw: bytes) -> None:
    assert alike(event(piece("a"))).read(event(piece("MARK")).replace(b"MARK", raw)) is None


@pytest.mark.parametrize(
    "first",
    [
        piece(""),
        piece("a", usage={"completion_tokens": 1}),
        piece("a", prompt_progress={"total": 3}),
        {**piece("a"), "choices": [{"finish_reason": "stop", "index": 0, "delta": {"content": "a"}}]},
        {**piece("a"), "choices": [{"finish_reason": None, "index": 1, "delta": {"content": "a"}}]},
        {**piece("a"), "choices": piece("a")["choices"] * 2},
        {**piece("a"), "choices": [{"index": 0, "delta": {"reasoning_content": "r", "content": "a"}}]},
        {**piece("a"), "choices": [{"index": 0, "delta": {"content": "a"}, "logprobs": {"content": []}}]},
        {"error": {"content": "a"}},
        {"choices": [], "content": "a"},
    ],
)
def test_nothing_is_alike_to_a_chunk_with_more_than_a_piece_of_text(first: dict[str, Any]) -> None:
    assert alike_to(event(first), tell) is None
