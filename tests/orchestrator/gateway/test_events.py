"""Cutting and understanding server-sent events."""

from collections.abc import AsyncIterator
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.gateway.events import Answer, Tokens, whole_events
from tests.orchestrator.gateway.heads import DONE, chunk, last_chunk

STREAM = chunk("a") + b":\n\n" + chunk("é") + last_chunk(2) + DONE


@given(st.lists(st.integers(0, len(STREAM)), max_size=8))
async def test_events_are_whole_wherever_the_stream_is_cut(cuts: list[int]) -> None:
    places = [0, *sorted(cuts), len(STREAM)]
    pieces = [STREAM[start:end] for start, end in pairwise(places)]
    assert [event async for events in whole_events(_each(pieces)) for event in events] == [
        chunk("a"),
        b":\n\n",
        chunk("é"),
        last_chunk(2),
        DONE,
    ]


async def test_an_event_cut_short_is_dropped() -> None:
    assert [event async for events in whole_events(_each([chunk("a"), b'data: {"cho'])) for event in events] == [
        chunk("a")
    ]


def test_chunks_get_the_clusters_model_name_and_pings_pass() -> None:
    answer = Answer("tiny")
    assert answer.see(b":\n\n") == b":\n\n"
    assert b'"model": "tiny"' in (answer.see(chunk("a")) or b"")
    assert not answer.ended


def test_the_heads_empty_first_chunk_is_left_out() -> None:
    assert Answer("tiny").see(b"data: null\n\n") is None


def test_an_error_event_ends_the_answer() -> None:
    answer = Answer("tiny")
    event = b'data: {"error": {"message": "x"}}\n\n'
    assert answer.see(event) == event
    assert (answer.ended, answer.failed) == (True, True)


def test_tokens_are_counted_by_timings_where_there_are_any() -> None:
    tokens = Tokens()
    tokens.see({"choices": [{"index": 0, "text": "one piece"}]})
    assert (tokens.prompt, tokens.generated) == (0, 1)
    tokens.see({"choices": [{"index": 0, "text": ""}], "timings": {"prompt_n": 3, "predicted_n": 5}})
    tokens.see({"choices": [{"index": 1, "text": "a"}]})
    assert (tokens.prompt, tokens.generated) == (3, 6)


async def _each(pieces: list[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece
