"""What both shells do with a command's output: cut it into lines, and keep the end of it. Knows no transport."""

from collections.abc import AsyncIterator, Awaitable, Callable

_CHUNK_BYTES = 64 * 1024
_TAIL_BYTES = 16 * 1024

Read = Callable[[int], Awaitable[bytes]]
"""Up to that many bytes; b"" at the end of the stream."""


async def split_lines(read: Read) -> AsyncIterator[str]:
    """Lines of a byte stream without their ends, of any length; an unfinished last line counts as a line."""
    rest = bytearray()
    while chunk := await read(_CHUNK_BYTES):
        rest += chunk
        *lines, last = rest.split(b"\n") if b"\n" in chunk else [rest]
        rest = bytearray(last)
        for line in lines:
            yield _text(line)
    if rest:
        yield _text(rest)


def _text(line: bytes | bytearray) -> str:
    return line.decode("utf-8", errors="replace").removesuffix("\r")


class Tail:
    """The last bytes of a stream, bounded, so that a talkative command cannot fill our memory."""

    def __init__(self) -> None:
        self._kept = bytearray()

    def add(self, data: bytes) -> None:
        self._kept += data
        del self._kept[:-_TAIL_BYTES]

    async def follow(self, read: Read) -> None:
        """Keep the end of everything `read` gives until the stream closes."""
        while chunk := await read(_CHUNK_BYTES):
            self.add(chunk)

    def text(self, lines: int = 20) -> str:
        """The last `lines` lines."""
        return "\n".join(self._kept.decode("utf-8", errors="replace").splitlines()[-lines:])


def tail_of(data: bytes, lines: int = 20) -> str:
    """The last lines of bytes already in hand, for the details of an error."""
    tail = Tail()
    tail.add(data)
    return tail.text(lines)
