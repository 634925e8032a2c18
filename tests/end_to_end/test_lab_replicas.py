"""Several heads over real hosts: remote ones, and a group of hosts that hold no copy beside one that does."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from lab_folder import LabHost
from orchestrator.engine.store import Engine
from tests.end_to_end.answers import counting, plain_head
from tests.end_to_end.heads import heads_of
from tests.end_to_end.inventories import free_port
from tests.end_to_end.refusals import change, wait_idle
from tests.lab_fixture import MakeLab
from tests.program import Meshctl

pytestmark = [pytest.mark.engine, pytest.mark.lab]

WHOLE, HALF = "400MiB", "80MiB"
"""A budget for the demo model, and one for half of it: alone, one conversation of 512 tokens needs more than that."""

AT_ONCE = 16
"""Four times as many questions as there are places. The gateway lets nobody wait at a full head while another one has a
place, so that none is left without a question, however slow it is."""


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
    """Asked at once, so that more places are wanted than any one of them has."""
    lab = make_lab(*(LabHost(f"host{number}", rate="1gbit") for number in range(1, len(budgets) + 1)))
    path = lab.inventory(context=512, parallel=4, gateway_port=free_port())
    inventory = change(path, {host.name: {"memory": memory} for host, memory in zip(lab.hosts, budgets, strict=True)})
    meshctl.ok("trust", inventory, "--yes")
    meshctl.ok("up", inventory, "--detach", "--mode", "replicas")
    state = meshctl.ok("status", "--json").json
    planned = [{share["device"].partition("/")[0] for share in group["shares"]} for group in state["plan"]["groups"]]
    assert sorted(planned, key=sorted) == groups
    assert sum(group["parallel"] for group in state["plan"]["groups"]) == 4
    url, key = state["gateway"].removesuffix("/v1"), meshctl.key()
    with (
        httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=120) as client,
        ThreadPoolExecutor(AT_ONCE) as threads,
    ):
        told = list(threads.map(lambda _: ask(client), range(AT_ONCE)))
    with plain_head(engine, demo_model) as plain:
        expected = counting(plain)
    assert set(told) == {(name, expected) for name in heads_of(state)}
    meshctl.ok("down")
    for host in lab.hosts:
        wait_idle(host, deadline_s=15)


def ask(client: httpx.Client) -> tuple[str, str]:
    """The head that answered, and the first tokens of an answer that the model is sure of."""
    body = {"messages": [{"role": "user", "content": "Count from one to ten."}], "temperature": 0, "max_tokens": 12}
    reply = client.post("/v1/chat/completions", json=body)
    assert reply.status_code == 200, reply.text
    return reply.headers["x-meshctl-head"], str(reply.json()["choices"][0]["message"]["content"])
