"""How commands end that somebody else ends: as with Ctrl-C, with all that they started; and what an error shows."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.table import Table

from orchestrator.cli.run import print_whole, show_error
from orchestrator.errors import MeshctlError
from tests.program import processes_with

HEEDING = """
import signal
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)
"""
"""Begins a program that shall heed these also where the tests themselves run under nohup or in the background."""

PROGRAM = """
import asyncio, sys
from pathlib import Path
from orchestrator.cli.run import run
from orchestrator.engine.logged import run_logged

async def work():
    await run_logged(("sleep", sys.argv[1]), Path(sys.argv[2]), {"PATH": "/bin:/usr/bin"}, print)

run(work())
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_whatever_ends_a_command_ends_what_it_started(tmp_path: Path, number: signal.Signals) -> None:
    ended_by(number, tmp_path, (), HEEDING + PROGRAM)


def test_a_command_that_a_script_put_in_the_background_can_be_ended(tmp_path: Path) -> None:
    # A shell without job control has such a command ignore SIGINT.
    script = 'trap "" INT; exec "$@"'
    ended_by(signal.SIGTERM, tmp_path, ("sh", "-c", script, "sh"), PROGRAM)


def ended_by(number: signal.Signals, folder: Path, under: tuple[str, ...], program: str) -> None:
    mark = f"{3600 + number}.{folder.stat().st_ino}"
    words = (*under, sys.executable, "-c", program, mark, str(folder / "log"))
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not any(line.startswith("sleep") for line in commands(mark)):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(number)
        try:
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, said) == (130, "interrupted\n")
    assert commands(mark) == []


def commands(mark: str) -> list[str]:
    return [str(line) for line in processes_with(mark)]


def test_what_an_engine_quotes_of_a_model_does_not_drive_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    show_error(
        MeshctlError("m\x1b[2J.gguf fails", hint="check\x07 it", details="unknown '\x1b[31mnope\n'\tend\n\u202elast")
    )
    assert capsys.readouterr().err == (
        "error: m [2J.gguf fails\n  | unknown ' [31mnope\n  | ' end\n  |  last\nhint: check  it\n"
    )


def test_a_table_that_is_there_to_be_copied_from_is_whole_in_a_narrow_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    table = Table("model", "where", box=None)
    for column in table.columns:
        column.no_wrap = True
    name = "a-model-with-a-long-name-" * 6
    table.add_row(name, "controller")
    print_whole(table)
    assert any(name in line and "controller" in line for line in capsys.readouterr().out.splitlines())


def test_a_terminal_that_is_closed_hangs_up_twice_and_the_end_is_in_order_all_the_same(tmp_path: Path) -> None:
    """The second SIGHUP, or one behind SIGTERM, is no impatience: what cleans up goes on; another SIGINT is."""
    for again, said in ((signal.SIGHUP, "cleaned up\n"), (signal.SIGINT, "")):
        program = """
import asyncio
from orchestrator.cli.run import run

async def work():
    try:
        print("begun", flush=True)
        await asyncio.sleep(3600)
    finally:
        print("ending", flush=True)
        await asyncio.sleep(1)
        print("cleaned up", flush=True)

run(work())
"""
        words = (sys.executable, "-c", HEEDING + program)
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "begun\n"
            process.send_signal(signal.SIGHUP)
            assert process.stdout.readline() == "ending\n"
            process.send_signal(again)
            out, error = process.communicate(timeout=60)
        assert (process.returncode, out, error) == (130, said, "interrupted\n")
