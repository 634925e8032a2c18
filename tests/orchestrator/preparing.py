"""What has been prepared of a tiny model, with a survey and memories that are made up."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

from orchestrator.engine.store import Engine
from orchestrator.inventory import Inventory
from orchestrator.plan.experience import NO_EXPERIENCE
from orchestrator.plan.values import ModelMemory
from orchestrator.prepare import Prepared
from orchestrator.survey.values import Survey
from quant.gguf_file import read_model
from quant.synthetic import calibration_shape, write_random_model


def make_prepared(inventory: Inventory, memories: Sequence[ModelMemory], survey: Survey) -> Prepared:
    """Writes the model, a file in the inventory's folder."""
    folder: Path = inventory.path.parent
    write_random_model(folder / "tiny.gguf", replace(calibration_shape(2), embedding=64, heads=2, kv_heads=1), "F16")
    return Prepared(
        inventory=inventory,
        engine=cast(Engine, SimpleNamespace(folder=folder, manifest=SimpleNamespace(engine="cpu-test"))),
        engine_folders={},
        model=read_model(folder / "tiny.gguf"),
        memories=tuple(memories),
        survey=survey,
        experience=NO_EXPERIENCE,
    )
