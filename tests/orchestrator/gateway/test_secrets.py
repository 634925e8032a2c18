"""Keys are nowhere but where they are kept: not in logs, answers, state, events, or the words of a process."""

import logging
from datetime import UTC, datetime
from pathlib import Path

import pytest

from orchestrator.announce import ready_text
from orchestrator.errors import GatewayError
from orchestrator.folders import ClusterFolder
from orchestrator.gateway.keys import KeyFile, add_key, ensure_own_key
from orchestrator.gateway.routing import HeadAddress
from orchestrator.gateway.tls import prepare_tls
from orchestrator.history import HistoryEvent, add_event
from orchestrator.inventory import GatewaySettings, Host, Inventory
from orchestrator.report import Report, to_file
from orchestrator.state import state_json
from orchestrator.state_keeper import StateKeeper
from tests.orchestrator.gateway.heads import DONE, HEAD_KEY, KEY, FakeHead, chunk, gateway_for
from tests.orchestrator.gateway.wire import CHAT, HELLO, request_bytes, wire


def texts_below(folder: Path, *, without: tuple[Path, ...]) -> str:
    files = (path for path in folder.rglob("*") if path.is_file() and path not in without)
    return "\n".join(path.read_text(errors="replace") for path in files)


async def test_no_key_is_in_a_log_or_an_answer_whatever_goes_wrong(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    head = FakeHead(parts=(chunk("a"),), tear=True)
    whole = request_bytes()
    torn = [whole[:40], whole.replace(b"HTTP/1.1", b"HTTP/9"), whole.replace(b"content-length", b"content\0length")]
    answers = b""
    async with gateway_for(head) as gateway:
        for body in ({"messages": HELLO, "stream": True, "tools": []}, {"messages": 1}, {"zzz": KEY[:2]}):
            answers += (await gateway.http.post(CHAT, json={**body, "logprobs": True})).content
        answers += (await gateway.http.get("/v1/models", headers={"authorization": f"Basic {KEY}"})).content
        answers += (await gateway.http.get("/metrics")).content
        for sent in torn:
            async with wire(gateway.url) as one:
                await one.send(sent)
                one.writer.write_eof()
                answers += await one.rest()
    assert head.bodies
    for secret in (KEY, HEAD_KEY):
        assert secret.encode() not in answers
        assert secret not in caplog.text


def test_no_key_is_in_the_folder_of_a_cluster_but_in_the_files_that_are_for_it(tmp_path: Path) -> None:
    folder = ClusterFolder(tmp_path / "home")
    folder.prepare()
    (tmp_path / "inventory.yaml").write_text("cluster: home\n")
    inventory = Inventory(tmp_path / "inventory.yaml", "home", "tiny", (Host("a", "local"),))
    key, _ = ensure_own_key(folder.gateway_keys, folder.gateway_key)
    other = add_key(folder.gateway_keys, "phone")
    tls = prepare_tls(GatewaySettings(tls="self-signed"), folder, datetime.now(UTC))
    keeper = StateKeeper(folder, inventory)
    ready = ready_text("home", "https://127.0.0.1:1", folder.gateway_key, tls)
    keeper.phase("ready", ready, key_file=str(folder.gateway_key))
    add_event(folder, HistoryEvent("now", "ready", ready))
    Report(to_file(folder.events)).ready(ready)
    private = folder.self_signed.read_text().splitlines()[1]
    told = texts_below(folder.path, without=(folder.gateway_key, folder.self_signed)) + state_json(keeper.state)
    assert "answers at https://127.0.0.1:1/v1" in told
    assert [secret for secret in (key, other, private) if secret in told] == []
    assert all(path.stat().st_mode & 0o077 == 0 for path in (folder.gateway_key, folder.self_signed))


def test_what_is_wrong_with_keys_is_said_without_them(tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    key = add_key(keys, "phone")
    keys.write_text(f'[{{"name": "{key}"}}]')
    with pytest.raises(GatewayError) as caught:
        KeyFile(keys).now()
    assert key not in f"{caught.value} {caught.value.hint} {caught.value.details}"


def test_values_that_hold_a_key_do_not_show_it() -> None:
    assert HEAD_KEY not in repr(HeadAddress("a", "http://127.0.0.1:1", HEAD_KEY))


async def test_a_stream_that_ends_well_says_nothing_of_keys_either(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with gateway_for(FakeHead(parts=(chunk("a"), DONE))) as gateway:
        answer = await gateway.http.post(CHAT, json={"messages": HELLO, "stream": True})
    assert answer.status_code == 200
    assert KEY not in caplog.text + answer.text
    assert HEAD_KEY not in caplog.text + answer.text
