"""Commands as words: how they get an environment, how they become one line, how a message shows them. Runs nothing."""

import shlex
from collections.abc import Mapping

from orchestrator.shell.protocol import Words

_SHOWN_CHARACTERS = 120


def with_environment(words: Words, environment: Mapping[str, str] | None) -> Words:
    """The words that run `words` with these variables added, on any Unix host whatever its login shell."""
    if not environment:
        return words
    return ("env", *(f"{name}={value}" for name, value in environment.items()), *words)


def under_c_locale(words: Words, environment: Mapping[str, str] | None) -> Words:
    """As `with_environment`, with messages and numbers as a program can read them (LC_ALL=C)."""
    return with_environment(words, {"LC_ALL": "C", **(environment or {})})


def launched(run_with: Words, words: Words) -> Words:
    """The words that run `words` through a host's launcher, which stands before everything else.

    An environment is set behind the launcher: some (`sudo`, `nsenter`) give what they start one of their own.
    """
    return (*run_with, *words)


def announced(words: Words) -> Words:
    """The words with the number of their process, and of its group under sshd, as the first line of stderr."""
    return ("sh", "-c", 'echo "$$" >&2; exec "$@"', "sh", *words)


def end_group(announcement: bytes) -> Words | None:
    """The words that end the group of an announced command, from its stderr so far; None before it said a number."""
    number, _, _ = announcement.partition(b"\n")
    return ("sh", "-c", 'kill -9 "-$1"', "sh", number.decode()) if number.isdigit() else None


def as_line(words: Words) -> str:
    """The one line a remote login shell gets: the only place where words are joined.

    The shell gives way to the command (`exec`), so that signals and the exit status are the command's own.
    """
    return f"exec {shlex.join(words)}"


def shown(words: Words) -> str:
    """The command for a message: one line, cut when it is long."""
    line = shlex.join(words).replace("\n", "\\n")
    return line if len(line) <= _SHOWN_CHARACTERS else f"{line[:_SHOWN_CHARACTERS]}…"
