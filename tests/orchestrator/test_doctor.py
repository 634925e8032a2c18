"""What the facts of a host tell the doctor."""

from dataclasses import replace
from typing import Literal

import pytest

from orchestrator.doctor import Check, Examined, examine_facts, examine_others, unbuilt
from orchestrator.host_agent import Others
from orchestrator.inventory import Host
from orchestrator.view.doctor import doctor_view
from tests.orchestrator.plan.examples import FACTS
from tests.orchestrator.view.rendering import rendered
from workers.facts import HostFacts

HOST = Host("desk", "ssh", address="192.0.2.1")
WELL = replace(FACTS, disk_free_bytes=10**10, memory_available_bytes=2**33, clock_s=1000.0, compiler="c++ 12")


def failing(facts: HostFacts) -> list[str]:
    return [check.title for check in examine_facts(HOST, facts, 1000.0) if not check.well]


@pytest.mark.parametrize(
    ("facts", "titles"),
    [
        (replace(WELL, memory_available_bytes=1), ["memory"]),
        (replace(WELL, disk_free_bytes=10), ["disk"]),
        (replace(WELL, clock_s=5000.0), ["clock"]),
    ],
)
def test_each_shortage_fails_its_own_check(facts: HostFacts, titles: list[str]) -> None:
    assert failing(facts) == titles


def test_every_failing_check_has_a_fix() -> None:
    facts = replace(WELL, memory_available_bytes=1, disk_free_bytes=10, clock_s=5000.0, compiler="")
    assert unbuilt(facts).fix
    assert all(check.fix for check in examine_facts(HOST, facts, 1000.0) if not check.well)


def test_fixes_stand_under_what_they_mend() -> None:
    examined = Examined(
        "[desk]", (Check("reachable", True, "192.0.2.1"), Check("disk", False, "1 MiB free", "free 200 MiB"))
    )
    assert rendered(doctor_view([examined])) == (
        "[desk]\n  ✓ reachable  192.0.2.1\n  ✗ disk       1 MiB free\n    fix: free 200 MiB\n"
    )


@pytest.mark.parametrize(
    ("others", "link", "refused", "text"),
    [
        (Others((), ()), "tunnel", "", "no other user than root"),
        (
            Others(("ada", "bob"), ("www-data",)),
            "tunnel",
            "",
            "cannot reach workers, which have a network of their own: ada, bob (may log in); www-data (has processes)",
        ),
        (
            Others((), tuple("abcdefghij")),
            "tunnel",
            "Operation not permitted",
            "can reach a worker's port on its loopback, and run code as this user: "
            "a, b, c, d, e, f, g, h and 2 more (has processes); a private network would prevent that, but: "
            "Operation not permitted",
        ),
        (
            Others(("ada",), ()),
            "direct",
            "",
            "can reach its worker's port, and run code as this user: ada (may log in)",
        ),
    ],
)
def test_who_else_is_on_a_host_is_a_note(
    others: Others, link: Literal["tunnel", "direct"], refused: str, text: str
) -> None:
    host = Host("nuc", "ssh", address="nuc", link=link)
    assert examine_others(others, host, refused) == Check("others", True, text)
