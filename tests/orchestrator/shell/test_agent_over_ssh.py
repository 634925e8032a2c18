"""The agent over a real SSH connection: what it holds ends when the connection does."""

import asyncio
from pathlib import Path

from orchestrator import host_agent, host_door
from orchestrator.leash import start_leashed
from orchestrator.shell.ssh import SshShell
from workers import commands
from workers.agent import running_processes


async def test_a_leashed_program_ends_with_the_connection(shell: SshShell) -> None:
    agent = await host_door.ensure_agent(shell)
    log = f"{shell.root}/logs/program.log"
    held = await start_leashed(shell, agent, ("sleep", "99"), log=log, name="program")
    assert held.pid in running_processes()
    await shell.close()
    async with asyncio.timeout(15):
        assert (await held.wait()).lost
        while held.pid in running_processes():
            await asyncio.sleep(0.05)


async def test_logs_are_followed_no_longer_than_the_connection_is_there(shell: SshShell) -> None:
    agent = await host_door.ensure_agent(shell)
    folder = Path(shell.root, "logs", "demo", "far")
    folder.mkdir(parents=True)
    (folder / "head.log").write_text("one\n")
    following = await shell.start(commands.follow_words(agent, str(folder), lines=1, heartbeat_s=60))
    told = following.lines()
    assert host_agent.read_object("far", await anext(told))["lines"] == ["one"]
    (agent_pid,) = [pid for pid in running_processes() if str(folder).encode() in _command_line(pid)]
    await shell.close()
    async with asyncio.timeout(15):
        while agent_pid in running_processes():
            await asyncio.sleep(0.05)


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


async def test_a_leashed_program_is_stopped_in_order_over_ssh(shell: SshShell) -> None:
    agent = await host_door.ensure_agent(shell)
    log = f"{shell.root}/logs/program.log"
    words = ("sh", "-c", "echo ready; exec sleep 99")
    held = await start_leashed(shell, agent, words, log=log, name="program")
    ended = await held.stop()
    assert (ended.status, ended.reason, ended.tail) == (-15, "asked to stop", "ready")
    assert await held.log_tail() == "ready"
