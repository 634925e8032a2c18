"""What the gateway can be asked, as an OpenAPI document: `GET /openapi.json`. Pure.

The fields come from the models that check them, so neither can say more than the other. The statuses and codes of
errors are listed here, and only here; docs/gateway.md explains them, and tests hold all of it together.
"""

from collections.abc import Mapping
from typing import Any

from orchestrator.gateway.fields import (
    DROPPED,
    GRAMMAR_NESTING_LIMIT,
    NESTING_LIMIT,
    REFUSED,
    ChatRequest,
    CompletionRequest,
    Sampling,
)

Document = dict[str, Any]

ERRORS: Mapping[int, Mapping[str, str]] = {
    400: {
        "": "a field cannot be taken (`param` names it), or the body is not JSON",
        "bad_http": "what was sent is not HTTP",
        "context_length_exceeded": "the conversation is longer than the cluster's `context`",
    },
    401: {"invalid_api_key": "no key, or a wrong one"},
    404: {"": "there is no such path", "model_not_found": "another model than the one that is served"},
    408: {"request_timeout": "the request's header or body did not arrive in time"},
    413: {"request_too_large": "the body is too large"},
    429: {
        "queue_full": "too many requests wait or are on their way",
        "too_many_requests": "too many requests of this client wait",
    },
    431: {"header_too_large": "the request's header is too large, or has too many fields"},
    502: {
        "head_lost": "the cluster lost its head while it answered",
        "head_error": "the head gave no usable answer",
    },
    503: {
        "failed": "the hosts that are left cannot hold the model",
        "wait_timeout": "no slot was free in time",
        "keys_unreadable": "the gateway cannot check any key",
        "too_many_connections": "too many connections are open",
        "starting": "the cluster starts",
        "stopping": "the gateway stops",
        "head_down": "no head can be reached",
        "head_not_ready": "the head cannot answer yet",
    },
    504: {"deadline_exceeded": "the answer was not complete in time"},
}
"""By status, what each `code` means; "": none. 405 is said of every method that is not listed. 500 is a defect."""

ANY = (400, 408, 431, 503)
"""What may be said to any request."""

KEYED = (*ANY, 401)
ASKING = tuple(ERRORS)


def api_document(body_bytes: int) -> Document:
    """The whole document; `body_bytes` is the limit of a request's body."""
    shapes: dict[str, type[Sampling]] = {"ChatRequest": ChatRequest, "CompletionRequest": CompletionRequest}
    schemas: Document = {}
    for name, shape in shapes.items():
        schema = request_schema(shape)
        schemas |= schema.pop("$defs", {})
        schemas[name] = schema
    return {
        "openapi": "3.1.0",
        "info": {"title": "meshctl gateway", "version": "1", "description": _limits_text(body_bytes)},
        "servers": [{"url": "/"}],
        "security": [{"key": []}],
        "paths": _paths(),
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            "schemas": {**schemas, **_ANSWERS},
        },
    }


def request_schema(shape: type[Sampling]) -> Document:
    """The JSON Schema of a body: the fields that reach the head, and those that are accepted and dropped."""
    schema = shape.model_json_schema(ref_template="#/components/schemas/{model}")
    dropped = {name: {"description": "accepted, and of no effect here"} for name in sorted(DROPPED)}
    return {**schema, "properties": {**schema["properties"], **dropped}}


def _limits_text(body_bytes: int) -> str:
    refused = "; ".join(f"`{name}`: {why}" for name, why in REFUSED.items())
    return (
        f"A body may have {body_bytes} bytes and be nested {NESTING_LIMIT} deep; parentheses of a `grammar`"
        f" {GRAMMAR_NESTING_LIMIT} deep. `model`, if it is given, must be the one that is served; `n` may be at most as"
        " many conversations as one head takes at once. `null` means that a field is not given. Refused, with what to"
        f" do instead: {refused}."
    )


def _paths() -> Document:
    named = [{"name": "name", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}]
    metrics = _operation("what was done, for Prometheus", {"text/plain": {"type": "string"}}, KEYED)
    health = _operation("whether it answers; needs no key", _json("Health"), ANY)
    health["responses"]["503"]["content"] = _content({"application/json": {"anyOf": [_ref("Health"), _ref("Error")]}})
    itself = _operation("this document; needs no key", {"application/json": {"type": "object"}}, ANY)
    return {
        "/health": {"get": {**health, "security": []}},
        "/openapi.json": {"get": {**itself, "security": []}},
        "/metrics": {"get": metrics},
        "/v1/models": {"get": _operation("the one model that is served", _json("Models"), KEYED)},
        "/v1/models/{name}": {
            "get": {**_operation("the model of this name", _json("Model"), (*KEYED, 404)), "parameters": named}
        },
        "/v1/chat/completions": {"post": _asking("go on with a conversation", "ChatRequest")},
        "/v1/completions": {"post": _asking("go on with a text", "CompletionRequest")},
    }


def _asking(summary: str, body: str) -> Document:
    answer = {**_json("Answer"), "text/event-stream": {}}
    operation = _operation(
        f"{summary}; with `stream` the answer comes as events, and `[DONE]` at its end", answer, ASKING
    )
    operation["requestBody"] = {"required": True, "content": _content(_json(body))}
    head = {"x-meshctl-head": {"description": "the head that answered", "schema": {"type": "string"}}}
    operation["responses"]["200"]["headers"] = head
    return operation


def _operation(summary: str, answer: Mapping[str, Document], errors: tuple[int, ...]) -> Document:
    good = {"description": "as asked", "content": _content(answer)}
    return {
        "summary": summary,
        "responses": {"200": good, **{str(status): _refusal(status) for status in sorted(errors)}},
    }


def _refusal(status: int) -> Document:
    meanings = (f"`{code}`: {meaning}" if code else meaning for code, meaning in ERRORS[status].items())
    refusal = {"description": "; ".join(meanings), "content": _content(_json("Error"))}
    if status in (429, 503):
        after = {"description": "seconds", "schema": {"type": "integer", "minimum": 1}}
        return {**refusal, "headers": {"retry-after": after}}
    return refusal


def _content(schemas: Mapping[str, Document]) -> Document:
    return {kind: {"schema": schema} for kind, schema in schemas.items()}


def _json(name: str) -> dict[str, Document]:
    return {"application/json": _ref(name)}


def _ref(name: str) -> Document:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(required: str, **properties: Document) -> Document:
    return {"type": "object", "required": required.split(), "properties": properties}


_TEXT, _TEXT_OR_NULL = {"type": "string"}, {"type": ["string", "null"]}
_ANSWERS: Document = {
    "Error": _object(
        "error",
        error=_object("message type param code", message=_TEXT, type=_TEXT, param=_TEXT_OR_NULL, code=_TEXT_OR_NULL),
    ),
    "Health": _object(
        "status", status=_TEXT, step=_TEXT, fraction={"type": ["number", "null"], "minimum": 0, "maximum": 1}
    ),
    "Model": _object(
        "id object created owned_by",
        id=_TEXT,
        object={"const": "model"},
        created={"type": "integer"},
        owned_by=_TEXT,
        context_length={"type": "integer"},
    ),
    "Models": _object("object data", object={"const": "list"}, data={"type": "array", "items": _ref("Model")}),
    "Answer": _object("model choices", model=_TEXT, choices={"type": "array", "items": {"type": "object"}}),
}
