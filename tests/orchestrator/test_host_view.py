"""What hosts and heads do now, from the plan, the leashes, the life cycle and the gateway's counters."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

from orchestrator.gateway.state import Counters
from orchestrator.host_state import HeadState, HostAside, HostFault, HostState
from orchestrator.host_view import HostView, budgets_of, head_states
from orchestrator.inventory_file import load_inventory
from orchestrator.leash import Leashed
from orchestrator.lifecycle import ASIDE_S, FAULTS, Lifecycle, Lost, Up
from orchestrator.plan.pools import find_candidates
from orchestrator.plan.split import find_splits
from tests.orchestrator.groups import make_group, make_plan_of, make_share
from tests.orchestrator.plan.examples import make_device, make_memory, make_survey
from workers.budget import MIB

INVENTORY = """\
cluster: demo
model: smollm2-135m
hosts:
  - {name: a, connection: local, memory: 1GiB}
  - {name: b, connection: local, memory: 1GiB}
  - {name: c, connection: local, memory: 1GiB}
"""
NOON = datetime(2026, 11, 26, 12, tzinfo=UTC)


@dataclass
class Process:
    """Stands for a process under its leash, which has told this of itself."""

    host: str
    rss_bytes: int | None = None
    cores_used: float | None = None
    available_bytes: int | None = None


def leashed(*processes: Process) -> list[Leashed]:
    return [cast(Leashed, process) for process in processes]


def view_of(tmp_path: Path, counters: Counters) -> HostView:
    """At noon the monotonic clock says 1000 s."""
    (tmp_path / "inventory.yaml").write_text(INVENTORY)
    return HostView(load_inventory(tmp_path / "inventory.yaml"), counters, 1000.0, NOON)


def test_every_host_has_its_budget_and_what_its_processes_take(tmp_path: Path) -> None:
    counters = Counters()
    group = make_group(make_share("a/cpu"), make_share("b/cpu"))
    view = view_of(tmp_path, counters)
    processes = leashed(
        Process("a", 5, 0.5, 900), Process("a", 7, 0.25, 800), Process("b"), Process("controller", 9, 0.125)
    )
    with counters.at_head("head"):
        counters.generate("head", 4)
        view.look(Lifecycle(), 1000.0, make_plan_of(group), processes)
    budget = group.shares[0].budget_bytes
    assert view.heads == (HeadState("head", "controller", ("controller", "a", "b"), 1, 4.0),)
    assert view.hosts == (
        HostState("controller", 0, 9, None, 0.12, None, 1, 4.0),
        HostState("a", budget, 12, 800, 0.75, None, 1, 4.0),
        HostState("b", budget, 0, None, None, None, 1, 4.0),
        HostState("c"),
    )


def test_a_native_head_runs_on_the_host_of_its_device() -> None:
    single = make_group(make_share("c/cpu", native=True), mode="single", head="c")
    layers = make_group(make_share("a/cpu", native=True), make_share("b/cpu"), head="a")
    plan = make_plan_of(single, layers)
    assert [(head.host, head.hosts) for head in head_states(plan, Counters())] == [("c", ("c",)), ("a", ("a", "b"))]
    assert list(budgets_of(plan)) == ["c", "a", "b"]


def test_a_head_that_computes_layers_is_within_the_budget_of_its_device() -> None:
    """The plan has found room for both of them in it."""
    survey = make_survey([make_device("a/cpu", 700), make_device("b/cpu", 800)], local=["a"])
    splits = find_splits(survey, (make_memory(),), find_candidates(survey, None), goal="latency")
    group = next(one for one in splits if one.head_layers)
    assert (group.head, group.head_bytes > 0) == ("a", True)
    assert budgets_of(make_plan_of(group)) == {"a": 700 * MIB, "b": 800 * MIB}


def test_what_is_budgeted_of_a_card_is_no_memory_of_its_host() -> None:
    """What its processes take is of main memory."""
    card = replace(make_share("a/cuda0"), own_memory=True)
    plan = make_plan_of(make_group(make_share("a/cpu"), card, make_share("b/vulkan0")))
    budgets = budgets_of(plan)
    assert budgets["a"] == budgets["b"] == card.budget_bytes


def test_faults_are_told_with_their_time_and_hosts_set_aside_until_that_is_over(tmp_path: Path) -> None:
    view, cycle = view_of(tmp_path, Counters()), Lifecycle().after(Up(), 1000)
    for number in range(FAULTS):
        cycle = cycle.after(Lost("b", f"fault {number}"), 1060.0 + number)
    view.look(cycle, 1070.0)
    fault = HostFault("2026-11-26T12:01:02+00:00", "fault 2")
    reason = "it failed 3 times within 10 minutes; set aside for 5"
    aside = HostAside("2026-11-26T12:06:02+00:00", reason)
    assert view.hosts == (HostState("a"), HostState("b", last_fault=fault, aside=aside), HostState("c"))
    view.look(cycle, 1062.0 + ASIDE_S)
    assert view.hosts[1] == HostState("b", last_fault=fault)
