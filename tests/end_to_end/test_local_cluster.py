"""The whole main job on this machine: two local hosts, the real engine, the real model."""

import json
import os
import re
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import yaml
from openai.types.chat import ChatCompletionMessageParam

from orchestrator.engine.store import Engine
from tests.end_to_end.answers import answers, plain_head
from tests.end_to_end.inventories import write_local
from tests.program import Meshctl, processes_with

pytestmark = pytest.mark.engine


def events_of(meshctl: Meshctl) -> list[dict[str, Any]]:
    return [json.loads(line) for line in meshctl.ok("events", "--json").stdout.splitlines()]


def phases_of(happened: list[dict[str, Any]]) -> list[str]:
    return [event["phase"] for event in happened if event["kind"] == "phase"]


def until_happened(meshctl: Meshctl, *phases: str, deadline_s: float) -> None:
    """Wait until the cluster has entered these, one after the other, and no other since."""
    deadline = time.monotonic() + deadline_s
    while tuple(happened := phases_of(events_of(meshctl)))[-len(phases) :] != phases:
        assert time.monotonic() < deadline, happened
        time.sleep(0.1)


def worker_pid(state: dict[str, Any]) -> int:
    """A worker of a cluster in this state."""
    pids: list[int] = [process["pid"] for process in state["processes"] if process["name"].startswith("worker")]
    return pids[0]


def test_a_model_that_fits_no_single_device_answers_as_on_one_machine(
    meshctl: Meshctl, engine: Engine, demo_model: Path
) -> None:
    """Up, the same greedy text as a plain head, status, a second up, logs, down, and nothing is left."""
    inventory = str(write_local(meshctl.folder / "inventory.yaml"))
    up = meshctl.ok("up", inventory, "--detach", "--mode", "layers")
    assert "API key (shown once" in up.stderr
    state = meshctl.ok("status", "--json").json
    assert (state["phase"], state["plan"]["mode"]) == ("ready", "layers")
    assert Path(state["model_path"]).name == demo_model.name
    assert {share["device"] for share in state["plan"]["groups"][0]["shares"]} == {"part1/cpu", "part2/cpu"}
    assert all(share["total"] <= share["budget_bytes"] for share in _totals(state["plan"]["groups"][0]["shares"]))
    url = state["gateway"].removesuffix("/v1")
    with plain_head(engine, demo_model) as plain:
        assert answers(url, meshctl.key()) == answers(plain)
    assert "is up already" in meshctl.ok("up", inventory).stderr
    assert "worker-cpu.log" in meshctl.ok("logs", "part1", "--inventory", inventory).stdout
    told = meshctl.ok("chat", "Count from one to ten.", "--temperature", "0").stdout
    assert told.startswith("1. 1\n2. 2\n")
    assert meshctl.ok("chat", "--temperature", "0", stdin="Count from one to ten.").stdout == told
    assert meshctl.ok("down", inventory).stderr.strip() == "test is stopped"
    happened = events_of(meshctl)
    assert [event["phase"] for event in happened] == ["starting", "ready", "stopping", "stopped"]
    assert happened[-1]["message"] == "stopped on request"
    assert processes_with(str(meshctl.folder)) == []
    assert "no cluster runs" in meshctl.run("chat", "hello").stderr


def _totals(shares: list[dict[str, int]]) -> list[dict[str, int]]:
    kinds = ("weights_bytes", "kv_bytes", "compute_bytes")
    return [{**share, "total": sum(share[kind] for kind in kinds)} for share in shares]


def test_the_official_client_talks_with_a_cluster(meshctl: Meshctl) -> None:
    """Chat, stream, completion and the model list by the `openai` package."""
    meshctl.ok("up", str(write_local(meshctl.folder / "inventory.yaml", context=1024)), "--detach")
    gateway = meshctl.ok("status", "--json").json["gateway"]
    with openai.OpenAI(base_url=gateway, api_key=meshctl.key(), max_retries=0, timeout=60) as client:
        assert [model.id for model in client.models.list()] == ["smollm2-135m"]
        asked: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Say hello."}]
        ask = partial(client.chat.completions.create, model="smollm2-135m", messages=asked, max_tokens=8, temperature=0)
        pieces = [choice.delta.content or "" for chunk in ask(stream=True) for choice in chunk.choices]  # type: ignore[attr-defined] # partial hides the overload
        assert "".join(pieces) == ask(stream=False).choices[0].message.content
        completed = client.completions.create(model="smollm2-135m", prompt="One two three", max_tokens=4)
        assert completed.usage is not None
        assert completed.usage.completion_tokens == 4
    told = httpx.get(
        f"{gateway.removesuffix('/v1')}/metrics", headers={"authorization": f"Bearer {meshctl.key()}"}
    ).text
    assert 'meshctl_requests_total{outcome="finished"} 3.0' in told
    assert re.search(r'meshctl_memory_used_bytes\{host="part[12]"\} [1-9]', told)
    with (
        openai.OpenAI(base_url=gateway, api_key="wrong", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError),
    ):
        stranger.models.list()
    given = meshctl.ok("key", "add", "phone").stdout.strip()
    with openai.OpenAI(base_url=gateway, api_key=given, max_retries=0, timeout=60) as phone:
        assert [model.id for model in phone.models.list()] == ["smollm2-135m"]
        meshctl.ok("key", "revoke", "phone")
        with pytest.raises(openai.AuthenticationError):
            phone.models.list()
    meshctl.ok("down")


def test_a_killed_supervisor_leaves_no_process(meshctl: Meshctl) -> None:
    """SIGKILL of the supervisor: its workers and head are gone within 15 s, and `status` says what happened."""
    inventory = str(write_local(meshctl.folder / "inventory.yaml"))
    meshctl.ok("up", inventory, "--detach")
    state = meshctl.ok("status", "--json").json
    pids = [process["pid"] for process in state["processes"]]
    assert {process["name"].partition("-")[0] for process in state["processes"]} == {"worker", "head"}
    os.kill(state["pid"], signal.SIGKILL)
    deadline = time.monotonic() + 15
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline, f"still there: {pids}"
        time.sleep(0.1)
    assert "the supervisor ended without a word" in meshctl.ok("status").stdout
    meshctl.ok("up", inventory, "--detach")
    meshctl.ok("down")


def test_after_a_worker_has_died_the_cluster_answers_again(meshctl: Meshctl) -> None:
    """Every process is replaced, the gateway stays; what is asked meanwhile waits, and the reason can be read."""
    inventory = str(write_local(meshctl.folder / "inventory.yaml", context=512))
    meshctl.ok("up", inventory, "--detach", "--mode", "layers")
    before = meshctl.ok("status", "--json").json
    os.kill(worker_pid(before), signal.SIGKILL)
    with openai.OpenAI(base_url=before["gateway"], api_key=meshctl.key(), max_retries=0, timeout=150) as client:
        told = client.chat.completions.create(
            model="smollm2-135m", messages=[{"role": "user", "content": "Say hello."}], max_tokens=8
        )
    assert told.choices[0].message.content
    after = meshctl.ok("status", "--json").json
    assert (after["phase"], after["gateway"], after["pid"]) == ("ready", before["gateway"], before["pid"])
    pids = [{process["pid"] for process in state["processes"]} for state in (before, after)]
    assert pids[1]
    assert not pids[0] & pids[1]
    happened = events_of(meshctl)
    assert phases_of(happened) == ["starting", "ready", "recovering", "ready"]
    fault, recovering, recovery = happened[2:5]
    assert (fault["kind"], recovery["kind"]) == ("fault", "recovery")
    assert "ended by itself (ended by signal 9)" in recovering["message"]
    assert 0 < recovery["seconds"] < 120
    (host,) = [process["host"] for process in before["processes"] if process["pid"] == worker_pid(before)]
    last_faults = {one["name"]: one["last_fault"]["what"] for one in after["hosts"] if one["last_fault"]}
    assert (fault["host"], last_faults) == (host, {host: recovering["message"]})
    meshctl.ok("down")
    assert processes_with(str(meshctl.folder)) == []


def test_of_two_heads_one_serves_on_while_the_other_is_replaced(meshctl: Meshctl) -> None:
    """The one that is left keeps its process; the gateway answers all the time.

    It is asked at once, long before the other one is there again.
    """
    inventory = str(write_local(meshctl.folder / "inventory.yaml", memory="400MiB", context=512, parallel=2))
    meshctl.ok("up", inventory, "--detach", "--mode", "replicas")
    before = meshctl.ok("status", "--json").json
    heads = {one["name"].partition("-")[0]: one["pid"] for one in before["processes"] if one["name"].startswith("head")}
    assert heads.keys() == {"head1", "head2"}  # one may have a worker, where that was timed to be faster
    with openai.OpenAI(base_url=before["gateway"], api_key=meshctl.key(), max_retries=0, timeout=30) as client:
        ask = partial(client.chat.completions.with_raw_response.create, model="smollm2-135m", max_tokens=4)
        asked: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Say hello."}]
        ask(messages=asked)
        os.kill(heads["head1"], signal.SIGKILL)
        told = ask(messages=asked)
    assert told.headers["x-meshctl-head"] == "head2"
    until_happened(meshctl, "degraded", "ready", deadline_s=90)
    after = meshctl.ok("status", "--json").json
    assert after["phase"] == "ready"
    assert heads["head2"] in [one["pid"] for one in after["processes"]]
    assert len([one for one in after["processes"] if one["name"].startswith("head")]) == 2
    meshctl.ok("down")
    assert processes_with(str(meshctl.folder)) == []


def test_a_smaller_context_is_taken_where_that_is_allowed_and_more_when_a_host_is_added(meshctl: Meshctl) -> None:
    """`minimum_context` and `rebalance`: one host holds the model at less than was wanted, two at all of it."""
    path = meshctl.folder / "inventory.yaml"
    write_local(path, hosts=1, memory="150MiB", minimum_context=512)
    up = meshctl.ok("up", str(path), "--detach")
    small = meshctl.ok("status", "--json").json
    assert 512 <= small["plan"]["context"] < 4096
    assert f"conversations may hold {small['plan']['context']} tokens" in up.stderr
    assert "stays as it is" in meshctl.ok("rebalance").stderr
    two = yaml.safe_load(path.read_text())
    two["hosts"].append({**two["hosts"][0], "name": "part2"})
    path.write_text(yaml.safe_dump(two))
    assert "answers again" in meshctl.ok("rebalance").stderr
    large = meshctl.ok("status", "--json").json
    assert (large["phase"], large["plan"]["context"], large["pid"]) == ("ready", 4096, small["pid"])
    assert {share["device"] for share in large["plan"]["groups"][0]["shares"]} == {"part1/cpu", "part2/cpu"}
    two["parallel"] = 2
    path.write_text(yaml.safe_dump(two))
    refused = meshctl.run("rebalance")
    assert (refused.status, "more than the hosts has changed" in refused.stderr) == (1, True)
    meshctl.ok("down")


def test_a_cluster_that_recovers_can_be_stopped(meshctl: Meshctl) -> None:
    inventory = str(write_local(meshctl.folder / "inventory.yaml", context=512))
    meshctl.ok("up", inventory, "--detach", "--mode", "layers")
    worker = worker_pid(meshctl.ok("status", "--json").json)
    os.kill(worker, signal.SIGKILL)
    meshctl.until_phase("recovering", deadline_s=20)
    meshctl.ok("down")
    assert processes_with(str(meshctl.folder)) == []
    assert meshctl.ok("status", "--json").json["phase"] == "stopped"


def test_bench_says_which_to_use(meshctl: Meshctl) -> None:
    """Devices that hold the model are measured alone, those that do not say so, and the formats agree."""
    inventory = write_local(meshctl.folder / "inventory.yaml", context=512, memory="300MiB")
    text = inventory.read_text().replace("300MiB", "90MiB", 1)
    inventory.write_text(text)
    chart = meshctl.folder / "chart.svg"
    result = meshctl.ok("bench", str(inventory), "--quick", "--json", "--mode", "layers", "--chart", str(chart)).json
    alone = {one["name"]: one for one in result["alone"]}  # the fastest first, whichever that is today
    assert re.fullmatch(r"needs \d+ MiB and has 90\.0 MiB", alone["part1/cpu"]["note"])
    assert alone["part2/cpu"]["rates"]["decode"]["median"] > 0
    ratio = result["cluster"]["rates"]["decode"]["median"] / alone["part2/cpu"]["rates"]["decode"]["median"]
    assert result["decode_ratio"] == pytest.approx(ratio)
    assert result["verdict"].startswith("Use ")
    assert chart.read_text().lstrip().startswith("<?xml")
    assert processes_with(str(meshctl.folder)) == []


def test_single_runs_a_head_and_nothing_else(meshctl: Meshctl) -> None:
    """Mode `single`: no worker runs, the head computes natively."""
    inventory = str(write_local(meshctl.folder / "inventory.yaml", hosts=1, memory="400MiB", context=512))
    plan = meshctl.ok("plan", inventory, "--mode", "single", "--json").json
    assert {one["mode"] for one in plan["plans"]} == {"single"}
    meshctl.ok("up", inventory, "--detach", "--mode", "single")
    state = meshctl.ok("status", "--json").json
    assert [process["name"].partition("-")[0] for process in state["processes"]] == ["head"]
    assert meshctl.ok("chat", "Say hello.").stdout.strip()
    meshctl.ok("down")


def test_a_saved_survey_is_planned_from_without_any_host(meshctl: Meshctl) -> None:
    """The plan from a saved survey equals the one made at once; memory can be imagined by editing it."""
    inventory = str(write_local(meshctl.folder / "inventory.yaml", context=512))
    saved = meshctl.folder / "survey.json"
    saved.write_text(meshctl.ok("survey", inventory, "--json").stdout)
    plan = meshctl.ok("plan", inventory, "--survey", str(saved), "--json").json
    assert {share["device"] for share in plan["plans"][0]["groups"][0]["shares"]} <= {"part1/cpu", "part2/cpu"}
    survey = json.loads(saved.read_text())
    for host in survey["hosts"]:
        host["devices"][0]["budget"]["capped_bytes"] = 40 * 1024 * 1024
    saved.write_text(json.dumps(survey))
    refused = meshctl.run("plan", inventory, "--survey", str(saved))
    assert refused.status == 1
    assert refused.stderr.startswith("error: smollm2-135m needs ") or "\nerror: smollm2-135m needs " in refused.stderr


def test_dry_run_prints_every_command_and_starts_nothing(meshctl: Meshctl) -> None:
    """The exact words for each host, pasteable into a shell."""
    done = meshctl.ok("up", str(write_local(meshctl.folder / "inventory.yaml")), "--dry-run")
    lines = [line for line in done.stdout.splitlines() if not line.startswith("#")]
    programs = [line.split()[0].rpartition("/")[2] for line in lines]
    assert (set(programs[:-1]), programs[-1]) == ({"ggml-rpc-server"}, "llama-server")
    assert processes_with(str(meshctl.folder)) == []
