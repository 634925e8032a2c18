"""Idle workers come up, and never outlive who started them."""

import asyncio
import os
import signal
import stat
import sys
from pathlib import Path

import pytest

from orchestrator.engine.store import Engine
from orchestrator.errors import EngineError
from orchestrator.idle_workers import IdleWorkers, idle_workers
from orchestrator.tunnel import listening_ports, read_proc_tcp
from tests.program import processes_with
from workers import agent

HOLDER = """
import asyncio, sys
from pathlib import Path
from orchestrator.idle_workers import idle_workers

async def hold():
    async with idle_workers(Path(sys.argv[1]), 2) as workers:
        print(workers.network, *workers.endpoints, flush=True)
        await asyncio.sleep(600)

asyncio.run(hold())
"""


def ends_of(workers: IdleWorkers) -> set[int]:
    return {int(endpoint.rpartition(":")[2]) for endpoint in workers.endpoints}


def fake_engine(folder: Path, script: str) -> Path:
    program = folder / "ggml-rpc-server"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return folder


async def test_worker_that_never_comes_up_is_reported_with_its_log(tmp_path: Path) -> None:
    engine = fake_engine(tmp_path, "echo Illegal instruction; exit 132")
    with pytest.raises(EngineError) as caught:
        async with idle_workers(engine, 1):
            pass
    assert str(caught.value) == f"{tmp_path}/ggml-rpc-server did not come up on any of 5 ports"
    assert caught.value.details.splitlines()[-1] == "Illegal instruction"


@pytest.mark.engine
async def test_workers_listen_while_the_block_lasts_and_are_gone_after_an_error(engine: Engine) -> None:
    seen: list[IdleWorkers] = []

    async def fail_within() -> None:
        async with idle_workers(engine.folder, 2) as workers:
            seen.append(workers)
            assert ends_of(workers) <= await listening_ports(workers.network)
            raise KeyError

    with pytest.raises(KeyError):
        await fail_within()
    assert not Path(f"/proc/{seen[0].network}").exists() or not ends_of(seen[0]) & await listening_ports()


@pytest.mark.engine
async def test_nobody_else_on_the_machine_reaches_them(engine: Engine) -> None:
    if refused := agent.private_network_refused():
        pytest.skip(f"this system has no private networks: {refused}")
    async with idle_workers(engine.folder, 2) as workers:
        assert workers.network > 0
        assert not ends_of(workers) & await listening_ports()
        asked = await asyncio.create_subprocess_exec(*workers.joined(("cat", "/proc/net/tcp")), stdout=-1)
        stdout, _ = await asked.communicate()
        assert ends_of(workers) <= read_proc_tcp(stdout.decode())


@pytest.mark.engine
async def test_workers_end_when_their_holder_is_killed(engine: Engine) -> None:
    root = str(Path(__file__).parents[2])
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", HOLDER, str(engine.folder)),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": root},
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(30):
            network, *endpoints = (await process.stdout.readline()).decode().split()
        assert len(endpoints) == 2
    finally:
        process.send_signal(signal.SIGKILL)
        await process.wait()
    async with asyncio.timeout(15):
        while any(
            one in " ".join(processes_with("ggml-rpc-server")) for one in (e.rpartition(":")[2] for e in endpoints)
        ):
            await asyncio.sleep(0.05)
    assert network == "0" or not Path(f"/proc/{network}/ns/net").exists()
