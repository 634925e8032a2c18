"""Weights from one host to another, each side run as a program as a host runs it."""

import json
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from orchestrator.certificates import one_time_identity
from tests.workers.test_agent_packs import PYTHON, A, B, C, ask, files, look, put, tensor
from workers import agent

GIVER, FETCHER, STRANGER = (one_time_identity() for _ in range(3))
MIB = 1024**2


@contextmanager
def giving(
    item: Path, model: Path, tensors: list[dict[str, Any]], *, other: str = FETCHER[1], peer: str = "127.0.0.1"
) -> Iterator[int]:
    """The port of a host that gives these."""
    words = (PYTHON, "-I", "-S", str(agent.__file__), "give", str(item), str(model), "--address", "127.0.0.1")
    with subprocess.Popen((*words, "--peer", peer), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps({"identity": GIVER[0], "other": other, "weights": tensors}).encode() + b"\n")
        process.stdin.flush()
        yield json.loads(process.stdout.readline())["port"]
        process.stdin.close()
        assert process.wait(timeout=10) == 0


def fetch(
    item: Path, port: int, tensors: list[dict[str, Any]], *options: str, mine: str = FETCHER[0], other: str = GIVER[1]
) -> dict[str, Any]:
    look(item, tensors)
    words = (PYTHON, "-I", "-S", str(agent.__file__), "fetch", str(item), "--address", "127.0.0.1")
    asked = json.dumps({"identity": mine, "other": other, "weights": tensors}).encode()
    done = subprocess.run(
        (*words, "--port", str(port), *options), input=asked, capture_output=True, check=True, timeout=60
    )
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert answer.pop("seconds") >= 0
    return answer


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tmp_path / "source" / "packs" / "tiny"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "target" / "packs" / "tiny"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    return tmp_path / "model"


def test_weights_come_out_of_a_pack_and_out_of_a_copy_of_the_model(source: Path, target: Path, model: Path) -> None:
    tensors = [*put(source, A), tensor(B, offset=7)]
    (model / "a.gguf").write_bytes(b"header " + B)
    missing = {**tensor(C), "shard": "b.gguf"}
    assert ask("held", str(source), str(model), tensors=[*tensors, missing]) == {
        "held": [one["name"] for one in tensors]
    }
    with giving(source, model, [*tensors, missing]) as port:
        assert fetch(target, port, [missing, *tensors]) == {"fetched": [one["name"] for one in tensors], "why": ""}
    assert files(target) == sorted(f"rpc/{one['name']}" for one in tensors)
    assert {path.read_bytes() for path in (target / "rpc").iterdir()} == {A, B}
    assert look(target, tensors, "--every-byte")["missing"] == []


def test_a_piece_in_runs_comes_out_of_a_copy_of_the_model(source: Path, target: Path, model: Path) -> None:
    content = bytes(range(256)) * 100
    wanted = b"".join(content[at : at + 100] for at in range(3, 25_000, 1000))
    (model / "a.gguf").write_bytes(content)
    piece = {**tensor(wanted, offset=3), "run_bytes": 100, "stride_bytes": 1000}
    with giving(source, model, [piece]) as port:
        assert fetch(target, port, [piece])["fetched"] == [piece["name"]]


@pytest.mark.parametrize("stranger", ["mine", "other"])
def test_only_the_one_that_was_told_gets_in_and_is_listened_to(
    source: Path, target: Path, model: Path, stranger: str
) -> None:
    tensors = put(source, A)
    changed = {stranger: STRANGER[0 if stranger == "mine" else 1]}
    with giving(source, model, tensors) as port:
        answer = fetch(target, port, tensors, **changed)
        assert answer["fetched"] == []
        assert answer["why"]  # an alert, or what is left of the connection when that comes too late
        assert fetch(target, port, tensors)["fetched"] == [tensors[0]["name"]]


def test_no_other_address_gets_in(source: Path, target: Path, model: Path) -> None:
    tensors = put(source, A)
    with giving(source, model, tensors, peer="192.0.2.1") as port:
        answer = fetch(target, port, tensors)
    assert answer["fetched"] == []
    assert answer["why"]
    assert files(target) == []


def test_nobody_reads_anything_without_tls(source: Path, model: Path) -> None:
    (one,) = put(source, A)
    with giving(source, model, [one]) as port, socket.create_connection(("127.0.0.1", port), timeout=10) as plain:
        plain.sendall(one["name"].encode())
        answer = b""
        with suppress(ConnectionResetError):
            while data := plain.recv(4096):
                answer += data
    assert A not in answer
    assert len(answer) < 100


def test_only_what_was_named_is_given(source: Path, target: Path, model: Path) -> None:
    one, other = put(source, A, B)
    with giving(source, model, [one]) as port:
        answer = fetch(target, port, [one, other])
    assert answer == {"fetched": [one["name"]], "why": "the other host does not give it"}
    assert files(target) == [f"rpc/{one['name']}"]


def test_what_comes_wrong_or_short_gets_no_name(source: Path, target: Path, model: Path) -> None:
    one, other = put(source, A, B)
    (source / "rpc" / one["name"]).write_bytes(b"x" + A[1:])
    short = {**tensor(C, offset=0)}
    (model / "a.gguf").write_bytes(C[:-1])
    with giving(source, model, [one, other, short]) as port:
        answer = fetch(target, port, [one, other, short])
    assert answer["fetched"] == [other["name"]]
    assert answer["why"] == "the other host has ended the connection"
    assert files(target) == [f"rpc/{other['name']}"]


def test_what_takes_too_long_is_given_up(source: Path, target: Path, model: Path) -> None:
    tensors = put(source, bytes(3 * MIB))
    with giving(source, model, tensors) as port:
        assert fetch(target, port, tensors, "--seconds", "0.000001") == {"fetched": [], "why": "too slow"}
    assert files(target) == []


def test_a_key_stays_nowhere(
    source: Path, target: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    tensors = put(source, A)
    with giving(source, model, tensors) as port:
        fetch(target, port, tensors)
        kept = [path for path in tmp_path.rglob("*") if path.is_file() and b"PRIVATE KEY" in path.read_bytes()]
        assert kept == []
