"""What all commands share: consoles, running a workflow with its progress shown, and errors turned into exit codes."""

import asyncio
import os
import select
import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

from rich.console import Console
from rich.text import Text

from orchestrator.errors import REPORTED, UsageError, of_system
from quant.errors import ModelNameError

if TYPE_CHECKING:
    from rich.table import Table

    from orchestrator.report import Report

T = TypeVar("T")

INTERRUPTED = 130
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LEAST_COLUMNS = 80
WIDEST = 10_000


def talk(least_columns: int = 0) -> Console:
    """Where talk goes: stderr."""
    return _at_least(Console(stderr=True, highlight=False), least_columns)


def answer(least_columns: int = LEAST_COLUMNS) -> Console:
    """Where answers go: stdout. Never narrower than tables are: a terminal wraps lines, but would lose their ends."""
    return _at_least(Console(highlight=False), least_columns)


def _at_least(console: Console, columns: int) -> Console:
    if console.width < columns:
        console.width = columns
    return console


def print_whole(table: "Table") -> None:
    """An answer whose cells are not cut, however narrow the terminal is."""
    from rich.measure import Measurement

    console = answer()
    room = console.options.update(max_width=WIDEST)
    _at_least(console, Measurement.get(console, room, table).maximum).print(table)


def terminal_columns(*, stderr: bool = False) -> int | None:
    """How wide the terminal is that stdout, or stderr, goes to; None where that is none: a pipe has room for all."""
    console = Console(stderr=stderr)
    return console.width if console.is_terminal else None


def answer_is_gone() -> bool:
    """Whether nobody reads stdout any more: a pipe says so also while nothing is written to it."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return bool(poll.poll(0))


def until_stopped(follow: Callable[[], None]) -> None:
    """Run what has no end of its own: Ctrl-C ends it in order, and so does whoever closes stdout."""
    try:
        follow()
    except KeyboardInterrupt:
        return
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is flushed at the end goes there


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run to the end; the first Ctrl-C stops and cleans up, a second one leaves at once; both exit with 130.

    To be ended, or to lose the terminal, is the same as Ctrl-C: what was started shall not stay.
    """
    ending = _Ending()
    try:
        with _heeded(ending.ask):
            return asyncio.run(ending.of(main))
    except (KeyboardInterrupt, asyncio.CancelledError):
        if not ending.asked:
            raise
        talk().print("interrupted")
        raise SystemExit(INTERRUPTED) from None


class _Ending:
    """How signals end a coroutine: the first one cancels it, the next one does not wait for what it does then.

    SIGHUP is no next one: a terminal that is closed sends it twice, and a session that ends after SIGTERM.
    """

    def __init__(self) -> None:
        self.asked = False
        self._task: asyncio.Task[Any] | None = None

    async def of(self, main: Coroutine[Any, Any, T]) -> T:
        self._task = asyncio.current_task()
        return await main

    def ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGHUP:
            return
        at_once = self.asked or self._task is None or self._task.done()
        self.asked = True
        if at_once:
            raise KeyboardInterrupt
        assert self._task is not None
        self._task.get_loop().call_soon_threadsafe(self._task.cancel)  # wakes a loop that waits


@contextmanager
def _heeded(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Those that are not ignored are handled meanwhile: `nohup` ignores SIGHUP, `command &` in a script SIGINT."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in ENDING}
    heeded = [number for number, was in before.items() if was is not signal.SIG_IGN]
    for number in heeded:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number in heeded:
            signal.signal(number, before[number])


def run_shown(work: "Callable[[Report], Awaitable[T]]") -> T:
    """Run a workflow with its steps shown on stderr."""
    from orchestrator.report import Report
    from orchestrator.view.progress import ProgressView

    async def shown() -> T:
        with ProgressView(talk()) as view:
            return await work(Report(view.listen))

    return run(shown())


def stop_on_signals(stop: asyncio.Event) -> None:
    """SIGINT and SIGTERM ask for an orderly stop; the second one leaves at once: leashes do the rest.

    One that is ignored stays so: `nohup` and `command &` in a script mean it.
    """

    def asked(number: signal.Signals) -> None:
        if not stop.is_set():
            stop.set()
        elif number != signal.SIGHUP:  # which says once more that the terminal is gone
            raise SystemExit(INTERRUPTED)

    loop = asyncio.get_running_loop()
    for number in ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            loop.add_signal_handler(number, asked, number)


def exit_code(error: BaseException) -> int:
    """2 for wrong usage, words that cannot name a model among it; 1 for every other reported failure."""
    return 2 if isinstance(error, UsageError | ModelNameError) else 1


def show_error(error: BaseException) -> None:
    """`error:`, what happened, its evidence, and `hint:` with the next move."""
    console = talk()
    said, hint, details = (_printable(text) for text in (str(error), _of(error, "hint"), _of(error, "details")))
    console.print(Text("error: ", "bold red").append(said, "default"), soft_wrap=True)
    if details:
        console.print(Text("\n".join(f"  | {line}" for line in details.strip().splitlines()), "dim"), soft_wrap=True)
    for line in hint.splitlines():
        console.print(Text("hint: ", "bold cyan").append(line, "default"), soft_wrap=True)


def _of(error: BaseException, name: str) -> str:
    text: str = getattr(error, name, "")
    return text


def _printable(text: str) -> str:
    """An engine's last words quote the model's file, which shall not drive a terminal."""
    return "".join(character if character.isprintable() or character == "\n" else " " for character in text)


def reporting_errors(call: Callable[[], None]) -> None:
    """Run the whole program; the only place that catches our errors.

    What the terminal's encoding has no character for is written as a question mark.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        call()
    except REPORTED as error:
        show_error(error)
        sys.exit(exit_code(error))
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:
        show_error(of_system(error))
        sys.exit(1)
