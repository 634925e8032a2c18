"""Commands, processes and files over a real SSH connection on loopback."""

import asyncio
import os
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.errors import CommandError, ConnectError, DeadlineError, HostError, TransferError
from orchestrator.shell.connect import connect
from orchestrator.shell.protocol import Finished, Span
from orchestrator.shell.ssh import SshShell, _feed
from orchestrator.shell.ssh_config import SshFiles
from orchestrator.shell.ssh_files import read_free_bytes
from tests.orchestrator.shell.ssh_server import Server, host_of, running_server

MIB = 1024 * 1024


async def test_a_command_runs_in_the_home_folder_with_its_words_intact(shell: SshShell, server: Server) -> None:
    answer = await shell.run(("printf", "%s|", "a b", "$HOME", "it's", "*"), deadline_s=10)
    assert answer == Finished(0, b"a b|$HOME|it's|*|", b"")
    assert (await shell.run(("pwd",), deadline_s=10)).stdout.decode().strip() == str(server.home)
    assert shell.root == f"{server.home}/.cache/meshctl"


async def test_a_launcher_stands_before_every_command_there(trusted: SshFiles, server: Server, login: Path) -> None:
    host = replace(host_of(server, login), run_with=("env", "ONE=a b"))
    shell = await connect(host, trusted)
    assert (await shell.run(("sh", "-c", 'echo "$LC_ALL $ONE"'), deadline_s=10)).stdout == b"C a b\n"
    process = await shell.start(("sh", "-c", 'echo "$ONE"'))
    assert [line async for line in process.lines()] == ["a b"]
    await shell.close()


async def test_a_launcher_that_is_missing_there_is_named_with_its_key(
    trusted: SshFiles, server: Server, login: Path
) -> None:
    host = replace(host_of(server, login), run_with=("no-such-launcher",))
    with pytest.raises(
        HostError, match="desk: `run_with` does not work: `no-such-launcher true` fails there"
    ) as caught:
        await connect(host, trusted)
    assert "not found" in caught.value.details


async def test_commands_get_the_c_locale_the_environment_and_stdin(shell: SshShell) -> None:
    words = ("sh", "-c", 'echo "$LC_ALL $GREETING"; cat')
    answer = await shell.run(words, deadline_s=10, stdin=b"x" * 500_000, environment={"GREETING": "good day"})
    assert answer.stdout == b"C good day\n" + b"x" * 500_000


async def test_a_command_without_stdin_sees_its_end_at_once(shell: SshShell) -> None:
    assert (await shell.run(("cat",), deadline_s=10)).stdout == b""


async def test_a_command_that_does_not_read_its_stdin_still_succeeds(shell: SshShell) -> None:
    assert await shell.run(("true",), deadline_s=10, stdin=b"x" * 5_000_000) == Finished(0, b"", b"")


async def test_a_command_that_has_ended_before_it_gets_its_stdin_is_not_taken_for_a_lost_connection(
    shell: SshShell,
) -> None:
    process = await shell._open(("sh", "-c", "exit 3"), ("sh",))
    await process.wait_closed()
    _feed(process, b"x")
    assert process.returncode == 3


async def test_a_cancelled_command_is_ended_there(shell: SshShell, server: Server) -> None:
    words = ("sh", "-c", "echo $$ > number.new; mv number.new number; sleep 97")
    task = asyncio.create_task(shell.run(words, deadline_s=60))
    async with asyncio.timeout(10):
        while not (server.home / "number").exists():
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        process = Path("/proc") / (server.home / "number").read_text().strip()
        while process.exists():
            await asyncio.sleep(0.02)


async def test_a_failed_command_is_an_error_that_shows_its_last_words(shell: SshShell) -> None:
    with pytest.raises(CommandError) as caught:
        await shell.run(("sh", "-c", "echo no such device >&2; exit 3"), deadline_s=10)
    assert str(caught.value) == "desk: `sh -c 'echo no such device >&2; exit 3'` failed (exit status 3)"
    assert (caught.value.status, caught.value.details) == (3, "no such device")


async def test_an_unchecked_failure_and_a_signal_are_answers(shell: SshShell) -> None:
    assert (await shell.run(("false",), deadline_s=10, check=False)).status == 1
    assert (await shell.run(("sh", "-c", "kill -TERM $$"), deadline_s=10, check=False)).status == -15


async def test_a_late_command_is_a_deadline_error_that_names_it(shell: SshShell) -> None:
    with pytest.raises(DeadlineError, match=r"desk: `sleep 100` did not end within 0\.2 s and was killed"):
        await shell.run(("sleep", "100"), deadline_s=0.2)
    assert (await shell.run(("echo", "on"), deadline_s=10)).stdout == b"on\n"


async def test_more_commands_than_sessions_take_turns(shell: SshShell) -> None:
    answers = await asyncio.gather(*(shell.run(("echo", str(n)), deadline_s=20) for n in range(12)))
    assert [answer.stdout for answer in answers] == [f"{n}\n".encode() for n in range(12)]


async def test_a_lost_connection_is_told_from_an_exit_status(shell: SshShell, server: Server) -> None:
    waiting = asyncio.create_task(shell.run(("sleep", "100"), deadline_s=30))
    async with asyncio.timeout(10):
        while not server.commands:
            await asyncio.sleep(0.01)
    shell._login.connection.abort()
    with pytest.raises(CommandError, match="the connection was lost while `sleep 100` ran") as caught:
        await waiting
    assert caught.value.status is None
    with pytest.raises(CommandError, match="the connection was lost"):
        await shell.run(("true",), deadline_s=10)


async def test_a_process_streams_lines_both_ways(shell: SshShell) -> None:
    process = await shell.start(("sh", "-c", 'echo ready; read word; echo "got $word"; echo oops >&2; exit 4'))
    lines = process.lines()
    async with asyncio.timeout(10):
        assert await anext(lines) == "ready"
        await process.write(b"tea\n")
        assert [line async for line in lines] == ["got tea"]
    assert await process.wait(deadline_s=10) == 4
    assert process.stderr_tail() == "oops"
    await process.write(b"too late\n")
    await process.close_stdin()
    await process.kill()


async def test_waiting_for_a_process_has_a_deadline_and_killing_it_returns(shell: SshShell) -> None:
    process = await shell.start(("sleep", "100"))
    with pytest.raises(DeadlineError, match="still runs after"):
        await process.wait(deadline_s=0.1)
    async with asyncio.timeout(10):
        await process.kill()


async def test_a_file_goes_there_whole_with_its_mode_and_comes_back(shell: SshShell, server: Server) -> None:
    data = os.urandom(700_000)
    source = server.home / "source"
    source.write_bytes(data)
    seen: list[tuple[int, int]] = []
    await shell.put(source, "new/folder/file", mode=0o755, progress=lambda done, size: seen.append((done, size)))
    await shell.put_bytes(b"second", "new/folder/file2", mode=0o600)
    target = server.home / "new/folder/file"
    assert target.read_bytes() == data
    assert target.stat().st_mode & 0o777 == 0o755
    assert (server.home / "new/folder/file2").stat().st_mode & 0o777 == 0o600
    assert seen[-1] == (len(data), len(data))
    await shell.get("new/folder/file", server.home / "back/again")
    assert (server.home / "back/again").read_bytes() == data
    assert sorted(os.listdir(target.parent)) == ["file", "file2"]


async def test_a_part_of_a_file_is_written_and_gone_on_with(shell: SshShell, server: Server) -> None:
    """A file of ten MiB there, of which four were there already."""
    data = os.urandom(12 * MIB)
    source = server.home / "source"
    source.write_bytes(data)
    span, wanted = Span(MIB, 10 * MIB), data[MIB : 11 * MIB]
    (server.home / "part").write_bytes(wanted[: 4 * MIB])
    seen: list[tuple[int, int]] = []
    await shell.append(source, span, "part", done_bytes=4 * MIB, progress=lambda done, size: seen.append((done, size)))
    assert (server.home / "part").read_bytes() == wanted
    assert seen[-1] == (10 * MIB, 10 * MIB)
    (server.home / "part").write_bytes(bytes(11 * MIB))
    await shell.append(source, span, "part")
    assert (server.home / "part").read_bytes() == wanted


async def test_a_part_in_runs_is_written_and_gone_on_with(shell: SshShell, server: Server) -> None:
    """Chunks of a transfer begin and end within runs."""
    run, stride, count = 1_000_003, 1_500_000, 17
    data = os.urandom(stride * count)
    source = server.home / "source"
    source.write_bytes(data[: 5 + stride * (count - 1) + run])
    wanted = b"".join(data[at : at + run] for at in range(5, stride * count, stride))
    span = Span(5, run * count, run, stride)
    await shell.append(source, span, "part")
    assert (server.home / "part").read_bytes() == wanted
    (server.home / "part").write_bytes(wanted[:4_567_890])
    await shell.append(source, span, "part", done_bytes=4_567_890)
    assert (server.home / "part").read_bytes() == wanted


async def test_a_part_that_is_cut_off_stays(shell: SshShell, server: Server) -> None:
    source = server.home / "source"
    source.write_bytes(os.urandom(9 * MIB))
    with pytest.raises(TransferError, match="has become shorter while it was read"):
        await shell.append(source, Span(0, 10 * MIB), "part")
    assert (server.home / "part").read_bytes() == source.read_bytes()[: 8 * MIB]


async def test_a_secret_can_be_read_by_nobody_else_while_it_is_written(shell: SshShell, server: Server) -> None:
    await shell.put_bytes(b"secret", "key", mode=0o600)
    assert server.written_modes == [0o600]


async def test_of_a_symbolic_link_the_file_behind_it_is_put(shell: SshShell, tmp_path: Path) -> None:
    """The link's target means nothing on the host; model files are often links into a cache."""
    (tmp_path / "blob").write_bytes(b"weights")
    (tmp_path / "model.gguf").symlink_to(tmp_path / "blob")
    await shell.put(tmp_path / "model.gguf", "models/model.gguf")
    (tmp_path / "blob").unlink()
    await shell.get("models/model.gguf", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == b"weights"


async def test_a_put_replaces_an_existing_file(shell: SshShell, server: Server) -> None:
    await shell.put_bytes(b"old", "file")
    await shell.put_bytes(b"new", "file")
    assert (server.home / "file").read_bytes() == b"new"


@pytest.mark.parametrize("when", ["full", "fills_up"])
async def test_a_full_disk_is_named_and_leaves_nothing(shell: SshShell, server: Server, when: str) -> None:
    """Noticed before anything is sent, and when SFTP says no more than "Failure" in the middle."""
    setattr(server, when, True)
    with pytest.raises(TransferError, match=r"file does not fit: 100 B needed, \d+ B free") as caught:
        await shell.put_bytes(b"x" * 100, "file")
    assert caught.value.hint == "free some space on that host's disk and try again"
    assert os.listdir(server.home) == []


async def test_what_cannot_be_fetched_or_put_is_a_transfer_error(
    shell: SshShell, server: Server, tmp_path: Path
) -> None:
    with pytest.raises(TransferError, match=r"missing -> .*: no such file"):
        await shell.get("missing", tmp_path / "got")
    with pytest.raises(TransferError, match="No such file"):
        await shell.put(tmp_path / "nowhere", "target")
    (server.home / "flat").write_text("a file")
    with pytest.raises(TransferError, match="flat/below"):
        await shell.put_bytes(b"", "flat/below")
    assert not list(tmp_path.glob(".got*"))


async def test_a_host_without_sftp_is_told_so(ssh: SshFiles, tmp_path: Path, login: Path) -> None:
    async with running_server(tmp_path / "bare", login=login, sftp_factory=None) as server:
        host = host_of(server, login, host_key=server.keys[0].get_fingerprint())
        with pytest.raises(ConnectError, match=r"offers no file transfer \(SFTP\)") as caught:
            await connect(host, ssh)
    assert "Subsystem sftp internal-sftp" in caught.value.hint


def test_the_free_space_is_read_from_df() -> None:
    answer = b"Filesystem 1024-blocks Used Available Capacity Mounted on\n/dev/vda1 100 40 60 40% /\n"
    assert read_free_bytes(answer) == 60 * 1024
    with pytest.raises(ValueError, match="six columns"):
        read_free_bytes(b"df: no such option\n")
