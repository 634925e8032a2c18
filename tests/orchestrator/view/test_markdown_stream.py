"""Markdown that grows on a terminal."""

import io
import re

import pytest
from rich.console import Console

from orchestrator.view.markdown_stream import MarkdownStream, printable, split_finished

HEIGHT = 10
DOCUMENT = (
    "# Bridges\n\nSome *text*.\n\n- one\n\n- two\n\n1. first\n\n2. second\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n"
    "```python\n" + "".join(f"line_{number} = 1\n\n" for number in range(40)) + "```\n\nThe end.\n"
)


@pytest.mark.parametrize(
    ("text", "finished", "rest"),
    [
        ("", "", ""),
        ("one", "", "one"),
        ("one\n\ntwo", "", "one\n\ntwo"),
        ("one\n\ntwo\n", "one\n\n", "two\n"),
        ("1. one\n\n2", "", "1. one\n\n2"),
        ("1. one\n\n2. two\n\n", "", "1. one\n\n2. two\n\n"),
        ("```\na\n\nb\n", "", "```\na\n\nb\n"),
        ("```\na\n```\nb\n", "```\na\n```\n", "b\n"),
    ],
)
def test_a_block_is_finished_once_a_line_of_the_next_is_whole(text: str, finished: str, rest: str) -> None:
    assert split_finished(text) == (finished, rest)


def test_a_text_taller_than_the_screen_is_kept_once_however_it_came() -> None:
    at_once = _lasting_lines(DOCUMENT, len(DOCUMENT))
    assert sum("line_" in line for line in at_once) == 40
    assert _lasting_lines(DOCUMENT, 5) == at_once
    assert _lasting_lines(DOCUMENT, 31) == at_once


def test_control_characters_do_not_reach_the_terminal() -> None:
    assert printable("a\x1b[31mb\r\n\tc\x9b") == "a\N{REPLACEMENT CHARACTER}[31mb\n\tc\N{REPLACEMENT CHARACTER}"


def _lasting_lines(document: str, size: int) -> list[str]:
    """What a terminal of 10 lines shows in the end, scrollback included: a cursor cannot go up into that."""
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=60, height=HEIGHT, color_system=None)
    with MarkdownStream(console, redraw_s=0) as view:
        view.status("waiting")
        for start in range(0, len(document), size):
            view.add(document[start : start + size])
    return _screen(file.getvalue())


def _screen(output: str) -> list[str]:
    lines, row = [""], 0
    for part in re.findall(r"\x1b\[\??\d*[A-Za-z]|\r|\n|[^\x1b\r\n]+", output):
        match part:
            case "\x1b[1A":
                row = max(row - 1, len(lines) - HEIGHT, 0)
            case "\x1b[2K":
                lines[row] = ""
            case "\n":
                row += 1
                lines += [""] * (row + 1 - len(lines))
            case "\r" | "\x1b[?25l" | "\x1b[?25h":
                pass
            case _:
                lines[row] += part
    return [line.rstrip() for line in lines if line.strip()]
