"""Made-up requests to a real gateway on loopback: each gets an answer that the document lists, and never a 500."""

import json
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import schemathesis
from hypothesis import given
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks

from orchestrator.gateway.openapi import ERRORS, api_document
from tests.fuzzing import TRIED, fuzz, nothing_logged
from tests.orchestrator.gateway.heads import KEY, Gateway
from tests.orchestrator.gateway.threaded import gateway_in_a_thread
from tests.orchestrator.gateway.wire import CHAT, HELLO, request_bytes

EXPECTED = {200, 405, *ERRORS} - {502, 503, 504}
DOCUMENT = api_document(8 * 2**20)
FIELDS = sorted(
    {
        name
        for shape in ("ChatRequest", "CompletionRequest")
        for name in DOCUMENT["components"]["schemas"][shape]["properties"]
    }
)

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(10**400), 10**400),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=20),
)
json_values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
)
bodies = st.one_of(
    st.binary(max_size=200),
    json_values.map(lambda value: json.dumps(value).encode()),
    st.dictionaries(st.sampled_from(FIELDS), json_values, max_size=4).map(
        lambda fields: json.dumps({"messages": HELLO, **fields}).encode()
    ),
    st.dictionaries(st.sampled_from(FIELDS), json_values, max_size=4).map(
        lambda fields: json.dumps({"prompt": "x", **fields}).encode()
    ),
    st.tuples(st.integers(0, 60), st.binary(max_size=3)).map(
        lambda cut: json.dumps({"messages": HELLO}).encode()[: cut[0]] + cut[1]
    ),
)
names = st.text("abcdefghijklmnopqrstuvwxyz-", min_size=1, max_size=20)
values = st.binary(max_size=40).map(lambda raw: bytes(byte for byte in raw if byte >= 0x20 and byte != 0x7F).strip())


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    with nothing_logged(), gateway_in_a_thread() as one:
        yield one


@pytest.fixture(scope="module")
def http(gateway: Gateway) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=gateway.url, timeout=10, trust_env=False) as one:
        yield one


def check(response: httpx.Response) -> None:
    assert response.status_code in EXPECTED, (response.status_code, response.text)
    if response.status_code != 200:
        error = response.json()["error"]
        assert set(error) >= {"message", "type", "param", "code"}
        assert str(error["code"] or "") in ERRORS.get(response.status_code, {"": ""})


@fuzz(400)
@given(path=st.sampled_from([CHAT, "/v1/completions"]), body=bodies)
def test_whatever_a_body_holds(http: httpx.Client, path: str, body: bytes) -> None:
    TRIED["bodies"] += 1
    check(http.post(path, content=body, headers={"authorization": f"Bearer {KEY}"}))


@fuzz(150)
@given(
    headers=st.dictionaries(names, values, max_size=8),
    key=st.sampled_from([b"", b"Bearer x", f"Bearer {KEY}".encode()]),
)
def test_whatever_a_header_holds(http: httpx.Client, headers: dict[str, bytes], key: bytes) -> None:
    TRIED["headers"] += 1
    framing = {"content-length", "transfer-encoding", "host", "te", "trailer", "upgrade", "connection", "expect"}
    sent: list[tuple[Any, Any]] = [(name.encode(), value) for name, value in headers.items() if name not in framing]
    check(http.post(CHAT, content=b'{"messages": []}', headers=[(b"authorization", key), *sent]))


@fuzz(150)
@given(
    method=st.sampled_from(["GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "X"]),
    folder=st.sampled_from(["/", "/v1/", "/v1/models/", "//", "/health/"]),
    path=st.text(max_size=30),
)
def test_whatever_a_path_holds(http: httpx.Client, method: str, folder: str, path: str) -> None:
    TRIED["paths"] += 1
    url = f"{http.base_url}{folder}{quote(path, safe='')}"
    check(http.request(method, url, headers={"authorization": f"Bearer {KEY}"}))


schema = schemathesis.openapi.from_dict(DOCUMENT)
CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.response_headers_conformance,
    checks.negative_data_rejection,
    checks.unsupported_method,
    checks.allow_header_conformance,
]
"""All but `positive_data_acceptance`: `n`, `model` and grammars are limited by more than a schema can say."""


def document_test(path: str, method: str) -> object:
    @schema.include(path=path, method=method).parametrize()
    @fuzz(20)
    def test(gateway: Gateway, case: schemathesis.Case[Any]) -> None:
        TRIED["cases of the document"] += 1
        case.call_and_validate(gateway.url, headers={"authorization": f"Bearer {KEY}"}, checks=CHECKS)

    return test


# One test each: schemathesis gives all of one function the same name, of which pytest-xdist runs one only.
for _path, _methods in DOCUMENT["paths"].items():
    for _method in _methods:
        globals()[f"test_the_document_is_true_of_{_method}_{_path.strip('/')}"] = document_test(_path, _method)


whole = request_bytes(body={"messages": HELLO})
mangled = st.tuples(st.integers(0, len(whole)), st.integers(0, 20), st.binary(max_size=20)).map(
    lambda cut: whole[: cut[0]] + cut[2] + whole[cut[0] + cut[1] :]
)
pieces = st.lists(
    st.one_of(
        st.binary(max_size=64),
        st.sampled_from(
            [
                b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n",
                b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n",
                f"authorization: Bearer {KEY}\r\n\r\n".encode(),
                b"5\r\nhello\r\n",
                b"0\r\n\r\n",
                b"FFFFFFFFFFFFFFFFF\r\n",
                b"\x00",
                b"\r\n\r\n",
                b"x" * 40_000,
                b"expect: 100-continue\r\n",
                b"upgrade: websocket\r\nconnection: upgrade\r\n",
                whole,
            ]
        ),
    ),
    min_size=1,
    max_size=6,
).map(b"".join)


@fuzz(250)
@given(sent=mangled | pieces)
def test_whatever_comes_over_the_wire(gateway: Gateway, sent: bytes) -> None:
    """Its end is sent at once, so that nothing has to wait for a deadline; those have tests of their own."""
    TRIED["bytes on the wire"] += 1
    url = httpx.URL(gateway.url)
    answer = b""
    with socket.create_connection((url.host, url.port or 0), timeout=10) as one:
        try:
            one.sendall(sent)
            one.shutdown(socket.SHUT_WR)
            while part := one.recv(65536):
                answer += part
        except TimeoutError:
            raise
        except OSError:  # refused and closed before all of it was sent
            pass
    lines = [line for line in answer.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")]
    assert {int(line.split()[1]) for line in lines} <= EXPECTED | {100}


@pytest.mark.parametrize(
    ("kind", "least"),
    [("bodies", 400), ("headers", 150), ("paths", 150), ("cases of the document", 200), ("bytes on the wire", 250)],
)
def test_as_many_were_tried_as_are_said_to_be(kind: str, least: int) -> None:
    """It counts what the tests above have done in this run, so it is of the whole file."""
    assert TRIED[kind] >= least
