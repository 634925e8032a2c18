"""The words that start the agent's verbs on a host. Pure: nothing here runs anything or knows what is answered."""

from collections.abc import Mapping, Sequence

Words = tuple[str, ...]

PYTHON: Words = ("python3", "-I", "-S")
"""Isolated and without site packages: the agent needs neither, and a host's own settings shall not change it."""

PYTHON_VERSION: Words = (*PYTHON, "-c", "import sys; print('%d.%d.%d' % sys.version_info[:3])")
"""Asks which Python a host has; any Python 3 understands it."""


def door_words(root: str, agent: str) -> Words:
    """Runs the program that comes through stdin (`workers/door.py`): nothing that lies on the host."""
    return (*PYTHON, "-", root, agent)


def agent_words(agent: str, verb: str, *options: str) -> Words:
    """`agent` is the agent's absolute path on the host."""
    return (*PYTHON, agent, verb, *options)


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
    uses: Sequence[str] = (),
    temporary: Sequence[str] = (),
    capture: bool = False,
) -> Words:
    """Run `words` under the leash; `log` is a path on the host, `heartbeat_s` how long silence is borne.

    `uses` are cached items that must be whole and are in use meanwhile, `temporary` files are removed at the end;
    `capture`: what the program writes to stdout comes with its end instead of standing in the log.
    """
    given = (("--env", [f"{key}={value}" for key, value in environment.items()]), ("--uses", uses))
    options = [
        word for flag, values in (*given, ("--temporary", temporary)) for value in values for word in (flag, value)
    ]
    limits = ("--log-bytes", str(log_bytes), "--heartbeat-s", f"{heartbeat_s:g}", *(("--capture",) if capture else ()))
    return agent_words(agent, "leash", "--name", name, "--log", log, *limits, *options, "--", *words)


def link_words(agent: str, address: str) -> Words:
    return agent_words(agent, "link", "--address", address)


def ports_words(agent: str, count: int, address: str) -> Words:
    return agent_words(agent, "ports", "--count", str(count), "--address", address)


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


def look_words(agent: str, item: str, name: str) -> Words:
    return agent_words(agent, "look", item, name)


def record_words(agent: str, item: str, name: str, size_bytes: int, sha256: str) -> Words:
    return agent_words(agent, "record", item, name, str(size_bytes), sha256)


def stored_words(agent: str, root: str, check: str) -> Words:
    return agent_words(agent, "stored", "--root", root, "--check", check)


def forget_words(agent: str, root: str, items: Sequence[str]) -> Words:
    return agent_words(agent, "forget", "--root", root, *items)


def others_words(agent: str) -> Words:
    return agent_words(agent, "others")


def _since(since_s: float | None) -> Words:
    return () if since_s is None else ("--since-s", f"{since_s:.1f}")
