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
        uses=("/r/engines/cpu", "/r/models/0f"),
        temporary=("/r/key",),
        capture=True,
        tell=True,
    )
    assert words == (
        *("python3", "-I", "-S", "/r/agent.py", "leash", "--name", "worker-0", "--log", "/r/logs/worker-0.log"),
        *("--log-bytes", "1024", "--heartbeat-s", "10", "--capture", "--tell", "--env", "A=b c"),
        *("--uses", "/r/engines/cpu", "--uses", "/r/models/0f", "--temporary", "/r/key"),
        *("--", "/e/ggml-rpc-server", "--port", "20480"),
    )


def test_the_words_of_the_questions() -> None:
    start = ("python3", "-I", "-S", "/a.py")
    door = (*start[:-1], "-c", commands.READ_AND_RUN, "7", "/r", "/a.py")
    assert commands.door_words(7, "/r", "/a.py") == door
    assert commands.door_words(7, "/r", "/a.py", ("cafe", *commands.ATTEND)) == (*door, "cafe", "attend")
    assert not set(commands.READ_AND_RUN) & set("'\"`$\\!\n")
    assert commands.facts_words("/a.py", "/r") == (*start, "facts", "--root", "/r")
    assert commands.link_words("/a.py", "::1") == (*start, "link", "--address", "::1")
    assert commands.ports_words("/a.py", 2, "::1") == (*start, "ports", "--count", "2", "--address", "::1")
    assert commands.unpack_words("/a.py", "/x.tar.gz", "/f", "0f") == (*start, "unpack", "/x.tar.gz", "/f", "0f")
    assert commands.check_words("/a.py", "/f") == (*start, "check", "/f")
    assert commands.digest_words("/a.py", "/f") == (*start, "digest", "/f")
    assert commands.hold_words("/a.py", "/l") == (*start, "hold", "/l")
    assert commands.tools_words("/a.py") == (*start, "tools")
    assert commands.collect_words("/a.py", "/b", "/f", "{}", ("x", "y")) == (
        *start,
        "collect",
        "/b",
        "/f",
        "{}",
        "x",
        "y",
    )
    assert commands.orphans_words("/a.py", "/r", ("cpu", "vulkan", "cpu")) == (
        *(*start, "orphans", "--root", "/r", "--keep", "cpu", "vulkan"),
    )
    assert commands.tail_words("/a.py", "/l", 5) == (*start, "tail", "/l", "--lines", "5")
    assert commands.tail_words("/a.py", "/l", 5, 90) == (*start, "tail", "/l", "--lines", "5", "--since-s", "90.0")
    follow = (*start, "follow", "/f", "--lines", "5")
    assert commands.follow_words("/a.py", "/f", lines=5, heartbeat_s=10) == (*follow, "--heartbeat-s", "10")
    since = commands.follow_words("/a.py", "/f", lines=5, since_s=60, from_clock_s=1.75e9, heartbeat_s=10)
    assert since == (*follow, "--since-s", "60.0", "--from-clock-s", "1750000000.000", "--heartbeat-s", "10")
    assert commands.tidy_words("/a.py", "/r") == (*start, "tidy", "--root", "/r")
    assert commands.listen_words("/a.py") == (*start, "listen")
    assert commands.look_words("/a.py", "/r/models/0f", "a") == (*start, "look", "/r/models/0f", "a")
    assert commands.record_words("/a.py", "/i", "a", 5, "0f") == (*start, "record", "/i", "a", "5", "0f")
    assert commands.stored_words("/a.py", "/r", "sizes") == (*start, "stored", "--root", "/r", "--check", "sizes")
    assert commands.forget_words("/a.py", "/r", ("a", "b/c")) == (*start, "forget", "--root", "/r", "a", "b/c")
    assert commands.others_words("/a.py") == (*start, "others")
