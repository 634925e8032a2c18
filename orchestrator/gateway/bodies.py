"""Takes the bodies of requests in, each of a bounded size and in bounded time, and all together in bounded memory."""

import asyncio

from starlette.requests import ClientDisconnect, Request

from orchestrator.gateway.api_error import ApiError
from orchestrator.gateway.fields import BODY_LIMIT_BYTES

TOGETHER = 8
"""So many of the largest bodies may be on their way at once."""


class Bodies:
    """`limit_bytes` is for each body, `deadline_s` from its request's header to its end."""

    def __init__(self, limit_bytes: int = BODY_LIMIT_BYTES, deadline_s: float = 60.0) -> None:
        self.limit_bytes = limit_bytes
        self._deadline_s = deadline_s
        self._held_bytes = 0

    async def receive(self, request: Request) -> bytes:
        """The request's body. ApiError 413 as soon as it is known to be too large, 408 when it does not arrive, 429
        when too much is on its way already."""
        announced = request.headers.get("content-length", "0")
        if announced.isdecimal() and int(announced) > self.limit_bytes:
            raise self._too_large()
        raw = bytearray()
        try:
            async with asyncio.timeout(self._deadline_s):
                async for chunk in request.stream():
                    self._hold(raw, chunk)
        except TimeoutError as error:
            message = f"the body did not arrive within {self._deadline_s:g} s"
            raise ApiError(408, message, code="request_timeout") from error
        except ClientDisconnect as error:
            raise ApiError(400, "the client left before its body was complete") from error
        finally:
            self._held_bytes -= len(raw)
        return bytes(raw)

    def _hold(self, raw: bytearray, chunk: bytes) -> None:
        raw += chunk
        self._held_bytes += len(chunk)
        if len(raw) > self.limit_bytes:
            raise self._too_large()
        if self._held_bytes > TOGETHER * self.limit_bytes:
            message = "too many large requests are on their way; ask again later"
            raise ApiError(429, message, kind="rate_limit_error", code="queue_full")

    def _too_large(self) -> ApiError:
        size = f"{self.limit_bytes / 2**20:g} MiB" if self.limit_bytes >= 2**20 else f"{self.limit_bytes} bytes"
        return ApiError(413, f"the body is larger than {size}", code="request_too_large")
