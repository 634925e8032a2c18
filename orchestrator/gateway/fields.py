"""Which request fields reach the head, and in which form; pure.

An allow-list, because the head trusts its bodies more than a public door may: its field `chat_parser` is a known
use-after-free, `id_slot` takes other people's slots, image URLs make it fetch what they name, and a grammar nested
20,000 deep overflows its stack and ends it (seen at this pin; the list was read in tools/server/server-schema.cpp and
server-common.cpp of the engine's source). Fields of OpenAI's that change nothing here are accepted and dropped.
"""

import difflib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NoReturn

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, StringConstraints, ValidationError

from orchestrator.gateway.api_error import ApiError, bad_field

BODY_LIMIT_BYTES = 8 * 1024 * 1024
NESTING_LIMIT = 64
GRAMMAR_LIMIT_CHARACTERS = 64 * 1024
GRAMMAR_NESTING_LIMIT = 256
LAST_TOKENS_LIMIT = 65536  # the head allocates this many at once

Body = dict[str, JsonValue]

DROPPED = frozenset(
    {
        "metadata",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
        "verbosity",
    }
)
"""OpenAI's fields that a cluster of one's own has no use for; leaving them out changes no answer."""

REFUSED: Mapping[str, str] = {
    "best_of": "ask for `n` answers and choose among them",
    "chat_parser": "it is internal to the engine and unsafe from outside",
    "function_call": "use `tool_choice`",
    "functions": "use `tools`",
    "id_slot": "the cluster chooses the slot",
    "lora": "adapters are chosen when the cluster starts",
    "modalities": "the cluster answers with text only",
    "n_predict": "use `max_tokens`",
    "n_probs": "use `logprobs`",
    "reasoning_format": "it is set when the cluster starts",
    "suffix": "the engine cannot fill in the middle through this endpoint",
}
"""Fields somebody might send in good faith, each with what to do instead."""

_MESSAGE_FIELDS = ("role", "content", "name", "reasoning_content", "tool_calls", "tool_call_id")

Share = Annotated[float, Field(ge=0, le=1)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(ge=0, allow_inf_nan=False)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
TokenCount = Annotated[int, Field(ge=0, lt=2**31)]
LastTokens = Annotated[int, Field(ge=0, le=LAST_TOKENS_LIMIT)]
_Some = Field(min_length=1, max_length=2**17)
Prompts = Annotated[list[str], _Some] | Annotated[list[list[TokenId]], _Some] | Annotated[list[TokenId], _Some]
StopWord = Annotated[str, StringConstraints(min_length=1, max_length=1000)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class _Lenient(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


class TextPart(_Lenient):
    type: Literal["text"]
    text: str


class ToolCallFunction(_Lenient):
    name: str
    arguments: str


class ToolCall(_Lenient):
    id: str = ""
    type: Literal["function"] = "function"
    function: ToolCallFunction


class ChatMessage(_Lenient):
    """One message; further keys, as answers of OpenAI's carry them, are dropped."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None


class StreamOptions(_Lenient):
    include_usage: bool | None = None


class ResponseFormat(_Lenient):
    type: Literal["text", "json_object", "json_schema"]


class Tool(_Lenient):
    type: Literal["function"]
    function: dict[str, JsonValue]


class Sampling(_Strict):
    """What both endpoints take; ranges are OpenAI's or the engine's own."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: TokenCount | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    seed: Annotated[int, Field(ge=-1, lt=2**32)] | None = None
    stop: StopWord | Annotated[list[StopWord], Field(max_length=16)] | None = None
    temperature: Positive | None = None
    top_p: Share | None = None
    top_k: TokenCount | None = None
    min_p: Share | None = None
    typical_p: Share | None = None
    top_n_sigma: Finite | None = None
    xtc_probability: Share | None = None
    xtc_threshold: Share | None = None
    dynatemp_range: Positive | None = None
    dynatemp_exponent: Finite | None = None
    presence_penalty: Finite | None = None
    frequency_penalty: Finite | None = None
    repeat_penalty: Finite | None = None
    repeat_last_n: LastTokens | None = None
    dry_multiplier: Finite | None = None
    dry_base: Finite | None = None
    dry_allowed_length: LastTokens | None = None
    dry_penalty_last_n: LastTokens | None = None
    mirostat: Annotated[int, Field(ge=0, le=2)] | None = None
    mirostat_tau: Finite | None = None
    mirostat_eta: Finite | None = None
    logit_bias: Annotated[dict[str, Finite], Field(max_length=1024)] | None = None
    grammar: Annotated[str, StringConstraints(max_length=GRAMMAR_LIMIT_CHARACTERS)] | None = None
    json_schema: dict[str, JsonValue] | None = None
    ignore_eos: bool | None = None
    cache_prompt: bool | None = None
    timings_per_token: bool | None = None
    return_progress: bool | None = None


class ChatRequest(Sampling):
    """The body of /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: TokenCount | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: dict[str, JsonValue] | None = None
    continue_final_message: bool | Literal["content", "reasoning_content"] | None = None
    add_generation_prompt: bool | None = None


def _no_number(value: object) -> object:
    """To Python 0 is False; to a sender it is not."""
    if value is not False:
        raise ValueError("must be false")
    return value


class CompletionRequest(Sampling):
    """The body of /v1/completions. `echo` may only be false."""

    prompt: str | Prompts
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: Annotated[Literal[False], BeforeValidator(_no_number)] | None = None


def read_body(raw: bytes) -> Body:
    """Read a request body as a JSON object; an ApiError (400) says what else it is."""
    try:
        body = json.loads(raw, parse_constant=_refuse_constant)
        json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
    except RecursionError as error:
        raise _too_nested() from error
    except ValueError as error:  # not JSON, not UTF-8, half of a surrogate pair, or a number beyond all floats
        raise ApiError(400, f"the body is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise ApiError(400, f"the body must be a JSON object, not {_json_kind(body)}")
    if _deeper_than(body, NESTING_LIMIT):
        raise _too_nested()
    return body


def chat_body(body: Body, *, model: str, parallel: int) -> Body:
    """What the head gets for a chat request; ApiError 400 or 404 names the field that cannot be taken."""
    passed = _passed(body, ChatRequest, model, parallel)
    messages = body["messages"]
    passed["messages"] = [_message(message) for message in messages if isinstance(message, dict)]  # type: ignore[union-attr]
    return passed


def completion_body(body: Body, *, model: str, parallel: int) -> Body:
    """What the head gets for a completion request; ApiError 400 or 404 names the field that cannot be taken."""
    return _passed(body, CompletionRequest, model, parallel)


def _passed(body: Body, shape: type[Sampling], model: str, parallel: int) -> Body:
    given = {name: value for name, value in body.items() if value is not None and name not in DROPPED}
    for name in given:
        if name not in shape.model_fields:
            raise _unknown(name, shape)
    try:
        request = shape.model_validate(given)
    except ValidationError as error:
        raise _first_problem(error) from error
    _check_model(request.model, model)
    _check_answers(request.n or 1, parallel)
    _check_grammar(request.grammar or "")
    return {**given, "model": model}


def _message(message: Mapping[str, JsonValue]) -> Body:
    """`developer` is OpenAI's newer name of `system`, which the models' own templates know."""
    known: Body = {name: message[name] for name in _MESSAGE_FIELDS if message.get(name) is not None}
    return {**known, "role": "system"} if known["role"] == "developer" else known


def _unknown(name: str, shape: type[Sampling]) -> ApiError:
    if name in REFUSED:
        return bad_field(name, f"`{name}` cannot be used here: {REFUSED[name]}")
    near = difflib.get_close_matches(name, shape.model_fields, n=1)
    advice = f"did you mean `{near[0]}`?" if near else "remove it"
    return bad_field(name, f"`{name}` is not a field of this endpoint; {advice}")


def _check_model(asked: str | None, served: str) -> None:
    if asked is not None and asked != served:
        message = f"the model `{asked}` is not served here; this cluster serves `{served}`"
        raise ApiError(404, message, param="model", code="model_not_found")


def _check_answers(wanted: int, parallel: int) -> None:
    if wanted > parallel:
        conversations = "1 conversation" if parallel == 1 else f"{parallel} conversations"
        message = f"`n` is {wanted}, but the cluster holds {conversations} at once; lower it, or raise `parallel`"
        raise bad_field("n", f"{message} in the inventory")


def _check_grammar(grammar: str) -> None:
    """Parentheses inside literals count too: that errs on the safe side, and no real grammar comes near the limit."""
    depth = deepest = 0
    for character in grammar:
        depth += (character == "(") - (character == ")")
        deepest = max(deepest, depth)
    if deepest > GRAMMAR_NESTING_LIMIT:
        raise bad_field("grammar", f"`grammar` is nested {deepest} deep; at most {GRAMMAR_NESTING_LIMIT} is taken")


def _first_problem(error: ValidationError) -> ApiError:
    """The problem with the longest path: of a field that may be several things, that is what the sender meant."""
    detail = max(error.errors(include_url=False), key=lambda detail: len(_path(detail["loc"])))
    path = _path(detail["loc"])
    match detail["type"]:
        case "missing":
            return bad_field(path, f"`{path}` is missing")
        case "literal_error" if path.endswith(".type") and path.startswith("messages"):
            return bad_field(path, f'`{path}` must be "text": this cluster reads text only')
        case "literal_error" | "value_error" if path == "echo":
            return bad_field(path, "`echo` must be false: the engine does not repeat prompts")
        case "literal_error" if path == "tool_choice":
            return bad_field(
                path, '`tool_choice` must be "none", "auto" or "required"; to force one tool, send only it'
            )
    reason = detail["msg"][0].lower() + detail["msg"][1:]
    return bad_field(path, f"`{path}`: {reason}")


def _path(location: tuple[int | str, ...]) -> str:
    """The path as the sender sees it: pydantic's marks for the members of a union are not part of it."""
    path = str(location[0])
    for step in location[1:]:
        if isinstance(step, int):
            path += f"[{step}]"
        elif step.isidentifier() and step not in ("str", "int", "bool", "float", "TextPart"):
            path += f".{step}"
    return path


def _deeper_than(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit):
        level = [inner for outer in level for inner in _members(outer)]
        if not level:
            return False
    return True


def _members(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _too_nested() -> ApiError:
    return ApiError(400, f"the body is nested too deeply; at most {NESTING_LIMIT} levels are taken")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _json_kind(value: object) -> str:
    match value:
        case None:
            return "null"
        case list():
            return "a list"
        case str():
            return "a string"
        case bool():
            return "a boolean"
    return "a number"
