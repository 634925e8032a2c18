"""Transfers that go on where an earlier one broke off: what the two shells have in common for them. Moves nothing.

An unfinished file keeps a name of its own, so that the next try finds it; the host's agent removes one that nobody has
come back to for a day. Bytes are sent in chunks, one after the other, but a chunk's own parts side by side: of what is
there, all chunks but the last are known to be complete, and the digest has the last word.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from workers.agent import RESUMED

CHUNK_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True)
class Resumable:
    """What a transfer needs to be resumed.

    `name` is the same each time for these very bytes from this controller, and nobody else's: two that write one
    unfinished file at once would both have to start anew. `is_whole` is asked, with the path of that file on the host,
    whether it has the bytes that were to be sent; if not, all are sent once more.
    """

    name: str
    is_whole: Callable[[str], Awaitable[bool]]


def resumed_name(resume: Resumable) -> str:
    """The unfinished file's, in the folder of the target, whatever that is called."""
    return f".{resume.name}{RESUMED}"


def resume_at(there_bytes: int, size_bytes: int) -> int:
    """Where to go on when an unfinished file has so many bytes: its last chunk, which may have gaps, is sent again."""
    return 0 if there_bytes > size_bytes else max(0, there_bytes - 1) // CHUNK_BYTES * CHUNK_BYTES
