"""The life of workers, links and heads, with plain programs under a real leash in their place."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from orchestrator.host_agent import ensure_agent
from orchestrator.leash import Leashed, start_leashed
from orchestrator.processes import Head, wait_loaded
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
        await wait_loaded(Head("desk", loaded, "secret", process), deadline_s=2, on_wait=lambda passed_s: None)
    finally:
        await process.stop()
