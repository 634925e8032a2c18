"""Run one program of the build with its output in a log file; a failure or a cancelled task ends all it started."""

import asyncio
import os
import signal
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

_TAIL_LINES = 30
_LINE_LIMIT_BYTES = 1 << 20


async def run_logged(
    words: tuple[str, ...], log: Path, environment: Mapping[str, str], on_line: Callable[[str], None]
) -> int:
    """Exit status of `words`, run without stdin; stdout and stderr are appended to `log` and given line by line."""
    process = await asyncio.create_subprocess_exec(
        *words,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=dict(environment),
        start_new_session=True,
        limit=_LINE_LIMIT_BYTES,
    )
    assert process.stdout is not None
    try:
        with log.open("ab", buffering=0) as file:
            async for line in process.stdout:
                file.write(line)
                on_line(line.decode(errors="replace").rstrip())
        return await process.wait()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


def log_tail(log: Path) -> str:
    """The last lines of a log, "" when there is none."""
    if not log.is_file():
        return ""
    with log.open(encoding="utf-8", errors="replace") as file:
        return "".join(deque(file, maxlen=_TAIL_LINES)).rstrip()
