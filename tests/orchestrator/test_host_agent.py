"""Our side of the agent over a shell of this machine: put once, asked, and programs held that end with us."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from orchestrator import host_agent, host_door
from orchestrator.errors import BringUpError, DeadlineError, HostError
from orchestrator.host_agent import FolderCheck
from orchestrator.leash import Exit, Leashed, start_leashed
from orchestrator.shell.local import LocalShell
from workers import agent as agent_program


@pytest.fixture
async def shell(tmp_path: Path) -> AsyncIterator[LocalShell]:
    one = LocalShell("desk", tmp_path / "root", tmp_path)
    yield one
    await one.close()


@pytest.fixture
async def agent(shell: LocalShell) -> str:
    return await host_door.ensure_agent(shell)


def python3_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None) -> None:
    """A PATH whose only python3 is that shell script; None: there is none."""
    folder = tmp_path / "path"
    folder.mkdir()
    for name in ("env", "sh"):
        (folder / name).symlink_to(f"/usr/bin/{name}")
    if script is not None:
        (folder / "python3").write_text(f"#!/bin/sh\n{script}\n")
        (folder / "python3").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


async def until(held: Leashed, pid: int) -> None:
    async with asyncio.timeout(10):
        while pid in agent_program.running_processes():
            await asyncio.sleep(0.05)


async def test_the_agent_is_put_once_and_again_without_running_it_when_it_was_changed(
    shell: LocalShell, tmp_path: Path
) -> None:
    path = Path(await host_door.ensure_agent(shell))
    assert path.parent == Path(shell.root) / "agent"
    assert path.read_bytes() == host_door.agent_source()
    before = path.stat().st_ino
    assert await host_door.ensure_agent(shell) == str(path)
    assert path.stat().st_ino == before
    path.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    told: list[str] = []
    assert await host_door.ensure_agent(shell, told.append) == str(path)
    assert path.read_bytes() == host_door.agent_source()
    assert told == ["desk: the agent there was not as it was put (by its sha256): it is put there anew"]
    assert not (tmp_path / "ran").exists()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files to somebody else")
async def test_a_folder_of_another_user_is_refused(shell: LocalShell) -> None:
    Path(shell.root).mkdir()
    os.chown(shell.root, 65534, 65534)
    with pytest.raises(HostError, match=r"^desk: .*/root belongs to the user nobody, who could change what runs here$"):
        await host_door.ensure_agent(shell)


async def test_a_folder_that_was_open_to_others_is_closed_and_told(shell: LocalShell) -> None:
    Path(shell.root).mkdir()
    Path(shell.root).chmod(0o777)
    told: list[str] = []
    await host_door.ensure_agent(shell, told.append)
    (text,) = told
    assert text.startswith(f"desk: {shell.root} could be written to by other users (mode 777)")


async def test_a_host_without_python_gets_an_error_that_says_so(
    shell: LocalShell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python3_is(tmp_path, monkeypatch, None)
    with pytest.raises(HostError, match=r"^desk: has no python3$") as caught:
        await host_door.ensure_agent(shell)
    assert "apt install python3" in caught.value.hint


async def test_a_host_with_half_a_python_is_told_which_package_has_the_rest(
    shell: LocalShell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a Debian that has python3-minimal only."""
    missing = (
        'case "$4" in *version*) echo 3.9.2;; *) echo "ModuleNotFoundError: No module named json" >&2; exit 1;; esac'
    )
    python3_is(tmp_path, monkeypatch, missing)
    with pytest.raises(HostError, match="its Python cannot look at") as caught:
        await host_door.ensure_agent(shell)
    assert "python3, beside python3-minimal" in caught.value.hint


async def test_a_host_whose_python_is_only_a_placeholder_has_no_python(
    shell: LocalShell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a Mac without developer tools."""
    python3_is(tmp_path, monkeypatch, "echo 'xcode-select: note: no developer tools were found' >&2; exit 1")
    with pytest.raises(HostError, match=r"^desk: has no python3$") as caught:
        await host_door.ensure_agent(shell)
    assert caught.value.details == "xcode-select: note: no developer tools were found"


async def test_an_old_python_is_named_with_what_is_needed(
    shell: LocalShell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python3_is(tmp_path, monkeypatch, 'case "$4" in *version*) echo 3.6.15;; *) exit 2;; esac')
    with pytest.raises(HostError, match=r"^desk: python3 there is 3\.6\.15, the agent needs 3\.8 or newer$"):
        await host_door.ensure_agent(shell)


async def test_facts_are_those_of_the_host(shell: LocalShell, agent: str) -> None:
    facts = await host_agent.ask_facts(shell, agent)
    assert (facts.root, facts.os, facts.architecture) == (shell.root, os.uname().sysname, os.uname().machine)


async def test_free_ports_are_as_many_as_asked(shell: LocalShell, agent: str) -> None:
    ports = await host_agent.free_ports(shell, agent, 3)
    assert len(set(ports)) == 3


async def test_an_agents_error_names_the_host(shell: LocalShell, agent: str, tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"^desk: .*/none/manifest.json: No such file or directory$"):
        await host_agent.check_folder(shell, agent, str(tmp_path / "none"))


async def test_a_folder_that_equals_its_manifest_is_ok(shell: LocalShell, agent: str, tmp_path: Path) -> None:
    folder = tmp_path / "engine"
    folder.mkdir()
    (folder / "manifest.json").write_text('{"files": []}')
    assert (await host_agent.check_folder(shell, agent, str(folder))).ok
    (folder / "manifest.json").write_text('{"files": [{"path": "a", "sha256": "0", "size_bytes": 1}]}')
    (folder / "b").touch()
    check = await host_agent.check_folder(shell, agent, str(folder))
    assert check == FolderCheck(missing=("a",), extra=("b",))
    assert str(check) == "a is missing; b does not belong there"


async def test_the_measuring_server_listens_on_loopback_until_it_is_closed(shell: LocalShell, agent: str) -> None:
    server = await host_agent.start_link_server(shell, agent)
    try:
        found = [one for one in await host_agent.listening(shell, agent) if one.port == server.port]
        assert [one.address for one in found] == ["127.0.0.1"]
    finally:
        await server.close()
    assert [one for one in await host_agent.listening(shell, agent) if one.port == server.port] == []


async def start(shell: LocalShell, agent: str, *words: str, heartbeat_s: float = 2.0) -> Leashed:
    log = f"{shell.root}/logs/program.log"
    return await start_leashed(shell, agent, words, log=log, name="program", heartbeat_s=heartbeat_s)


async def test_a_leashed_program_outlives_its_heartbeat_while_we_are_here(shell: LocalShell, agent: str) -> None:
    held = await start(shell, agent, "sh", "-c", "echo ready; exec sleep 99", heartbeat_s=1.0)
    await asyncio.sleep(2.5)
    assert held.running
    assert held.pid in agent_program.running_processes()
    assert held.rss_bytes is not None
    assert held.rss_bytes > 0
    assert await held.log_tail() == "ready"
    ended = await held.stop()
    assert (ended.status, ended.reason, ended.lost, ended.tail) == (-signal.SIGTERM, "asked to stop", False, "ready")
    assert held.pid not in agent_program.running_processes()
    assert await held.wait() == await held.stop() == ended


async def test_the_end_of_a_program_is_noticed_at_once(shell: LocalShell, agent: str) -> None:
    held = await start(shell, agent, "sh", "-c", "sleep 0.6; echo bad; exit 4")
    async with asyncio.timeout(10):
        ended = await held.wait()
    assert (ended.status, ended.tail, str(ended)) == (4, "bad", "exit status 4")
    assert not held.running


async def test_a_program_that_ends_at_once_is_an_error_with_its_last_lines(shell: LocalShell, agent: str) -> None:
    with pytest.raises(BringUpError, match=r"^desk: program ended at once: exit status 9$") as caught:
        await start(shell, agent, "sh", "-c", "echo port taken; exit 9")
    assert caught.value.details == "port taken"


async def test_a_program_that_is_not_there_is_an_error_that_names_it(shell: LocalShell, agent: str) -> None:
    with pytest.raises(BringUpError, match="program ended at once: exit status 127") as caught:
        await start(shell, agent, "/no/such/program")
    assert caught.value.details == "/no/such/program: No such file or directory"


async def test_a_missing_agent_is_an_error_that_shows_what_python_said(shell: LocalShell) -> None:
    with pytest.raises(BringUpError, match="its leash ended with status 1") as caught:
        await start(shell, "/no/such/agent.py", "true")
    assert "No such file or directory: '/no/such/agent.py'" in caught.value.details


async def test_a_leash_that_is_killed_is_a_lost_program_that_has_ended(shell: LocalShell, agent: str) -> None:
    held = await start(shell, agent, "sleep", "99")
    leash = agent_program.running_processes()[held.pid].parent
    os.kill(leash, signal.SIGKILL)
    async with asyncio.timeout(10):
        ended = await held.wait()
    assert ended == Exit(None, lost=True, reason="its leash ended with status -9")
    await until(held, held.pid)


async def test_a_frozen_leash_is_abandoned_by_stop_within_the_deadline(shell: LocalShell, agent: str) -> None:
    held = await start(shell, agent, "sleep", "99")
    os.kill(agent_program.running_processes()[held.pid].parent, signal.SIGSTOP)
    async with asyncio.timeout(10):
        ended = await held.stop(deadline_s=0.5)
    assert ended.lost
    await until(held, held.pid)


async def test_a_start_that_is_cancelled_leaves_nothing(shell: LocalShell, agent: str, tmp_path: Path) -> None:
    number = tmp_path / "number"
    starting = asyncio.create_task(start(shell, agent, "sh", "-c", f"echo $$ > {number}; exec sleep 99"))
    async with asyncio.timeout(10):
        while not number.exists() or not number.read_text():
            await asyncio.sleep(0.01)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    async with asyncio.timeout(10):
        while int(number.read_text()) in agent_program.running_processes():
            await asyncio.sleep(0.05)


async def test_a_start_that_takes_too_long_is_a_deadline_error(
    shell: LocalShell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python3_is(tmp_path, monkeypatch, "exec /bin/sleep 30")
    with pytest.raises(DeadlineError, match=r"^desk: program did not start within 0\.5 s$"):
        await start_leashed(shell, "agent.py", ("true",), log=f"{shell.root}/log", name="program", deadline_s=0.5)


async def test_output_that_is_no_answer_is_an_error_that_shows_it(
    shell: LocalShell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python3_is(tmp_path, monkeypatch, "echo Welcome to desk; exit 0")
    with pytest.raises(HostError, match="what should be the agent's answer cannot be read: 'Welcome to desk'"):
        await host_agent.free_ports(shell, "agent.py", 1)
