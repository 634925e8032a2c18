"""What `meshctl tune` kept is planned again wherever it holds, also at a shorter context than the inventory's."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import pytest

from orchestrator import prepare as preparing
from orchestrator.experience_store import remember
from orchestrator.folders import Folders
from orchestrator.hosts import OpenHosts
from orchestrator.inventory import Host, Inventory
from orchestrator.plan.asked import Asked
from orchestrator.plan.conversations import with_kv
from orchestrator.plan.experience import Measured
from orchestrator.plan.robust import rank_within
from orchestrator.plan.values import ModelMemory, Plan, Ranking, plan_key
from orchestrator.prepare import Prepared, Ready, prepare, prepare_ranking
from orchestrator.report import Event, Remark, Report, silent
from orchestrator.survey.timing import Measuring
from orchestrator.survey.values import Survey
from orchestrator.tuned import ANEW, BEST_MEASURED, save_tuned, tuned_of, valid_for
from orchestrator.wishes import Wishes
from tests.orchestrator.plan.examples import make_device, make_memories, make_memory, make_survey
from tests.orchestrator.preparing import make_prepared

MEMORIES = make_memories(make_memory())
SINGLE = Wishes(mode="single")
NOT_USED = "what `meshctl tune` kept does not fit now, or another plan was measured to be better since"


def alone_on(a_mib: int, b_mib: int) -> Survey:
    """1,311 MiB hold the model alone with a context of 2,048 tokens, 1,318 with 2,304, 2,000 with all 4,096."""
    return make_survey([make_device("a/cpu", a_mib), make_device("b/cpu", b_mib, gib_per_s=5)])


@dataclass
class Planning:
    """Planning after a survey that is given, in mode `single` at 256 to 4,096 tokens."""

    inventory: Inventory
    folders: Folders
    prepared: Prepared
    told: list[str] = field(default_factory=list)

    def keep(self, device: str, survey: Survey) -> Plan:
        """The plan of this device, as if tuning had found it to be the best on such machines."""
        asked = Asked("latency", mode="single", minimum_context=256)
        ranking = rank_within(survey, MEMORIES, asked)
        plan = next(one for one in ranking.plans if one.shares[0].device == device)
        valid = valid_for(self.inventory, self.prepared.model, "cpu-test", asked)
        save_tuned(self.folders.cluster("demo"), tuned_of(plan, {device: 4}, valid))
        return plan

    async def plan(
        self,
        survey: Survey,
        monkeypatch: pytest.MonkeyPatch,
        wishes: Wishes = SINGLE,
        winner: bool | None = None,
    ) -> tuple[Prepared, Ranking]:
        async def prepare(*others: object) -> Prepared:
            return replace(self.prepared, survey=survey)

        async def memory_at(micro_batch: int, like: ModelMemory, *others: object) -> ModelMemory:
            return replace(with_kv(MEMORIES[0], like.context, like.parallel), micro_batch=micro_batch)

        def listen(event: Event) -> None:
            if isinstance(event, Remark):
                self.told.append(event.text)

        monkeypatch.setattr(preparing, "prepare", prepare)
        monkeypatch.setattr(preparing, "memory_at", memory_at)
        hosts = cast(OpenHosts, None)
        return await prepare_ranking(self.inventory, hosts, self.folders, Report(listen), wishes, winner=winner)


@pytest.fixture
def planning(tmp_path: Path) -> Planning:
    path = tmp_path / "inventory.yaml"
    path.write_text("cluster: demo\n")
    hosts = (Host("a", "local"), Host("b", "local"))
    inventory = Inventory(path, "demo", "tiny.gguf", hosts, context=4096, minimum_context=256)
    prepared = make_prepared(inventory, MEMORIES, alone_on(1311, 1311))
    return Planning(inventory, Folders(tmp_path / "cache", tmp_path / "state"), prepared)


async def test_a_winner_with_a_shorter_context_than_wanted_is_used(
    planning: Planning, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slower device by prediction; at its threads, and the context is still said."""
    kept = planning.keep("b/cpu", alone_on(1311, 1311))
    run, ranking = await planning.plan(alone_on(1311, 1311), monkeypatch)
    assert (plan_key(ranking.chosen), ranking.chosen.context) == (plan_key(kept), 2048)
    assert ranking.chosen.reasons[0] == f"{BEST_MEASURED}{ANEW}"
    assert {device.name: device.threads for device in run.survey.devices} == {"a/cpu": 8, "b/cpu": 4}
    assert planning.told == ["at context 4096 it does not fit: conversations may hold 2048 tokens"]


@pytest.mark.parametrize(
    ("budgets", "context"),
    [
        pytest.param((1311, 1318), 2304, id="the context that fits now"),
        pytest.param((1318, 1311), 2048, id="its own, where that is nearly what fits now"),
        pytest.param((1305, 1305), 1792, id="less, where less fits"),
        pytest.param((2000, 2000), 4096, id="all that was wanted, where that fits now"),
    ],
)
async def test_a_winner_is_used_at(
    planning: Planning, monkeypatch: pytest.MonkeyPatch, budgets: tuple[int, int], context: int
) -> None:
    planning.keep("b/cpu", alone_on(1311, 1311))
    _, ranking = await planning.plan(alone_on(*budgets), monkeypatch)
    assert (ranking.chosen.shares[0].device, ranking.chosen.context) == ("b/cpu", context)
    assert NOT_USED not in planning.told


@pytest.mark.parametrize("budgets", [(2000, 1311), (1340, 1311), (1311, 500)])
async def test_a_winner_that_would_cost_much_of_the_context_or_does_not_fit_is_put_aside_with_a_word(
    planning: Planning, monkeypatch: pytest.MonkeyPatch, budgets: tuple[int, int]
) -> None:
    planning.keep("b/cpu", alone_on(1311, 1311))
    run, ranking = await planning.plan(alone_on(*budgets), monkeypatch)
    assert ranking.chosen.shares[0].device == "a/cpu"
    assert {device.threads for device in run.survey.devices} == {8}
    assert NOT_USED in planning.told


async def test_a_context_beyond_what_the_model_was_made_for_is_told(
    planning: Planning, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the context that fits, not of the one that was wanted."""
    planning.prepared = replace(planning.prepared, model=replace(planning.prepared.model, context_length=2048))
    await planning.plan(alone_on(1311, 1311), monkeypatch)
    assert planning.told == ["at context 4096 it does not fit: conversations may hold 2048 tokens"]
    await planning.plan(alone_on(2000, 2000), monkeypatch)
    assert planning.told[1:] == [
        "llama.gguf was made for 2048 tokens: conversations may hold 4096, and beyond that its answers get worse"
    ]


async def test_without_a_winner_nothing_is_said_of_one(planning: Planning, monkeypatch: pytest.MonkeyPatch) -> None:
    _, ranking = await planning.plan(alone_on(2000, 2000), monkeypatch)
    assert ranking.chosen.shares[0].device == "a/cpu"
    assert planning.told == []


@pytest.mark.parametrize(
    ("recalibrate", "winner", "device"),
    [
        pytest.param(True, None, "a/cpu", id="left aside where everything is measured again"),
        pytest.param(True, True, "b/cpu", id="but for a tuning, which measures it again too"),
        pytest.param(False, False, "a/cpu", id="not wanted"),
    ],
)
async def test_whether_a_winner_is_used(
    planning: Planning, monkeypatch: pytest.MonkeyPatch, recalibrate: bool, winner: bool | None, device: str
) -> None:
    """Another plan was measured to be better since; where everything is measured again that is left aside as well."""
    survey = alone_on(2000, 2000)
    planning.keep("b/cpu", survey)
    at_work = replace(planning.prepared, survey=survey)
    (group,) = rank_within(survey, MEMORIES, Asked("latency", mode="single")).chosen.groups
    remember(planning.folders, at_work.circumstances, group, Measured(group.token_s / 2, group.step_s / 2, 1.0))
    wishes = replace(SINGLE, recalibrate=recalibrate)
    _, ranking = await planning.plan(survey, monkeypatch, wishes, winner)
    assert ranking.chosen.shares[0].device == device


async def test_without_an_inventory_file_nothing_is_planned_that_was_tuned(
    planning: Planning, monkeypatch: pytest.MonkeyPatch
) -> None:
    planning.inventory.path.unlink()
    _, ranking = await planning.plan(alone_on(2000, 2000), monkeypatch, winner=False)
    assert ranking.chosen.shares[0].device == "a/cpu"


@pytest.mark.parametrize(("recalibrate", "counts"), [(False, (1, 0)), (True, (0, 1))])
async def test_what_ran_before_is_left_aside_where_everything_is_measured_again(
    planning: Planning, monkeypatch: pytest.MonkeyPatch, recalibrate: bool, counts: tuple[int, int]
) -> None:
    before = planning.prepared
    (group,) = rank_within(alone_on(2000, 2000), MEMORIES, Asked("latency", mode="single")).chosen.groups
    remember(planning.folders, before.circumstances, group, Measured(group.token_s, group.step_s, group.prefill_s))

    async def make_ready(*others: object) -> Ready:
        measuring = cast(Measuring, None)
        return Ready(before.inventory, before.engine, {}, before.model, before.memories, measuring)

    async def take_survey(*others: object) -> Survey:
        return before.survey

    monkeypatch.setattr(preparing, "make_ready", make_ready)
    monkeypatch.setattr(preparing, "take_survey", take_survey)
    wishes = Wishes(recalibrate=recalibrate)
    prepared = await prepare(planning.inventory, cast(OpenHosts, None), planning.folders, silent(), wishes)
    assert (len(prepared.experience.records), len(prepared.experience.outdated)) == counts
