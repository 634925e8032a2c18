"""The JSON of a ranking, key by key: docs/plan.md promises it."""

import json
from dataclasses import replace
from pathlib import Path

from orchestrator.plan.values import Fallback, plan_key
from orchestrator.view.plan_json import ranking_json
from tests.orchestrator.view.plans import RANKING, SURVEY
from workers.budget import MIB

MADE = json.loads(ranking_json(RANKING, SURVEY))
ROOT = Path(__file__).parents[3]


def test_the_json_says_what_was_planned_for_and_every_plan_best_first() -> None:
    plans = MADE.pop("plans")
    assert MADE == {
        "survey": {
            "cluster": "demo",
            "taken_at": "2026-11-22T18:00:00Z",
            "engine": "cpu-linux-x86_64-1a2b3c4d5e6f",
        },
        "goal": "latency",
        "model": "llama.gguf",
        "context": 4096,
        "parallel": 4,
        "cache_type": "f16",
    }
    MADE["plans"] = plans
    assert [(plan["mode"], plan["key"]) for plan in plans] == [(plan.mode, plan_key(plan)) for plan in RANKING.plans]
    assert [round(plan["worse_by"], 3) for plan in plans] == [0, 0.2, 0.6, 0]


def test_a_plan_has_its_prediction_the_devices_left_out_and_reasons() -> None:
    plan = {key: value for key, value in MADE["plans"][0].items() if key not in ("groups", "key")}
    assert plan == {
        "mode": "layers",
        "worse_by": 0,
        "prediction": {
            "token_s": 0.125,
            "decode_tokens_per_s": 8,
            "prefill_tokens_per_s": 128,
            "first_token_s": 8.125,
            "aggregate_tokens_per_s": 16,
        },
        "left_out": [{"device": "hub/cpu", "reason": "its link costs 3.1 ms"}],
        "reasons": ["no single device holds the whole model"],
        "fallbacks": [],
    }


def test_fallbacks_say_what_is_done_without_a_host() -> None:
    kept = replace(RANKING.chosen, fallbacks=(Fallback("desk", RANKING.plans[1]),))
    made = json.loads(ranking_json(replace(RANKING, plans=(kept, *RANKING.plans[1:])), SURVEY))
    assert made["plans"][0]["fallbacks"] == [
        {
            "without": "desk",
            "mode": RANKING.plans[1].mode,
            "key": plan_key(RANKING.plans[1]),
            "context": 4096,
            "decode_tokens_per_s": RANKING.plans[1].decode_tokens_per_s,
            "aggregate_tokens_per_s": RANKING.plans[1].aggregate_tokens_per_s,
        }
    ]
    described = (ROOT / "docs" / "plan.md").read_text()
    assert [key for key in sorted(_keys(made)) if f"`{key}`" not in described] == []


def test_a_group_has_every_number_with_its_unit_in_the_key() -> None:
    group = MADE["plans"][0]["groups"][0]
    shares = group.pop("shares")
    assert group == {
        "mode": "layers",
        "known": "predicted",
        "parallel": 4,
        "micro_batch": 64,
        "flash_attention": "auto",
        "tensor_split": [5, 2],
        "prediction": {
            "token_s": 0.125,
            "decode_tokens_per_s": 8,
            "step_s": 0.25,
            "aggregate_tokens_per_s": 16,
            "prompt_tokens": 1024,
            "prefill_s": 8,
            "prefill_tokens_per_s": 128,
            "first_token_s": 8.125,
        },
        "traffic": {"hops": 2, "synchronisations": 2, "up_bytes": 16384, "down_bytes": 16384},
        "head": {
            "host": "",
            "output": True,
            "weights_bytes": 150 * MIB,
            "compute_bytes": 20 * MIB,
            "total_bytes": 170 * MIB,
            "time_s": 0.01,
        },
        "notes": ["desk/cpu computes natively"],
    }
    group["shares"] = shares
    assert shares[2] == {
        "device": "[pi]/cpu",
        "native": False,
        "first_layer": 9,
        "layers": 1,
        "part": 0,
        "output": False,
        "weights_bytes": 100 * MIB,
        "kv_bytes": 10 * MIB,
        "compute_bytes": 40 * MIB,
        "total_bytes": 150 * MIB,
        "margin_bytes": 16 * MIB,
        "budget_bytes": 800 * MIB,
        "time_s": 0.01,
        "link": {
            "kind": "tunnel",
            "medium": "wireless",
            "round_trip_s": 0.0031,
            "up_bytes_per_s": 12 * MIB,
            "down_bytes_per_s": 12 * MIB,
        },
    }


def test_a_single_has_no_tensor_split_and_one_in_mode_tensor_has_its_parts() -> None:
    assert [plan["groups"][0]["tensor_split"] for plan in MADE["plans"][1:]] == [[3, 1], None, None]


def test_every_key_is_described_in_the_documentation() -> None:
    described = (ROOT / "docs" / "plan.md").read_text()
    assert [key for key in sorted(_keys(MADE)) if f"`{key}`" not in described] == []


def _keys(value: object) -> set[str]:
    if isinstance(value, dict):
        return set(value).union(*(_keys(one) for one in value.values()))
    return set().union(*(_keys(one) for one in value)) if isinstance(value, list) else set()
