"""What another head is asked for when the first one was lost in the middle of an answer."""

from typing import Any

import pytest

from orchestrator.gateway.resume import CHAT, continued, is_complete

QUESTION: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}], "temperature": 0, "stream": True}
PLAIN = "/v1/completions"


def test_a_conversation_goes_on_behind_what_was_said() -> None:
    assert continued(CHAT, {**QUESTION, "max_tokens": 10, "seed": 7}, "Good mor", 4) == {
        "messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "Good mor"}],
        "continue_final_message": True,
        "add_generation_prompt": False,
        "temperature": 0,
        "stream": True,
        "max_tokens": 6,
        "seed": 7,
    }
    assert len(QUESTION["messages"]) == 1


def test_an_answer_that_was_begun_by_the_client_is_one_message_with_what_was_said() -> None:
    begun = [*QUESTION["messages"], {"role": "assistant", "content": "Sure: "}]
    body = continued(CHAT, {**QUESTION, "messages": begun, "continue_final_message": True}, "one", 1)
    assert body is not None
    assert body["messages"] == [*QUESTION["messages"], {"role": "assistant", "content": "Sure: one"}]


def test_a_plain_text_goes_on_at_its_end() -> None:
    assert continued(PLAIN, {"prompt": "One", "max_tokens": 3}, " two", 1) == {"prompt": "One two", "max_tokens": 2}


@pytest.mark.parametrize(
    "more",
    [
        {"n": 2},
        {"tools": [{"type": "function"}]},
        {"grammar": "root ::= x"},
        {"json_schema": {"type": "object"}},
        {"response_format": {"type": "json_object"}},
        {"logprobs": True},
        {"messages": "no list"},
    ],
)
def test_what_cannot_go_on_exactly_does_not(more: dict[str, Any]) -> None:
    assert continued(CHAT, {**QUESTION, **more}, "text", 1) is None


@pytest.mark.parametrize("more", [{"logprobs": 3}, {"prompt": [1, 2, 3]}, {"prompt": ["a", "b"]}])
def test_nor_do_such_plain_texts(more: dict[str, Any]) -> None:
    assert continued(PLAIN, {"prompt": "One", **more}, "text", 1) is None


@pytest.mark.parametrize("more", [{"n": 1}, {"response_format": {"type": "text"}}, {"tools": []}, {"logprobs": False}])
def test_what_asks_for_nothing_special_does(more: dict[str, Any]) -> None:
    assert continued(CHAT, {**QUESTION, **more}, "text", 1) is not None


def test_nothing_is_asked_for_beyond_the_limit() -> None:
    assert is_complete({"max_tokens": 0})
    assert is_complete({"max_completion_tokens": -1})
    assert not is_complete({"max_tokens": 1})
    assert not is_complete({})
