"""How it is shown which models lie where."""

import json

from orchestrator.errors import ConnectError, MeshctlError
from orchestrator.host_cache import Item
from orchestrator.kept_models import Kept
from orchestrator.view.kept_models import models_json, models_table, quota_text
from tests.orchestrator.view.rendering import rendered

MIB = 1024**2
HERE = Kept("a.gguf", "controller", "model", (Item("models", "a.gguf", 50 * MIB, 0.0, False, True, False),), "Q4_K")
THERE = Kept("a.gguf", "big", "weights", (Item("packs", "a-0f", 20 * MIB, 0.0, True, True, True),), "Q4_K", True)
OTHER = Kept("b", "big", "weights", (Item("packs", "b-0f", MIB, 0.0, False, True, True),))


def test_a_model_stands_together_this_machine_first() -> None:
    assert rendered(models_table((OTHER, THERE, HERE), 7200.0)) == (
        "model  where       what                  mostly      size  last used\n"
        "a      controller  model                 Q4_K    50.0 MiB  2 h ago\n"
        "a      big         weights for a worker  Q4_K    20.0 MiB  in use\n"
        "b      big         weights for a worker  -        1.0 MiB  2 h ago\n"
    )


def test_the_quota_is_about_the_models_on_this_machine() -> None:
    assert quota_text((OTHER, THERE, HERE), 80 * MIB, "/models") == "/models: 50.0 MiB, the quota is 80.0 MiB"
    assert quota_text((), None, "/models") == "/models: 0 B, no quota"


def test_json_has_every_host_also_one_that_failed() -> None:
    listed: dict[str, tuple[Kept, ...] | MeshctlError] = {
        "controller": (HERE,),
        "big": (THERE,),
        "off": ConnectError("off", "is off"),
    }
    assert json.loads(models_json(listed, 5, "/models")) == {
        "folder": "/models",
        "quota_bytes": 5,
        "hosts": {
            "controller": [
                {
                    "model": "a.gguf",
                    "what": "model",
                    "quantisation": "Q4_K",
                    "size_bytes": 50 * MIB,
                    "used_s": 0.0,
                    "in_use": False,
                    "places": ["models/a.gguf"],
                }
            ],
            "big": [
                {
                    "model": "a.gguf",
                    "what": "weights",
                    "quantisation": "Q4_K",
                    "size_bytes": 20 * MIB,
                    "used_s": 0.0,
                    "in_use": True,
                    "places": ["packs/a-0f"],
                }
            ],
            "off": {"error": "off: is off"},
        },
    }
