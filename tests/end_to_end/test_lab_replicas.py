"""Several heads over real hosts: remote ones, and a group of hosts that hold no copy beside one that does."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from lab_folder import LabHost
from orchestrator.engine.store import Engine
from tests.end_to_end.answers import counting, plain_head
from tests.end_to_end.heads import head_keys, head_url, heads_of
from tests.end_to_end.inventories import free_port
from tests.end_to_end.refusals import change, wait_idle
from tests.lab_fixture import MakeLab
from tests.program import Meshctl

pytestmark = [pytest.mark.engine, pytest.mark.lab]

WHOLE, HALF = "400MiB", "80MiB"
"""A budget for the demo model, and one for half of it: alone, one conversation of 512 tokens needs more than that."""

AT_ONCE = 16
"""Four times as many questions as there are places, so that no head is left without one."""


@pytest.mark.parametrize(
    ("budgets", "groups"),
    [
        ((WHOLE, WHOLE), [{"host1"}, {"host2"}]),
        ((WHOLE, HALF, HALF), [{"host1"}, {"host2", "host3"}]),
    ],
    ids=["two hosts that hold it", "one that holds it and two that do not"],
)
def test_every_head_answers_through_the_gateway_as_a_plain_one(
    make_lab: MakeLab,
    meshctl: Meshctl,
    engine: Engine,
    demo_model: Path,
    budgets: tuple[str, ...],
    groups: list[set[str]],
) -> None:
    """Through the gateway; a head here is also asked itself, since a slow one may be left without a question."""
    lab = make_lab(*(LabHost(f"host{number}", rate="1gbit") for number in range(1, len(budgets) + 1)))
    path = lab.inventory(context=512, parallel=4, gateway_port=free_port())
    inventory = change(path, {host.name: {"memory": memory} for host, memory in zip(lab.hosts, budgets, strict=True)})
    meshctl.ok("trust", inventory, "--yes")
    with head_keys(meshctl) as keys:
        meshctl.ok("up", inventory, "--detach", "--mode", "replicas")
    state = meshctl.ok("status", "--json").json
    planned = [{share["device"].partition("/")[0] for share in group["shares"]} for group in state["plan"]["groups"]]
    assert sorted(planned, key=sorted) == groups
    assert sum(group["parallel"] for group in state["plan"]["groups"]) == 4
    heads = heads_of(state)
    url, key = state["gateway"].removesuffix("/v1"), meshctl.key()
    with ThreadPoolExecutor(AT_ONCE) as clients:
        told = list(clients.map(lambda _: ask(url, key), range(AT_ONCE)))
    here = {name: one for name, one in heads.items() if one["host"] == "controller"}
    told += [(name, counting(head_url(one), keys[name])) for name, one in here.items()]
    with plain_head(engine, demo_model) as plain:
        expected = counting(plain)
    assert set(told) == {(name, expected) for name in heads}
    meshctl.ok("down")
    for host in lab.hosts:
        wait_idle(host, deadline_s=15)


def ask(url: str, key: str) -> tuple[str, str]:
    """The head that answered, and the first tokens of an answer that the model is sure of."""
    body = {"messages": [{"role": "user", "content": "Count from one to ten."}], "temperature": 0, "max_tokens": 12}
    reply = httpx.post(f"{url}/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {key}"}, timeout=120)
    assert reply.status_code == 200, reply.text
    return reply.headers["x-meshctl-head"], str(reply.json()["choices"][0]["message"]["content"])
