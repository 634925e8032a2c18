"""The comparison's ratios, verdict and forms."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.bench import QUICK, Comparison, Measured, Rate
from orchestrator.errors import UsageError
from orchestrator.view.bench import bench_csv, bench_json, bench_markdown, bench_view, check_chart, write_chart
from tests.orchestrator.view.rendering import rendered

FAST = Measured("desk/cpu", "alone", Rate(80.0, 78.0, 82.0), Rate(10.0, 9.5, 10.5))
SLOW = Measured("[pi]/cpu", "alone", Rate(8.0, 7.0, 9.0), Rate(2.0, 1.9, 2.1))
SMALL = Measured("nuc/cpu", "alone", None, None, "does not fit: needs 900 MiB, budget 500 MiB")
CLUSTER = Measured("cluster", "layers on 2", Rate(120.0, 110.0, 130.0), Rate(8.0, 7.8, 8.2))
COMPARISON = Comparison("llama.gguf", QUICK, (FAST, SLOW, SMALL), CLUSTER, predicted_decode_tokens_per_s=8.4)
ALONE_IMPOSSIBLE = replace(COMPARISON, alone=(SMALL,))

TEXT = """\
llama.gguf: prefill of 128 tokens, decode of 32, median of 3
name      how             prefill tokens/s  decode tokens/s  note
desk/cpu  alone           80.0 (78.0-82.0)  10.0 (9.5-10.5)
[pi]/cpu  alone              8.0 (7.0-9.0)    2.0 (1.9-2.1)
nuc/cpu   alone                          -                -  does not fit: needs 900 MiB, budget 500
                                                             MiB
cluster   layers on 2  120.0 (110.0-130.0)    8.0 (7.8-8.2)

Ratio to the best single device: decode 0.80, prefill 1.50; predicted decode 8.4 tokens/s
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
            replace(COMPARISON, cluster=replace(CLUSTER, decode=Rate(10.4, 10.0, 10.9))),
            "Use desk/cpu alone: the cluster decodes just as fast (ratio 1.04), and one is simpler.",
        ),
        (
            replace(COMPARISON, cluster=replace(CLUSTER, decode=FAST.decode), single_on="desk/cpu"),
            "Use desk/cpu alone: no split over several was predicted to be faster.",
        ),
        (
            replace(COMPARISON, cluster=replace(CLUSTER, decode=SLOW.decode), single_on="[pi]/cpu"),
            "Use desk/cpu alone, although the plan is [pi]/cpu: no split over several was predicted to be faster.",
        ),
    ],
)
def test_the_verdict_says_which_to_use(comparison: Comparison, verdict: str) -> None:
    assert comparison.verdict == verdict


def test_json_holds_every_value_and_what_follows_from_them() -> None:
    told = json.loads(bench_json(COMPARISON))
    assert (told["decode_ratio"], told["prefill_ratio"]) == (0.8, 1.5)
    assert told["cluster"]["decode"] == {"median": 8.0, "lowest": 7.8, "highest": 8.2}
    assert json.loads(bench_json(ALONE_IMPOSSIBLE))["decode_ratio"] is None


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
    assert lines[2] == "| desk/cpu | alone | 80.0 (78.0-82.0) | 10.0 (9.5-10.5) |  |"
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
