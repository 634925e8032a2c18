"""The comparison as a table, JSON, CSV, Markdown and a bar chart."""

import csv
import importlib.util
import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from orchestrator.bench import Comparison, Measured, Rate
from orchestrator.errors import UsageError

COLUMNS = ("name", "how", "prefill tokens/s", "decode tokens/s", "note")


def bench_view(comparison: Comparison) -> RenderableType:
    """A table of every measurement, the ratios and the verdict."""
    size = comparison.size
    title = (
        f"{comparison.model}: prefill of {size.prompt} tokens, decode of {size.generate}, median of {size.repetitions}"
    )
    table = Table(title=Text(title), title_justify="left", box=None, pad_edge=False)
    for column in COLUMNS:
        table.add_column(column, justify="right" if "tokens/s" in column else "left")
    for one in _all(comparison):
        style = "bold" if one is comparison.cluster else ""
        table.add_row(*(Text(cell, style) for cell in _cells(one)))
    return Group(table, Text(), Text(ratio_text(comparison)), Text(comparison.verdict, "bold"))


def ratio_text(comparison: Comparison) -> str:
    """The cluster against the best single device, and against its own prediction."""
    predicted = f"predicted decode {comparison.predicted_decode_tokens_per_s:.1f} tokens/s"
    if comparison.decode_ratio is None or comparison.prefill_ratio is None:
        return f"Ratio to the best single device: none holds the model; {predicted}"
    decode, prefill = comparison.decode_ratio, comparison.prefill_ratio
    return f"Ratio to the best single device: decode {decode:.2f}, prefill {prefill:.2f}; {predicted}"


def bench_json(comparison: Comparison) -> str:
    """Every value of the comparison with its ratios and verdict."""
    fields: dict[str, Any] = asdict(comparison)
    extra = {
        "decode_ratio": comparison.decode_ratio,
        "prefill_ratio": comparison.prefill_ratio,
        "verdict": comparison.verdict,
    }
    return json.dumps(fields | extra, indent=2)


def bench_csv(comparison: Comparison) -> str:
    """One line per measurement; rates are medians with their lowest and highest."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    rates = [f"{what}_{which}" for what in ("prefill", "decode") for which in ("median", "lowest", "highest")]
    writer.writerow(["name", "how", *rates, "note"])
    for one in _all(comparison):
        writer.writerow([one.name, one.how, *_numbers(one.prefill), *_numbers(one.decode), one.note])
    return out.getvalue()


def bench_markdown(comparison: Comparison) -> str:
    """The table for a report."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---|---|--:|--:|---|"]
    lines += ["| " + " | ".join(_cells(one)) + " |" for one in _all(comparison)]
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
    """A bar chart of every measurement, PNG or SVG by the file's suffix, checked by `check_chart`."""
    from matplotlib.figure import Figure

    lines = _all(comparison)
    names = [one.name for one in lines]
    figure = Figure(figsize=(9, 1.6 + 0.5 * len(lines)), layout="constrained")
    for axes, what in zip(figure.subplots(1, 2, sharey=True), ("prefill", "decode"), strict=True):
        rates = [getattr(one, what) for one in lines]
        medians = [rate.median if rate else 0.0 for rate in rates]
        errors = [[r.median - r.lowest if r else 0 for r in rates], [r.highest - r.median if r else 0 for r in rates]]
        bars = axes.barh(names, medians, xerr=errors, color=["#7a8ba3"] * (len(lines) - 1) + ["#2a6fdb"], capsize=3)
        axes.bar_label(bars, [f"{rate.median:.1f}" if rate else "does not fit" for rate in rates], padding=4)
        axes.set_xlabel(f"{what} tokens/s")
        axes.set_xlim(0, 1.35 * max([*medians, 0.1]))
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(comparison.model)
    figure.axes[0].invert_yaxis()
    figure.savefig(path)


def _all(comparison: Comparison) -> tuple[Measured, ...]:
    return (*comparison.alone, comparison.cluster)


def _cells(one: Measured) -> tuple[str, str, str, str, str]:
    return one.name, one.how, _rate_text(one.prefill), _rate_text(one.decode), one.note


def _rate_text(rate: Rate | None) -> str:
    return "-" if rate is None else f"{rate.median:.1f} ({rate.lowest:.1f}-{rate.highest:.1f})"


def _numbers(rate: Rate | None) -> tuple[str, str, str]:
    return ("", "", "") if rate is None else (f"{rate.median:.3f}", f"{rate.lowest:.3f}", f"{rate.highest:.3f}")
