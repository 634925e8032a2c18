"""What heads are asked after their start, with plain programs under a real leash and a small server in their place."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.errors import BringUpError
from orchestrator.head_checks import (
    Answer,
    HeadSpeed,
    check_answer,
    decode_tokens,
    measure_head,
    measured_prompt,
    prompt_scale,
    wait_loaded,
)
from orchestrator.host_door import ensure_agent
from orchestrator.leash import Leashed, start_leashed
from orchestrator.processes import Head, Started
from orchestrator.shell.local import LocalShell
from tests.orchestrator.groups import make_group, make_share


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


@asynccontextmanager
async def timed(
    timings: Callable[[dict[str, object]], dict[str, float]], asked: list[dict[str, object]]
) -> AsyncIterator[str]:
    """The address of a head that says how long each completion took; a token for each letter of a text."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        top = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(top.partition("content-length: ")[2].partition("\r")[0])
        body = json.loads(await reader.readexactly(length))
        if "/tokenize" in top:
            said: dict[str, object] = {"tokens": list(range(len(body["content"])))}
        else:
            asked.append(body)
            said = {"timings": timings(body)}
        writer.write(response(json.dumps(said)))
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_a_head_is_measured_alone_with_all_conversations_and_with_a_prompt(shell: LocalShell) -> None:
    """Two stages of equal speed read 16 micro-batches in 17 times what one of them takes for one."""
    process = await leash(shell, "head-1", "sleep", "99")
    started = Started([process])
    asked: list[dict[str, object]] = []
    group = make_group(make_share("a/cpu"), make_share("b/cpu"), parallel=3, token_s=0.1, prefill_s=1.0)

    def timings(body: dict[str, object]) -> dict[str, float]:
        return {"predicted_per_token_ms": 100.0, "prompt_ms": 850.0}

    try:
        async with timed(timings, asked) as address:
            speed = await measure_head(Head("desk", address, "secret", process), started, group, 4096)
    finally:
        await started.stop()
    assert speed == HeadSpeed(token_s=0.1, step_s=0.1, prefill_s=0.85)
    prompts = [body["prompt"] for body in asked]
    assert [len(prompt) for prompt in prompts if isinstance(prompt, list)] == [1024, 1024, 1024]
    assert len([prompt for prompt in prompts if isinstance(prompt, str)]) == 3 + 3
    assert all(body["ignore_eos"] and not body["cache_prompt"] for body in asked)


@pytest.mark.parametrize(("token_s", "tokens"), [(0.01, 32), (0.5, 8), (10.0, 4)])
def test_a_slow_head_generates_fewer_tokens(token_s: float, tokens: int) -> None:
    assert decode_tokens(make_group(make_share("a/cpu"), token_s=token_s)) == tokens


@pytest.mark.parametrize(
    ("prefill_s", "context", "tokens"), [(2.0, 4096, 1024), (2.0, 512, 496), (16.0, 4096, 192), (900.0, 4096, 128)]
)
def test_a_prompt_is_cut_to_whole_micro_batches_of_a_few_seconds(prefill_s: float, context: int, tokens: int) -> None:
    """Two at least, so that the stages have something to overlap."""
    assert measured_prompt(make_group(make_share("a/cpu"), prefill_s=prefill_s), context) == tokens


def test_a_shorter_prompt_counts_for_less_where_stages_overlap() -> None:
    """Two stages: 2 micro-batches take 3 times the slowest, 16 take 17 times."""
    two = make_group(make_share("a/cpu"), make_share("b/cpu"))
    assert prompt_scale(two, 128) == pytest.approx(17 / 3)
    assert prompt_scale(replace(two, mode="tensor"), 128) == pytest.approx(8)
    own = make_group(make_share("a/cpu", native=True), make_share("b/cpu"))
    assert prompt_scale(own, 128) == pytest.approx(8)
    assert prompt_scale(replace(two, prompt_tokens=60), 30) == pytest.approx(2)


def test_half_a_micro_batch_takes_half_of_one() -> None:
    """Two of 512 tokens against half of one; two stages read two in three times the slowest, half of one in once it."""
    alone = replace(make_group(make_share("a/cpu")), mode="single", micro_batch=512, prompt_tokens=1024)
    assert prompt_scale(alone, 256) == pytest.approx(4)
    two = replace(make_group(make_share("a/cpu"), make_share("b/cpu")), micro_batch=512, prompt_tokens=1024)
    assert prompt_scale(two, 256) == pytest.approx(3)


def test_the_context_part_of_a_prompt_grows_with_its_square() -> None:
    """8 micro-batches, 3 s of which 1 s is context; 2 of them take 0.5 s and 1/28 of the context's second."""
    own = replace(
        make_group(make_share("a/cpu")), mode="single", micro_batch=64, prompt_tokens=512, prefill_s=3.0, context_s=1.0
    )
    assert prompt_scale(own, 128) == pytest.approx(3 / (2 / 4 + 1 / 28))
    assert prompt_scale(own, 512) == pytest.approx(1.0)
