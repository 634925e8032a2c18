"""The leash with real processes: nothing it holds outlives it, and what it reports is so."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.workers.held import AGENT, HEARTBEAT_S, PYTHON, Held, Hold, alive, wait_until
from tests.workers.test_agent import run_agent
from workers import agent

STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(99)"
)


def numbers(path: Path, count: int) -> list[int]:
    """Process numbers that a program wrote to a file, once there are that many."""
    wait_until(lambda: path.exists() and len(path.read_text().split()) >= count)
    return [int(word) for word in path.read_text().split()]


def test_a_program_that_ends_is_reported_with_its_status_and_last_lines(hold: Hold) -> None:
    held = hold("sh", "-c", "echo one; echo two >&2; exit 7")
    started, ended = held.wait_for("started"), held.wait_for("exit")
    assert started["pid"] > 0
    assert ended["rss_peak_bytes"] > 0
    del ended["rss_peak_bytes"]
    assert ended == {"event": "exit", "status": 7, "reason": "", "tail": "one\ntwo"}
    assert held.process.wait(10) == 0


def test_a_program_that_dies_of_a_signal_is_reported_with_it(hold: Hold) -> None:
    assert hold("sh", "-c", "kill -ABRT $$").wait_for("exit")["status"] == -signal.SIGABRT


@pytest.mark.parametrize(("words", "status"), [(("/no/such/program",), 127), (("/etc/passwd",), 126)])
def test_a_program_that_cannot_start_is_an_exit(hold: Hold, words: tuple[str, ...], status: int) -> None:
    ended = hold(*words).wait_for("exit")
    assert ended["status"] == status
    assert ended["tail"].startswith(f"{words[0]}: ")


def test_logs_of_a_cluster_are_in_use_while_one_of_them_is_written(hold: Hold, tmp_path: Path) -> None:
    """Whoever cleans up may be another controller, which does not know this cluster."""
    root = tmp_path / "root"
    logs = root / "logs" / "demo"
    held = hold("sleep", "99", options=("--log", str(logs / "desk" / "worker.log")))
    held.wait_for("started")
    assert agent.is_in_use(str(logs))
    forget = ("forget", "--root", str(root), "logs/demo")
    assert run_agent(*forget)["removed"] == []
    assert (logs / "desk" / "worker.log").exists()
    held.end()
    assert not agent.is_in_use(str(logs))
    assert run_agent(*forget)["removed"] == ["logs/demo"]
    assert list((root / "logs").iterdir()) == []


def test_silence_ends_the_program_within_the_heartbeat_and_not_before(hold: Hold) -> None:
    held = hold("sleep", "99")
    pid = held.wait_for("started")["pid"]
    for _ in range(8):
        time.sleep(HEARTBEAT_S / 4)
        held.say(b"\n")
    assert alive(pid)
    silent = time.monotonic()
    ended = held.wait_for("exit")
    assert HEARTBEAT_S / 2 < time.monotonic() - silent < HEARTBEAT_S + 3
    assert (ended["status"], ended["reason"]) == (-signal.SIGTERM, "no heartbeat for 1 s")
    assert not alive(pid)


def test_a_program_deaf_to_sigterm_is_killed_at_once_when_that_is_asked(hold: Hold) -> None:
    held = hold(sys.executable, "-c", STUBBORN, heartbeat_s=30)
    pid = held.wait_for("started")["pid"]
    log = Path(held_log(held))
    wait_until(lambda: "deaf" in log.read_text())
    began = time.monotonic()
    held.say(b"kill\n")
    ended = held.wait_for("exit")
    assert time.monotonic() - began < 2.5
    assert (ended["status"], ended["reason"]) == (-signal.SIGKILL, "asked to stop")
    assert not alive(pid)


def test_a_program_deaf_to_sigterm_is_killed_after_three_seconds(hold: Hold) -> None:
    held = hold(sys.executable, "-c", STUBBORN, heartbeat_s=30)
    pid = held.wait_for("started")["pid"]
    log = Path(held_log(held))
    wait_until(lambda: "deaf" in log.read_text())
    began = time.monotonic()
    held.close_stdin()
    ended = held.wait_for("exit")
    assert 2.5 < time.monotonic() - began < 8
    assert (ended["status"], ended["reason"]) == (-signal.SIGKILL, "stdin closed")
    assert not alive(pid)


def held_log(held: Held) -> str:
    words = held.process.args
    assert isinstance(words, tuple)
    return str(words[words.index("--log") + 1])


@pytest.mark.parametrize("session", ["", "setsid"])
def test_grandchildren_end_too_even_in_a_session_of_their_own(hold: Hold, tmp_path: Path, session: str) -> None:
    if session and agent.is_mac():
        pytest.skip("macOS has no setsid command and no subreaper")
    pids = tmp_path / "pids"
    script = f"{session} sh -c 'echo $$ >> {pids}; sleep 99 & echo $! >> {pids}; wait' & echo $$ >> {pids}; wait"
    held = hold("sh", "-c", script, heartbeat_s=30)
    family = numbers(pids, 3)
    held.say(b"stop\n")
    assert held.wait_for("exit")["reason"] == "asked to stop"
    assert [pid for pid in family if alive(pid)] == []


def test_what_a_program_leaves_behind_when_it_ends_is_ended(hold: Hold, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    held = hold("sh", "-c", f"sleep 99 & echo $! > {pids}; exit 3", heartbeat_s=30)
    assert (held.wait_for("exit")["status"], alive(numbers(pids, 1)[0])) == (3, False)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_to_the_leash_stops_the_program_in_order(hold: Hold, number: signal.Signals) -> None:
    held = hold("sleep", "99", heartbeat_s=30)
    pid = held.wait_for("started")["pid"]
    held.process.send_signal(number)
    ended = held.wait_for("exit")
    assert (ended["status"], ended["reason"], alive(pid)) == (-signal.SIGTERM, number.name, False)


def test_killing_the_leash_kills_the_whole_group(hold: Hold, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    script = f"trap '' TERM; sleep 99 & echo $! > {pids}; wait"
    held = hold("sh", "-c", script, heartbeat_s=30)
    child, grandchild = held.wait_for("started")["pid"], numbers(pids, 1)[0]
    held.process.kill()
    wait_until(lambda: not alive(child) and not alive(grandchild))


def unread(log: Path, stdout: int, heartbeat_s: str) -> subprocess.Popen[bytes]:
    """A leash whose stdout nobody here reads; its program writes its own number to the log."""
    words = (PYTHON, "-I", "-S", str(AGENT), "leash", "--name", "t", "--log", str(log), "--heartbeat-s", heartbeat_s)
    program = ("sh", "-c", "echo $$; exec sleep 99")
    return subprocess.Popen((*words, "--", *program), stdin=subprocess.PIPE, stdout=stdout)


def test_a_reader_that_goes_away_stops_the_program(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    with unread(tmp_path / "test.log", writing, "60") as leash:
        os.close(writing)
        pid = numbers(tmp_path / "test.log", 1)[0]
        os.close(reading)
        assert leash.wait(20) == 0
    assert not alive(pid)


def test_a_leash_that_nobody_reads_still_keeps_its_deadline(tmp_path: Path) -> None:
    """A full stdout must not stop the leash from counting heartbeats."""
    reading, writing = os.pipe()
    fill(writing)
    with unread(tmp_path / "test.log", writing, "1") as leash:
        os.close(writing)
        pid = numbers(tmp_path / "test.log", 1)[0]
        assert leash.wait(20) == 0
    os.close(reading)
    assert not alive(pid)


def fill(pipe: int) -> None:
    os.set_blocking(pipe, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(pipe, b"x" * 4096)
    os.set_blocking(pipe, True)


@pytest.mark.skipif(agent.is_mac(), reason="reads /proc")
def test_the_program_ignores_sigpipe_dumps_no_core_and_has_a_stdin_that_stays_open(hold: Hold) -> None:
    script = "ulimit -c; readlink /proc/self/fd/0; grep SigIgn /proc/self/status"
    core, stdin, ignored = hold("sh", "-c", script).wait_for("exit")["tail"].splitlines()
    assert (core, stdin.partition(":")[0]) == ("0", "pipe")
    assert int(ignored.split()[1], 16) & 1 << (signal.SIGPIPE - 1)


@pytest.mark.parametrize(("shown", "given", "seen"), [("2,GPU-ab", "1", "GPU-ab"), ("2", "0,1", "2"), ("2", "", "")])
def test_cards_are_numbered_among_those_that_the_host_shows(shown: str, given: str, seen: str) -> None:
    variables = agent.with_variables({"HOME": "/", agent.VISIBLE_CARDS: shown}, {agent.VISIBLE_CARDS: given, "A": "b"})
    assert variables == {"HOME": "/", agent.VISIBLE_CARDS: seen, "A": "b"}
    assert agent.with_variables({}, {agent.VISIBLE_CARDS: given}) == {agent.VISIBLE_CARDS: given}


def test_the_program_gets_its_environment(hold: Hold) -> None:
    held = hold("sh", "-c", 'echo "$A,$B"', options=("--env", "A=1=2", "--env", "B=x y"))
    assert held.wait_for("exit")["tail"] == "1=2,x y"


def test_a_talkative_program_is_neither_blocked_nor_fills_the_disk(hold: Hold, tmp_path: Path) -> None:
    limit = 64 * 1024
    script = "i=0; while [ $i -lt 200 ]; do head -c 9999 /dev/zero | tr '\\0' x; echo; i=$((i+1)); done; echo last"
    held = hold("sh", "-c", script, options=("--log-bytes", str(limit)), heartbeat_s=60)
    assert held.wait_for("exit", deadline_s=40)["tail"].endswith("last")
    sizes = [path.stat().st_size for path in tmp_path.glob("test.log*") if path.suffix != ".times"]
    assert len(sizes) == 2
    assert sum(sizes) <= limit


def test_life_signs_tell_what_the_family_uses(hold: Hold) -> None:
    held = hold(sys.executable, "-c", "import time; x = b'x' * 100_000_000; time.sleep(99)", heartbeat_s=30)
    event = held.wait_for("alive")
    while event["rss_bytes"] < 100_000_000:
        event = held.wait_for("alive")
    assert set(event) == {"event", "rss_bytes", "anonymous_bytes", "cpu_s", "available_bytes", "stopped"}
    assert 100_000_000 <= event["anonymous_bytes"] <= event["rss_bytes"] < 200_000_000
    assert event["cpu_s"] > 0
    held.say(b"stop\n")
    assert held.wait_for("exit")["rss_peak_bytes"] >= 100_000_000


def test_life_signs_tell_what_is_stopped_and_that_it_goes_on(hold: Hold) -> None:
    held = hold("sleep", "99", heartbeat_s=30)
    pid = held.wait_for("started")["pid"]
    for number, stopped in ((signal.SIGSTOP, True), (signal.SIGCONT, False)):
        os.kill(pid, number)
        assert held.wait_for("alive")["stopped"] is stopped


def test_the_log_of_the_run_before_is_kept_beside(hold: Hold, tmp_path: Path) -> None:
    hold("echo", "first").wait_for("exit")
    hold("echo", "second").wait_for("exit")
    assert [(tmp_path / name).read_text() for name in ("test.log.old", "test.log")] == ["first\n", "second\n"]


def test_a_run_of_the_same_name_may_take_the_old_log_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "test.log"
    path.write_text("before\n")
    size_bytes = os.path.getsize

    def taken_by_the_other(place: str) -> int:
        result = size_bytes(place)
        os.replace(place, f"{place}.old")
        return result

    monkeypatch.setattr(os.path, "getsize", taken_by_the_other)
    log = agent.BoundedLog(str(path), 64 * 1024)
    log.write(b"now\n")
    log.close()
    assert [(tmp_path / name).read_text() for name in ("test.log.old", "test.log")] == ["before\n", "now\n"]


def test_no_line_of_the_run_before_is_taken_for_one_of_this_run(hold: Hold, tmp_path: Path) -> None:
    script = "yes before | head -c 6000; sleep 0.3; yes before | head -c 6000"
    hold("sh", "-c", script, options=("--log-bytes", "24576")).wait_for("exit")
    assert (tmp_path / "test.log.1").exists()
    hold("echo", "now").wait_for("exit")
    assert run_agent("tail", str(tmp_path / "test.log")) == {"text": "now"}


def test_a_host_that_does_not_say_its_memory_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown() -> agent.Memory:
        raise agent.AgentError("vm_stat gives no figures that can be read")

    monkeypatch.setattr(agent, "current_memory", unknown)
    assert agent.available_bytes() is None


def test_an_item_in_use_cannot_go_until_the_leash_has_ended(hold: Hold, tmp_path: Path) -> None:
    item = tmp_path / "slices" / "a.gguf"
    item.parent.mkdir()
    item.write_text("x")
    held = hold("sleep", "99", options=("--uses", str(item)), heartbeat_s=60)
    held.wait_for("started")
    assert run_agent("forget", "--root", str(tmp_path), "slices/a.gguf") == {"removed": []}
    held.process.kill()  # the kernel gives up its lock, whatever becomes of the program
    held.process.wait(10)
    wait_until(lambda: run_agent("forget", "--root", str(tmp_path), "slices/a.gguf")["removed"] == ["slices/a.gguf"])


def test_nothing_is_started_from_an_item_that_is_not_whole(hold: Hold, tmp_path: Path) -> None:
    item = tmp_path / "models" / "0f12"
    item.mkdir(parents=True)
    (item / "a.gguf").write_text("123456")
    digest = agent.sha256_of(str(item / "a.gguf"))
    assert run_agent("record", str(item), "a.gguf", "6", digest) == {"right": True}
    (item / "a.gguf").write_text("12345")
    held = hold("touch", str(tmp_path / "ran"), options=("--uses", str(item)))
    assert held.process.wait(10) == 1
    assert held.events.get(timeout=5)["error"] == (
        f"{item} is not whole: a.gguf has 5 bytes, not the 6 that were put there; "
        "start again, it is then put there anew"
    )
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("how", ["by itself", "stopped", "leash killed"])
def test_what_was_for_this_run_only_goes_with_it(hold: Hold, tmp_path: Path, how: str) -> None:
    key = tmp_path / "head key"
    key.write_text("secret")
    seconds = "0" if how == "by itself" else "99"
    held = hold("sleep", seconds, options=("--temporary", str(key)), heartbeat_s=60)
    held.wait_for("started")
    if how == "stopped":
        held.say(b"stop\n")
    elif how == "leash killed":
        held.process.kill()
    wait_until(lambda: not key.exists())


def test_stdout_is_captured_apart_from_the_log(hold: Hold, tmp_path: Path) -> None:
    """More than a pipe holds, by a program that ends at once."""
    code = "import sys; sys.stdout.write('x' * 300_000 + '\\n'); sys.stderr.write('talk')"
    ended = hold(sys.executable, "-c", code, options=("--capture",)).wait_for("exit")
    assert (len(ended["output"]), ended["output"][-2:], ended["tail"]) == (300_001, "x\n", "talk")
    assert (tmp_path / "test.log").read_text() == "talk"


def test_lines_are_told_as_they_are_written_to_the_log(hold: Hold, tmp_path: Path) -> None:
    held = hold(
        "sh", "-c", "printf 'one\\ntw'; sleep 0.5; printf 'o\\nend'; sleep 0.5", options=("--tell",), heartbeat_s=60
    )
    assert held.wait_for("said") == {"event": "said", "lines": ["one"]}
    assert held.wait_for("said") == {"event": "said", "lines": ["two"]}
    assert held.wait_for("exit")["tail"] == "one\ntwo\nend"
    assert (tmp_path / "test.log").read_text() == "one\ntwo\nend"
