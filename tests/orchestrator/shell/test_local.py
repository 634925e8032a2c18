"""This machine as a host: real child processes and files."""

import asyncio
import os
from pathlib import Path

import pytest

from orchestrator.errors import CommandError, DeadlineError, HostError, TransferError
from orchestrator.inventory import Host
from orchestrator.shell.connect import connect
from orchestrator.shell.local import LocalShell
from orchestrator.shell.protocol import Finished, Shell, Span
from tests.orchestrator.shell.ssh_server import ssh_files


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.fixture
def shell(home: Path) -> Shell:
    return LocalShell("here", home / "root", home)


async def test_a_command_runs_at_home_under_the_c_locale(shell: Shell, home: Path) -> None:
    words = ("sh", "-c", 'pwd; echo "$LC_ALL $WORD"; cat')
    answer = await shell.run(words, deadline_s=10, stdin=b"in", environment={"WORD": "a b"})
    assert answer == Finished(0, f"{home}\nC a b\nin".encode(), b"")


async def test_a_launcher_stands_before_every_command(home: Path) -> None:
    """The environment is set behind it, where the command itself sees it."""
    shell = LocalShell("here", home / "root", home, ("env", "LC_ALL=C.UTF-8", "ONE=1"))
    words = ("sh", "-c", 'echo "$LC_ALL $ONE"')
    assert (await shell.run(words, deadline_s=10)).stdout == b"C 1\n"
    process = await shell.start(words)
    assert [line async for line in process.lines()] == ["C.UTF-8 1"]
    await process.kill()


async def test_a_launcher_that_is_missing_or_fails_is_named_with_its_key(home: Path) -> None:
    for word, details in (("no-such-launcher", "No such file"), ("false", "")):
        host = Host("left", "local", run_with=(word, "-x"))
        with pytest.raises(HostError) as caught:
            await connect(host, ssh_files(home), local_root=home)
        assert str(caught.value) == f"left: `run_with` does not work: `{word} -x true` fails there"
        assert caught.value.hint == f"install {word} on left, or correct `run_with` of that host in the inventory"
        assert details in caught.value.details


async def test_failures_are_named(shell: Shell) -> None:
    with pytest.raises(CommandError) as caught:
        await shell.run(("sh", "-c", "echo why >&2; kill -9 $$"), deadline_s=10)
    assert str(caught.value) == "here: `sh -c 'echo why >&2; kill -9 $$'` failed (ended by SIGKILL)"
    assert (caught.value.status, caught.value.details) == (-9, "why")
    with pytest.raises(CommandError, match="failed \\(exit status 127\\)"):
        await shell.run(("no-such-program",), deadline_s=10)


async def test_a_deadline_ends_the_whole_group(shell: Shell, home: Path) -> None:
    with pytest.raises(DeadlineError, match=r"did not end within 0\.5 s and was killed"):
        await shell.run(("sh", "-c", "sleep 97 & echo $! > child; wait"), deadline_s=0.5)
    await _gone(int((home / "child").read_text()))


async def test_a_deadline_ends_children_that_outlive_their_parent(shell: Shell, home: Path) -> None:
    with pytest.raises(DeadlineError):
        await shell.run(("sh", "-c", "sleep 97 & echo $! > child"), deadline_s=0.5)
    await _gone(int((home / "child").read_text()))


async def test_a_cancelled_command_is_ended(shell: Shell, home: Path) -> None:
    task = asyncio.create_task(
        shell.run(("sh", "-c", "echo $$ > child.new; mv child.new child; sleep 97"), deadline_s=60)
    )
    async with asyncio.timeout(10):
        while not (home / "child").exists():
            await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await _gone(int((home / "child").read_text()))


async def test_a_process_streams_lines_of_any_length(shell: Shell) -> None:
    process = await shell.start(("sh", "-c", 'read n; head -c "$n" /dev/zero | tr "\\0" x; echo; printf "a\\r\\nlast"'))
    await process.write(b"300000\n")
    async with asyncio.timeout(10):
        assert [line async for line in process.lines()] == ["x" * 300_000, "a", "last"]
    assert await process.wait(deadline_s=10) == 0
    await process.kill()


async def test_a_process_has_deadlines_and_can_be_killed(shell: Shell) -> None:
    process = await shell.start(("sh", "-c", "echo hello >&2; sleep 97"))
    with pytest.raises(DeadlineError, match="still runs after"):
        await process.wait(deadline_s=0.3)
    await process.kill()
    assert await process.wait(deadline_s=10) == -9
    assert process.stderr_tail() == "hello"
    await process.write(b"nobody listens")


async def test_files_are_copied_whole(shell: Shell, home: Path) -> None:
    source = home / "source"
    source.write_bytes(os.urandom(100_000))
    seen: list[tuple[int, int]] = []
    await shell.put(source, "a/b", mode=0o755, progress=lambda done, size: seen.append((done, size)))
    await shell.put_bytes(b"bytes", "a/c", mode=0o600)
    await shell.get("a/b", home / "back")
    assert (home / "back").read_bytes() == source.read_bytes()
    assert [(path.name, path.stat().st_mode & 0o777) for path in sorted((home / "a").iterdir())] == [
        ("b", 0o755),
        ("c", 0o600),
    ]
    assert seen == [(100_000, 100_000)]


async def test_a_secret_can_be_read_by_nobody_else_while_it_is_written(
    shell: Shell, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "chmod", lambda path, mode: None)  # what the file is before its mode is set
    await shell.put_bytes(b"secret", "key", mode=0o600)
    assert (home / "key").stat().st_mode & 0o777 == 0o600


async def test_a_copy_that_fails_leaves_nothing(shell: Shell, home: Path) -> None:
    with pytest.raises(TransferError, match="No such file or directory"):
        await shell.put(home / "missing", "target")
    (home / "flat").write_text("")
    with pytest.raises(TransferError, match="cannot be copied"):
        await shell.put_bytes(b"x", "flat/below")
    assert os.listdir(home) == ["flat"]


async def _gone(pid: int) -> None:
    async with asyncio.timeout(10):
        while _alive(pid):
            await asyncio.sleep(0.02)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_a_part_of_a_file_is_written_and_gone_on_with(shell: Shell, home: Path) -> None:
    (home / "source").write_bytes(b"0123456789")
    (home / "part").write_bytes(b"12x")
    await shell.append(home / "source", Span(1, 6), "part", done_bytes=2)
    assert (home / "part").read_bytes() == b"123456"
    await shell.append(home / "source", Span(2, 3), "part")
    assert (home / "part").read_bytes() == b"234"
    in_runs = Span(1, 6, run_bytes=2, stride_bytes=3)
    (home / "part").write_bytes(b"12x")
    for done in (2, 3, 0):
        await shell.append(home / "source", in_runs, "part", done_bytes=done)
        assert (home / "part").read_bytes() == b"124578"
        (home / "part").write_bytes(b"124")
    with pytest.raises(TransferError, match="has become shorter while it was read"):
        await shell.append(home / "source", Span(8, 3), "part")
