"""A conversation as the chat keeps it, and the commands typed into it; pure, knows no terminal and no network."""

import difflib
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath

from orchestrator.client import Message
from orchestrator.errors import UsageError

COMMANDS = {
    "/system TEXT": "tell the model how to behave (no text: take that away)",
    "/save FILE": "write the conversation to FILE (.md or .json)",
    "/stats": "tokens and speed so far",
    "/reset": "start anew; the system text stays",
    "/help": "this list",
    "/quit": "leave (or Ctrl-D)",
}


@dataclass(frozen=True)
class Say:
    """Text for the model."""

    text: str


@dataclass(frozen=True)
class Command:
    """One of COMMANDS by its bare name, and what stands behind it."""

    name: str
    argument: str


def read_line(line: str) -> Say | Command:
    """What was typed; a command that does not exist, or lacks its argument, is a UsageError with the nearest one."""
    if not line.startswith("/"):
        return Say(line.strip())
    word, _, rest = line.strip().partition(" ")
    names = [usage.split()[0].removeprefix("/") for usage in COMMANDS]
    name = {"exit": "quit", "q": "quit"}.get(word[1:], word[1:])
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        advice = f"did you mean /{near[0]}?" if near else "/help lists the commands"
        raise UsageError(
            f"there is no command {word}", hint=f"{advice} A text that begins with / needs a space before it."
        )
    if name == "save" and not rest.strip():
        raise UsageError("/save needs a file name", hint="for example: /save talk.md")
    return Command(name, rest.strip())


@dataclass(frozen=True)
class Answer:
    """One answer: its text, and what is known of its making.

    `tokens` and `tokens_per_s` are the engine's figures, or counted here when the answer was stopped. `first_s` is the
    time until the first piece came. `context_tokens` are those of the conversation after it, 0 when not known.
    """

    text: str
    finish: str
    tokens: int
    tokens_per_s: float
    first_s: float
    context_tokens: int = 0

    @property
    def summary(self) -> str:
        """The line below an answer, such as `42 tokens, 13.1 tokens/s, first after 0.21 s`."""
        if not self.tokens:
            return "no tokens came"
        noun = "token" if self.tokens == 1 else "tokens"
        return f"{self.tokens} {noun}, {self.tokens_per_s:.1f} tokens/s, first after {self.first_s:.2f} s"


@dataclass(frozen=True)
class Conversation:
    """What was said, in order; `answers` has the figures of each answer since the chat began, resets included."""

    system: str | None = None
    messages: tuple[Message, ...] = ()
    answers: tuple[Answer, ...] = ()

    def asking(self, question: str) -> tuple[Message, ...]:
        """The messages to send for the next question."""
        return (*self._system_messages(), *self.messages, Message("user", question))

    def with_answer(self, question: str, answer: Answer) -> "Conversation":
        said = (Message("user", question), Message("assistant", answer.text))
        return replace(self, messages=(*self.messages, *said), answers=(*self.answers, answer))

    def with_system(self, text: str) -> "Conversation":
        return replace(self, system=text or None)

    def reset(self) -> "Conversation":
        return replace(self, messages=())

    @property
    def everything(self) -> tuple[Message, ...]:
        return (*self._system_messages(), *self.messages)

    def _system_messages(self) -> tuple[Message, ...]:
        return () if self.system is None else (Message("system", self.system),)


def stats_text(conversation: Conversation, context: int | None) -> str:
    """Totals of a chat, and how full the context is."""
    answers = conversation.answers
    if not answers:
        return "no answers yet"
    tokens = sum(answer.tokens for answer in answers)
    spent_s = sum(answer.tokens / answer.tokens_per_s for answer in answers if answer.tokens_per_s > 0)
    speed = f"{tokens / spent_s:.1f} tokens/s" if spent_s else "no speed known"
    noun = "answer" if len(answers) == 1 else "answers"
    used = answers[-1].context_tokens if conversation.messages else 0
    size = f" of {context}" if context else ""
    full = f"; {used}{size} tokens of context used" if used else ""
    return f"{len(answers)} {noun}, {tokens} tokens, {speed} on average{full}"


def saved_text(name: PurePath, model: str, messages: Sequence[Message]) -> str:
    """The conversation in the form that the file's suffix asks for; UsageError for another suffix."""
    match name.suffix.lower():
        case ".json":
            said = [{"role": message.role, "content": message.content} for message in messages]
            return json.dumps({"model": model, "messages": said}, indent=2, ensure_ascii=False) + "\n"
        case ".md" | ".markdown":
            parts = [f"# Conversation with {model}", *(f"## {m.role.capitalize()}\n\n{m.content}" for m in messages)]
            return "\n\n".join(parts) + "\n"
    raise UsageError(f"{name}: the suffix says no format", hint=f"name it {shlex.quote(name.stem)}.md or .json")
