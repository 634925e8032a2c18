"""The whole text of a plan, and its JSON."""

import json

from orchestrator.plan.choose import make_plan
from orchestrator.survey.values import Link
from orchestrator.view.plan import plan_json, plan_view
from tests.orchestrator.plan.examples import LOOPBACK, make_device, make_memory, make_survey
from tests.orchestrator.view.rendering import rendered
from workers.budget import MIB

FAR = Link("tunnel", round_trip_s=0.0031, up_bytes_per_s=12 * MIB, down_bytes_per_s=12 * MIB)
EXACT_LINK = Link("tunnel", round_trip_s=2**-12, up_bytes_per_s=2.0**26, down_bytes_per_s=2.0**26)
"""With hidden states of 8192 bytes a stage costs 2^-11 s: exact in binary."""

SURVEY = make_survey(
    [
        make_device("desk/cpu", 700, link=LOOPBACK),
        make_device("nuc/cpu", 800, gib_per_s=6),
        make_device("[pi]/cpu", 900, gib_per_s=1, link=FAR),
    ],
    local=["desk"],
)

LAYERS = """\
llama.gguf: layers over 2 devices, 1 conversation of 4096 tokens
predicted: decode 7.12 tok/s (140 ms per token), prefill 83.1 tok/s

 device (MiB)       layers   weights    KV  compute  needs  budget  ms/tok  time
 ───────────────────────────────────────────────────────────────────────────────
 desk/cpu           0-4          500  50.0     40.0    614     700    48.8   35%
 nuc/cpu            5-9          500  50.0     40.0    614     800    81.8   58%
 head (controller)  in, out      150     -     20.0    186   49152    9.77    7%

· no single device holds the whole model: it needs 1.3 GiB, the largest budget is 900 MiB ([pi]/cpu)
· output layer on the head: 140 ms per token, on the last device 147 ms; 195 KiB of logits per token
  stay off the link
· the head is taken to be as fast as desk/cpu through RPC
· [pi]/cpu left out: with 1 of 10 layers it would compute 81.4 ms per token slower than others, and
  costs 4.40 ms as one more stage (round trip 3.10 ms)
"""

SINGLE = """\
llama.gguf: single on pc/cuda0, 1 conversation of 4096 tokens
predicted: decode 9.31 tok/s (107 ms per token), prefill 110 tok/s

 device (MiB)  layers    weights   KV  compute  needs  budget  ms/tok  time
 ──────────────────────────────────────────────────────────────────────────
 pc/cuda0      0-9, out     1100  100     60.0   1310    2000     107  100%
 head (pc)     in           50.0    -     20.0   86.0   49152    0.00    0%

· pc/cuda0 holds the whole model: 107 ms per token, the best split 108 ms
· predicted from pc/cuda0's speed through RPC; run natively it is usually as fast or faster
· pc/cpu left out: alone it would need 1.3 GiB, its budget is 900 MiB
"""


def test_a_split_shows_every_share_the_head_and_why_and_keeps_names_in_brackets() -> None:
    assert rendered(plan_view(make_plan(SURVEY, make_memory(), goal="latency"), SURVEY)) == LAYERS


def test_a_single_device_shows_itself_and_what_its_head_needs_of_main_memory() -> None:
    survey = make_survey([make_device("pc/cuda0", 2000, kind="cuda"), make_device("pc/cpu", 900)])
    assert rendered(plan_view(make_plan(survey, make_memory(), goal="latency"), survey)) == SINGLE


def test_the_json_has_every_number_with_its_unit_in_the_key() -> None:
    survey = make_survey(
        [
            make_device("a/cpu", 700, gib_per_s=8, link=EXACT_LINK),
            make_device("b/cpu", 750, gib_per_s=4, link=EXACT_LINK),
            make_device("c/cpu", 90, gib_per_s=2, link=EXACT_LINK),
        ],
        local=["c"],
    )
    plan = make_plan(survey, make_memory(output_mib=64, logits_bytes=8192), goal="latency")
    a_s, b_s = 500 / 8192 + 2**-11, 564 / 4096 + 2**-11
    assert json.loads(plan_json(plan, survey)) == {
        "survey": {
            "cluster": "demo",
            "taken_at": "2026-11-22T18:00:00Z",
            "engine": "cpu-linux-x86_64-1a2b3c4d5e6f",
        },
        "mode": "layers",
        "model": "llama.gguf",
        "context": 4096,
        "parallel": 1,
        "micro_batch": 512,
        "tensor_split": [5, 6],
        "shares": [
            {
                "device": "a/cpu",
                "first_layer": 0,
                "layers": 5,
                "output": False,
                "weights_bytes": 500 * MIB,
                "kv_bytes": 50 * MIB,
                "compute_bytes": 40 * MIB,
                "total_bytes": 590 * MIB,
                "margin_bytes": 24746394,
                "budget_bytes": 700 * MIB,
                "time_s": a_s,
                "time_share": a_s / (a_s + b_s),
            },
            {
                "device": "b/cpu",
                "first_layer": 5,
                "layers": 5,
                "output": True,
                "weights_bytes": 564 * MIB,
                "kv_bytes": 50 * MIB,
                "compute_bytes": 60 * MIB,
                "total_bytes": 674 * MIB,
                "margin_bytes": 28269609,
                "budget_bytes": 750 * MIB,
                "time_s": b_s,
                "time_share": b_s / (a_s + b_s),
            },
        ],
        "head": {
            "host": "",
            "output": False,
            "weights_bytes": 50 * MIB,
            "compute_bytes": 20 * MIB,
            "total_bytes": 70 * MIB,
            "time_s": 0.0,
            "time_share": 0.0,
        },
        "prediction": {
            "token_s": a_s + b_s,
            "decode_tokens_per_s": 1 / (a_s + b_s),
            "prefill_token_s": plan.prefill_token_s,
            "prefill_tokens_per_s": 1 / plan.prefill_token_s,
        },
        "reasons": list(plan.reasons),
        "left_out": [
            {
                "device": "c/cpu",
                "reason": "budget 90.0 MiB holds no layer: the smallest needs 166 MiB with its buffers and margin",
            }
        ],
    }


def test_a_single_plan_has_no_tensor_split() -> None:
    survey = make_survey([make_device("a/cpu", 2000)])
    assert json.loads(plan_json(make_plan(survey, make_memory(), goal="latency"), survey))["tensor_split"] is None
