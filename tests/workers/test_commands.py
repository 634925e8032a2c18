"""The words that start the agent's verbs."""

from workers import commands


def test_the_words_of_a_leash() -> None:
    words = commands.leash_words(
        "/r/agent.py",
        ("/e/ggml-rpc-server", "--port", "20480"),
        name="worker-0",
        log="/r/logs/worker-0.log",
        log_bytes=1024,
        heartbeat_s=10.0,
        environment={"A": "b c"},
    )
    assert words == (
        *("python3", "-I", "-S", "/r/agent.py", "leash", "--name", "worker-0", "--log", "/r/logs/worker-0.log"),
        *("--log-bytes", "1024", "--heartbeat-s", "10", "--env", "A=b c"),
        *("--", "/e/ggml-rpc-server", "--port", "20480"),
    )


def test_the_words_of_the_questions() -> None:
    start = ("python3", "-I", "-S", "/a.py")
    assert commands.version_words("/a.py") == (*start, "version")
    assert commands.facts_words("/a.py", "/r") == (*start, "facts", "--root", "/r")
    assert commands.link_words("/a.py") == (*start, "link")
    assert commands.ports_words("/a.py", 2) == (*start, "ports", "--count", "2")
    assert commands.unpack_words("/a.py", "/x.tar.gz", "/f", "0f") == (*start, "unpack", "/x.tar.gz", "/f", "0f")
    assert commands.check_words("/a.py", "/f") == (*start, "check", "/f")
    assert commands.tail_words("/a.py", "/l", 5) == (*start, "tail", "/l", "--lines", "5")
    assert commands.tail_words("/a.py", "/l", 5, 90) == (*start, "tail", "/l", "--lines", "5", "--since-s", "90.0")
    follow = (*start, "follow", "/f", "--lines", "5")
    assert commands.follow_words("/a.py", "/f", lines=5, heartbeat_s=10) == (*follow, "--heartbeat-s", "10")
    since = commands.follow_words("/a.py", "/f", lines=5, since_s=60, from_clock_s=1.75e9, heartbeat_s=10)
    assert since == (*follow, "--since-s", "60.0", "--from-clock-s", "1750000000.000", "--heartbeat-s", "10")
    assert commands.tidy_words("/a.py", "/r") == (*start, "tidy", "--root", "/r")
    assert commands.listen_words("/a.py") == (*start, "listen")
