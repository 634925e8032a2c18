"""The official `openai` client against the gateway against the real head with the real model."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionUserMessageParam

from orchestrator.client import FinishReason, GatewayClient, Message, TextDelta, Timings
from orchestrator.engine.store import Engine
from orchestrator.head_client import SOCKET, head_client
from tests.orchestrator.gateway.heads import HEAD_KEY, KEY, MODEL, gateway_at
from workers.engine_commands import HeadSettings, head_command

pytestmark = pytest.mark.engine

CAPITAL: list[ChatCompletionUserMessageParam] = [{"role": "user", "content": "What is the capital of France?"}]


async def test_the_openai_client_works_as_with_openai(engine: Engine, demo_model: Path, tmp_path: Path) -> None:
    async with _gateway(engine, demo_model, tmp_path) as url, _openai(url) as client:
        whole = await client.chat.completions.create(
            model=MODEL, messages=CAPITAL, temperature=0, max_tokens=12, user="me", store=False
        )
        assert whole.model == MODEL
        assert whole.choices[0].message.content
        assert whole.usage is not None
        assert whole.usage.completion_tokens > 0

        streamed = ""
        stream = await client.chat.completions.create(
            model=MODEL, messages=CAPITAL, temperature=0, max_tokens=12, stream=True
        )
        async for chunk in stream:
            streamed += chunk.choices[0].delta.content or ""
        assert streamed == whole.choices[0].message.content

        text = await client.completions.create(
            model=MODEL, prompt="The capital of France is", max_tokens=3, temperature=0
        )
        assert text.choices[0].finish_reason == "length"
        pieces = await client.completions.create(
            model=MODEL, prompt="The capital of France is", max_tokens=3, temperature=0, stream=True
        )
        assert "".join([piece.choices[0].text async for piece in pieces]) == text.choices[0].text

        assert [model.id async for model in client.models.list()] == [MODEL]


async def test_the_openai_client_raises_its_own_errors(engine: Engine, demo_model: Path, tmp_path: Path) -> None:
    async with _gateway(engine, demo_model, tmp_path) as url, _openai(url) as client:
        async with _openai(url, "wrong") as stranger:
            with pytest.raises(openai.AuthenticationError):
                await stranger.models.list()
        with pytest.raises(openai.BadRequestError, match="`chat_parser` cannot be used here"):
            await client.chat.completions.create(model=MODEL, messages=CAPITAL, extra_body={"chat_parser": "x"})
        with pytest.raises(openai.NotFoundError, match="the model `gpt` is not served here"):
            await client.chat.completions.create(model="gpt", messages=CAPITAL)
        with pytest.raises(openai.BadRequestError) as caught:
            await client.completions.create(model=MODEL, prompt="long " * 2000)
        assert caught.value.code == "context_length_exceeded"


async def test_a_grammar_that_would_end_the_head_does_not_reach_it(
    engine: Engine, demo_model: Path, tmp_path: Path
) -> None:
    grammar = "root ::= " + "(" * 20000 + '"a"' + ")" * 20000
    async with _gateway(engine, demo_model, tmp_path) as url, _openai(url) as client:
        with pytest.raises(openai.BadRequestError, match="`grammar` is nested 20000 deep"):
            await client.chat.completions.create(model=MODEL, messages=CAPITAL, extra_body={"grammar": grammar})
        answer = await client.chat.completions.create(
            model=MODEL, messages=CAPITAL, max_tokens=4, extra_body={"grammar": 'root ::= ("yes")'}
        )
        assert answer.choices[0].message.content == "yes"


async def test_our_own_client_gets_text_and_the_engines_figures(
    engine: Engine, demo_model: Path, tmp_path: Path
) -> None:
    async with _gateway(engine, demo_model, tmp_path) as url, GatewayClient(url, KEY) as client:
        question = (Message("user", "What is the capital of France?"),)
        events = [event async for event in client.chat(question, temperature=0, max_tokens=8)]
    assert any(isinstance(event, TextDelta) for event in events)
    assert FinishReason("length") in events or FinishReason("stop") in events
    timings = [event for event in events if isinstance(event, Timings)]
    assert timings[-1].predicted_n > 0
    assert timings[-1].predicted_per_second > 0


@asynccontextmanager
async def _openai(url: str, key: str = KEY) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=60) as client:
        yield client


@asynccontextmanager
async def _gateway(engine: Engine, model: Path, folder: Path) -> AsyncIterator[str]:
    """The address of a gateway before a real head."""
    key_file = folder / "head.key"
    key_file.write_text(HEAD_KEY)
    door = folder / "head.sock"
    settings = HeadSettings(str(model), MODEL, str(door), str(key_file), 1024, 2, 256, 1)
    words = head_command(str(engine.program("llama-server")), settings, None)
    with (folder / "head.log").open("wb") as log:
        head = await asyncio.create_subprocess_exec(*words, stdout=log, stderr=log)
        try:
            await _until_healthy(f"{SOCKET}{door}", head, folder / "head.log")
            async with gateway_at(f"{SOCKET}{door}") as gateway:
                yield gateway.url
        finally:
            if head.returncode is None:
                head.kill()
            await head.wait()


async def _until_healthy(url: str, head: asyncio.subprocess.Process, log: Path) -> None:
    async with asyncio.timeout(60), head_client(url, HEAD_KEY, timeout=5) as http:
        while True:
            if head.returncode is not None:
                pytest.fail(f"the head ended:\n{log.read_text()[-2000:]}")
            try:
                if (await http.get("/health")).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.1)
