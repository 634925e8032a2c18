"""What the supervisor makes of errors, processes and plans; its lives themselves are in the tests end to end."""

from dataclasses import dataclass
from typing import cast

import pytest

from orchestrator.errors import BringUpError, ConnectError, EngineError, HostsError, MeshctlError
from orchestrator.keeping import blamed, why_it_hangs
from orchestrator.leash import Leashed
from orchestrator.processes import host_of


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
