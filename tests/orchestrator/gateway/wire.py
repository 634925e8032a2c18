"""Bytes as they cross the wire, for what no HTTP library would send."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx

from tests.orchestrator.gateway.heads import KEY

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hello"}]


def request_bytes(
    path: str = CHAT, body: object = None, method: str = "POST", more: Sequence[tuple[str, str]] = ()
) -> bytes:
    """One whole request with a key."""
    payload = json.dumps({"messages": HELLO} if body is None else body).encode()
    headers = {"host": "x", "authorization": f"Bearer {KEY}", "content-length": str(len(payload)), **dict(more)}
    lines = (f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", "")
    return "\r\n".join(lines).encode() + payload


@dataclass(frozen=True)
class Wire:
    """A raw connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        """A peer that has closed already is not an error here."""
        self.writer.write(data)
        try:
            await self.writer.drain()
        except ConnectionError:
            return

    async def answer(self) -> tuple[int, dict[str, object]]:
        """Status and JSON of the next answer, which has a length."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = next(line for line in head.splitlines() if line.startswith("content-length"))
        body = await self.reader.readexactly(int(length.partition(":")[2]))
        return int(head.split()[1]), json.loads(body)

    async def code(self) -> tuple[int, object]:
        """Status and error code of the next answer."""
        status, body = await self.answer()
        error = body["error"]
        assert isinstance(error, dict)
        return status, error["code"]

    async def rest(self) -> bytes:
        """Everything up to the end of the connection, however it ends."""
        kept = b""
        try:
            while part := await self.reader.read(65536):
                kept += part
        except OSError:  # of TLS, too
            pass
        return kept


def _unchecked() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


@asynccontextmanager
async def wire(url: str, deadline_s: float = 20) -> AsyncIterator[Wire]:
    """A connection; a certificate is not checked."""
    parts = httpx.URL(url)
    tls = _unchecked() if parts.scheme == "https" else None
    reader, writer = await asyncio.open_connection(parts.host, parts.port, ssl=tls)
    try:
        async with asyncio.timeout(deadline_s):
            yield Wire(reader, writer)
    finally:
        writer.transport.abort()
