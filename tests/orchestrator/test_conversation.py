"""A conversation and the commands typed into it."""

import json
from pathlib import PurePath

import pytest

from orchestrator.client import Message
from orchestrator.conversation import Answer, Command, Conversation, Say, read_line, saved_text, stats_text
from orchestrator.errors import UsageError

FIRST = Answer("hello", "stop", tokens=42, tokens_per_s=13.1, first_s=0.21, context_tokens=60)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("  hello\nthere ", Say("hello\nthere")),
        (" /not a command", Say("/not a command")),
        ("", Say("")),
        ("/system be brief ", Command("system", "be brief")),
        ("/system", Command("system", "")),
        ("/save my talk.md", Command("save", "my talk.md")),
        ("/exit", Command("quit", "")),
        ("/q", Command("quit", "")),
    ],
)
def test_a_line_is_text_or_a_command(line: str, expected: Say | Command) -> None:
    assert read_line(line) == expected


@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        ("/stat", "there is no command /stat", "did you mean /stats?"),
        ("/xyzzy", "there is no command /xyzzy", "/help lists the commands"),
        ("/etc/passwd is what?", "there is no command /etc/passwd", "needs a space before it"),
        ("/save", "/save needs a file name", "for example: /save talk.md"),
    ],
)
def test_a_wrong_command_is_told_with_the_nearest(line: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_line(line)
    assert str(caught.value) == message
    assert hint in caught.value.hint


def test_the_model_is_sent_all_that_was_said_with_the_system_text_first() -> None:
    conversation = Conversation("be brief").with_answer("hi", FIRST)
    assert conversation.asking("more") == (
        Message("system", "be brief"),
        Message("user", "hi"),
        Message("assistant", "hello"),
        Message("user", "more"),
    )


def test_a_reset_keeps_the_system_text_and_the_figures() -> None:
    conversation = Conversation("be brief").with_answer("hi", FIRST).reset()
    assert conversation == Conversation("be brief", (), (FIRST,))


def test_the_summary_of_an_answer() -> None:
    assert FIRST.summary == "42 tokens, 13.1 tokens/s, first after 0.21 s"
    assert Answer("", "stopped", 0, 0.0, 0.0).summary == "no tokens came"


def test_stats_sum_up_and_say_how_full_the_context_is() -> None:
    conversation = Conversation().with_answer("a", FIRST).with_answer("b", Answer("x", "stop", 58, 6.0, 0.5, 130))
    assert stats_text(conversation, 4096) == (
        "2 answers, 100 tokens, 7.8 tokens/s on average; 130 of 4096 tokens of context used"
    )
    assert stats_text(conversation.reset(), 4096) == "2 answers, 100 tokens, 7.8 tokens/s on average"
    assert stats_text(Conversation(), 4096) == "no answers yet"


def test_a_conversation_is_saved_as_markdown_or_json_by_the_suffix() -> None:
    messages = Conversation("be brief").with_answer("hi", FIRST).everything
    assert saved_text(PurePath("t.md"), "tiny", messages) == (
        "# Conversation with tiny\n\n## System\n\nbe brief\n\n## User\n\nhi\n\n## Assistant\n\nhello\n"
    )
    assert json.loads(saved_text(PurePath("t.JSON"), "tiny", messages)) == {
        "model": "tiny",
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "hello"},
        ],
    }
    with pytest.raises(UsageError, match="the suffix says no format"):
        saved_text(PurePath("t.txt"), "tiny", messages)
