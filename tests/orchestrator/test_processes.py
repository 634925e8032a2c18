"""The life of workers, links and heads, with plain programs under a real leash in their place."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from orchestrator.errors import BringUpError
from orchestrator.host_agent import ensure_agent
from orchestrator.leash import Leashed, start_leashed
from orchestrator.processes import Head, Started, wait_loaded
from orchestrator.shell.local import LocalShell

READY = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}"


@pytest.fixture
async def shell(tmp_path: Path) -> AsyncIterator[LocalShell]:
    one = LocalShell("desk", tmp_path / "root", tmp_path)
    yield one
    await one.close()


@pytest.fixture
async def loaded() -> AsyncIterator[str]:
    """The address of a head that says it is ready."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(READY)
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def leash(shell: LocalShell, name: str, *words: str) -> Leashed:
    agent = await ensure_agent(shell)
    return await start_leashed(shell, agent, words, log=f"{shell.root}/logs/{name}.log", name=name)


async def test_a_proxy_of_the_environment_is_not_asked_about_the_head(
    shell: LocalShell, loaded: str, closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It could not reach our loopback, and would learn the head's key."""
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{closed_port}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    process = await leash(shell, "head-1", "sleep", "99")
    try:
        await wait_loaded(
            Head("desk", loaded, "secret", process), Started([process]), deadline_s=2, on_wait=lambda passed_s: None
        )
    finally:
        await process.stop()


async def test_a_worker_that_ends_while_the_model_is_loaded_is_named_and_not_the_head_that_follows_it(
    shell: LocalShell, closed_port: int
) -> None:
    """A worker that takes too much memory is killed by the system, and the head then aborts."""
    worker = await leash(shell, "worker-cpu-1", "sh", "-c", "echo out of room; sleep 0.6; kill -9 $$")
    head = await leash(shell, "head-1", "sh", "-c", "sleep 0.5; echo lost a worker; exit 134")
    started = Started([worker, head])
    address = f"http://127.0.0.1:{closed_port}"
    with pytest.raises(BringUpError) as caught:
        await wait_loaded(Head("desk", address, "", head), started, deadline_s=30, on_wait=lambda passed_s: None)
    said = "desk: worker-cpu-1 ended by itself (ended by signal 9) while the model was loaded"
    assert (str(caught.value), caught.value.details) == (said, "out of room")
    assert "lower `memory` of desk" in caught.value.hint


async def test_a_head_that_loads_for_too_long_is_an_error_with_its_log(shell: LocalShell, closed_port: int) -> None:
    head = await leash(shell, "head-1", "sh", "-c", "echo loading; exec sleep 99")
    started = Started([head])
    address = f"http://127.0.0.1:{closed_port}"
    try:
        with pytest.raises(BringUpError, match="desk: the head did not load the model within 0 s") as caught:
            await wait_loaded(Head("desk", address, "", head), started, deadline_s=0.1, on_wait=lambda passed_s: None)
        assert caught.value.details == "loading"
    finally:
        await started.stop()
