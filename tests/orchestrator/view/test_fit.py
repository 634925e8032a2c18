"""How the table of `meshctl model fit` looks, and what of it programs get."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.fitting import Answer, Question
from orchestrator.inventory import Host, Inventory
from orchestrator.plan.asked import Asked
from orchestrator.plan.fit import Memories, OnText, Option, Where, fit_all
from orchestrator.plan.retyped import work_of
from orchestrator.survey.values import KernelRate
from orchestrator.view.fit import MAY_GO, columns_for, fit_json, fit_view, next_moves
from quant.quantisations import bits_per_weight
from tests.orchestrator.plan.examples import make_device, make_memories, make_memory, make_survey
from tests.orchestrator.plan.typed_models import LAYERS, make_model
from tests.orchestrator.view.rendering import rendered
from workers.engine_commands import CacheType

RATES = tuple(KernelRate(kind, (1, 64), (seconds, 12.0)) for kind, seconds in (("Q4_0", 4.0), ("Q8_0", 4.4)))
INVENTORY = Inventory(Path("inventory.yaml"), "demo", "made-F16.gguf", (Host("a", "ssh"),), context=4096)
TEXT = OnText("0f12", 512, 8, "engine", "wiki.txt")


def option(
    kind: str, where: Where, perplexities: Mapping[OnText, float] | None = None, lost: tuple[str, ...] = ()
) -> Option:
    model, origin = make_model(kind, output=kind), "made-F16.gguf" if where == "make" else ""
    bits = bits_per_weight(model)
    return Option(kind, where, model, model.size_bytes, bits, bits, work_of(model), lost, origin, perplexities or {})


def answer(
    options: Sequence[Option],
    cache_types: tuple[CacheType, ...] = ("f16",),
    mib: int = 1200,
    written: Inventory = INVENTORY,
    asked: Asked | None = None,
    refused: str = "",
) -> Answer:
    device = make_device("a/cpu", mib)
    rated = replace(device, speed=replace(device.speed, rates=RATES), native=replace(device.native, rates=RATES))
    survey = make_survey([rated])
    memories: Memories = {(4096, kind): refused or make_memories(make_memory(LAYERS)) for kind in cache_types}
    surveyed = work_of(make_model("Q4_0", output="Q4_0"))
    rows = fit_all(survey, surveyed, options, memories, asked or Asked("latency"), "balance")
    question = Question("made-F16.gguf", Path(), INVENTORY, written, (4096,), cache_types)
    return Answer("made-F16.gguf", question, rows, survey)


def shown(found: Answer) -> str:
    return rendered(fit_view(found), columns_for(found))


OPTIONS = (
    option("F16", "here"),
    option("Q8_0", "make", {TEXT: 9.876}),
    option("Q4_0", "make"),
    option("Q2_K", "make"),
)


def test_a_table_says_what_fits_which_is_best_and_why() -> None:
    assert (
        shown(answer(OPTIONS))
        == """\
made-F16.gguf, 4096 tokens, 1 conversation, for latency

    type  where          size   bits  perplexity  how it would run          decode  prefill  first token  speed from
 ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────
    F16   here        1.5 GiB  16.00              lacks 431 MiB of 1.6 GiB
 →  Q8_0  to be made  816 MiB   8.50        9.88  single a/cpu                23.5      320        3.2 s  kernels
    Q4_0  to be made  432 MiB   4.50              single a/cpu                25.8      306        3.4 s  timed
    Q2_K  to be made  252 MiB   2.63              single a/cpu                44.3      306        3.4 s  bytes

→ best: Q8_0 is the most precise of those that keep 80% or more of the speed of Q4_0, the fastest with 4 bits or more
(25.8 tok/s)
  to make it: meshctl model quantise made-F16.gguf --type Q8_0
  to run it: model: the path that it prints in the inventory, then meshctl up

decode and prefill in tokens/s. bits: per weight, on average. speed from:
  timed: on slices of this very model
  kernels: worked out of how fast each device's kernels are for its tensor types
  bytes: worked out of its size, since kernels of its types were not timed: may be far off
perplexity: of wiki.txt, 8 chunks of 512 tokens; less is better
"""
    )


def test_json_has_the_rows_and_the_choice() -> None:
    found = json.loads(fit_json(answer(OPTIONS)))
    best = {"type": "Q8_0", "context": 4096, "cache_type": "f16", "place": None, "origin": "made-F16.gguf"}
    assert (found["best"], found["prefer"], found["parallel"]) == (best, "balance", 1)
    assert [(row["type"], row["fits"], row["best"], row["speed_from"]) for row in found["rows"]] == [
        ("F16", False, False, None),
        ("Q8_0", True, True, "kernels"),
        ("Q4_0", True, False, "timed"),
        ("Q2_K", True, False, "bytes"),
    ]
    assert found["rows"][1]["perplexities"] == [
        {"value": 9.876, "text": "wiki.txt", "text_digest": "0f12", "context": 512, "chunks": 8, "engine": "engine"}
    ]
    assert found["rows"][0]["short"]["there_bytes"] == 1200 * 1024 * 1024
    assert found["rows"][1]["plan"]["devices"] == ["a/cpu"]


@pytest.mark.parametrize(
    ("room", "gone"),
    [(None, ()), (200, ()), (105, ("first token",)), (85, ("first token", "speed from", "bits")), (20, MAY_GO)],
)
def test_in_a_narrow_terminal_some_columns_are_left_out_and_that_is_said(
    room: int | None, gone: tuple[str, ...]
) -> None:
    found = answer(OPTIONS)
    text = rendered(fit_view(found, room), columns_for(found, room))
    header = text.splitlines()[2]
    assert [title for title in MAY_GO if title not in header] == list(gone)
    assert all(title in header for title in ("type", "size", "how it would run", "decode", "prefill"))
    assert ("in a terminal of" in text) == bool(gone)
    if room and room > 20:
        rows = [line.rstrip() for line in text.splitlines()[2:8]]
        assert max(map(len, rows)) <= room
    assert ("speed from:" in text) == ("speed from" not in gone)


def test_where_nothing_fits_the_move_is_told_and_nothing_is_chosen() -> None:
    none = answer(OPTIONS[:1])
    assert shown(none).splitlines()[5:] == [
        "",
        "Nothing fits: take a smaller context, a smaller model, or add a host",
        "",
        "bits: per weight, on average.",
    ]
    assert json.loads(fit_json(none))["best"] is None


def test_what_it_is_that_keeps_a_model_from_running_is_told() -> None:
    """A smaller model would not help where no host can be spared."""
    text = shown(answer(OPTIONS[2:3], asked=Asked("latency", survive=1)))
    said = " ".join(text.split())
    assert "Nothing can run: `survive: 1` cannot be kept: without a, there is no other host" in said
    assert "add memory or a host, set `minimum_context` lower, or remove `survive`" in said
    assert "Nothing fits" not in text
    refused = shown(answer(OPTIONS[2:3], ("q8_0",), refused="no such heads"))
    assert "refused: no such heads" in refused
    assert "Nothing can run: no such heads" in refused


def test_several_cache_types_are_told_apart() -> None:
    text = shown(answer(OPTIONS[2:3], ("f16", "q8_0")))
    rows = [line.split() for line in text.splitlines() if "single a/cpu" in line]
    assert [(row[0], "f16" in row[:9], "q8_0" in row) for row in rows] == [
        ("→", True, False),
        ("Q4_0", False, True),
    ]
    assert [row[-3:] for row in rows] == [["3.4", "s", "timed"], ["timed", "with", "f16"]]
    assert "  with f16: keys and values were f16 when it was timed; prompts may be read at another speed\n" in text


def test_what_was_made_of_a_lossy_one_says_so() -> None:
    text = shown(answer([option("Q8_0", "here", lost=("Q4_1",)), option("Q4_0", "make", lost=("Q4_1",))]))
    assert "Q8_0  here, of a lossy one  816 MiB" in text
    assert "Q4_0  of a lossy one        432 MiB" in text
    lossy = answer([option("Q4_0", "make", lost=("Q4_1",))])
    assert next_moves(lossy)[0] == ("to make it: meshctl model quantise made-F16.gguf --type Q4_0 --allow-requantise")


def test_the_next_move_names_all_that_the_inventory_has_otherwise() -> None:
    here, published = option("Q4_0", "here"), option("Q4_0", "hub")
    assert next_moves(answer([here])) == ["to run it: model: /models/made.gguf in the inventory, then meshctl up"]
    other = replace(INVENTORY, context=8192, parallel=2, goal="throughput")
    assert next_moves(answer([here], ("q8_0",), written=other)) == [
        "to run it: model: /models/made.gguf, context: 4096, cache_type: q8_0, parallel: 1, goal: latency in the "
        "inventory, then meshctl up"
    ]
    found = answer([published])
    asked = replace(found, question=replace(found.question, model="hf:owner/made-GGUF"))
    assert next_moves(asked) == ["to run it: model: hf:owner/made-GGUF:Q4_0 in the inventory, then meshctl up"]


def test_what_is_to_be_made_names_its_origin_as_a_shell_takes_it() -> None:
    spaced = replace(option("Q4_0", "make"), origin="/my models/own-F16.gguf")
    found = answer([spaced])
    asked = replace(found, question=replace(found.question, importance=Path("own.imatrix.gguf")))
    assert next_moves(asked) == [
        "to make it: meshctl model quantise '/my models/own-F16.gguf' --type Q4_0 --imatrix own.imatrix.gguf",
        "to run it: model: the path that it prints in the inventory, then meshctl up",
    ]


def test_a_context_that_the_model_was_not_made_for_is_told() -> None:
    short = replace(OPTIONS[2], model=replace(OPTIONS[2].model, context_length=2048))
    text = shown(answer([short]))
    assert "this model was made for 2048 tokens: beyond them (context 4096) its answers get worse" in text


def test_a_command_is_never_folded() -> None:
    """It could not be copied."""
    far = answer([replace(option("Q4_0", "make"), origin=f"/{'far/' * 40}own-F16.gguf")])
    assert any(line.endswith("own-F16.gguf --type Q4_0") for line in shown(far).splitlines())


def test_what_was_timed_with_weights_at_random_is_told() -> None:
    found = answer(OPTIONS)
    (host,) = found.survey.hosts
    (device,) = host.devices
    made_up = replace(device, speed=replace(device.speed, source="made up"))
    survey = replace(found.survey, hosts=(replace(host, devices=(made_up,)),))
    told = "what was timed had weights at random: the model's own are not here"
    assert told not in shown(found)
    assert told in shown(replace(found, survey=survey))


def test_what_was_asked_for_of_flash_attention_is_told() -> None:
    found = answer(OPTIONS)
    off = replace(found, question=replace(found.question, inventory=replace(INVENTORY, flash_attention="off")))
    assert shown(off).splitlines()[0] == "made-F16.gguf, 4096 tokens, flash attention off, 1 conversation, for latency"
    assert [json.loads(fit_json(one))["flash_attention"] for one in (found, off)] == ["auto", "off"]


def keys_of(found: object) -> set[str]:
    """All names in it, however deep."""
    match found:
        case dict():
            return set(found) | set().union(*map(keys_of, found.values()))
        case list():
            return set().union(*map(keys_of, found))
    return set()


def test_the_page_on_models_names_every_key_of_the_json() -> None:
    page = (Path(__file__).parents[3] / "docs" / "models.md").read_text()
    line = next(line for line in page.splitlines() if line.startswith("| `--json` |"))
    named = set(re.findall(r"`(\w+)`", line))
    assert sorted(keys_of(json.loads(fit_json(answer(OPTIONS)))) - named) == []
