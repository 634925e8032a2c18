"""Talking in a terminal: one question, a conversation through prompt_toolkit, and Ctrl-C in a real one."""

import asyncio
import contextlib
import io
import json
import os
import pty
import signal
import stat
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
from rich.console import Console

from orchestrator.chat import chat_loop, chat_once
from orchestrator.client import GatewayClient
from orchestrator.errors import GatewayError, UsageError
from orchestrator.gateway import relay
from tests.orchestrator.gateway.heads import (
    DONE,
    KEY,
    FakeHead,
    Gateway,
    chunk,
    gateway_for,
    json_answer,
    last_chunk,
)

ANSWERING = (chunk("**hel"), chunk("lo**"), last_chunk(2), DONE)


async def test_one_question_writes_the_plain_answer_out_and_its_figures_to_the_talk() -> None:
    head = FakeHead(parts=ANSWERING)
    out, talk = io.StringIO(), _console()
    async with _client(head) as (client, _):
        answer = await chat_once(client, "hi", system="brief", temperature=0, max_tokens=9, out=out, console=talk)
    assert out.getvalue() == "**hello**\n"
    assert (answer.text, answer.finish, answer.tokens) == ("**hello**", "stop", 2)
    assert _shown(talk).startswith("2 tokens, 5.0 tokens/s, first after ")
    assert head.bodies == [
        {
            "messages": [{"role": "system", "content": "brief"}, {"role": "user", "content": "hi"}],
            "model": "tiny",
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_progress": True,
            "temperature": 0,
            "max_tokens": 9,
            "timings_per_token": True,
        }
    ]


async def test_no_question_is_wrong_usage() -> None:
    async with _client(FakeHead()) as (client, _):
        with pytest.raises(UsageError, match="there is no question"):
            await chat_once(client, " \n", out=io.StringIO(), console=_console())


async def test_an_answer_that_breaks_off_keeps_what_came_and_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "MOST_ATTEMPTS", {})  # no other head goes on with it
    out = io.StringIO()
    async with _client(FakeHead(parts=(chunk("half"),))) as (client, _):
        with pytest.raises(GatewayError, match="the model's head was lost before the answer was complete"):
            await chat_once(client, "hi", out=out, console=_console())
    assert out.getvalue() == "half\n"


async def test_an_answer_cut_by_the_context_says_so_with_the_fix() -> None:
    cut = last_chunk(1).replace(b'"stop"', b'"length"')
    talk = _console()
    async with _client(FakeHead(parts=(chunk("a"), cut, DONE))) as (client, _):
        await chat_once(client, "hi", out=io.StringIO(), console=talk)
    assert "the context of 4096 tokens is full" in _shown(talk)


async def test_a_conversation_remembers_and_obeys_commands(tmp_path: Path) -> None:
    head = FakeHead(parts=ANSWERING)
    saved = tmp_path / "talk.json"
    shown = await _converse(
        head,
        tmp_path,
        f"first\r/system be brief\rsecond\r/stats\r/stat\r/save {saved}\r/save {saved}\r/reset\rthird\r/help\r/quit\r",
    )
    hello = {"role": "assistant", "content": "**hello**"}
    system = {"role": "system", "content": "be brief"}
    assert [body["messages"] for body in head.bodies] == [
        [{"role": "user", "content": "first"}],
        [system, {"role": "user", "content": "first"}, hello, {"role": "user", "content": "second"}],
        [system, {"role": "user", "content": "third"}],
    ]
    assert json.loads(saved.read_text())["messages"] == [*head.bodies[1]["messages"], hello]
    for text in (
        "tiny · /help lists the commands, Ctrl-D leaves",
        "\nhello ",
        "2 tokens, 5.0 tokens/s, first after",
        "2 answers, 4 tokens, 5.0 tokens/s on average",
        "error: there is no command /stat\nhint: did you mean /stats?",
        "/save FILE",
    ):
        assert text in shown


async def test_a_file_of_somebody_else_is_not_written_over(tmp_path: Path) -> None:
    other = tmp_path / "other.md"
    other.write_text("mine")
    shown = await _converse(FakeHead(), tmp_path, f"/save {other}\r/quit\r")
    assert "is there already" in " ".join(shown.split())
    assert other.read_text() == "mine"


async def test_pasted_lines_are_one_question_and_ctrl_d_leaves(tmp_path: Path) -> None:
    head = FakeHead(parts=ANSWERING)
    await _converse(head, tmp_path, "\x1b[200~one\ntwo\x1b[201~\r\x04")
    assert [body["messages"][-1]["content"] for body in head.bodies] == ["one\ntwo"]


async def test_ctrl_c_at_the_prompt_clears_the_line(tmp_path: Path) -> None:
    head = FakeHead(parts=ANSWERING)
    await _converse(head, tmp_path, "wrong\x03right\r/quit\r")
    assert [body["messages"][-1]["content"] for body in head.bodies] == ["right"]


async def test_the_history_is_for_its_owner_only(tmp_path: Path) -> None:
    await _converse(FakeHead(parts=ANSWERING), tmp_path, "hello\r/quit\r")
    history = tmp_path / "state" / "history"
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    assert "+hello" in history.read_text()


async def test_a_full_context_is_told_with_the_fix_and_the_question_is_forgotten(tmp_path: Path) -> None:
    error = {"message": "m", "type": "exceed_context_size_error", "n_prompt_tokens": 5001, "n_ctx": 4096}
    head = FakeHead(whole=json_answer({"error": error}, 400))
    shown = (await _converse(head, tmp_path, "long\rshort\r/quit\r")).replace("\n", " ")
    assert "error: the request has 5001 tokens, but a conversation may hold 4096" in shown
    assert "hint: start a new conversation (/reset in the chat)" in shown
    assert [len(body["messages"]) for body in head.bodies] == [1, 1]


PROMPT_READY = "\x1b[?2004h"  # prompt_toolkit asks for bracketed paste once it reads keys
IN_A_TERMINAL = """
import asyncio, sys
from pathlib import Path
from rich.console import Console
from orchestrator.chat import chat_loop
from orchestrator.client import GatewayClient

async def main():
    async with GatewayClient(sys.argv[1], sys.argv[2]) as client:
        await chat_loop(client, history=Path(sys.argv[3]), console=Console())
    print("left in order")

asyncio.run(main())
"""


async def test_ctrl_c_in_a_terminal_stops_the_answer_and_keeps_what_came(tmp_path: Path) -> None:
    head = FakeHead(parts=(chunk("only the beginning"),), hang=True)
    async with asyncio.timeout(60), gateway_for(head) as gateway, _terminal(gateway, tmp_path) as (screen, keys):
        await screen.until(PROMPT_READY)
        os.write(keys, b"hello\r")
        await screen.until("only the beginning")
        os.write(keys, b"\x03")
        await screen.until("stopped; 1 token")
        await screen.until(PROMPT_READY)
        await asyncio.wait_for(head.left.wait(), 5)
        os.write(keys, f"/save {tmp_path}/talk.json\r".encode())
        await screen.until("saved to")
        await screen.until(PROMPT_READY)
        os.write(keys, b"\x04")
        await screen.until("left in order")
    said = json.loads((tmp_path / "talk.json").read_text())["messages"]
    assert [message["content"] for message in said] == ["hello", "only the beginning"]


@contextlib.asynccontextmanager
async def _client(head: FakeHead) -> AsyncIterator[tuple[GatewayClient, Gateway]]:
    async with gateway_for(head) as gateway, GatewayClient(gateway.url, KEY) as client:
        yield client, gateway


async def _converse(head: FakeHead, folder: Path, typed: str) -> str:
    """Everything shown in a conversation in which `typed` is typed."""
    console = _console()
    async with asyncio.timeout(30), _client(head) as (client, _):
        with create_pipe_input() as keyboard:
            keyboard.send_text(typed)
            history = folder / "state" / "history"
            await chat_loop(
                client, history=history, console=console, prompt_input=keyboard, prompt_output=DummyOutput()
            )
    return _shown(console)


def _console() -> Console:
    return Console(file=io.StringIO(), width=100)


def _shown(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


class _Screen:
    """What a terminal is sent; `until` goes on where the last one found its text."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self._unseen = b""

    async def until(self, text: str) -> None:
        try:
            async with asyncio.timeout(20):
                while text.encode() not in self._unseen:
                    self._unseen += await self._reader.read(4096)
        except TimeoutError:
            pytest.fail(f"{text!r} was not shown; this was: {self._unseen!r}")
        self._unseen = self._unseen.partition(text.encode())[2]


@contextlib.asynccontextmanager
async def _terminal(gateway: Gateway, folder: Path) -> AsyncIterator[tuple[_Screen, int]]:
    """A chat in a terminal of its own: what it shows, and where keys are pressed."""
    ours, theirs = pty.openpty()
    words = ("-c", IN_A_TERMINAL, gateway.url, KEY, str(folder / "history"))
    environment = {**os.environ, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    program = await asyncio.create_subprocess_exec(
        sys.executable, *words, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, preexec_fn=_own_terminal
    )
    os.close(theirs)
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(os.dup(ours), "rb", 0)
    )
    try:
        yield _Screen(reader), ours
    finally:
        with contextlib.suppress(ProcessLookupError):
            program.send_signal(signal.SIGKILL)
        await program.wait()
        transport.close()
        os.close(ours)


def _own_terminal() -> None:
    """In the child: a session whose controlling terminal is stdin, so that Ctrl-C becomes SIGINT there."""
    import fcntl
    import termios

    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
