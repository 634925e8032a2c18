"""How a report looks while it happens: a live line in a terminal, plain lines elsewhere; always on stderr."""

from asyncio import CancelledError
from time import monotonic
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from orchestrator.report import Event, Failed, Ready, Remark, Step
from orchestrator.report import Progress as ProgressEvent
from orchestrator.view.sizes import bytes_text, duration_text, rate_text


class ProgressView:
    """Shows events; use as a context manager so that the live line is always taken away again."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._title = ""
        self._began = monotonic()
        self._bars = Progress(
            TextColumn("  {task.description}", markup=False),
            BarColumn(bar_width=28),
            TextColumn("{task.fields[figures]}", markup=False),
            console=console,
        )
        self._tasks: dict[str, TaskID] = {}
        self._starts: dict[str, tuple[float, float]] = {}
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=8, transient=True)

    def __enter__(self) -> "ProgressView":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        interrupted = kind is not None and issubclass(kind, KeyboardInterrupt | CancelledError)
        self._finish_step("stopped" if interrupted else "failed" if kind is not None else "")
        self._live.stop()

    def listen(self, event: Event) -> None:
        match event:
            case Step(title):
                self._finish_step("")
                self._title, self._began = title, monotonic()
                if not self._console.is_terminal:
                    self._console.print(Text(f"{title} ..."))
            case Remark(text, "warning"):
                self._console.print(Text("  ! ", "yellow").append(text, "default"))
            case Remark(text):
                self._console.print(Text(f"  {text}", "dim"))
            case ProgressEvent():
                self._advance(event)
            case Ready() | Failed():
                self._finish_step("failed" if isinstance(event, Failed) else "")
                self._live.stop()

    def _render(self) -> Table:
        grid = Table.grid()
        if self._title:
            seconds = monotonic() - self._began
            grid.add_row(Text("• ", "cyan").append(f"{self._title} … {seconds:.0f} s", "default"))
        if self._tasks:
            grid.add_row(self._bars.get_renderable())
        return grid

    def _finish_step(self, how: str) -> None:
        for task in self._tasks.values():
            self._bars.remove_task(task)
        self._tasks.clear()
        self._starts.clear()
        if not self._title:
            return
        took = duration_text(monotonic() - self._began)
        mark = Text("✗ ", "red") if how else Text("✓ ", "green")
        self._console.print(mark.append(self._title, "default").append(f"  {how or took}", "dim"))
        self._title = ""

    def _advance(self, event: ProgressEvent) -> None:
        if not self._console.is_terminal:
            return
        if event.label not in self._tasks:
            self._tasks[event.label] = self._bars.add_task(event.label, total=event.total, figures="")
            self._starts[event.label] = (monotonic(), event.done)
        self._bars.update(
            self._tasks[event.label], completed=event.done, total=event.total, figures=self._figures(event)
        )

    def _figures(self, event: ProgressEvent) -> str:
        began, first = self._starts[event.label]
        passed = monotonic() - began
        rate = (event.done - first) / passed if passed > 0.5 else 0.0
        left = f", {duration_text((event.total - event.done) / rate)} left" if rate > 0 else ""
        if event.unit == "bytes":
            speed = f", {rate_text(rate)}" if rate > 0 else ""
            return f"{bytes_text(int(event.done))} of {bytes_text(int(event.total))}{speed}{left}"
        return f"{event.done:.0f} of {event.total:.0f}{left}"
