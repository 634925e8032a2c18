"""Mutated inventories and answers of hosts: each is read, or is an error of ours with a message, and nothing else."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from orchestrator.errors import HostError, InventoryError
from orchestrator.gateway.api_error import ApiError
from orchestrator.gateway.events import Answer, Tokens
from orchestrator.gateway.head import read_answer
from orchestrator.host_agent import (
    FolderCheck,
    Listening,
    read_folder_check,
    read_object,
    read_part,
    read_ports,
)
from orchestrator.inventory import Inventory
from orchestrator.inventory_file import inventory_reference_keys, load_inventory
from orchestrator.leash import Alive, Begun, Exit, read_event
from tests.fuzzing import TRIED, fuzz
from workers.errors import FactsError
from workers.facts import HostFacts, read_facts

PIECES: list[dict[str, Any]] = [
    {"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": None}], "model": "x", "id": "1"},
    {"choices": [{"index": 0, "text": "a"}], "timings": {"prompt_n": 7, "predicted_n": 3}},
    {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}},
    {"error": {"message": "x", "type": "server_error"}},
]
T = TypeVar("T")
REFERENCE = (Path(__file__).parents[2] / "inventory.yaml").read_text()
FACTS: dict[str, Any] = {
    "os": "Linux",
    "os_name": "Debian",
    "architecture": "x86_64",
    "libc": "glibc 2.36",
    "python": "3.11.2",
    "hostname": "nuc",
    "user": "ada",
    "cpu_name": "a",
    "cpu_features": ["avx2"],
    "cores_physical": 2,
    "cores_logical": 4,
    "cpu_quota": None,
    "memory_total_bytes": 1,
    "memory_available_bytes": 1,
    "memory_limited_by": "",
    "disk_total_bytes": 1,
    "disk_free_bytes": 1,
    "root": "/root",
    "clock_s": 1.5,
    "compiler": "",
    "gpus": [{"kind": "cuda", "index": 0, "name": "x", "memory_total_bytes": 1, "memory_free_bytes": 1}],
}
EVENTS: list[dict[str, Any]] = [
    {"event": "started", "pid": 7, "leash": 6, "name": "worker"},
    {"event": "alive", "rss_bytes": 1, "anonymous_bytes": 1, "cpu_s": 0.5, "available_bytes": None},
    {"event": "exit", "status": -9, "reason": "", "rss_peak_bytes": 5, "tail": "x"},
    {"error": "it failed"},
]
ANSWERS: list[dict[str, Any]] = [
    {"ports": [20000, 20001]},
    {"ok": False, "wrong": ["a"], "missing": ["b"]},
    {"listening": [{"address": "127.0.0.1", "port": 80, "pid": 1, "program": "x"}]},
]
KEYS = sorted({key.rpartition(".")[2] for key in inventory_reference_keys()})


def got_or_refused(read: Callable[[], T], refusal: type[Exception]) -> T | Exception:
    """What is read, or the refusal; any other exception leaves."""
    try:
        return read()
    except refusal as error:
        return error


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)
json_values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
)
yaml_words = st.one_of(
    json_values.map(json.dumps),
    st.text(max_size=12),
    st.sampled_from(
        [
            "~",
            "*a",
            "&a",
            "!!int x",
            "<<",
            "{",
            "[",
            "|",
            ">",
            "- ",
            "0x1f",
            "1e999",
            "9" * 30,
            "\t",
            "\0",
            "80%",
            "-1GiB",
        ]
    ),
)


@st.composite
def inventories(draw: st.DrawFn) -> str:
    """The reference with some lines dropped, doubled, uncommented, given other values or keys, or cut in the middle."""
    lines = REFERENCE.splitlines()
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(lines) - 1))
        match draw(st.integers(0, 6)):
            case 0:
                lines[at] = ""
            case 1:
                lines.insert(at, lines[at])
            case 2:
                lines[at] = lines[at].replace("# ", "", 1)
            case 3:
                lines[at] = f"{lines[at].partition(':')[0]}: {draw(yaml_words)}"
            case 4:
                indent = "  " * draw(st.integers(0, 3))
                lines.insert(at, f"{indent}{draw(st.sampled_from(KEYS))}: {draw(yaml_words)}")
            case 5:
                cut = draw(st.integers(0, 60))
                lines[at] = lines[at][:cut] + draw(st.text(max_size=3)) + lines[at][cut:]
            case _:
                other = draw(st.integers(0, len(lines) - 1))
                lines[at], lines[other] = lines[other], lines[at]
    return "\n".join(lines)


@fuzz(500)
@given(text=inventories())
def test_a_mutated_inventory_is_read_or_refused(tmp_path: Path, text: str) -> None:
    TRIED["inventories"] += 1
    path = tmp_path / "inventory.yaml"
    path.write_bytes(text.encode(errors="surrogatepass"))
    got = got_or_refused(lambda: load_inventory(path), InventoryError)
    assert isinstance(got, Inventory) or str(got).startswith(str(path))


@fuzz(200)
@given(data=st.binary(max_size=200))
def test_any_bytes_are_read_or_refused_as_an_inventory(tmp_path: Path, data: bytes) -> None:
    TRIED["inventories"] += 1
    path = tmp_path / "inventory.yaml"
    path.write_bytes(data)
    with pytest.raises(InventoryError):
        load_inventory(path)


@st.composite
def mutated(draw: st.DrawFn, originals: list[dict[str, Any]]) -> str:
    """The JSON of one of these with some values replaced, dropped or added, and maybe cut short."""
    told = dict(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(0, 3))):
        name = draw(st.sampled_from(sorted(told) or ["x"]) | st.text(max_size=5))
        if draw(st.booleans()):
            told[name] = draw(json_values)
        else:
            told.pop(name, None)
    text = json.dumps(told)
    return text[: draw(st.integers(0, len(text)))] if draw(st.integers(0, 4)) == 0 else text


@fuzz(300)
@given(text=mutated([FACTS]))
def test_mutated_facts_are_read_or_refused(text: str) -> None:
    TRIED["answers of hosts"] += 1
    got = got_or_refused(lambda: read_facts(text), FactsError)
    assert isinstance(got, HostFacts) or str(got).startswith("the agent's facts cannot be read: ")


@fuzz(300)
@given(text=mutated(EVENTS))
def test_mutated_events_of_a_leash_are_read_or_refused(text: str) -> None:
    TRIED["answers of hosts"] += 1
    got = got_or_refused(lambda: read_event("nuc", text), HostError)
    assert isinstance(got, Begun | Alive | Exit | None) or str(got).startswith("nuc: ")


@fuzz(300)
@given(text=mutated(ANSWERS))
def test_mutated_answers_of_an_agent_are_read_or_refused(text: str) -> None:
    TRIED["answers of hosts"] += 1
    answer = got_or_refused(lambda: read_object("nuc", text), HostError)
    if not isinstance(answer, dict):
        assert str(answer).startswith("nuc: ")
        return
    folder = got_or_refused(lambda: read_folder_check("nuc", answer), HostError)
    assert isinstance(folder, FolderCheck) or str(folder).startswith("nuc: ")
    ports = got_or_refused(lambda: read_ports("nuc", answer, 2), HostError)
    assert isinstance(ports, tuple) or str(ports).startswith("nuc: ")
    listening = TypeAdapter(tuple[Listening, ...])
    sockets = got_or_refused(lambda: read_part("nuc", listening, answer.get("listening")), HostError)
    assert isinstance(sockets, tuple) or str(sockets).startswith("nuc: ")


@fuzz(300)
@given(text=mutated(PIECES))
def test_mutated_answers_of_a_head_are_read_or_passed_over(text: str) -> None:
    TRIED["answers of heads"] += 1
    answer = Answer("tiny")
    answer.go_on()
    passed = answer.see(b"data: " + text.encode() + b"\n\n")
    assert passed is None or passed.startswith(b"data: ")
    assert answer.tokens.generated >= 0
    whole = got_or_refused(lambda: read_answer(text.encode()), ApiError)
    assert isinstance(whole, dict | ApiError)
    if isinstance(whole, dict):
        Tokens().see(whole)


@pytest.mark.parametrize(
    ("kind", "least"), [("inventories", 700), ("answers of hosts", 900), ("answers of heads", 300)]
)
def test_as_many_were_tried_as_are_said_to_be(kind: str, least: int) -> None:
    """It counts what the tests above have done in this run, so it is of the whole file."""
    assert TRIED[kind] >= least
