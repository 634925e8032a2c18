"""Which request fields reach the head."""

import json
from typing import Any

import pytest

from orchestrator.gateway.api_error import ApiError
from orchestrator.gateway.fields import (
    DROPPED,
    GRAMMAR_LIMIT_CHARACTERS,
    REFUSED,
    ChatRequest,
    CompletionRequest,
    chat_body,
    completion_body,
    read_body,
)

HELLO: list[dict[str, Any]] = [{"role": "user", "content": "hello"}]


def chat(**fields: Any) -> dict[str, Any]:
    return chat_body({"messages": HELLO, **fields}, model="tiny", parallel=2)  # type: ignore[dict-item]


def complete(**fields: Any) -> dict[str, Any]:
    return completion_body(fields, model="tiny", parallel=2)


def test_a_plain_chat_request_passes_with_the_clusters_model_name() -> None:
    assert chat(temperature=0, max_tokens=5) == {
        "messages": HELLO,
        "temperature": 0,
        "max_tokens": 5,
        "model": "tiny",
    }


def test_null_means_unset() -> None:
    assert chat(stop=None, tools=None, user=None) == {"messages": HELLO, "model": "tiny"}


@pytest.mark.parametrize("name", sorted(DROPPED))
def test_fields_that_change_nothing_here_are_dropped_whatever_they_hold(name: str) -> None:
    assert chat(**{name: {"any": "thing"}}) == {"messages": HELLO, "model": "tiny"}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_fields_that_people_send_in_good_faith_are_refused_with_what_to_do_instead(name: str) -> None:
    with pytest.raises(ApiError) as caught:
        chat(**{name: "x"})
    assert (caught.value.status, caught.value.param) == (400, name)
    assert str(caught.value) == f"`{name}` cannot be used here: {REFUSED[name]}"


INTERNAL = (
    "chat_format chat_parser generation_prompt grammar_lazy grammar_triggers grammar_type id_slot lora "
    "message_delimiters n_cache_reuse n_keep parse_tool_calls preserved_tokens response_fields return_tokens "
    "samplers sse_ping_interval verbose reasoning_budget_message media_path slot_id __verbose"
)


@pytest.mark.parametrize("name", INTERNAL.split())
@pytest.mark.parametrize("shape", [ChatRequest, CompletionRequest])
def test_the_engines_internal_fields_are_in_no_list(name: str, shape: type[ChatRequest | CompletionRequest]) -> None:
    assert name not in shape.model_fields


def message_of(**fields: Any) -> tuple[int, str | None, str]:
    with pytest.raises(ApiError) as caught:
        chat(**fields)
    return caught.value.status, caught.value.param, str(caught.value)


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"temprature": 1}, "temprature", "`temprature` is not a field of this endpoint; did you mean `temperature`?"),
        ({"zzz": 1}, "zzz", "`zzz` is not a field of this endpoint; remove it"),
        ({"temperature": "hot"}, "temperature", "`temperature`: input should be a valid number"),
        ({"temperature": True}, "temperature", "`temperature`: input should be a valid number"),
        ({"temperature": -1}, "temperature", "`temperature`: input should be greater than or equal to 0"),
        ({"max_tokens": 1.5}, "max_tokens", "`max_tokens`: input should be a valid integer"),
        ({"max_tokens": -1}, "max_tokens", "`max_tokens`: input should be greater than or equal to 0"),
        ({"repeat_last_n": 10**9}, "repeat_last_n", "`repeat_last_n`: input should be less than or equal to 65536"),
        ({"stream": "yes"}, "stream", "`stream`: input should be a valid boolean"),
        ({"messages": []}, "messages", "`messages`: list should have at least 1 item after validation, not 0"),
        ({"messages": None}, "messages", "`messages` is missing"),
        ({"messages": [{"content": "x"}]}, "messages[0].role", "`messages[0].role` is missing"),
        (
            {"messages": [*HELLO, {"role": "robot", "content": "x"}]},
            "messages[1].role",
            "`messages[1].role`: input should be 'system', 'developer', 'user', 'assistant' or 'tool'",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}]},
            "messages[0].content[0].type",
            '`messages[0].content[0].type` must be "text": this cluster reads text only',
        ),
        (
            {"tool_choice": {"type": "function", "function": {"name": "f"}}},
            "tool_choice",
            '`tool_choice` must be "none", "auto" or "required"; to force one tool, send only it',
        ),
        (
            {"n": 3},
            "n",
            "`n` is 3, but the cluster holds 2 conversations at once; lower it, or raise `parallel` in the inventory",
        ),
        (
            {"grammar": "root ::= " + "(" * 20000 + '"a"' + ")" * 20000},
            "grammar",
            "`grammar` is nested 20000 deep; at most 256 is taken",
        ),
    ],
)
def test_a_field_that_cannot_be_taken_is_named_with_the_reason(
    fields: dict[str, Any], param: str, message: str
) -> None:
    assert message_of(**fields) == (400, param, message)


def test_a_grammar_is_limited_in_length() -> None:
    assert message_of(grammar="a" * (GRAMMAR_LIMIT_CHARACTERS + 1))[:2] == (400, "grammar")


def test_another_model_is_not_found() -> None:
    expected = "the model `gpt-4` is not served here; this cluster serves `tiny`"
    assert message_of(model="gpt-4") == (404, "model", expected)


def test_messages_keep_what_templates_know_and_developer_becomes_system() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    body = chat(
        messages=[
            {"role": "developer", "content": [{"type": "text", "text": "be brief"}]},
            {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None, "annotations": []},
            {"role": "tool", "content": "42", "tool_call_id": "1"},
        ]
    )
    assert body["messages"] == [
        {"role": "system", "content": [{"type": "text", "text": "be brief"}]},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "content": "42", "tool_call_id": "1"},
    ]


def test_tool_schemas_pass_untouched_nulls_included() -> None:
    parameters = {"type": "object", "properties": {"a": {"enum": ["x", None], "default": None}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    assert chat(tools=[tool])["tools"] == [tool]


@pytest.mark.parametrize("prompt", ["text", ["one", "two"], [1, 2, 3], [[1, 2], [3]]])
def test_completions_take_texts_and_token_ids(prompt: Any) -> None:
    assert complete(prompt=prompt, logprobs=3) == {"prompt": prompt, "logprobs": 3, "model": "tiny"}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": {"prompt_string": "x", "multimodal_data": ["x"]}}, "prompt"),
        ({"prompt": [-1]}, "prompt[0]"),
        ({"prompt": "x", "echo": True}, "echo"),
        ({"prompt": "x", "echo": 0}, "echo"),
        ({"prompt": "x", "suffix": "y"}, "suffix"),
        ({"prompt": "x", "messages": HELLO}, "messages"),
        ({"prompt": "x", "logprobs": True}, "logprobs"),
    ],
)
def test_completions_refuse_what_the_engine_cannot_do(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        complete(**fields)
    assert (caught.value.status, caught.value.param) == (400, param)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "the body is not JSON: Expecting value: line 1 column 1 (char 0)"),
        (b"{", "the body is not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        (b"[1]", "the body must be a JSON object, not a list"),
        (b'"x"', "the body must be a JSON object, not a string"),
        (b"null", "the body must be a JSON object, not null"),
        (b"true", "the body must be a JSON object, not a boolean"),
        (b"3", "the body must be a JSON object, not a number"),
        (b'{"temperature": NaN}', "the body is not JSON: NaN is not a JSON number"),
        (b"[" * 100_000, "the body is nested too deeply; at most 64 levels are taken"),
        (b'{"a":' + b"[" * 65 + b"]" * 65 + b"}", "the body is nested too deeply; at most 64 levels are taken"),
    ],
)
def test_a_malformed_body_is_a_400_that_says_how(raw: bytes, message: str) -> None:
    with pytest.raises(ApiError) as caught:
        read_body(raw)
    assert (caught.value.status, str(caught.value)) == (400, message)


@pytest.mark.parametrize("raw", [b'{"a": "\xff"}', rb'{"a": "\ud800"}'])
def test_a_body_that_is_not_unicode_is_a_400(raw: bytes) -> None:
    with pytest.raises(ApiError, match="the body is not JSON"):
        read_body(raw)


def test_the_error_has_openais_shape() -> None:
    with pytest.raises(ApiError) as caught:
        chat(zzz=1)
    assert json.loads(json.dumps(caught.value.body)) == {
        "error": {
            "message": "`zzz` is not a field of this endpoint; remove it",
            "type": "invalid_request_error",
            "param": "zzz",
            "code": None,
        }
    }
