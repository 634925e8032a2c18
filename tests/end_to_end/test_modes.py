"""Every mode answers: as a plain head does where that can be promised, within a measured distance where it cannot."""

from pathlib import Path

import pytest

from orchestrator.engine.store import Engine
from tests.end_to_end.answers import answers, counting, perplexity, plain_head
from tests.end_to_end.heads import head_keys, head_url, heads_of
from tests.end_to_end.inventories import write_local
from tests.program import Meshctl, processes_with

pytestmark = pytest.mark.engine

ROOMY = "400MiB"
"""The whole demo model fits each host."""

ONE_PART = {2: ROOMY, 3: "70MiB"}
"""By the number of hosts: memory at which `tensor` needs all of them, one KV head of three at least on each."""

ONE_THREAD = ("--threads", "1")
"""As every host here has: two sum up in another order."""


@pytest.fixture(scope="module")
def plain_answers(engine: Engine, demo_model: Path) -> list[str]:
    with plain_head(engine, demo_model, *ONE_THREAD) as plain:
        return answers(plain)


@pytest.fixture(scope="module")
def plain_tokens(engine: Engine, demo_model: Path) -> tuple[str, float]:
    """The first tokens of an answer, and the perplexity of a text."""
    with plain_head(engine, demo_model, *ONE_THREAD) as plain:
        return counting(plain), perplexity(plain)


@pytest.mark.parametrize("mode", ["single", "replicas"])
def test_a_mode_gives_the_text_of_a_plain_head(meshctl: Meshctl, plain_answers: list[str], mode: str) -> None:
    """Greedy answers to three prompts are equal, of the gateway and every head, on a fresh and on a restarted cluster.

    So it is with weights that the engine does not repack, as the demo model's Q4_1. A head that computes repacked ones
    itself sums them up in another order: of the same model as Q4_0 one of these answers is another one, and the
    perplexity of the text differs by 0.2 %.
    """
    inventory = str(write_local(meshctl.folder / "inventory.yaml", memory=ROOMY, context=1024, parallel=2))
    for _ in range(2):
        with head_keys(meshctl) as keys:
            meshctl.ok("up", inventory, "--detach", "--mode", mode)
        state = meshctl.ok("status", "--json").json
        assert state["plan"]["mode"] == mode
        heads = heads_of(state)
        assert len(heads) == (2 if mode == "replicas" else 1)
        assert answers(state["gateway"].removesuffix("/v1"), meshctl.key()) == plain_answers
        for name, process in heads.items():
            assert answers(head_url(process), keys[name]) == plain_answers
        meshctl.ok("down")
    assert processes_with(str(meshctl.folder)) == []


def test_layers_give_the_text_of_a_plain_head(meshctl: Meshctl, plain_answers: list[str]) -> None:
    """Shared out as asked, on a fresh and on a restarted cluster: each host could hold all of them.

    Whether the head computes the first layers itself, without a worker, is the plan's choice.
    """
    inventory = str(write_local(meshctl.folder / "inventory.yaml", memory=ROOMY, context=1024))
    for _ in range(2):
        meshctl.ok("up", inventory, "--detach", "--split", "part1/cpu=16,part2/cpu=14")
        state = meshctl.ok("status", "--json").json
        (group,) = state["plan"]["groups"]
        shares = [(share["device"], share["first_layer"], share["layers"]) for share in group["shares"]]
        assert (group["mode"], shares) == ("layers", [("part1/cpu", 0, 16), ("part2/cpu", 16, 14)])
        by_worker = [share["device"].partition("/")[0] for share in group["shares"] if not share["native"]]
        workers = sorted(one["host"] for one in state["processes"] if one["name"].startswith("worker"))
        assert workers == sorted(by_worker)
        assert answers(state["gateway"].removesuffix("/v1"), meshctl.key()) == plain_answers
        meshctl.ok("down")
    assert processes_with(str(meshctl.folder)) == []


@pytest.mark.parametrize("hosts", [2, 3])
def test_tensor_gives_the_same_first_tokens_and_perplexity(
    meshctl: Meshctl, plain_tokens: tuple[str, float], hosts: int
) -> None:
    """On a fresh and on a restarted cluster; its three KV heads come out even over three devices, and not over two."""
    inventory = str(write_local(meshctl.folder / "inventory.yaml", hosts=hosts, memory=ONE_PART[hosts], context=1024))
    expected, surprise = plain_tokens
    for _ in range(2):
        with head_keys(meshctl) as keys:
            meshctl.ok("up", inventory, "--detach", "--mode", "tensor")
        state = meshctl.ok("status", "--json").json
        (group,) = state["plan"]["groups"]
        assert (group["mode"], len(group["shares"])) == ("tensor", hosts)
        assert counting(state["gateway"].removesuffix("/v1"), meshctl.key()) == expected
        assert perplexity(head_url(heads_of(state)["head"]), keys["head"]) == pytest.approx(surprise, rel=0.01)
        meshctl.ok("down")
    assert processes_with(str(meshctl.folder)) == []
