"""How perplexities are shown: one table for all models, each beside the first."""

import json
from collections.abc import Sequence

from rich.table import Column, Table
from rich.text import Text

from orchestrator.perplexity import Told
from orchestrator.view.sizes import bytes_text
from quant.quantisations import bits_per_weight


def perplexities_view(told: Sequence[Told]) -> Table:
    """A row per model; the ratio says how much more surprised it is than the first."""
    table = Table(Column("model", overflow="fold"), box=None, pad_edge=False)
    for title in ("size", "bits/weight", "perplexity", "ratio"):
        table.add_column(title, justify="right")
    for one in told:
        found = one.perplexity
        table.add_row(
            Text(one.model.path.stem),
            bytes_text(one.model.size_bytes),
            f"{bits_per_weight(one.model):.2f}",
            f"{found.value:.4f} ± {found.uncertainty:.4f}",
            f"{found.value / told[0].perplexity.value:.4f}",
        )
    return table


def measured_text(told: Sequence[Told], text: str) -> str:
    """What all of them were measured on."""
    found = told[0].perplexity
    chunks = "chunk" if found.chunks == 1 else "chunks"
    return f"{text}: {found.chunks} {chunks} of {found.context} tokens; less is better"


def perplexities_json(told: Sequence[Told]) -> str:
    """One object per model, in the order they were named."""
    return json.dumps([_as_json(one, told[0]) for one in told], indent=2)


def _as_json(one: Told, first: Told) -> dict[str, object]:
    return {
        "model": one.model.path.name,
        "path": str(one.model.path),
        "quantisation": one.model.quantisation,
        "size_bytes": one.model.size_bytes,
        "bits_per_weight": bits_per_weight(one.model),
        "perplexity": one.perplexity.value,
        "uncertainty": one.perplexity.uncertainty,
        "chunks": one.perplexity.chunks,
        "context": one.perplexity.context,
        "ratio": one.perplexity.value / first.perplexity.value,
    }
