"""One question over a connection of its own, and its answer piece by piece: as much of HTTP/1.1 as that takes.

A token is a piece, and what each one costs here is most of what the gateway costs: a general client takes several times
as long for it. Closing the connection is what cancels a request at a head.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from urllib.parse import urlsplit

import h11

from orchestrator.head_client import socket_of

READ_BYTES = 2**16
"""As much is taken in at once; what is not taken stays with the head, as buffers here hold twice that at most."""


class Exchange:
    """What goes wrong on the way is an OSError or one of h11's ProtocolErrors, here and in all methods."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._http = h11.Connection(h11.CLIENT)
        self._ended = False
        self._waits_since_s: float | None = None
        self._timer: asyncio.TimerHandle

    async def ask(self, path: str, headers: Mapping[str, str], body: bytes, *, within_s: float) -> int:
        """The status that the answer begins with; the question must be taken `within_s`, the answer may need longer."""
        length = {"content-length": str(len(body)), "connection": "close"}
        request = h11.Request(method="POST", target=path, headers=list({**headers, **length}.items()))
        events = (request, h11.Data(data=body), h11.EndOfMessage())
        self._writer.write(b"".join(self._http.send(event) or b"" for event in events))
        async with asyncio.timeout(within_s):
            await self._writer.drain()
        while True:
            match self._http.next_event():
                case h11.Response(status_code=status):
                    return status
                case h11.NEED_DATA:
                    await self._take_in()

    async def part(self) -> bytes:
        """All that has come of the answer's body meanwhile, at least one byte; nothing at its end."""
        come = list[bytes]()
        while not self._ended:
            event = self._http.next_event()
            if isinstance(event, h11.Data):
                come.append(bytes(event.data))
            elif event is not h11.NEED_DATA:
                self._ended = True
            elif come:
                break
            else:
                await self._take_in()
        return b"".join(come)

    async def parts(self) -> AsyncIterator[bytes]:
        while part := await self.part():
            yield part

    async def whole(self) -> bytes:
        """The body up to its end."""
        return b"".join([part async for part in self.parts()])

    @contextmanager
    def given_up_after(self, silence_s: float) -> Iterator[None]:
        """Meanwhile the connection is closed as soon as nothing has come for so long while something was waited for."""
        self._look_again(silence_s, silence_s)
        try:
            yield
        finally:
            self._timer.cancel()

    def _look_again(self, silence_s: float, after_s: float) -> None:
        """One timer for all pieces: it is set anew only when it goes off."""
        self._timer = asyncio.get_running_loop().call_later(after_s, self._look, silence_s)

    def _look(self, silence_s: float) -> None:
        now_s = asyncio.get_running_loop().time()
        silent_s = 0.0 if self._waits_since_s is None else now_s - self._waits_since_s
        if silent_s < silence_s:
            self._look_again(silence_s, silence_s - silent_s)
        else:
            self._writer.transport.abort()

    async def _take_in(self) -> None:
        self._waits_since_s = asyncio.get_running_loop().time()
        self._http.receive_data(await self._reader.read(READ_BYTES))
        self._waits_since_s = None


@asynccontextmanager
async def exchange(url: str, *, within_s: float) -> AsyncIterator[Exchange]:
    """A new connection until the block ends; OSError (TimeoutError is one) when there is none `within_s`."""
    async with asyncio.timeout(within_s):
        reader, writer = await _open(url)
    try:
        yield Exchange(reader, writer)
    finally:
        writer.transport.abort()


async def _open(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if path := socket_of(url):
        return await asyncio.open_unix_connection(path, limit=READ_BYTES)
    address = urlsplit(url)
    return await asyncio.open_connection(address.hostname, address.port or 80, limit=READ_BYTES)
