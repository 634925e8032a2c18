"""Markdown that grows, on a terminal: finished blocks are printed for good, only the last one is redrawn.

A `Live` over a whole answer flickers and, once the answer is taller than the screen, leaves copies in the scrollback.
So everything above the last block is plain output, and of a last block taller than the screen only its end is drawn.
"""

from time import monotonic
from types import TracebackType
from typing import Self

from markdown_it import MarkdownIt
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.markdown import Markdown
from rich.segment import Segment
from rich.text import Text

REDRAW_S = 0.1
MARGIN_LINES = 2

_UNSAFE = dict.fromkeys((*range(9), 11, 12, *range(14, 32), *range(127, 160)), "\N{REPLACEMENT CHARACTER}") | {13: ""}


def printable(text: str) -> str:
    """A model's text without the control characters that would steer the reader's terminal."""
    return text.translate(_UNSAFE)


def split_finished(text: str) -> tuple[str, str]:
    """The blocks of which no more can come, and the rest.

    Only whole lines are looked at: half of one (`2` of `2. second`) may still turn out to belong to the block above.
    """
    whole, newline, _ = text.rpartition("\n")
    blocks = MarkdownIt("commonmark").enable("table").parse(whole + newline)
    starts = [token.map[0] for token in blocks if token.level == 0 and token.map is not None and token.nesting >= 0]
    if len(starts) < 2:
        return "", text
    lines = text.split("\n")
    return "\n".join(lines[: starts[-1]]) + "\n", "\n".join(lines[starts[-1] :])


class MarkdownStream:
    """Shows an answer while it comes; a context manager, so that the terminal is always left in order."""

    def __init__(self, console: Console, redraw_s: float = REDRAW_S) -> None:
        self._console = console
        self._redraw_s = redraw_s
        self._rest = ""
        self._printed = False
        self._drawn_at = 0.0
        self._live = Live(Text(""), console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.update(Text(""), refresh=True)
        self._live.stop()
        self._print(self._rest)
        self._rest = ""

    def status(self, text: str) -> None:
        """A passing remark while there is nothing of the answer yet."""
        self._live.update(Text(text, "dim"), refresh=True)

    def add(self, piece: str) -> None:
        self._rest += printable(piece)
        if monotonic() - self._drawn_at < self._redraw_s:
            return
        finished, self._rest = split_finished(self._rest)
        self._print(finished)
        self._live.update(_Block(self._rest, gap=self._printed, end_only=True), refresh=True)
        self._drawn_at = monotonic()

    def _print(self, markdown: str) -> None:
        if markdown.strip():
            self._console.print(_Block(markdown, gap=self._printed))
            self._printed = True


class _Block:
    """Markdown after one empty line if `gap`; with `end_only`, only as many last lines as fit on the screen."""

    def __init__(self, markdown: str, *, gap: bool, end_only: bool = False) -> None:
        self._markdown = markdown
        self._gap = gap
        self._end_only = end_only

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(Markdown(self._markdown), options.update(height=None), pad=False)
        lines = _without_empty_ends(lines)
        if self._gap:
            lines.insert(0, [])
        if self._end_only:
            lines = lines[-max(1, options.size.height - MARGIN_LINES) :]
        for line in lines:
            yield from line
            yield Segment.line()


def _without_empty_ends(lines: list[list[Segment]]) -> list[list[Segment]]:
    """Some blocks bring empty lines of their own; the coloured margin of a code block is not empty."""
    full = [index for index, line in enumerate(lines) if any(_shows(segment) for segment in line)]
    return lines[full[0] : full[-1] + 1] if full else []


def _shows(segment: Segment) -> bool:
    return bool(segment.text.strip()) or (segment.style is not None and segment.style.bgcolor is not None)
