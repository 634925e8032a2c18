"""The words that start the agent's verbs on a host. Pure: nothing here runs anything or knows what is answered."""

from collections.abc import Mapping

Words = tuple[str, ...]

PYTHON: Words = ("python3", "-I", "-S")
"""Isolated and without site packages: the agent needs neither, and a host's own settings shall not change it."""

PYTHON_VERSION: Words = (*PYTHON, "-c", "import sys; print('%d.%d.%d' % sys.version_info[:3])")
"""Asks which Python a host has; any Python 3 understands it."""


def agent_words(agent: str, verb: str, *options: str) -> Words:
    """`agent` is the agent's absolute path on the host."""
    return (*PYTHON, agent, verb, *options)


def version_words(agent: str) -> Words:
    return agent_words(agent, "version")


def facts_words(agent: str, root: str) -> Words:
    return agent_words(agent, "facts", "--root", root)


def leash_words(
    agent: str,
    words: Words,
    *,
    name: str,
    log: str,
    log_bytes: int,
    heartbeat_s: float,
    environment: Mapping[str, str],
) -> Words:
    """Run `words` under the leash; `log` is a path on the host, `heartbeat_s` how long silence is borne."""
    variables = [word for key, value in environment.items() for word in ("--env", f"{key}={value}")]
    limits = ("--log-bytes", str(log_bytes), "--heartbeat-s", f"{heartbeat_s:g}")
    return agent_words(agent, "leash", "--name", name, "--log", log, *limits, *variables, "--", *words)


def link_words(agent: str) -> Words:
    return agent_words(agent, "link")


def ports_words(agent: str, count: int) -> Words:
    return agent_words(agent, "ports", "--count", str(count))


def unpack_words(agent: str, archive: str, folder: str, sha256: str) -> Words:
    return agent_words(agent, "unpack", archive, folder, sha256)


def check_words(agent: str, folder: str) -> Words:
    return agent_words(agent, "check", folder)


def tail_words(agent: str, log: str, lines: int, since_s: float | None = None) -> Words:
    """`since_s`: only what was written within so many seconds, by the host's own clock."""
    return agent_words(agent, "tail", log, "--lines", str(lines), *_since(since_s))


def follow_words(
    agent: str,
    folder: str,
    *,
    lines: int,
    since_s: float | None = None,
    from_clock_s: float | None = None,
    heartbeat_s: float,
) -> Words:
    """Follow every log of `folder` from its last `lines` on; `heartbeat_s`: how long silence is borne.

    Only of what was written in the last `since_s` seconds, or since the host's clock said `from_clock_s`.
    """
    clock = () if from_clock_s is None else ("--from-clock-s", f"{from_clock_s:.3f}")
    start = ("--lines", str(lines), *_since(since_s), *clock)
    return agent_words(agent, "follow", folder, *start, "--heartbeat-s", f"{heartbeat_s:g}")


def tidy_words(agent: str, root: str) -> Words:
    return agent_words(agent, "tidy", "--root", root)


def listen_words(agent: str) -> Words:
    return agent_words(agent, "listen")


def _since(since_s: float | None) -> Words:
    return () if since_s is None else ("--since-s", f"{since_s:.1f}")
