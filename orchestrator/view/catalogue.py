"""The models that meshctl knows by name, as a table and as JSON."""

import json
from collections.abc import Mapping
from dataclasses import asdict

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from orchestrator.view.sizes import bytes_text
from quant.catalogue import CatalogueModel

OTHERS = (
    "Others: meshctl pull hf:OWNER/REPOSITORY[:QUANTISATION], the link of a .gguf file, or the path of one. "
    "Context: the most a model was made for; inventory.yaml has what a conversation gets."
)


def catalogue_view(catalogue: Mapping[str, CatalogueModel]) -> RenderableType:
    """A row per model, and how to name those that are not among them."""
    table = Table(box=None, pad_edge=False)
    table.add_column("name", no_wrap=True)
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("context", justify="right")
    table.add_column("licence", no_wrap=True)
    table.add_column("what it is")
    for model in catalogue.values():
        facts = (model.name, bytes_text(model.size_bytes), str(model.context_length), model.licence, model.description)
        table.add_row(*(Text(fact) for fact in facts))
    return Group(table, Text(OTHERS, "dim"))


def catalogue_json(catalogue: Mapping[str, CatalogueModel]) -> str:
    """Every fact; `source` as `meshctl pull` takes it, or the package that holds the model."""
    return json.dumps([{**asdict(model), "source": model.source.text} for model in catalogue.values()], indent=2)
