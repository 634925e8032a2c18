"""An answer that is an error, in OpenAI's shape, so that every client library shows it as it shows OpenAI's own.

Only values: whoever meets a problem raises it, `app` alone turns it into HTTP.
"""

from collections.abc import Mapping

RETRY_AFTER_S = 5
"""What `Retry-After` says: a restart of the head takes seconds to minutes, and asking again costs next to nothing."""


class ApiError(Exception):
    """An HTTP status with `{"error": {"message", "type", "param", "code"}}`; `more` adds fields to the error object.

    `retry_after_s`: after how many seconds asking again makes sense, for 429 and 503.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        more: Mapping[str, object] | None = None,
        retry_after_s: int = RETRY_AFTER_S,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.param = param
        self.code = code
        self.more = dict(more or {})
        self.retry_after_s = retry_after_s

    @property
    def body(self) -> dict[str, object]:
        error = {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}
        return {"error": {**error, **self.more}}

    @property
    def headers(self) -> dict[str, str]:
        match self.status:
            case 401:
                return {"www-authenticate": "Bearer"}
            case 429 | 503:
                return {"retry-after": str(self.retry_after_s)}
        return {}


def bad_field(param: str, message: str) -> ApiError:
    """A request field that cannot be taken, with its path such as `messages[1].content`."""
    return ApiError(400, message, param=param)


def unavailable(
    message: str, *, code: str, more: Mapping[str, object] | None = None, retry_after_s: int = RETRY_AFTER_S
) -> ApiError:
    """Nothing can answer now, but asking again later makes sense."""
    return ApiError(503, message, kind="service_unavailable", code=code, more=more, retry_after_s=retry_after_s)
