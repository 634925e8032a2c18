"""The life of workers, links and heads, with plain programs under a real leash in their place."""

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from orchestrator import processes
from orchestrator.errors import BringUpError
from orchestrator.host_agent import ask_facts, ensure_agent
from orchestrator.hosts import OpenHost, OpenHosts
from orchestrator.inventory import Host
from orchestrator.leash import Leashed, start_leashed
from orchestrator.processes import Answer, Head, Started, check_answer, open_link, wait_loaded
from orchestrator.shell.local import LocalShell
from orchestrator.shell.ssh_config import write_ssh_files
from orchestrator.tunnel import free_local_port


def response(body: str) -> bytes:
    return f"HTTP/1.1 200 OK\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n{body}".encode()


@pytest.fixture
async def shell(tmp_path: Path) -> AsyncIterator[LocalShell]:
    one = LocalShell("desk", tmp_path / "root", tmp_path)
    yield one
    await one.close()


@asynccontextmanager
async def answering(body: str) -> AsyncIterator[str]:
    """The address of a head that gives this to every question."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(response(body))
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def leash(shell: LocalShell, name: str, *words: str) -> Leashed:
    agent = await ensure_agent(shell)
    return await start_leashed(shell, agent, words, log=f"{shell.root}/logs/{name}.log", name=name)


SSH = """#!{python}
import socket, sys, time
near = int(sys.argv[sys.argv.index("-L") + 1].split(":")[1])
time.sleep(0.6)
server = socket.socket()
try:
    server.bind(("127.0.0.1", near))
except OSError:
    sys.exit("bind: Address already in use")
server.listen()
time.sleep(99)
"""
"""Stands for `ssh -N -L`: listens only after it would have logged in."""


async def test_a_link_whose_port_another_program_took_first_gets_another_port(
    shell: LocalShell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That program's socket is not taken for the tunnel's, and the tunnel that failed is not watched any more."""
    (tmp_path / "ssh").write_text(SSH.format(python=sys.executable))
    (tmp_path / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    agent = await ensure_agent(shell)
    facts = await ask_facts(shell, agent)
    controller = OpenHost(Host("controller", "local"), shell, agent, facts)
    far = OpenHost(Host("desk", "ssh", address="desk.invalid"), shell, agent, facts)
    hosts = OpenHosts(controller, {"desk": far}, write_ssh_files(tmp_path / "state", tmp_path / "inventory.yaml"))
    started = Started()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = iter((taken.getsockname()[1], free_local_port()))
        monkeypatch.setattr(processes, "free_local_port", lambda: next(ports))
        try:
            near = await open_link(started, hosts, "demo", far, 20000)
            assert near != taken.getsockname()[1]
            assert [process.running for process in started.processes] == [True]
        finally:
            await started.stop()


async def test_a_proxy_of_the_environment_is_not_asked_about_the_head(
    shell: LocalShell, closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It could not reach our loopback, and would learn the head's key."""
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{closed_port}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    process = await leash(shell, "head-1", "sleep", "99")
    started = Started([process])
    try:
        async with answering("{}") as address:
            head = Head("desk", address, "secret", process)
            await wait_loaded(head, started, deadline_s=2, on_wait=lambda passed_s: None)
    finally:
        await started.stop()


async def test_a_worker_that_ends_while_the_model_is_loaded_is_named_and_not_the_head_that_follows_it(
    shell: LocalShell, closed_port: int
) -> None:
    """A worker that takes too much memory is killed by the system, and the head then aborts."""
    worker = await leash(shell, "worker-cpu-1", "sh", "-c", "echo out of room; sleep 0.6; kill -9 $$")
    head = await leash(shell, "head-1", "sh", "-c", "sleep 0.5; echo lost a worker; exit 134")
    started = Started([worker, head])
    address = f"http://127.0.0.1:{closed_port}"
    with pytest.raises(BringUpError) as caught:
        await wait_loaded(Head("desk", address, "secret", head), started, deadline_s=30, on_wait=lambda passed_s: None)
    said = "desk: worker-cpu-1 ended by itself (ended by signal 9) while the model was loaded"
    assert (str(caught.value), caught.value.details) == (said, "out of room")
    assert "lower `memory` of desk" in caught.value.hint


async def test_a_head_that_loads_for_too_long_is_an_error_with_its_log(shell: LocalShell, closed_port: int) -> None:
    head = await leash(shell, "head-1", "sh", "-c", "echo loading; exec sleep 99")
    started = Started([head])
    address = f"http://127.0.0.1:{closed_port}"
    try:
        with pytest.raises(BringUpError, match="desk: the head did not load the model within 0 s") as caught:
            await wait_loaded(
                Head("desk", address, "secret", head), started, deadline_s=0.1, on_wait=lambda passed_s: None
            )
        assert caught.value.details == "loading"
    finally:
        await started.stop()


GOOD = '{"content": " Paris", "tokens_predicted": 1, "timings": {"predicted_per_second": 5.0}, '


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ("[]", "gave an answer that cannot be read: []"),
        ("<html>", "gave an answer that cannot be read: <html>"),
        (GOOD + '"completion_probabilities": [{"logprob": null}]}', "answers, but its numbers are not finite"),
        (GOOD + '"completion_probabilities": []}', "answers, but its numbers are not finite"),
    ],
)
async def test_a_head_whose_answer_is_no_good_is_an_error_with_its_log(shell: LocalShell, body: str, what: str) -> None:
    process = await leash(shell, "head-1", "sh", "-c", "echo loaded; exec sleep 99")
    started = Started([process])
    try:
        async with answering(body) as address:
            with pytest.raises(BringUpError) as caught:
                await check_answer(Head("desk", address, "secret", process), started, deadline_s=10)
        assert str(caught.value).startswith(f"desk: the head {what}")
        assert caught.value.details == "loaded"
    finally:
        await started.stop()


async def test_a_head_that_answers_with_numbers_is_fine(shell: LocalShell) -> None:
    process = await leash(shell, "head-1", "sleep", "99")
    started = Started([process])
    try:
        async with answering(GOOD + '"completion_probabilities": [{"logprob": -0.5}]}') as address:
            answer = await check_answer(Head("desk", address, "secret", process), started, deadline_s=10)
        assert answer == Answer(" Paris", 1, 5.0)
    finally:
        await started.stop()
