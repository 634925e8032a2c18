"""The whole picture of a plan and what stands beside it, as a terminal of 80 columns shows it."""

from collections.abc import Sequence
from dataclasses import replace

from rich.console import RenderableType

from orchestrator.plan.values import Ranking
from orchestrator.view.plan import plan_view
from orchestrator.view.ranking import ranking_view
from tests.orchestrator.plan.examples import make_device, make_survey
from tests.orchestrator.view.plans import LAYERS, RANKING, SURVEY, TENSOR, plan, share, single
from tests.orchestrator.view.rendering import rendered

RANKED = """\
llama.gguf: layers over 3 devices, 4 conversations of 4096 tokens

 device              model             layers       MiB of budget  ms/tok
 ────────────────────────────────────────────────────────────────────────
 desk/cpu            ██████░░░░░░░░░░  0-3, native     499 of 800    40.0
 nuc/cpu             ░░░░░░████████░░  4-8             614 of 800    50.0
 [pi]/cpu            ░░░░░░░░░░░░░░██  9               166 of 800    10.0
 head on controller                    in, out       186 of 49152    10.0

goal         latency
decode       8.00 tok/s, 125 ms per token (predicted)
prefill      128 tok/s in micro-batches of 64
first token  after 8.1 s for a prompt of 1024 tokens
aggregate    16.0 tok/s in 4 conversations at once
memory       weights 1000 MiB, KV 100 MiB, buffers 120 MiB, in heads 170 MiB
network      2 hops and 2 synchronisations per token; 16.0 KiB up, 16.0 KiB down
link         nuc/cpu: tunnel, 250 µs, up 110 MiB/s, down 110 MiB/s
link         [pi]/cpu: wireless tunnel, 3.10 ms, up 12.0 MiB/s, down 12.0 MiB/s

 runners-up                      decode  prefill  first token  aggregate  worse
 ──────────────────────────────────────────────────────────────────────────────
 tensor desk/cpu 3, [pi]/cpu 1     6.67     64.0       16.1 s       8.00    20%
 single nuc/cpu                    5.00      256        4.2 s       10.0    60%
 single nuc/cpu + single           8.00      256        4.1 s       24.0  equal
 [pi]/cpu

decode, prefill and aggregate in tokens/s; worse: time per token

· hub/cpu left out: its link costs 3.1 ms
· no single device holds the whole model
· desk/cpu computes natively
"""

TENSOR_TEXT = """\
llama.gguf: tensor over 2 devices, 4 conversations of 4096 tokens

 device              model             part          MiB of budget  ms/tok
 ─────────────────────────────────────────────────────────────────────────
 desk/cpu            ████████████░░░░  3 of 4 (75%)    1186 of 800     100
 [pi]/cpu            ░░░░░░░░░░░░████  1 of 4 (25%)    1186 of 800     100
 head on controller                    in            86.0 of 49152

goal         latency
decode       6.67 tok/s, 150 ms per token (predicted, corrected by earlier runs)
prefill      64.0 tok/s in micro-batches of 256
first token  after 16.1 s for a prompt of 1024 tokens
aggregate    8.00 tok/s in 4 conversations at once
memory       weights 2.0 GiB, KV 200 MiB, buffers 80.0 MiB, in heads 70.0 MiB
network      1 hop and 20 synchronisations per token; 5.0 MiB up, 391 KiB down
link         [pi]/cpu: wireless tunnel, 3.10 ms, up 12.0 MiB/s, down 12.0 MiB/s

· no single device holds the whole model
"""

REPLICAS = """\
llama.gguf: replicas, 2 heads for 4 conversations of 4096 tokens
head 1: single on nuc/cpu, 2 conversations: one 8.00 tok/s, together 16.0 tok/s

 device    model             layers    MiB of budget  ms/tok
 ───────────────────────────────────────────────────────────
 nuc/cpu   ████████████████  0-9, out    1186 of 800     100

head 2: single on [pi]/cpu, 2 conversations: one 4.00 tok/s, together 8.00 tok/s

 device    model             layers    MiB of budget  ms/tok
 ───────────────────────────────────────────────────────────
 [pi]/cpu  ████████████████  0-9, out    1186 of 800     100

goal         latency
decode       8.00 tok/s, 125 ms per token (measured when it ran)
prefill      256 tok/s in micro-batches of 512
first token  after 4.1 s for a prompt of 1024 tokens
aggregate    24.0 tok/s in 4 conversations at once
memory       weights 2.0 GiB, KV 200 MiB, buffers 80.0 MiB
link         nuc/cpu: tunnel, 250 µs, up 110 MiB/s, down 110 MiB/s
link         [pi]/cpu: wireless tunnel, 3.10 ms, up 12.0 MiB/s, down 12.0 MiB/s

· no single device holds the whole model
"""


def narrow(view: RenderableType) -> str:
    """As `rendered`, at the width of a terminal that nobody has made larger."""
    return rendered(view, width=80)


def test_a_ranking_shows_the_chosen_plan_then_the_others_then_why_and_keeps_names_in_brackets() -> None:
    assert narrow(ranking_view(RANKING, SURVEY)) == RANKED


def test_in_mode_tensor_a_bar_is_the_part_of_every_layer() -> None:
    assert narrow(plan_view(RANKING.plans[1], SURVEY)) == TENSOR_TEXT


def test_replicas_show_each_head_with_its_own_picture() -> None:
    assert narrow(plan_view(RANKING.plans[3], SURVEY)) == REPLICAS


def test_even_long_names_and_sixteen_devices_fit_80_columns() -> None:
    shares = tuple(share(f"machine-number-{k:02}-of-the-lab/cpu", 10 * k, 10, native=k == 0) for k in range(16))
    wide = plan(replace(LAYERS, shares=shares))
    lines = narrow(ranking_view(Ranking((wide, plan(replace(TENSOR, shares=shares)))), SURVEY)).splitlines()
    assert max(len(line) for line in lines) <= 80
    text = "".join(lines)
    assert all(size in text for size in ("0-9, native", "150-159", "of 800"))


def test_every_device_has_at_least_one_cell_of_the_bar() -> None:
    shares = (share("a/cpu", 0, 99), share("b/cpu", 99, 1))
    shown = narrow(plan_view(plan(replace(LAYERS, shares=shares)), SURVEY))
    assert "███████████████" + "█" in shown
    assert "░" * 15 + "█" in shown


def test_of_runners_up_on_like_devices_of_one_machine_one_is_shown() -> None:
    devices = [make_device(f"{name}/cpu", 3000) for name in ("left", "right", "other")]
    plans = tuple(plan(single(device.name, 4, 0.1)) for device in devices)

    def shown(local: Sequence[str]) -> str:
        return narrow(ranking_view(Ranking(plans), make_survey(devices, local=local)))

    on_one_machine = shown(["left", "right"])
    assert "single right/cpu" not in on_one_machine
    assert "single other/cpu" in on_one_machine
    assert "1 more plan in --json" in on_one_machine
    assert "single right/cpu" in shown([])


def test_where_all_others_do_the_same_there_is_no_table_of_them() -> None:
    devices = [make_device(f"{name}/cpu", 3000) for name in ("left", "right")]
    plans = tuple(plan(single(device.name, 4, 0.1)) for device in devices)
    shown = narrow(ranking_view(Ranking(plans), make_survey(devices, local=["left", "right"])))
    assert "1 more plan in --json: the same on devices that are alike" in shown
    assert "runners-up" not in shown


def test_a_runner_up_that_only_seems_to_use_like_devices_the_other_way_round_is_told_apart() -> None:
    devices = [make_device(f"{name}/cpu", 3000) for name in ("left", "right")]
    shares = [share("left/cpu", 0, 1), share("right/cpu", 1, 9, output=True)]
    turned = [share("right/cpu", 0, 1), share("left/cpu", 1, 9, output=True)]
    first = replace(LAYERS, shares=tuple(shares), output_on_head=True)
    other = replace(LAYERS, shares=tuple(turned), output_on_head=False, token_s=2 * LAYERS.token_s)
    view = ranking_view(Ranking((plan(first), plan(other))), make_survey(devices, local=["left", "right"]))
    assert "output on the last" in " ".join(narrow(view).split())


def test_runners_up_beyond_the_first_six_are_counted() -> None:
    plans = tuple(plan(single("nuc/cpu", 4, 0.1 * k)) for k in range(1, 10))
    shown = narrow(ranking_view(Ranking(plans), SURVEY))
    assert "2 more plans in --json" in shown
    assert " 600%" in shown
    assert " 700%" not in shown


def test_plans_of_the_same_mode_and_devices_are_told_apart_by_what_differs() -> None:
    other = plan(replace(LAYERS, output_on_head=False, micro_batch=256, token_s=0.1251))
    shown = " ".join(narrow(ranking_view(Ranking((plan(LAYERS), other)), SURVEY)).split())
    assert "output on the" in shown
    assert "micro-batch" in shown
    assert "equal" in shown


def test_for_throughput_the_others_are_worse_by_their_aggregate() -> None:
    plans = (plan(LAYERS, goal="throughput"), plan(TENSOR, goal="throughput"))
    shown = narrow(ranking_view(Ranking(plans), SURVEY))
    assert " 50%" in shown
    assert "worse: aggregate lost" in shown


def test_a_lone_plan_has_no_runners_up() -> None:
    assert "runners-up" not in narrow(ranking_view(Ranking((plan(LAYERS),)), SURVEY))


def test_what_was_asked_for_of_flash_attention_is_in_the_title() -> None:
    shown = rendered(plan_view(replace(RANKING.chosen, flash_attention="off"), SURVEY))
    assert shown.splitlines()[0].endswith("4 conversations of 4096 tokens, flash attention off")


def test_another_cache_type_than_f16_is_in_the_title_and_beside_its_bytes() -> None:
    shown = rendered(plan_view(replace(RANKING.chosen, cache_type="q8_0"), SURVEY))
    assert shown.splitlines()[0] == "llama.gguf: layers over 3 devices, 4 conversations of 4096 tokens in q8_0"
    assert "memory       weights 1000 MiB, KV in q8_0 100 MiB, buffers 120 MiB, in heads 170 MiB" in shown.splitlines()
