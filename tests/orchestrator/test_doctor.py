"""What the facts of a host tell the doctor."""

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from orchestrator.doctor import Check, Examined, examine_all, examine_facts, examine_others, unbuilt
from orchestrator.engine import stock
from orchestrator.folders import Folders
from orchestrator.host_agent import Others
from orchestrator.inventory import Host
from orchestrator.inventory_file import load_inventory
from orchestrator.view.doctor import doctor_view
from tests.orchestrator.plan.examples import FACTS, GIB
from tests.orchestrator.view.rendering import rendered
from workers.facts import Gpu, HostFacts

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


def test_every_gpu_is_named_with_how_it_is_reached_and_its_memory() -> None:
    card = Gpu("cuda", 0, "NVIDIA GeForce RTX 4090", 24 * GIB, 22 * GIB, "8.9")
    chip = Gpu("metal", 0, "Apple M2 Pro", 21 * GIB, 9 * GIB, shares_memory=True)
    checks = examine_facts(HOST, replace(FACTS, gpus=(card, chip)), FACTS.clock_s)
    assert [check.text for check in checks if check.title == "gpu"] == [
        "NVIDIA GeForce RTX 4090 by cuda, 24.0 GiB, 22.0 GiB free",
        "Apple M2 Pro by metal, 21.0 GiB",
    ]


def test_a_host_without_a_gpu_is_told_so_unless_it_is_to_use_none() -> None:
    facts = replace(FACTS, gpus=())
    (none,) = [check for check in examine_facts(HOST, facts, FACTS.clock_s) if check.title == "gpu"]
    assert none == Check("gpu", True, "none that nvidia-smi or a Vulkan driver shows")
    on_cpu = examine_facts(replace(HOST, backend="cpu"), facts, FACTS.clock_s)
    assert [check for check in on_cpu if check.title == "gpu"] == []


@pytest.mark.parametrize(
    ("missing", "text"),
    [
        ((), r"^not built yet; compiler .+; then cuda-\S+ will be built here$"),
        (
            ("no CUDA toolkit (nvcc)",),
            r"^not built yet; compiler .+; its GPU will not be used by cuda: there is no cuda engine on this machine: "
            r"no CUDA toolkit \(nvcc\)",
        ),
    ],
)
async def test_before_the_first_engine_is_there_the_backend_is_foreseen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: tuple[str, ...], text: str
) -> None:
    monkeypatch.setattr(stock, "lacking_here", lambda recipe: missing)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho '24564, 23011, 0, 8.9, NVIDIA GeForce RTX 4090'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    (tmp_path / "inventory.yaml").write_text("cluster: a\nmodel: m.gguf\nhosts:\n  - {name: here, connection: local}\n")
    inventory = load_inventory(tmp_path / "inventory.yaml")
    (examined,) = await examine_all(inventory, Folders(tmp_path / "cache", tmp_path / "state"))
    texts = {check.title: check.text for check in examined.checks}
    assert texts["gpu"] == "NVIDIA GeForce RTX 4090 by cuda, 24.0 GiB, 22.5 GiB free"
    assert re.match(text, texts["engine"])
