"""The comparison's ratios, verdict and forms, and what of it is kept."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from orchestrator import bench as benching
from orchestrator.bench import QUICK, Comparison, Measured, how_text, other_plans, run_bench
from orchestrator.errors import UsageError
from orchestrator.experience_store import load_experience
from orchestrator.folders import Folders
from orchestrator.group_bench import Bench, Predicted, Rate, Rates, predicted_of
from orchestrator.hosts import OpenHosts
from orchestrator.inventory import Host, Inventory
from orchestrator.plan.asked import Asked
from orchestrator.plan.choose import rank_plans
from orchestrator.plan.conversations import with_kv
from orchestrator.plan.experience import NO_EXPERIENCE, Experience, record_of
from orchestrator.plan.experience import Measured as Ran
from orchestrator.plan.robust import rank_within
from orchestrator.plan.values import Group, Ranking
from orchestrator.processes import Started
from orchestrator.report import silent
from orchestrator.state import ClusterState, hold, write_state
from orchestrator.view.bench import bench_csv, bench_json, bench_markdown, bench_view, check_chart, write_chart
from tests.orchestrator.groups import make_group, make_plan_of, make_share
from tests.orchestrator.plan.examples import make_device, make_memories, make_memory, make_survey
from tests.orchestrator.preparing import make_prepared
from tests.orchestrator.view.rendering import rendered


def line(name: str, how: str, prefill: Rate, decode: Rate, predicted: Predicted) -> Measured:
    return Measured(name, how, Rates(prefill, decode, None), predicted)


FAST = line("desk/cpu", "alone", Rate(80.0, 78.0, 82.0), Rate(10.0, 9.5, 10.5), Predicted(80.0, 8.0, 8.0))
SLOW = line("[pi]/cpu", "alone", Rate(8.0, 7.0, 9.0), Rate(2.0, 1.9, 2.1), Predicted(10.0, 2.0, 2.0))
SMALL = Measured("nuc/cpu", "alone", note="does not fit: needs 900 MiB, budget 500 MiB")
CLUSTER = line("cluster", "layers on 2", Rate(120.0, 110.0, 130.0), Rate(8.0, 7.8, 8.2), Predicted(119.0, 8.4, 8.4))
COMPARISON = Comparison("llama.gguf", QUICK, "latency", 1, (FAST, SLOW, SMALL), CLUSTER)
ALONE_IMPOSSIBLE = replace(COMPARISON, alone=(SMALL,))


def at_once(one: Measured, aggregate: float) -> Measured:
    assert one.rates is not None
    return replace(one, rates=replace(one.rates, aggregate=Rate(aggregate, aggregate, aggregate)))


def decoding(one: Measured, rate: Rate) -> Measured:
    assert one.rates is not None
    return replace(one, rates=replace(one.rates, decode=rate))


THROUGHPUT = replace(
    COMPARISON,
    goal="throughput",
    parallel=4,
    alone=(at_once(FAST, 20.0), at_once(SLOW, 4.0)),
    cluster=at_once(CLUSTER, 24.0),
    others=(replace(at_once(CLUSTER, 22.0), name="plan 2", how="tensor on 2"),),
)

TEXT = """\
llama.gguf: prefill of 256 tokens, decode of 32, median of 3
name      how             prefill tokens/s  decode tokens/s  note
desk/cpu  alone           80.0 (78.0-82.0)  10.0 (9.5-10.5)
[pi]/cpu  alone              8.0 (7.0-9.0)    2.0 (1.9-2.1)
nuc/cpu   alone                          -                -  does not fit: needs 900 MiB, budget 500
                                                             MiB
cluster   layers on 2  120.0 (110.0-130.0)    8.0 (7.8-8.2)

predicted (and how far measured is from it)
name      how          prefill tokens/s  decode tokens/s
desk/cpu  alone              80.0 (+0%)       8.0 (+25%)
[pi]/cpu  alone             10.0 (-20%)        2.0 (+0%)
cluster   layers on 2       119.0 (+1%)        8.4 (-5%)

Ratio to the best single device: decode 0.80, prefill 1.50
Use desk/cpu alone: it decodes 1.25 times as fast as the cluster.
"""


def test_the_table_ends_with_the_ratios_and_one_plain_sentence() -> None:
    assert rendered(bench_view(COMPARISON)) == TEXT


@pytest.mark.parametrize(
    ("comparison", "verdict"),
    [
        (COMPARISON, "Use desk/cpu alone: it decodes 1.25 times as fast as the cluster."),
        (
            replace(COMPARISON, alone=(SLOW,)),
            "Use the cluster: it decodes 4.00 times as fast as [pi]/cpu alone.",
        ),
        (ALONE_IMPOSSIBLE, "Use the cluster: no single device holds this model."),
        (
            replace(COMPARISON, cluster=decoding(CLUSTER, Rate(10.4, 10.0, 10.9))),
            "Use desk/cpu alone: the cluster decodes just as fast (ratio 1.04), and one is simpler.",
        ),
        (
            replace(COMPARISON, cluster=replace(CLUSTER, rates=FAST.rates), single_on="desk/cpu"),
            "Use desk/cpu alone: no plan with several was predicted to be faster.",
        ),
        (
            replace(COMPARISON, cluster=replace(CLUSTER, rates=SLOW.rates), single_on="[pi]/cpu"),
            "Use desk/cpu alone, although the plan is [pi]/cpu: no plan with several was predicted to be faster.",
        ),
        (THROUGHPUT, "Use the cluster: it answers 4 conversations 1.20 times as fast as desk/cpu alone."),
        (
            replace(COMPARISON, cluster=Measured("cluster", "layers on 2", note="broken")),
            "The cluster was not measured: broken",
        ),
    ],
)
def test_the_verdict_says_which_to_use(comparison: Comparison, verdict: str) -> None:
    assert comparison.verdict == verdict


def test_json_holds_every_value_and_what_follows_from_them() -> None:
    told = json.loads(bench_json(COMPARISON))
    assert (told["decode_ratio"], told["prefill_ratio"]) == (0.8, 1.5)
    assert told["cluster"]["rates"]["decode"] == {"median": 8.0, "lowest": 7.8, "highest": 8.2}
    assert told["errors"]["desk/cpu"] == {"prefill": 0.0, "decode": 0.25}
    assert told["errors"]["nuc/cpu"] == {"prefill": None, "decode": None}
    assert "aggregate" in json.loads(bench_json(THROUGHPUT))["errors"]["desk/cpu"]
    assert json.loads(bench_json(ALONE_IMPOSSIBLE))["decode_ratio"] is None
    assert json.loads(bench_json(THROUGHPUT))["aggregate_ratio"] == 1.2


def test_several_conversations_have_a_column_of_their_own_and_other_plans_a_line() -> None:
    lines = bench_markdown(THROUGHPUT).splitlines()
    assert lines[0] == "| name | how | prefill tokens/s | decode tokens/s | 4 at once tokens/s | note |"
    assert lines[5] == (
        "| plan 2 | tensor on 2 | 120.0 (110.0-130.0) [+1%] | 8.0 (7.8-8.2) [-5%] | 22.0 (22.0-22.0) [+162%] |  |"
    )
    assert lines[-3] == "Ratio to the best single device: decode 0.80, prefill 1.50, 4 at once 1.20"


def test_other_plans_are_those_of_several_devices() -> None:
    """What one device does alone is measured in any case."""
    split = make_plan_of(make_group(make_share("a/cpu"), make_share("b/cpu")))
    single = make_plan_of(make_group(make_share("a/cpu", native=True), mode="single", head="a"))
    both = make_plan_of(*split.groups, *single.groups)
    ranking = Ranking((split, single, both, split))
    assert other_plans(ranking, 1) == (both,)
    assert other_plans(ranking, 9) == (both, split)
    assert how_text(both.groups) == "layers on 2 + single on a/cpu"


def test_a_shorter_prompt_is_predicted_from_the_long_one() -> None:
    """Two stages: a micro-batch takes twice the slowest, the predicted 16 take 17 times."""
    group = make_group(make_share("a/cpu"), make_share("b/cpu"), parallel=2, token_s=0.1, prefill_s=17.0)
    assert predicted_of([group], 64) == Predicted(prefill=64 / 2, decode=10.0, aggregate=10.0)
    slow = replace(group, token_s=0.2)
    assert predicted_of([slow, group], 4096) == Predicted(prefill=1024 / 17, decode=10.0, aggregate=20.0)


def test_a_plan_that_ran_before_was_predicted_all_the_same() -> None:
    group = make_group(make_share("a/cpu"), make_share("b/cpu"), parallel=4)
    before = Experience((record_of(group, Ran(0.2, 0.3, 1.0)),)).correct(group)
    told = predicted_of([before], 4096)
    assert (told.prefill, told.decode, told.aggregate) == pytest.approx((512.0, 10.0, 20.0))


def test_csv_has_a_line_per_measurement() -> None:
    rows = list(csv.DictReader(io.StringIO(bench_csv(COMPARISON))))
    assert [(row["name"], row["decode_median"], row["note"]) for row in rows] == [
        ("desk/cpu", "10.000", ""),
        ("[pi]/cpu", "2.000", ""),
        ("nuc/cpu", "", "does not fit: needs 900 MiB, budget 500 MiB"),
        ("cluster", "8.000", ""),
    ]


def test_markdown_is_a_table_and_the_verdict() -> None:
    lines = bench_markdown(COMPARISON).splitlines()
    assert lines[1] == "|---|---|--:|--:|---|"
    assert lines[2] == "| desk/cpu | alone | 80.0 (78.0-82.0) [+0%] | 10.0 (9.5-10.5) [+25%] |  |"
    assert lines[-1] == COMPARISON.verdict


@pytest.mark.parametrize(("name", "start"), [("chart.png", b"\x89PNG"), ("chart.svg", b"<?xml")])
def test_the_chart_is_written_by_its_suffix(tmp_path: Path, name: str, start: bytes) -> None:
    write_chart(COMPARISON, tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(start)


def test_a_chart_that_cannot_be_written_is_refused_before_measuring(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"chart\.pdf: a chart is written as \.png or \.svg"):
        check_chart(tmp_path / "chart.pdf")
    with pytest.raises(UsageError, match="its folder does not exist"):
        check_chart(tmp_path / "none" / "chart.png")


async def test_devices_alone_are_measured_at_the_context_that_the_plan_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the context that was wished for a/cpu would not hold the model; at the one that fits it is the plan."""
    wished = make_memories(with_kv(make_memory(), 64 * 4096, 1))
    survey = make_survey([make_device("a/cpu", 1500)])
    inventory = Inventory(tmp_path / "inventory.yaml", "demo", "tiny.gguf", (Host("a", "local"),))
    prepared = make_prepared(inventory, wished, survey)
    ranking = rank_within(survey, wished, Asked("latency", mode="single", minimum_context=256), NO_EXPERIENCE)
    assert (ranking.chosen.mode, ranking.chosen.context < wished[0].context) == ("single", True)

    async def measure(bench: Bench, groups: Sequence[Group]) -> Rates:
        return Rates(Rate(100.0, 100.0, 100.0), Rate(4.0, 4.0, 4.0), None)

    monkeypatch.setattr(benching, "measure_groups", measure)
    folders, hosts = Folders(tmp_path / "cache", tmp_path / "state"), cast(OpenHosts, None)
    comparison = await run_bench(prepared, ranking, hosts, folders, QUICK, Started(), silent())
    assert [line.note for line in comparison.alone] == [""]
    assert comparison.cluster.rates is not None


async def test_what_ran_by_itself_is_known_to_later_plans_unless_the_cluster_was_at_work_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers a request while a/cpu is measured; before and after that it is up and does nothing."""
    path = tmp_path / "inventory.yaml"
    survey = make_survey([make_device("a/cpu", 4000), make_device("b/cpu", 4000)])
    memories, folders = make_memories(make_memory()), Folders(tmp_path / "cache", tmp_path / "state")
    inventory = Inventory(path, "demo", "tiny.gguf", (Host("a", "local"), Host("b", "local")))
    prepared = make_prepared(inventory, memories, survey)
    folder = folders.cluster("demo")
    state = ClusterState("demo", str(path), 1, "ready", "", "", requests_finished=7)

    async def measure(bench: Bench, groups: Sequence[Group]) -> Rates:
        if how_text(groups) == "single on a/cpu":
            write_state(folder, replace(state, requests_finished=8))
        return Rates(Rate(100.0, 100.0, 100.0), Rate(4.0, 4.0, 4.0), None)

    monkeypatch.setattr(benching, "measure_groups", measure)
    ranking = rank_plans(survey, memories, Asked("latency", mode="layers"))
    with hold(folder):
        write_state(folder, state)
        hosts = cast(OpenHosts, None)
        comparison = await run_bench(prepared, ranking, hosts, folders, QUICK, Started(), silent())
    assert all(line.rates is not None for line in comparison.lines)
    known = load_experience(folders, prepared.circumstances)
    assert {(one.mode, one.devices) for one in known.records} == {
        ("single", ("b/cpu",)),
        ("layers", tuple(share.device for share in ranking.chosen.shares)),
    }
    planned = known.correct(ranking.chosen.groups[0])
    assert planned.known == "measured"
    assert planned.token_s == pytest.approx(0.25)
