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
from orchestrator.idle_workers import idle_workers

HOLDER = """
import asyncio, sys
from pathlib import Path
from orchestrator.idle_workers import idle_workers

async def hold():
    async with idle_workers(Path(sys.argv[1]), 2) as endpoints:
        print(*endpoints, flush=True)
        await asyncio.sleep(600)

asyncio.run(hold())
"""


async def accepts(endpoint: str) -> bool:
    host, port = endpoint.split(":")
    try:
        _, writer = await asyncio.open_connection(host, int(port))
        writer.close()
        await writer.wait_closed()
    except ConnectionError:  # refused, or reset by a worker that is just ending
        return False
    return True


async def all_gone(endpoints: tuple[str, ...]) -> None:
    """Returns when none accepts any more; TimeoutError after 15 s."""
    async with asyncio.timeout(15):
        while any([await accepts(endpoint) for endpoint in endpoints]):
            await asyncio.sleep(0.05)


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
async def test_workers_accept_while_the_block_lasts_and_are_gone_after_an_error(engine: Engine) -> None:
    seen: list[str] = []

    async def fail_within() -> None:
        async with idle_workers(engine.folder, 2) as endpoints:
            seen.extend(endpoints)
            assert [await accepts(endpoint) for endpoint in endpoints] == [True, True]
            raise KeyError

    with pytest.raises(KeyError):
        await fail_within()
    assert [await accepts(endpoint) for endpoint in seen] == [False, False]


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
            endpoints = tuple((await process.stdout.readline()).decode().split())
        assert len(endpoints) == 2
    finally:
        process.send_signal(signal.SIGKILL)
        await process.wait()
    await all_gone(endpoints)
