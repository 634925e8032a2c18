"""What a better plan is worth, and how a user asks for it and is answered."""

from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.errors import InventoryError
from orchestrator.folders import ClusterFolder
from orchestrator.inventory_file import load_inventory
from orchestrator.plan.values import Ranking
from orchestrator.rebalance import Outcome, ask, gain, inventory_now, joined, outcome_of, take_request, tell, withdraw
from tests.orchestrator.groups import make_group, make_plan_of, make_share
from tests.orchestrator.plan.examples import make_device, make_survey


@pytest.fixture
def folder(tmp_path: Path) -> ClusterFolder:
    return ClusterFolder(tmp_path)


def test_a_request_is_taken_once_and_its_outcome_is_for_it_alone(folder: ClusterFolder) -> None:
    assert take_request(folder) is None
    asked = ask(folder, now=True)
    assert outcome_of(folder, asked) is None
    assert take_request(folder) == asked
    assert take_request(folder) is None
    done = Outcome(asked.number, moved=True, message="it moved")
    tell(folder, done)
    assert outcome_of(folder, asked) == done
    assert outcome_of(folder, ask(folder, now=False)) is None
    assert {path.stat().st_mode & 0o777 for path in folder.path.iterdir()} == {0o600}


def test_who_waits_no_more_takes_only_the_own_request_back(folder: ClusterFolder) -> None:
    first, second = ask(folder, now=False), ask(folder, now=True)
    withdraw(folder, first)
    assert take_request(folder) == second
    withdraw(folder, second)
    third = ask(folder, now=False)
    withdraw(folder, third)
    assert take_request(folder) is None


def test_a_request_that_cannot_be_read_is_none(folder: ClusterFolder) -> None:
    folder.rebalance_request.write_text("{}")
    assert take_request(folder) is None
    assert not folder.rebalance_request.exists()


INVENTORY = "cluster: demo\nmodel: smollm2-135m\nhosts:\n  - {name: a, connection: local, memory: 1GiB}\n"


def test_hosts_may_change_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "inventory.yaml"
    path.write_text(INVENTORY)
    first = load_inventory(path)
    path.write_text(INVENTORY + "  - {name: b, connection: local, memory: 1GiB}\n")
    assert [host.name for host in inventory_now(first).hosts] == ["a", "b"]
    path.write_text(INVENTORY.replace("hosts:", "context: 512\nhosts:"))
    with pytest.raises(InventoryError, match="more than the hosts has changed"):
        inventory_now(first)


def test_the_gain_is_counted_against_the_present_plan_as_it_is_known_now() -> None:
    present = make_plan_of(make_group(make_share("a/cpu"), token_s=0.2))
    better = make_plan_of(make_group(make_share("a/cpu"), make_share("b/cpu"), token_s=0.1))
    known_now = replace(present, groups=(replace(present.groups[0], token_s=0.15),))
    assert gain(present, Ranking((better,))) == pytest.approx(1.0)
    assert gain(present, Ranking((better, known_now))) == pytest.approx(0.5)
    assert gain(better, Ranking((better, known_now))) == 0.0
    assert gain(replace(present, context=present.context // 2), Ranking((present,))) == float("inf")


def test_surveys_are_joined_and_the_last_word_on_a_host_counts() -> None:
    old = make_survey([make_device("a/cpu", 1000), make_device("b/cpu", 1000)])
    new = make_survey([make_device("b/cpu", 2000), make_device("c/cpu", 1000)])
    both = joined([old, new])
    assert [host.name for host in both.hosts] == ["a", "b", "c"]
    assert both.hosts[1] == new.hosts[0]
