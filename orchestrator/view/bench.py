"""The comparison as a table, JSON, CSV, Markdown and a bar chart."""

import csv
import importlib.util
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from orchestrator.bench import Comparison, Measured
from orchestrator.errors import UsageError
from orchestrator.group_bench import Rate

METRICS = ("prefill", "decode", "aggregate")
"""As `Measured` and `Predicted` call them."""


def bench_view(comparison: Comparison) -> RenderableType:
    """A table of every measurement, one of what was predicted, the ratios and the verdict."""
    size = comparison.size
    title = (
        f"{comparison.model}: prefill of {size.prompt} tokens, decode of {size.generate}, median of {size.repetitions}"
    )
    measured = _table(title, [*_titles(comparison), "note"])
    for one in comparison.lines:
        style = "bold" if one is comparison.cluster else ""
        measured.add_row(*(Text(cell, style) for cell in _cells(comparison, one)))
    predicted = _table("predicted (and how far measured is from it)", _titles(comparison))
    for one in comparison.lines:
        if one.predicted is not None:
            cells = [one.name, one.how, *(_predicted_text(one, what) for what in _metrics(comparison))]
            predicted.add_row(*(Text(cell) for cell in cells))
    return Group(measured, Text(), predicted, Text(), Text(ratio_text(comparison)), Text(comparison.verdict, "bold"))


def ratio_text(comparison: Comparison) -> str:
    """The cluster against the best single device."""
    ratios = {
        "decode": comparison.decode_ratio,
        "prefill": comparison.prefill_ratio,
        _conversations(comparison): comparison.aggregate_ratio if comparison.parallel > 1 else None,
    }
    known = [f"{what} {ratio:.2f}" for what, ratio in ratios.items() if ratio is not None]
    return f"Ratio to the best single device: {', '.join(known) or 'none holds the model'}"


def prediction_error(one: Measured, what: str) -> float | None:
    """Measured by predicted, less one; None when either is not there."""
    rate: Rate | None = getattr(one, what)
    return None if rate is None or one.predicted is None else rate.median / getattr(one.predicted, what) - 1


def bench_json(comparison: Comparison) -> str:
    """Every value of the comparison with its ratios, prediction errors and verdict."""
    fields: dict[str, Any] = asdict(comparison)
    extra = {
        "decode_ratio": comparison.decode_ratio,
        "prefill_ratio": comparison.prefill_ratio,
        "aggregate_ratio": comparison.aggregate_ratio,
        "errors": {
            one.name: {what: prediction_error(one, what) for what in _metrics(comparison)} for one in comparison.lines
        },
        "verdict": comparison.verdict,
    }
    return json.dumps(fields | extra, indent=2)


def bench_csv(comparison: Comparison) -> str:
    """One line per measurement; rates are medians with their lowest and highest, and what was predicted."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    rates = [f"{what}_{which}" for what in METRICS for which in ("median", "lowest", "highest", "predicted")]
    writer.writerow(["name", "how", *rates, "note"])
    for one in comparison.lines:
        writer.writerow([one.name, one.how, *(number for what in METRICS for number in _numbers(one, what)), one.note])
    return out.getvalue()


def bench_markdown(comparison: Comparison) -> str:
    """The table for a report: measured rates, and in brackets how far they are from the predicted ones."""
    titles = [*_titles(comparison), "note"]
    lines = [f"| {' | '.join(titles)} |", f"|---|---|{'--:|' * len(_metrics(comparison))}---|"]
    for one in comparison.lines:
        rates = [_with_error(one, what) for what in _metrics(comparison)]
        lines.append(f"| {' | '.join([one.name, one.how, *rates, one.note])} |")
    return "\n".join([*lines, "", ratio_text(comparison), "", comparison.verdict]) + "\n"


def check_chart(path: Path) -> None:
    """Before any measuring: UsageError for another suffix, a folder that is not there, or without matplotlib."""
    if path.suffix.lower() not in (".png", ".svg"):
        raise UsageError(f"{path}: a chart is written as .png or .svg", hint="choose a file name with that suffix")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"{path}: its folder does not exist", hint=f"mkdir -p {path.parent}")
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError("charts need matplotlib", hint="pip install 'meshctl[chart]'")


def write_chart(comparison: Comparison, path: Path) -> None:
    """A bar chart of every measurement with its prediction as a mark, PNG or SVG by the file's suffix.

    The path was checked by `check_chart`.
    """
    from matplotlib.figure import Figure

    lines, metrics = comparison.lines, _metrics(comparison)
    figure = Figure(figsize=(3 + 3 * len(metrics), 1.6 + 0.5 * len(lines)), layout="constrained")
    titles = dict(zip(METRICS, _titles(comparison)[2:], strict=False))
    for axes, what in zip(figure.subplots(1, len(metrics), sharey=True), metrics, strict=True):
        rates: list[Rate | None] = [getattr(one, what) for one in lines]
        medians = [rate.median if rate else 0.0 for rate in rates]
        errors = [[r.median - r.lowest if r else 0 for r in rates], [r.highest - r.median if r else 0 for r in rates]]
        colours = ["#2a6fdb" if one is comparison.cluster else "#7a8ba3" for one in lines]
        bars = axes.barh([one.name for one in lines], medians, xerr=errors, color=colours, capsize=3)
        axes.bar_label(bars, [f"{rate.median:.1f}" if rate else "not measured" for rate in rates], padding=4)
        promised = {one.name: getattr(one.predicted, what) for one in lines if one.predicted}
        axes.plot(list(promised.values()), list(promised), "k|", markersize=14)
        axes.set_xlabel(titles[what])
        axes.set_xlim(0, 1.35 * max([*medians, *promised.values(), 0.1]))
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{comparison.model} (black marks: predicted)")
    figure.axes[0].invert_yaxis()
    figure.savefig(path)


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=Text(title), title_justify="left", box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if "tokens/s" in column else "left")
    return table


def _metrics(comparison: Comparison) -> tuple[str, ...]:
    """All conversations at once are worth a column when there are several."""
    return METRICS if comparison.parallel > 1 else METRICS[:2]


def _titles(comparison: Comparison) -> list[str]:
    titles = ["name", "how", "prefill tokens/s", "decode tokens/s", f"{_conversations(comparison)} tokens/s"]
    return titles[: 2 + len(_metrics(comparison))]


def _conversations(comparison: Comparison) -> str:
    return f"{comparison.parallel} at once"


def _cells(comparison: Comparison, one: Measured) -> list[str]:
    return [one.name, one.how, *(_rate_text(getattr(one, what)) for what in _metrics(comparison)), one.note]


def _rate_text(rate: Rate | None) -> str:
    return "-" if rate is None else f"{rate.median:.1f} ({rate.lowest:.1f}-{rate.highest:.1f})"


def _predicted_text(one: Measured, what: str) -> str:
    error = prediction_error(one, what)
    return f"{getattr(one.predicted, what):.1f}" + ("" if error is None else f" ({error:+.0%})")


def _with_error(one: Measured, what: str) -> str:
    error = prediction_error(one, what)
    return _rate_text(getattr(one, what)) + ("" if error is None else f" [{error:+.0%}]")


def _numbers(one: Measured, what: str) -> list[str]:
    rate: Rate | None = getattr(one, what)
    measured = ["", "", ""] if rate is None else [f"{each:.3f}" for each in (rate.median, rate.lowest, rate.highest)]
    return [*measured, "" if one.predicted is None else f"{getattr(one.predicted, what):.3f}"]
