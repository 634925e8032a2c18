"""What tuning runs, what it keeps when, and what it makes of failures; the measuring itself is replaced."""

import asyncio
import json
from collections.abc import Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator import tune as tuning
from orchestrator.errors import ClusterStateError, EngineError
from orchestrator.experience_store import circumstances_of, load_experience
from orchestrator.folders import Folders
from orchestrator.group_bench import Bench, Rate, Rates, measured_of
from orchestrator.inventory import Host, Inventory
from orchestrator.plan.asked import Asked
from orchestrator.plan.choose import rank_plans
from orchestrator.plan.conversations import with_kv
from orchestrator.plan.experience import Measured
from orchestrator.plan.robust import rank_within
from orchestrator.plan.values import Group, ModelMemory, Plan, Ranking, group_key, plan_key
from orchestrator.processes import Started
from orchestrator.report import Event, Remark, Report
from orchestrator.state import measuring
from orchestrator.survey.values import Survey
from orchestrator.tune import NO_ROOM, TuneResult, thread_profiles
from orchestrator.tuned import save_tuned, tuned_of, valid_for
from orchestrator.view.ranking import plan_text
from orchestrator.view.tune import tune_json, tune_view
from orchestrator.wishes import Wishes
from quant.gguf_file import read_model
from tests.orchestrator.groups import make_group, make_share
from tests.orchestrator.plan.examples import make_device, make_memories, make_memory, make_survey
from tests.orchestrator.preparing import make_prepared
from tests.orchestrator.view.rendering import rendered
from workers.errors import FactsError

SURVEY = make_survey([make_device("a/cpu", 4000), make_device("b/cpu", 4000, gib_per_s=8)])
MEMORIES = make_memories(make_memory())
RANKING = rank_plans(SURVEY, MEMORIES, Asked("latency"))
Speeds = Callable[[Bench, Group], float]


@dataclass
class Tuning:
    """A tuning whose programs are replaced by `speed_of`: how many times faster than predicted a group is."""

    inventory: Inventory
    folders: Folders
    speed_of: Speeds
    stopped: int = 0
    told: list[str] = field(default_factory=list)
    ranking: Ranking = RANKING
    survey: Survey = SURVEY
    runs: list[tuple[Group, ...]] = field(default_factory=list)

    def run(self, top: int = 2, wishes: Wishes | None = None) -> TuneResult:
        wishes = wishes or Wishes()
        return asyncio.run(tuning.tune(self.inventory, self.folders, Report(self._listen), wishes, top=top))

    def _listen(self, event: Event) -> None:
        if isinstance(event, Remark):
            self.told.append(event.text)

    def keep(self, plan: Plan, threads: int) -> None:
        """As if an earlier tuning had found this."""
        model = read_model(self.inventory.path.parent / "tiny.gguf")
        valid = valid_for(self.inventory, model, "cpu-test", Asked("latency"))
        save_tuned(
            self.folders.cluster("demo"), tuned_of(plan, {share.device: threads for share in plan.shares}, valid)
        )

    @property
    def kept(self) -> dict[str, Any]:
        """The only winner."""
        told: list[dict[str, Any]] = json.loads((self.folders.cluster("demo").path / "tuned.json").read_text())
        (winner,) = told
        return winner


@pytest.fixture
def make_tuning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Speeds], Tuning]:
    path = tmp_path / "inventory.yaml"
    path.write_text("cluster: demo\n")
    inventory = Inventory(path, "demo", "tiny.gguf", (Host("a", "local"), Host("b", "local")))
    prepared = make_prepared(inventory, MEMORIES, SURVEY)

    def make(speed_of: Speeds) -> Tuning:
        made = Tuning(inventory, Folders(tmp_path / "cache", tmp_path / "state"), speed_of)

        async def measure(bench: Bench, groups: Sequence[Group]) -> tuple[Rates, ...]:
            made.runs.append(tuple(groups))
            return tuple(rates(made.speed_of(bench, group), group) for group in groups)

        async def stop(started: Started) -> None:
            made.stopped += 1

        async def memory_at(micro_batch: int, like: ModelMemory, *others: object) -> ModelMemory:
            return replace(with_kv(MEMORIES[0], like.context, like.parallel), micro_batch=micro_batch)

        async def ranked(*others: object, winner: bool) -> object:
            assert winner, "a former one is to be compared with"
            return replace(prepared, survey=made.survey), made.ranking

        monkeypatch.setattr(tuning, "open_hosts", _no_hosts)
        monkeypatch.setattr(tuning, "prepare_ranking", ranked)
        monkeypatch.setattr(tuning, "measure_each", measure)
        monkeypatch.setattr(tuning, "memory_at", memory_at)
        monkeypatch.setattr(Started, "stop", stop)
        return made

    return make


@asynccontextmanager
async def _no_hosts(*others: object) -> Any:
    yield None


def rates(faster: float, group: Group) -> Rates:
    prefill, decode = faster * group.prefill_tokens_per_s, faster * group.decode_tokens_per_s
    together = faster * group.aggregate_tokens_per_s
    aggregate = Rate(together, together, together) if group.parallel > 1 else None
    return Rates(Rate(prefill, prefill, prefill), Rate(decode, decode, decode), aggregate)


def threads_of(bench: Bench) -> set[int]:
    return {device.threads for device in bench.prepared.survey.devices}


def test_the_best_measured_plan_wins_whatever_was_predicted(make_tuning: Callable[[Speeds], Tuning]) -> None:
    second = RANKING.plans[1]
    made = make_tuning(lambda bench, group: 3.0 if group in second.groups else 1.0)
    result = made.run()
    assert plan_key(result.best.plan) == plan_key(second)
    assert made.kept["plan"] == plan_key(second)
    assert made.stopped == 1


def test_threads_and_micro_batch_of_the_best_are_varied_and_what_is_faster_is_kept(
    make_tuning: Callable[[Speeds], Tuning],
) -> None:
    made = make_tuning(lambda bench, group: (1 + (7 in threads_of(bench))) * (1 + (group.micro_batch == 128)))
    result = made.run(top=1)
    varied = [(trial.varied, set(trial.threads.values())) for trial in result.trials[1:3]]
    assert varied == [("threads", {7}), ("threads", {4})]
    assert {trial.plan.groups[0].micro_batch for trial in result.trials[3:]} <= {32, 64, 128, 256}
    assert set(made.kept["threads"].values()) == {7}
    assert made.kept["micro_batch"] == 128


def test_micro_batches_are_tried_at_the_context_of_the_plan(make_tuning: Callable[[Speeds], Tuning]) -> None:
    """At the inventory's none of them would fit: `minimum_context` has allowed less."""
    made = make_tuning(lambda bench, group: 1.0)
    made.survey = make_survey([make_device("a/cpu", 1311)])
    made.ranking = rank_within(made.survey, MEMORIES, Asked("latency", mode="single", minimum_context=256))
    assert made.ranking.chosen.context == 2048
    result = made.run(top=1, wishes=Wishes(mode="single"))
    tried = [trial for trial in result.trials if trial.varied == "micro-batch"]
    assert [trial.plan.groups[0].micro_batch for trial in tried] == [32, 128, 256]
    assert NO_ROOM not in {trial.note for trial in tried}
    assert {trial.plan.context for trial in tried} == {made.kept["context"]} == {2048}


def test_the_best_of_one_mode_is_not_kept_as_the_best_of_all(make_tuning: Callable[[Speeds], Tuning]) -> None:
    made = make_tuning(lambda bench, group: 1.0)
    result = made.run(top=1, wishes=Wishes(mode="single"))
    assert result.tuned.valid.mode == made.kept["valid"]["mode"] == "single"


def test_a_variant_within_noise_changes_nothing(make_tuning: Callable[[Speeds], Tuning]) -> None:
    result = make_tuning(lambda bench, group: 1.01 if 4 in threads_of(bench) else 1.0).run(top=1)
    assert set(result.best.threads.values()) == {8}


def test_every_measurement_is_remembered_under_its_own_threads(make_tuning: Callable[[Speeds], Tuning]) -> None:
    made = make_tuning(lambda bench, group: 0.5 if 4 in threads_of(bench) else 2.0)
    result = made.run(top=1)
    model = read_model(made.inventory.path.parent / "tiny.gguf")
    experience = load_experience(made.folders, circumstances_of(model, "cpu-test", SURVEY, made.inventory))
    group = result.trials[0].plan.groups[0]
    mine = [record for record in experience.records if record.key == group_key(group)]
    assert [record.ratio.token_s for record in mine] == [pytest.approx(0.5)]


@pytest.mark.parametrize("error", [EngineError("no memory"), FactsError("llama-bench's answer cannot be read")])
def test_a_plan_that_cannot_be_run_is_noted_and_the_others_are_run(
    make_tuning: Callable[[Speeds], Tuning], error: Exception
) -> None:
    def speed(bench: Bench, group: Group) -> float:
        if group in RANKING.plans[0].groups:
            raise error
        return 1.0

    result = make_tuning(speed).run()
    assert result.trials[0].note == f"could not be run: {error}"
    assert plan_key(result.best.plan) == plan_key(RANKING.plans[1])


def test_a_micro_batch_that_reads_faster_is_not_kept_where_it_decoded_slower(
    make_tuning: Callable[[Speeds], Tuning],
) -> None:
    """`up` would put such a winner aside at once, for the plan that it came of."""
    first = RANKING.plans[0].groups[0]
    made = make_tuning(lambda bench, group: 1.0)

    async def measure(bench: Bench, groups: Sequence[Group]) -> tuple[Rates, ...]:
        return tuple(slower(rates(1.0, group), group.micro_batch != first.micro_batch) for group in groups)

    def slower(one: Rates, varied: bool) -> Rates:
        prefill, decode = (1.5, 0.9) if varied else (1.0, 1.0)
        return replace(one, prefill=times(one.prefill, prefill), decode=times(one.decode, decode))

    def times(one: Rate, by: float) -> Rate:
        return Rate(one.median * by, one.median * by, one.median * by)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning, "measure_each", measure)
        result = made.run(top=1)
    assert {trial.plan.groups[0].micro_batch for trial in result.trials} > {first.micro_batch}
    assert result.best.plan.groups[0].micro_batch == first.micro_batch


def test_when_nothing_runs_that_is_an_error_and_nothing_is_kept(make_tuning: Callable[[Speeds], Tuning]) -> None:
    def speed(bench: Bench, group: Group) -> float:
        raise EngineError("no memory")

    made = make_tuning(speed)
    with pytest.raises(EngineError, match="none of the best plans"):
        made.run()
    assert not (made.folders.cluster("demo").path / "tuned.json").exists()


def test_of_two_plans_none_is_kept_before_both_have_run(make_tuning: Callable[[Speeds], Tuning]) -> None:
    def speed(bench: Bench, group: Group) -> float:
        if group in RANKING.plans[1].groups:
            raise asyncio.CancelledError
        return 1.0

    made = make_tuning(speed)
    with pytest.raises(asyncio.CancelledError):
        made.run(top=2)
    assert not (made.folders.cluster("demo").path / "tuned.json").exists()
    assert made.told == ["stopped: 1 run measured for the plans to come; no winner is kept before two have run"]
    assert list((made.folders.cache / "experience").iterdir())


def test_two_at_once_would_measure_each_other(make_tuning: Callable[[Speeds], Tuning]) -> None:
    made = make_tuning(lambda bench, group: 1.0)
    folder = made.folders.cluster("demo")
    with measuring(folder), pytest.raises(ClusterStateError, match="demo is being measured"):
        made.run()
    assert made.runs == []
    made.run(top=1)
    assert made.runs


def test_the_heads_of_a_plan_are_run_at_the_same_time_and_each_is_remembered(
    make_tuning: Callable[[Speeds], Tuning],
) -> None:
    """Two heads that take each other's memory bandwidth are as slow as they are together."""
    made = make_tuning(lambda bench, group: 0.75)
    memories = make_memories(make_memory(parallel=4))
    made.ranking = rank_plans(SURVEY, memories, Asked("throughput", mode="replicas"))
    result = made.run(top=1)
    plan = made.ranking.chosen
    assert made.runs[0] == plan.groups
    assert len(plan.groups) == 2
    assert result.trials[0].measured is not None
    assert result.trials[0].measured.aggregate_tokens_per_s == pytest.approx(0.75 * plan.aggregate_tokens_per_s)
    model = read_model(made.inventory.path.parent / "tiny.gguf")
    experience = load_experience(made.folders, circumstances_of(model, "cpu-test", SURVEY, made.inventory))
    assert {record.key for record in experience.records} >= {group_key(group) for group in plan.groups}


def test_stopped_in_the_middle_everything_ends_and_what_was_measured_is_kept(
    make_tuning: Callable[[Speeds], Tuning],
) -> None:
    def speed(bench: Bench, group: Group) -> float:
        if threads_of(bench) != {8}:
            raise asyncio.CancelledError
        return 1.0

    made = make_tuning(speed)
    with pytest.raises(asyncio.CancelledError):
        made.run(top=1)
    assert made.stopped == 1
    assert made.kept["plan"] == plan_key(RANKING.chosen)
    threads = ", ".join(f"{share.device} 8" for share in RANKING.chosen.shares)
    assert made.told == [f"stopped: the best of 1 run is kept, {plan_text(RANKING.chosen)}, threads {threads}"]
    assert list((made.folders.cache / "experience").iterdir())


@pytest.mark.parametrize(("threads", "kept"), [(3, 0), (8, 1)], ids=["not run", "run first"])
def test_stopped_a_tuning_replaces_a_former_winner_only_by_what_it_was_compared_with(
    make_tuning: Callable[[Speeds], Tuning], threads: int, kept: int
) -> None:
    """With the threads that it had it was the first of the plans, with others it was none of them."""

    def speed(bench: Bench, group: Group) -> float:
        if group in RANKING.plans[2].groups:
            raise asyncio.CancelledError
        return 2.0 if group in RANKING.plans[1].groups else 1.0

    made = make_tuning(speed)
    made.keep(RANKING.plans[0], threads)
    with pytest.raises(asyncio.CancelledError):
        made.run(top=3)
    assert made.kept["plan"] == plan_key(RANKING.plans[kept])
    stays = "the winner kept before stays" in made.told[-1]
    assert stays == (kept == 0)
    made.run(top=2)
    assert made.kept["plan"] == plan_key(RANKING.plans[1])


def test_the_table_and_the_json_tell_every_trial_and_the_winner(make_tuning: Callable[[Speeds], Tuning]) -> None:
    result = make_tuning(lambda bench, group: 1.1).run(top=1)
    text = rendered(tune_view(result), width=160)
    assert "+10%" in text
    assert f"Kept: {plan_text(result.best.plan)}, threads" in " ".join(text.split())
    told = json.loads(tune_json(result))
    assert [trial["best"] for trial in told["trials"]].count(True) == 1
    assert told["tuned"]["plan"] == result.tuned.plan


def test_rates_become_the_terms_of_a_group() -> None:
    """Half of the predicted prompt is measured; mode tensor has no pipeline that would have to fill."""
    group = make_group(make_share("a/cpu", part=1), make_share("b/cpu", part=1), mode="tensor", parallel=4)
    rates = Rates(Rate(256, 256, 256), Rate(20, 20, 20), Rate(40, 40, 40))
    measured = measured_of(group, rates, 512)
    assert measured == Measured(0.05, 0.1, pytest.approx(4.0))  # type: ignore[arg-type] # stands for a float
    assert measured_of(group, replace(rates, aggregate=None), 512).step_s == 0.05


def test_profiles_are_all_cores_all_but_one_and_half_of_them(tmp_path: Path) -> None:
    inventory = Inventory(tmp_path, "demo", "tiny.gguf", (Host("a", "local"), Host("b", "local", threads=3)))
    survey = make_survey([make_device("a/cpu", 4000), replace(make_device("b/cpu", 4000), threads=3)])
    profiles = thread_profiles(inventory, survey, ["a/cpu", "b/cpu"])
    assert profiles == ({"a/cpu": 7, "b/cpu": 3}, {"a/cpu": 4, "b/cpu": 3})
    assert thread_profiles(inventory, survey, ["b/cpu"]) == ()
