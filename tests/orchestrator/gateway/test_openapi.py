"""The document of what can be asked: it says what the gateway does, no more and no less."""

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

from orchestrator.gateway import __file__ as gateway_package
from orchestrator.gateway.api_error import ApiError
from orchestrator.gateway.fields import (
    DROPPED,
    Body,
    ChatRequest,
    CompletionRequest,
    Sampling,
    chat_body,
    completion_body,
)
from orchestrator.gateway.openapi import ERRORS, api_document
from tests.orchestrator.gateway.heads import FakeHead, gateway_for

DOCUMENT = api_document(8 * 2**20)
GUIDE = (Path(__file__).parents[3] / "docs/gateway.md").read_text()
SHAPES: dict[str, type[Sampling]] = {"ChatRequest": ChatRequest, "CompletionRequest": CompletionRequest}
NEEDED: dict[str, Body] = {
    "ChatRequest": {"messages": [{"role": "user", "content": "x"}]},
    "CompletionRequest": {"prompt": "x"},
}
NOT_IN_THE_SOURCES = {"failed", "starting"}
"""Codes that are the cluster's state."""


def properties(name: str) -> dict[str, Any]:
    return dict(DOCUMENT["components"]["schemas"][name]["properties"])


def asked(name: str, field: str) -> None:
    """Ask with this field, of a value that no field can have."""
    body: Body = {**NEEDED[name], field: {"no": {"such": "value"}}}
    if name == "ChatRequest":
        chat_body(body, model="tiny", parallel=1)
    else:
        completion_body(body, model="tiny", parallel=1)


def refused_for(name: str, field: str) -> str:
    """Why a body with this field is refused, "" if it is not."""
    try:
        asked(name, field)
    except ApiError as problem:
        return str(problem)
    return ""


@pytest.mark.parametrize("name", SHAPES)
def test_every_field_that_is_accepted_is_in_it_and_the_reverse(name: str) -> None:
    assert set(properties(name)) == set(SHAPES[name].model_fields) | DROPPED
    assert DOCUMENT["components"]["schemas"][name]["additionalProperties"] is False
    assert [refusal for field in properties(name) if "is not a field" in (refusal := refused_for(name, field))] == []


@pytest.mark.parametrize("name", SHAPES)
def test_a_field_that_is_not_in_it_is_refused(name: str) -> None:
    others = (set(properties("ChatRequest")) | set(properties("CompletionRequest")) | {"zzz"}) - set(properties(name))
    for field in others:
        with pytest.raises(ApiError) as caught:
            asked(name, field)
        assert caught.value.param == field


@pytest.mark.parametrize("name", SHAPES)
def test_every_field_is_in_the_guide(name: str) -> None:
    assert [field for field in properties(name) if f"`{field}`" not in GUIDE] == []


def test_the_limits_of_fields_are_in_it() -> None:
    chat, completion = properties("ChatRequest"), properties("CompletionRequest")
    assert chat["top_logprobs"]["anyOf"][0] == {"maximum": 20, "minimum": 0, "type": "integer"}
    assert [one.get("minItems") for one in completion["prompt"]["anyOf"]] == [None, 1, 1, 1]
    assert chat["grammar"]["anyOf"][0]["maxLength"] == 65536
    assert "8388608 bytes" in DOCUMENT["info"]["description"]


def test_every_code_of_an_error_in_the_sources_is_in_it_and_the_reverse() -> None:
    found = {code for path in Path(gateway_package).parent.glob("*.py") for code in codes_in(path)}
    listed = {code for codes in ERRORS.values() for code in codes if code}
    assert found - {"defect"} == listed - NOT_IN_THE_SOURCES


def test_every_code_of_an_error_is_in_the_guide_with_its_status() -> None:
    rows = re.findall(r"^\| ([\d, ]+) \| (.*?) \|", GUIDE, re.MULTILINE)
    told = {
        (status, code)
        for statuses, codes in rows
        for status in re.findall(r"\d+", statuses)
        for code in codes.split("`")
    }
    missing = [
        (status, code) for status, codes in ERRORS.items() for code in codes if code and (str(status), code) not in told
    ]
    assert missing == []


def codes_in(path: Path) -> set[str]:
    """Every text that is given as `code=`, or is a constant that is."""
    tree = ast.parse(path.read_text())
    given = [
        keyword.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg == "code"
    ]
    words = {value.value for value in given if isinstance(value, ast.Constant) and isinstance(value.value, str)}
    constants = re.findall(r'^HEAD_\w+ = "(\w+)"', path.read_text(), re.MULTILINE)
    passed = re.findall(r'self\._full\("[^"]*", "(\w+)"\)', path.read_text())
    return words | set(constants) | set(passed)


async def test_it_is_served_to_everybody_and_says_nothing_of_this_cluster() -> None:
    async with gateway_for(FakeHead()) as gateway:
        answer = await gateway.http.get("/openapi.json", headers={"authorization": ""})
        paths = set(answer.json()["paths"])
        assert (answer.status_code, answer.json()) == (200, json.loads(json.dumps(DOCUMENT)))
        assert "tiny" not in answer.text
        known = {"/health", "/metrics", "/openapi.json", "/v1/models", "/v1/models/{name}"}
        assert paths == known | {"/v1/chat/completions", "/v1/completions"}


async def test_everything_that_it_lists_is_there_and_needs_a_key_where_it_says_so() -> None:
    async with gateway_for(FakeHead()) as gateway:
        for path, operations in DOCUMENT["paths"].items():
            for method, operation in operations.items():
                answer = await gateway.http.request(method, path, headers={"authorization": ""})
                assert answer.status_code == (200 if operation.get("security") == [] else 401)
