"""What the supervisor makes of errors, processes and plans; its lives themselves are in the tests end to end."""

from dataclasses import dataclass
from typing import cast

import pytest

from orchestrator.errors import BringUpError, ConnectError, EngineError, HostsError, MeshctlError
from orchestrator.gateway.metrics import HostMemory
from orchestrator.leash import Leashed
from orchestrator.processes import host_of
from orchestrator.supervisor import blamed, host_memory
from tests.orchestrator.groups import make_group, make_plan_of, make_share


@dataclass
class Running:
    """Stands for a process under its leash."""

    host: str
    name: str
    rss_bytes: int | None = None


def leashed(host: str, name: str, rss_bytes: int | None = None) -> Leashed:
    return cast(Leashed, Running(host, name, rss_bytes))


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


def test_memory_is_told_per_host_against_its_budgets() -> None:
    group = make_group(make_share("a/cpu"), make_share("b/cpu"))
    budget_bytes = group.shares[0].budget_bytes
    processes = [leashed("a", "worker-cpu-1", 5), leashed("b", "worker-cpu-1"), leashed("controller", "head-1", 7)]
    assert host_memory(make_plan_of(group), processes) == (
        HostMemory("controller", group.head_bytes, 7),
        HostMemory("a", budget_bytes, 5),
        HostMemory("b", budget_bytes, 0),
    )
