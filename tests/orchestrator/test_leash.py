"""Long programs that are run to their end under the leash."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from orchestrator.errors import DeadlineError
from orchestrator.host_door import ensure_agent
from orchestrator.leash import run_leashed, start_leashed
from orchestrator.shell.local import LocalShell
from orchestrator.shell.protocol import Finished
from workers import agent as agent_program


@pytest.fixture
async def shell(tmp_path: Path) -> AsyncIterator[LocalShell]:
    one = LocalShell("desk", tmp_path / "root", tmp_path)
    yield one
    await one.close()


async def run(shell: LocalShell, script: str, *, deadline_s: float = 30) -> Finished:
    agent, log = await ensure_agent(shell), f"{shell.root}/logs/bench.log"
    return await run_leashed(shell, agent, ("sh", "-c", script), log=log, name="bench", deadline_s=deadline_s)


def left_over(shell: LocalShell) -> list[str]:
    return [path.name for path in Path(shell.root, "logs").iterdir() if path.suffix != ".times"]


async def test_what_it_answers_and_what_it_says_are_kept_apart(shell: LocalShell) -> None:
    assert await run(shell, "sleep 0.5; echo '[1]'; echo slow >&2; exit 3") == Finished(3, b"[1]\n", b"slow")
    assert left_over(shell) == ["bench.log"]


async def test_one_that_is_late_is_ended(shell: LocalShell, tmp_path: Path) -> None:
    with pytest.raises(DeadlineError, match=r"^desk: bench did not end within 0\.3 s$"):
        await run(shell, f"echo $$ > {tmp_path}/pid; exec sleep 99", deadline_s=0.3)
    assert int((tmp_path / "pid").read_text()) not in agent_program.running_processes()
    assert left_over(shell) == ["bench.log"]


async def test_it_ends_when_we_are_killed(shell: LocalShell, tmp_path: Path) -> None:
    """As a bench on a far machine would otherwise go on for minutes after its controller has gone."""
    code = f"""
import asyncio
from pathlib import Path
from orchestrator.shell.local import LocalShell
from tests.orchestrator.test_leash import run
shell = LocalShell("desk", Path({str(tmp_path / "root")!r}), Path({str(tmp_path)!r}))
asyncio.run(run(shell, "echo $$ > {tmp_path}/pid; exec sleep 99", deadline_s=99))
"""
    path = os.pathsep.join(sys.path)
    controller = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, env={**os.environ, "PYTHONPATH": path}
    )
    async with asyncio.timeout(30):
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            await asyncio.sleep(0.05)
        controller.send_signal(signal.SIGKILL)
        await controller.wait()
        while int((tmp_path / "pid").read_text()) in agent_program.running_processes():
            await asyncio.sleep(0.05)


async def test_how_much_of_the_processors_it_takes_is_known(shell: LocalShell) -> None:
    agent, log = await ensure_agent(shell), f"{shell.root}/logs/busy.log"
    held = await start_leashed(shell, agent, ("sh", "-c", "while :; do :; done"), log=log, name="busy")
    try:
        async with asyncio.timeout(30):
            while held.cores_used is None:
                await asyncio.sleep(0.05)
        assert 0.05 < held.cores_used < 1.5
    finally:
        await held.stop()
