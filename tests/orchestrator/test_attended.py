"""Questions to the agent, answered by one process that stays on the host."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from orchestrator.attended import AttendedShell, attend
from orchestrator.errors import CommandError, DeadlineError, HostError
from orchestrator.host_agent import ask_agent, ask_facts
from orchestrator.shell.local import LocalShell
from orchestrator.shell.protocol import Finished, Shell
from orchestrator.shell.ssh import SshShell
from tests.orchestrator.shell.ssh_server import Server
from workers.agent import running_processes
from workers.commands import READ_AND_RUN, agent_words, enter_words, look_words


@pytest.fixture(params=["local", "ssh"])
async def attended(request: pytest.FixtureRequest, shell: SshShell, tmp_path: Path) -> AsyncIterator[AttendedShell]:
    plain: Shell = shell if request.param == "ssh" else LocalShell("desk", tmp_path / "root", tmp_path)
    one = await attend(plain)
    yield one
    if one._attendant is not None:
        await one._attendant.close()


def attendants(shell: AttendedShell) -> list[int]:
    """The processes that wait for its questions."""
    begun = ("-c", READ_AND_RUN), (shell.agent, "attend")  # when it was let in, and after a rest
    wanted = ["\0".join(words) for words in begun]
    found = []
    for pid in running_processes():
        try:
            command = Path(f"/proc/{pid}/cmdline").read_text()
        except OSError:
            continue
        if shell.agent in command and any(words in command for words in wanted):
            found.append(pid)
    return found


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.02)


async def test_many_questions_are_answered_by_one_process(attended: AttendedShell, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("12345")
    words = look_words(attended.agent, str(tmp_path / "a"), "")
    expected = {"size_bytes": 5, "recorded": False, "damaged": False}
    answers = await asyncio.gather(*(ask_agent(attended, words) for _ in range(20)))
    assert answers == [expected] * 20
    assert len(attendants(attended)) == 1
    assert (await ask_facts(attended, attended.agent)).user
    await attended._attendant.close()  # type: ignore[union-attr]
    await until(lambda: not attendants(attended))
    assert await ask_agent(attended, words) == expected


async def test_an_answer_is_what_the_verb_by_itself_would_say(attended: AttendedShell, tmp_path: Path) -> None:
    """Status, both outputs, stdin and wrong usage."""
    agent = attended.agent
    missing = agent_words(agent, "tail", str(tmp_path / "no.log"))
    program = enter_words(agent, (), ("sh", "-c", "cat; echo ä >&2; exit 3"))
    for words in (missing, agent_words(agent, "dance"), program):
        finished = await attended.run(words, deadline_s=10, stdin=b"text", check=False)
        assert finished == await attended._shell.run(words, deadline_s=10, stdin=b"text", check=False)
        assert finished.status in (1, 2, 3)
    with pytest.raises(HostError, match="there is no such log"):
        await ask_agent(attended, missing)
    with pytest.raises(CommandError, match=r"failed \(exit status 3\)"):
        await attended.run(program, deadline_s=10)
    killed = await attended.run(enter_words(agent, (), ("sh", "-c", "kill -9 $$")), deadline_s=10, check=False)
    assert killed == Finished(-signal.SIGKILL, b"", b"")


async def test_any_command_is_run_as_by_the_shell_itself(attended: AttendedShell) -> None:
    """Its locale and environment, where it starts, bytes that are no text, and a program that is not there."""
    script = 'pwd; echo "$LC_ALL $WORD"; cat; exit 4'
    for words in (("sh", "-c", script), ("no-such-program",), ("cat",)):
        options = {"stdin": bytes(range(256)), "environment": {"WORD": "a b"}}
        finished = await attended.run(words, deadline_s=10, check=False, **options)  # type: ignore[arg-type]
        plain = await attended._shell.run(words, deadline_s=10, check=False, **options)  # type: ignore[arg-type]
        assert (finished.status, finished.stdout) == (plain.status, plain.stdout)
    assert len(attendants(attended)) == 1


async def test_a_large_text_comes_to_stdin_and_back(attended: AttendedShell) -> None:
    words = enter_words(attended.agent, (), ("cat",))
    text = b"0123456789abcdef" * 40_000
    assert (await attended.run(words, deadline_s=20, stdin=text)).stdout == text


async def test_a_question_that_takes_too_long_or_is_not_wanted_any_more_is_ended_there(
    attended: AttendedShell, tmp_path: Path
) -> None:
    number = tmp_path / "number"
    words = enter_words(
        attended.agent, (), ("sh", "-c", f"sleep 97 & echo $! > {number}.new; mv {number}.new {number}; wait")
    )
    with pytest.raises(DeadlineError, match=r"did not end within 1 s and was killed"):
        await attended.run(words, deadline_s=1)
    await until(lambda: not Path("/proc", number.read_text().strip()).exists())
    number.unlink()
    task = asyncio.create_task(attended.run(words, deadline_s=60))
    await until(number.exists)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: not Path("/proc", number.read_text().strip()).exists())


async def test_when_the_process_is_killed_its_questions_are_asked_again(
    attended: AttendedShell, tmp_path: Path
) -> None:
    words = enter_words(
        attended.agent,
        (),
        ("sh", "-c", f"echo >> {tmp_path}/asked; while [ ! -e {tmp_path}/go ]; do sleep 0.1; done; echo done"),
    )
    task = asyncio.create_task(attended.run(words, deadline_s=60))
    await until((tmp_path / "asked").exists)
    (pid,) = attendants(attended)
    os.kill(pid, signal.SIGKILL)
    await until(lambda: (tmp_path / "asked").read_text() == "\n\n")
    (tmp_path / "go").touch()
    assert (await task).stdout == b"done\n"


async def test_it_ends_with_the_connection(shell: SshShell, server: Server, tmp_path: Path) -> None:
    attended = await attend(shell)
    (tmp_path / "a").touch()
    await ask_agent(attended, look_words(attended.agent, str(tmp_path / "a"), ""))
    assert len(attendants(attended)) == 1
    for connection in server.connections:
        connection.abort()
    began = time.monotonic()
    await until(lambda: not attendants(attended))
    assert time.monotonic() - began < 5
    with pytest.raises(HostError):
        await ask_agent(attended, look_words(attended.agent, str(tmp_path / "a"), ""))


async def test_it_rests_until_the_next_question_unless_it_is_being_asked(
    attended: AttendedShell, tmp_path: Path
) -> None:
    (tmp_path / "a").touch()
    words = look_words(attended.agent, str(tmp_path / "a"), "")
    await attended.rest()
    task = asyncio.create_task(attended.run(("sh", "-c", "sleep 0.5; echo done"), deadline_s=10))
    await until(lambda: len(attendants(attended)) == 1)
    await asyncio.sleep(0.1)
    await attended.rest()
    assert (await task).stdout == b"done\n"
    await attended.rest()
    await until(lambda: not attendants(attended))
    assert (await ask_agent(attended, words))["size_bytes"] == 0
