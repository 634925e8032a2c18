"""The words that start the agent's verbs."""

import hashlib
import marshal
import subprocess
import sys
from pathlib import Path

from workers import commands, door


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
        *("python3", "-I", "-S", "-c", commands.RUN_COMPILED, ".code", "/r/agent.py"),
        *("leash", "--name", "worker-0", "--log", "/r/logs/worker-0.log"),
        *("--log-bytes", "1024", "--heartbeat-s", "10", "--capture", "--tell", "--env", "A=b c"),
        *("--uses", "/r/engines/cpu", "--uses", "/r/models/0f", "--temporary", "/r/key"),
        *("--", "/e/ggml-rpc-server", "--port", "20480"),
    )


def test_the_words_of_the_questions() -> None:
    python = ("python3", "-I", "-S", "-c")
    start = (*python, commands.RUN_COMPILED, ".code", "/a.py")
    door = (*python, commands.READ_AND_RUN, "7", "/r", "/a.py")
    assert commands.door_words(7, "/r", "/a.py") == door
    assert commands.door_words(7, "/r", "/a.py", ("cafe", *commands.ATTEND)) == (*door, "cafe", "attend")
    for program in (commands.READ_AND_RUN, commands.RUN_COMPILED):
        assert not set(program) & set("'\"`$\\!\n")
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


SAYS = "import sys\nprint(__name__, __file__ == sys.argv[0], sys.argv[1:], {what!r})\n"


def started(agent: Path) -> str:
    words = (sys.executable, *commands.agent_words(str(agent), "verb", "--option")[1:])
    return subprocess.run(words, capture_output=True, check=True, text=True).stdout.strip()


def test_the_agent_runs_by_what_python_made_of_it_where_that_is_of_these_bytes(tmp_path: Path) -> None:
    """Told from the source by what it says: a kept one is of the source that was there."""
    agent, as_if = tmp_path / "agent.py", "__main__ True ['verb', '--option']"
    source, others = (SAYS.format(what=what).encode() for what in ("source", "kept"))
    agent.write_bytes(source)
    digest = hashlib.sha256(source).hexdigest()
    assert started(agent) == f"{as_if} source"
    data = marshal.dumps(compile(others, str(agent), "exec", dont_inherit=True))
    kept = hashlib.sha256(sys.version.encode() + digest.encode() + data).digest() + data
    beside = Path(f"{agent}.code")
    for content, said in ((kept, "kept"), (kept[:-1], "source"), (b"", "source"), (b"1" + kept, "source")):
        beside.write_bytes(content)
        assert started(agent) == f"{as_if} {said}"
    beside.write_bytes(kept)
    agent.write_bytes(source + b"#")
    assert started(agent) == f"{as_if} source"


def test_what_the_door_keeps_is_what_the_agent_is_run_by(tmp_path: Path) -> None:
    agent = tmp_path / "agent.py"
    agent.write_text("print(7)")
    digest = hashlib.sha256(agent.read_bytes()).hexdigest()
    program = Path(door.__file__).read_bytes()
    words = (sys.executable, *commands.door_words(len(program), str(tmp_path), str(agent), (digest, "verb"))[1:])
    assert subprocess.run(words, input=program, capture_output=True, check=True).stdout.endswith(b"\n7\n")
    beside = Path(f"{agent}.code")
    agent.write_text("print(8)")
    made_of = sys.version.encode() + hashlib.sha256(agent.read_bytes()).hexdigest().encode()
    data = beside.read_bytes()[32:]
    assert beside.read_bytes()[:32] == hashlib.sha256(sys.version.encode() + digest.encode() + data).digest()
    beside.write_bytes(hashlib.sha256(made_of + data).digest() + data)  # that of the other source, as if of this one
    assert started(agent) == "7"
