"""A model that is named by its repository or its link works wherever a model is named."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.engine.store import Engine
from orchestrator.survey.values import survey_json
from tests.end_to_end.inventories import write_local
from tests.orchestrator.plan.examples import make_device, make_survey
from tests.program import Meshctl
from tests.quant.web_server import WebServer, serving

pytestmark = pytest.mark.engine

REPOSITORY = "owner/smol-GGUF"


@pytest.fixture
def web(demo_model: Path, tmp_path: Path) -> Iterator[WebServer]:
    """A hub that has the demo model."""
    with serving() as server:
        server.repositories[REPOSITORY] = {"smol-Q4_1.gguf": demo_model.read_bytes()}
        server.files["smol.gguf"] = server.repositories[REPOSITORY]["smol-Q4_1.gguf"]
        yield server


def test_the_inventory_may_name_a_repository_or_a_link(
    engine: Engine, meshctl: Meshctl, web: WebServer, tmp_path: Path
) -> None:
    """The model is fetched by the first command that needs it, and by no later one."""
    cache = tmp_path / "cache"
    (cache / "meshctl").mkdir(parents=True)
    (cache / "meshctl" / "engines").symlink_to(engine.folder.parent)
    own = {"HF_ENDPOINT": web.url, "HF_HOME": str(tmp_path / "hf"), "XDG_CACHE_HOME": str(cache)}
    others = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    program = Meshctl(meshctl.folder, {**others, **meshctl.environment, **own})
    (tmp_path / "survey.json").write_text(survey_json(make_survey([make_device("part1/cpu", 4096)])))
    for model, shown in ((f"hf:{REPOSITORY}:Q4_1", "smol-GGUF:Q4_1"), (f"{web.url}/files/smol.gguf", "smol.gguf")):
        inventory = str(write_local(tmp_path / "inventory.yaml", hosts=1, model=model, context=512))
        plan = program.ok("plan", inventory, "--survey", str(tmp_path / "survey.json"), "--json").json
        assert plan["model"] == shown
        web.asked.clear()
        web.api.clear()
        program.ok("plan", inventory, "--survey", str(tmp_path / "survey.json"))
        assert (web.asked, web.api) == ([], [])
