"""What the supervisor makes of errors, processes and plans; its lives themselves are in the tests end to end."""

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from orchestrator import crew as crews
from orchestrator import keeping
from orchestrator.cluster import RunningGroup
from orchestrator.crew import Crew
from orchestrator.errors import BringUpError, ConnectError, EngineError, HostsError, MeshctlError
from orchestrator.folders import Folders
from orchestrator.gateway.routing import read_question
from orchestrator.head_checks import Answer, HeadSpeed
from orchestrator.hosts import OpenHosts
from orchestrator.inventory import Host, Inventory
from orchestrator.keeping import Keeping, blamed, why_it_hangs
from orchestrator.leash import Leashed
from orchestrator.prepare import Prepared
from orchestrator.processes import Head, Started, host_of
from orchestrator.rebalance import ask, outcome_of
from orchestrator.report import silent
from orchestrator.state import GroupSpeed
from orchestrator.state_keeper import StateKeeper
from orchestrator.wishes import Wishes
from tests.orchestrator.groups import make_group, make_plan_of, make_share


@dataclass
class Running:
    """Stands for a process under its leash."""

    host: str
    name: str
    stopped: bool = False


def leashed(host: str, name: str, *, stopped: bool = False) -> Leashed:
    return cast(Leashed, Running(host, name, stopped))


@pytest.mark.parametrize(
    ("error", "hosts"),
    [
        (ConnectError("a", "no route"), ()),
        (HostsError({"a": ConnectError("a", "no"), "b": EngineError("no engine")}), ("b",)),
        (BringUpError("it ended", host="a"), ("a",)),
        (BringUpError("the gateway cannot listen"), ()),
        (EngineError("no engine"), ()),
    ],
)
def test_an_error_blames_the_hosts_that_it_is_about(error: MeshctlError, hosts: tuple[str, ...]) -> None:
    assert blamed(error) == hosts


@pytest.mark.parametrize(
    ("host", "name", "of"),
    [
        ("a", "worker-cpu-20000", "a"),
        ("controller", "head-20001", "controller"),
        ("controller", "link-nuc-2-20000", "nuc-2"),
    ],
)
def test_a_tunnel_is_of_the_host_at_its_far_end(host: str, name: str, of: str) -> None:
    assert host_of(leashed(host, name)) == of


@pytest.mark.parametrize(
    ("stopped", "host", "said"),
    [
        ((), "desk", ""),
        (("head-1",), "desk", "head-1 on desk is stopped: "),
        (("worker-cpu-2",), "nuc", "worker-cpu-2 on nuc is stopped: "),
        (("head-1", "worker-cpu-2"), "nuc", "worker-cpu-2 on nuc is stopped: "),
        (("link-nuc-2",), "nuc", "link-nuc-2 on controller is stopped: "),
    ],
)
def test_a_head_that_hangs_blames_what_is_stopped_behind_it(stopped: tuple[str, ...], host: str, said: str) -> None:
    every = {"head-1": "desk", "worker-cpu-2": "nuc", "link-nuc-2": "controller"}
    processes = [leashed(where, name, stopped=name in stopped) for name, where in every.items()]
    hangs = "head on desk hangs: no progress for 21 s"
    assert why_it_hangs("head", "desk", processes, 21.4) == (host, said + hangs)


async def test_what_came_up_as_planned_is_measured_when_nothing_is_asked_and_routed_by_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request comes in between, which is not made to wait: the measuring begins again when it is gone."""
    group = make_group(make_share("a/cpu"), token_s=0.1)
    planned = HeadSpeed(group.token_s, group.step_s, group.prefill_s)
    head = Head("controller", "http://127.0.0.1:1", "secret", leashed("controller", "head-1"))
    running = RunningGroup(group, "head", head, (), Answer("text", 8, 10.0), planned, measured=False)
    kept = make_keeping(tmp_path)
    begun: list[str] = []

    async def measure(one: RunningGroup, *others: object) -> RunningGroup:
        begun.append(one.name)
        if len(begun) == 1:
            kept._counters.arrive()
            try:
                await asyncio.Event().wait()
            finally:
                kept._counters.end("cancelled", 0, 0, begun=False)
        return replace(one, speed=replace(planned, token_s=0.05), measured=True)

    monkeypatch.setattr(crews, "measure_group", measure)
    monkeypatch.setattr(keeping, "MEASURE_AFTER_S", 0.01)
    await kept._take(crew_of(running))
    assert speeds_of(kept) == [(None, True)]
    beside = kept._beside()
    assert beside is not None
    assert await beside is None
    assert begun == ["head", "head"]
    assert speeds_of(kept) == [(20.0, False)]
    assert kept._backends.serving is not None
    question = read_question({"prompt": "", "max_tokens": 10})
    assert kept._backends.serving.router.expected_s(question, 0.0) == {"head": pytest.approx(10 * 0.05)}
    assert kept._beside() is None


async def test_a_head_that_cannot_be_measured_serves_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group = make_group(make_share("a/cpu"))
    planned = HeadSpeed(group.token_s, group.step_s, group.prefill_s)
    head = Head("controller", "http://127.0.0.1:1", "secret", leashed("controller", "head-1"))
    running = RunningGroup(group, "head", head, (), Answer("text", 8, 10.0), planned, measured=False)
    kept = make_keeping(tmp_path)

    async def measure(*others: object) -> RunningGroup:
        raise BringUpError("the head answered a test prompt with status 500")

    monkeypatch.setattr(crews, "measure_group", measure)
    monkeypatch.setattr(keeping, "MEASURE_AFTER_S", 0.01)
    await kept._take(crew_of(running))
    beside = kept._beside()
    assert beside is not None
    assert await beside is None
    assert kept._beside() is None
    assert kept._backends.serving is not None
    assert speeds_of(kept) == [(None, False)]


async def test_of_memory_that_runs_out_only_groups_on_that_machine_are_ended(tmp_path: Path) -> None:
    """A local host is the controller's machine, whichever of the two names tells of it first."""
    kept = make_keeping(tmp_path)
    head = Head("a", "http://127.0.0.1:1", "secret", leashed("a", "head-1"))
    speed = HeadSpeed(0.1, 0.1, 1.0)
    running = RunningGroup(make_group(make_share("a/cpu")), "head", head, (), Answer("text", 8, 10.0), speed)
    kept._crews.append(crew_of(running))
    assert kept._short_of_memory({}) is None
    assert kept._short_of_memory({"nuc": 5}) is None
    for names in (("a",), ("controller",), ("another", "controller")):
        loss = kept._short_of_memory(dict.fromkeys(names, 5))
        assert loss is not None
        assert (loss.host, loss.names) == (names[-1], ("head",))


async def test_who_asks_for_more_while_something_is_missing_has_new_hosts_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = make_keeping(tmp_path)
    folder = kept._folder
    more = replace(kept._inventory, hosts=(*kept._inventory.hosts, Host("b", "local")), sha256="new")
    monkeypatch.setattr(keeping, "inventory_now", lambda inventory: more)
    kept._request = ask(folder, now=False)
    assert kept._tries_with_others()
    assert (kept._inventory, outcome_of(folder, kept._request)) == (more, None)
    request = kept._request
    assert not kept._tries_with_others()
    outcome = outcome_of(folder, request)
    assert outcome is not None
    assert (outcome.moved, outcome.failed) == (False, False)
    assert outcome.message.startswith("demo is being brought up again already")


def make_keeping(folder: Path) -> Keeping:
    """Of a cluster whose gateway is open already."""
    path, folders = folder / "inventory.yaml", Folders(folder / "cache", folder / "state")
    path.write_text("cluster: demo\n")
    folders.cluster("demo").prepare()
    inventory = Inventory(path, "demo", "tiny.gguf", (Host("a", "local"),))
    keeper = StateKeeper(folders.cluster("demo"), inventory)
    keeper.update(gateway="http://127.0.0.1:1/v1")
    return Keeping(inventory, folders, silent(), Wishes(), keeper, AsyncExitStack(), None)


def crew_of(one: RunningGroup) -> Crew:
    hosts = cast(OpenHosts, SimpleNamespace(missing={}))
    plan = make_plan_of(one.group)
    return Crew(hosts, cast(Prepared, None), plan, {one.name: one}, {}, Started(), AsyncExitStack())


def speeds_of(kept: Keeping) -> list[tuple[float | None, bool]]:
    """Tokens per second as the state file shows them, and whether they are still to be measured."""
    speeds = cast(tuple[GroupSpeed, ...], kept._figures()["speeds"])
    return [(one.measured_decode_tokens_per_s, one.awaited) for one in speeds]
