"""Talking with the cluster in a terminal: one question, or a conversation with commands.

Asks only through a GatewayClient. One question writes plain text to `out`, so that pipes get the answer and nothing
else; a conversation shows Markdown as it comes.
"""

import asyncio
import os
import signal
import termios
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import TextIO

from prompt_toolkit import PromptSession
from prompt_toolkit.formatted_text import HTML
from prompt_toolkit.history import FileHistory
from prompt_toolkit.input import Input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import Output
from rich.console import Console
from rich.table import Table
from rich.text import Text

from orchestrator.client import (
    ChatEvent,
    FinishReason,
    GatewayClient,
    Message,
    PromptProgress,
    ServedModel,
    TextDelta,
    Thought,
    Timings,
    Usage,
)
from orchestrator.conversation import (
    COMMANDS,
    Answer,
    Command,
    Conversation,
    Say,
    read_line,
    saved_text,
    stats_text,
)
from orchestrator.errors import MeshctlError, UsageError
from orchestrator.view.markdown_stream import MarkdownStream, printable


async def chat_once(
    client: GatewayClient,
    text: str,
    *,
    out: TextIO,
    console: Console,
    system: str | None = None,
    temperature: float | None = None,
    max_tokens: int | None = None,
) -> Answer:
    """Ask once: the answer goes to `out` as it comes, its figures to `console`. GatewayError when it does not come."""
    if not text.strip():
        raise UsageError("there is no question", hint='for example: meshctl chat "Why is the sky blue?"')
    show = printable if out.isatty() else str
    options = _Options(temperature, max_tokens)

    def write(piece: str) -> None:
        out.write(show(piece))
        out.flush()

    making = _Making()
    try:
        await _listen(client, Conversation(system).asking(text), options, making, write, lambda remark: None)
    finally:
        if making.text:
            write("\n")
    answer = making.answer("")
    console.print(Text(answer.summary, "dim"))
    if answer.finish == "length":
        console.print(_cut_short(await client.model(), max_tokens))
    return answer


async def chat_loop(
    client: GatewayClient,
    *,
    history: Path,
    console: Console,
    system: str | None = None,
    temperature: float | None = None,
    max_tokens: int | None = None,
    prompt_input: Input | None = None,
    prompt_output: Output | None = None,
) -> None:
    """Talk until the user leaves. What is typed is kept in `history`, a file for its owner only."""
    history.parent.mkdir(parents=True, exist_ok=True)
    history.touch(mode=0o600)
    model = await client.model()
    session: PromptSession[str] = PromptSession(
        history=FileHistory(str(history)),
        multiline=True,
        key_bindings=_keys(),
        prompt_continuation="  ",
        input=prompt_input,
        output=prompt_output,
    )
    await _Chat(client, model, console, session, Conversation(system), _Options(temperature, max_tokens)).run()


@dataclass(frozen=True)
class _Options:
    temperature: float | None
    max_tokens: int | None


class _Making:
    """An answer while it is made."""

    def __init__(self) -> None:
        self.text = ""
        self._asked_at = monotonic()
        self._first_at: float | None = None
        self._last_at = self._asked_at
        self._pieces = 0
        self._finish = ""
        self._usage: Usage | None = None
        self._timings: Timings | None = None

    def see(self, event: ChatEvent) -> None:
        match event:
            case TextDelta(text):
                self.text += text
                self._count_piece()
            case Thought():
                self._count_piece()
            case FinishReason(reason):
                self._finish = reason
            case Usage():
                self._usage = event
            case Timings():
                self._timings = event

    def answer(self, finish: str) -> Answer:
        """What has come; `finish` stands in where the model gave no reason itself."""
        tokens, per_s = self._counted() if self._timings is None else self._timed(self._timings)
        first_s = 0.0 if self._first_at is None else self._first_at - self._asked_at
        context = 0 if self._usage is None else self._usage.prompt_tokens + self._usage.completion_tokens
        return Answer(self.text, self._finish or finish, tokens, per_s, first_s, context)

    def _count_piece(self) -> None:
        self._last_at = monotonic()
        self._first_at = self._first_at or self._last_at
        self._pieces += 1

    def _counted(self) -> tuple[int, float]:
        """The first piece starts the clock, so it is not among those that were timed."""
        spent_s = self._last_at - (self._first_at or self._last_at)
        return self._pieces, (self._pieces - 1) / spent_s if spent_s > 0 else 0.0

    def _timed(self, timings: Timings) -> tuple[int, float]:
        return timings.predicted_n, timings.predicted_per_second


async def _listen(
    client: GatewayClient,
    messages: Sequence[Message],
    options: _Options,
    making: _Making,
    write: Callable[[str], object],
    remark: Callable[[str], object],
) -> None:
    events = client.chat(messages, temperature=options.temperature, max_tokens=options.max_tokens)
    async with aclosing(events):
        async for event in events:
            making.see(event)
            match event:
                case TextDelta(text):
                    write(text)
                case Thought():
                    remark("thinking ...")
                case PromptProgress(processed, total) if not making.text:
                    remark(f"reading {processed} of {total} tokens ...")


class _Chat:
    """A conversation at the prompt."""

    def __init__(
        self,
        client: GatewayClient,
        model: ServedModel,
        console: Console,
        session: PromptSession[str],
        conversation: Conversation,
        options: _Options,
    ) -> None:
        self._client = client
        self._model = model
        self._console = console
        self._session = session
        self._conversation = conversation
        self._options = options
        self._saved: set[Path] = set()

    async def run(self) -> None:
        self._console.print(Text(f"{self._model.name} · /help lists the commands, Ctrl-D leaves", "dim"))
        while True:
            try:
                line = await self._session.prompt_async(HTML("<b>&gt;</b> "), handle_sigint=False)
            except EOFError:
                return
            try:
                if not await self._do(line):
                    return
            except MeshctlError as error:
                self._show_error(error)

    async def _do(self, line: str) -> bool:
        """Whether the conversation goes on."""
        match read_line(line):
            case Say(""):
                pass
            case Say(text):
                await self._ask(text)
            case Command("quit"):
                return False
            case Command(name, argument):
                self._command(name, argument)
        return True

    async def _ask(self, question: str) -> None:
        """What came of an answer that was stopped or broke off is kept; a question without any answer is forgotten."""
        making = _Making()
        finish = "failed"
        try:
            finish = "" if await self._show_answer(question, making) else "stopped"
        finally:
            answer = making.answer(finish)
            if answer.text or finish == "":
                self._conversation = self._conversation.with_answer(question, answer)
        stopped = "stopped; " if finish == "stopped" else ""
        self._console.print(Text(stopped + answer.summary, "dim"))
        if answer.finish == "length":
            self._console.print(_cut_short(self._model, self._options.max_tokens))

    async def _show_answer(self, question: str, making: _Making) -> bool:
        """Whether the answer came to its end, rather than being stopped with Ctrl-C."""
        with MarkdownStream(self._console) as view, _no_echo(self._session.input):
            view.status("waiting for the first token ...")
            messages = self._conversation.asking(question)
            work = asyncio.create_task(
                _listen(self._client, messages, self._options, making, view.add, view.status), name="answer"
            )
            with _interrupt_cancels(work):
                await asyncio.wait((work,))
        if work.cancelled():
            return False
        work.result()
        return True

    def _command(self, name: str, argument: str) -> None:
        match name:
            case "system":
                self._conversation = self._conversation.with_system(argument)
                self._say("the system text is set" if argument else "there is no system text now")
            case "save":
                self._save(Path(argument).expanduser())
            case "stats":
                self._say(stats_text(self._conversation, self._model.context))
            case "reset":
                self._conversation = self._conversation.reset()
                self._say("the conversation starts anew")
            case "help":
                self._console.print(_help())

    def _save(self, path: Path) -> None:
        """A file is written over only if this chat wrote it."""
        text = saved_text(path, self._model.name, self._conversation.everything)
        try:
            with path.open("w" if path.resolve() in self._saved else "x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError as error:
            raise UsageError(f"{path} is there already", hint="choose another name") from error
        except OSError as error:
            raise UsageError(f"{path} cannot be written: {error.strerror}", hint="choose another place") from error
        self._saved.add(path.resolve())
        self._say(f"saved to {path}")

    def _say(self, text: str) -> None:
        self._console.print(Text(text, "dim"))

    def _show_error(self, error: MeshctlError) -> None:
        self._console.print(Text("error: ", "bold red").append(str(error), "default"))
        if error.hint:
            self._console.print(Text("hint: ", "bold").append(error.hint, "default"))


def _cut_short(model: ServedModel, max_tokens: int | None) -> Text:
    if max_tokens is not None:
        return Text(f"the answer stops here: it may have {max_tokens} tokens (--max-tokens)", "yellow")
    size = "" if model.context is None else f" of {model.context} tokens"
    advice = "/reset starts anew; a larger `context` in the inventory holds more"
    return Text(f"the answer stops here: the context{size} is full; {advice}", "yellow")


def _help() -> Table:
    table = Table.grid(padding=(0, 3))
    for usage, meaning in COMMANDS.items():
        table.add_row(Text(usage, "bold"), Text(meaning))
    table.add_row(Text("Alt-Enter", "bold"), Text("new line (pasted lines stay together)"))
    table.add_row(Text("Ctrl-C", "bold"), Text("stop an answer, or clear the line"))
    return table


def _keys() -> KeyBindings:
    """Enter sends although lines may be many; Alt-Enter begins a new one; Ctrl-C clears."""
    keys = KeyBindings()

    @keys.add("enter")
    def send(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("c-c")
    def clear(event: KeyPressEvent) -> None:
        event.current_buffer.reset()

    return keys


@contextmanager
def _interrupt_cancels(work: asyncio.Task[None]) -> Iterator[None]:
    """Ctrl-C cancels this work only. Whoever leaves early (this task being cancelled itself) ends the work too."""
    loop = asyncio.get_running_loop()
    before = signal.getsignal(signal.SIGINT)
    loop.add_signal_handler(signal.SIGINT, work.cancel)
    try:
        yield
    finally:
        work.cancel()
        loop.remove_signal_handler(signal.SIGINT)
        signal.signal(signal.SIGINT, before)


@contextmanager
def _no_echo(keyboard: Input) -> Iterator[None]:
    """What is typed while an answer comes waits for the next prompt and does not show amid the answer."""
    descriptor = keyboard.fileno()
    if not os.isatty(descriptor):
        yield
        return
    before = termios.tcgetattr(descriptor)
    quiet = termios.tcgetattr(descriptor)
    quiet[3] &= ~(termios.ECHO | termios.ICANON)  # with ICANON the terminal itself would swallow a Ctrl-D
    termios.tcsetattr(descriptor, termios.TCSANOW, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSANOW, before)
