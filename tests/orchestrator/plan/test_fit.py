"""The table of quantisations: each as the planner has it, and the best as a second, plainer way to choose has it."""

import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

import pytest

from orchestrator.errors import PlanError
from orchestrator.plan.asked import Asked
from orchestrator.plan.choose import rank_plans
from orchestrator.plan.conversations import with_kv
from orchestrator.plan.experience import Experience, Measured, Record
from orchestrator.plan.fit import (
    PREFERENCES,
    Fit,
    OnText,
    Option,
    Prefer,
    Short,
    Where,
    compared_on,
    fit_all,
    why_best,
)
from orchestrator.plan.retyped import retyped_memory, retyped_survey, work_of
from orchestrator.plan.values import ModelMemory, group_key
from orchestrator.survey.values import KernelRate, Survey
from quant.quantisations import bits_per_weight
from tests.orchestrator.plan.examples import make_device, make_memories, make_memory, make_survey
from tests.orchestrator.plan.typed_models import LAYERS, make_model
from workers.budget import MIB
from workers.engine_commands import CacheType

KINDS = ("Q2_K", "Q3_K", "IQ4_XS", "Q4_0", "Q4_1", "Q4_K", "Q5_0", "Q5_1", "Q5_K", "Q6_K", "Q8_0", "F16")
CONTEXTS = (4096, 16384, 32768)
LATENCY = Asked("latency")


def option(kind: str, where: Where = "make", down: str | None = None, lost: tuple[str, ...] = ()) -> Option:
    model = make_model(kind, down, output=kind)
    name, bits = f"{kind}+{down}" if down else kind, bits_per_weight(model)
    return Option(name, where, model, model.size_bytes, bits, bits, work_of(model), lost)


def memories(contexts: Sequence[int] = CONTEXTS) -> dict[int, tuple[ModelMemory, ...]]:
    counted = make_memories(make_memory(LAYERS, kv_mib=16))
    return {context: tuple(with_kv(one, context, one.parallel) for one in counted) for context in contexts}


def with_kernels(survey: Survey, rates: Callable[[], tuple[KernelRate, ...]]) -> Survey:
    """With such rates on every path."""
    hosts = tuple(
        replace(
            host,
            devices=tuple(
                replace(one, speed=replace(one.speed, rates=rates()), native=replace(one.native, rates=rates()))
                for one in host.devices
            ),
        )
        for host in survey.hosts
    )
    return replace(survey, hosts=hosts, controller_speed=replace(survey.controller_speed, rates=rates()))


def rated(survey: Survey, seed: int) -> Survey:
    """Kernels as different as real ones: up to four times by type, on each path otherwise."""
    chance = random.Random(seed)

    def rates() -> tuple[KernelRate, ...]:
        return tuple(
            KernelRate(kind, (1, 8, 64), (chance.uniform(1, 4), chance.uniform(4, 8), chance.uniform(8, 32)))
            for kind in KINDS
        )

    return with_kernels(survey, rates)


def decoding(survey: Survey, weight_s: Mapping[str, float]) -> Survey:
    """These kernels take so long for a token, and all as long for a prompt."""
    rates = tuple(KernelRate(kind, (1, 64), (seconds, 12.0)) for kind, seconds in weight_s.items())
    return with_kernels(survey, lambda: rates)


def survey_of(*budgets_mib: int, seed: int = 1) -> Survey:
    devices = [make_device(f"{name}/cpu", mib) for name, mib in zip("abc", budgets_mib, strict=False)]
    return rated(make_survey(devices), seed)


def table(
    survey: Survey,
    options: Sequence[Option],
    prefer: Prefer = "balance",
    contexts: Sequence[int] = CONTEXTS,
    asked: Asked = LATENCY,
) -> tuple[Fit, ...]:
    by_context: dict[tuple[int, CacheType], tuple[ModelMemory, ...]]
    by_context = {(context, "f16"): counted for context, counted in memories(contexts).items()}
    return fit_all(survey, work_of(make_model("Q4_0", output="Q4_0")), options, by_context, asked, prefer)


def best_of(rows: Sequence[Fit]) -> list[str]:
    return [row.option.name for row in rows if row.best]


def seconds_by_brute_force(survey: Survey, options: Sequence[Option]) -> dict[int, dict[str, float]]:
    """By context what a token takes of every option that fits, by every plan of it."""
    seconds: dict[int, dict[str, float]] = {context: {} for context in CONTEXTS}
    for context, counted in memories().items():
        for one in options:
            retyped = retyped_survey(survey, work_of(make_model("Q4_0", output="Q4_0")), one.work)
            with suppress(PlanError):
                ranking = rank_plans(retyped, [retyped_memory(memory, one.model) for memory in counted], LATENCY)
                seconds[context][one.name] = ranking.chosen.token_s
    return seconds


def best_in_plain_words(seconds: dict[str, float], bits: dict[str, float], prefer: Prefer) -> list[str]:
    """None where nothing fits."""
    sound = [name for name in seconds if bits[name] >= 4] or list(seconds)
    if not sound:
        return []
    fastest = min(seconds[name] for name in sound)
    if prefer == "speed":
        return [min(sound, key=lambda name: seconds[name])]
    near = [name for name in sound if prefer == "quality" or fastest / seconds[name] >= 0.8]
    most = max(min(8.5, bits[name]) for name in near)
    return [min((name for name in near if min(8.5, bits[name]) == most), key=lambda name: seconds[name])]


@pytest.mark.parametrize("seed", range(4))
def test_the_table_picks_what_brute_force_picks(seed: int) -> None:
    budgets = random.Random(seed).choices((200, 500, 900, 1500, 3000), k=3)
    survey, options = survey_of(*budgets, seed=seed), [option(kind) for kind in KINDS]
    seconds, bits = seconds_by_brute_force(survey, options), {one.name: one.bits_per_weight for one in options}
    for prefer in PREFERENCES:
        rows = table(survey, options, prefer)
        assert len(rows) == len(KINDS) * len(CONTEXTS)
        for context in CONTEXTS:
            best = [row.option.name for row in rows if row.best and row.context == context]
            assert best == best_in_plain_words(seconds[context], bits, prefer)


def test_rows_are_the_planners_own_plans_the_most_bits_first() -> None:
    survey, options = survey_of(3000), [option("Q4_0"), option("Q8_0")]
    rows = table(survey, options, contexts=(4096,))
    assert [row.option.name for row in rows] == ["Q8_0", "Q4_0"]
    assert [row.speed_from for row in rows] == ["kernels", "timed"]
    timed = rows[1].plan
    own = [retyped_memory(memory, options[0].model) for memory in memories()[4096]]
    assert timed == rank_plans(survey, own, LATENCY).chosen


def test_what_does_not_fit_says_what_is_short() -> None:
    (row,) = table(survey_of(300), [option("F16")], contexts=(4096,))
    assert row.plan is None
    assert row.short is not None
    assert row.short.there_bytes == 300 * MIB
    assert row.short.needed_bytes > 1400 * MIB
    assert row.short.reason.startswith("llama.gguf needs ")
    assert not row.best


def test_what_lacks_more_than_memory_says_so_in_the_planners_words() -> None:
    """With a host to spare it would fit; without any device no number tells why."""
    two = survey_of(500, 500)
    assert best_of(table(two, [option("Q4_0")], contexts=(4096,)))
    (row,) = table(two, [option("Q4_0")], contexts=(4096,), asked=Asked("latency", survive=1))
    assert row.short is not None
    assert (row.short.needed_bytes, row.short.reason.partition(",")[0]) == (0, "`survive: 1` cannot be kept: without a")
    assert "remove `survive`" in row.short.hint
    (row,) = table(make_survey([make_device("a/cpu", 300, gib_per_s=0)]), [option("Q4_0")], contexts=(4096,))
    assert row.short is not None
    assert (row.short.needed_bytes, row.short.reason.partition("\n")[0]) == (0, "no device can be used")


def test_what_had_lost_precision_is_taken_only_where_nothing_else_fits() -> None:
    """Also when it has been made already, and has more bits than what it was made of."""
    places: tuple[Where, ...] = ("make", "here")
    for where in places:
        options = [option("Q8_0", where, lost=("Q4_1",)), option("Q4_1", "here")]
        for prefer in PREFERENCES:
            assert best_of(table(survey_of(3000), options, prefer, (4096,))) == ["Q4_1"]
    rows = table(survey_of(900), [option("Q4_K", lost=("Q8_0",)), option("F16", "here")], "quality", (4096,))
    assert best_of(rows) == ["Q4_K"]


def test_fewer_than_four_bits_are_taken_only_where_nothing_else_fits() -> None:
    small = [option("Q2_K"), option("Q8_0")]
    assert best_of(table(survey_of(3000), small, "speed", (4096,))) == ["Q8_0"]
    assert best_of(table(survey_of(640), small, "speed", (4096,))) == ["Q2_K"]


def test_how_sound_it_is_goes_by_the_type_and_not_by_what_larger_types_fill_up() -> None:
    """Q2_K of a small model has 5 bits on average, and is no better for them."""
    filled = replace(option("Q5_0"), name="Q2_K", quality_bits=3.16)
    for prefer in PREFERENCES:
        assert best_of(table(survey_of(3000), [filled, option("Q4_0")], prefer, (4096,))) == ["Q4_0"]


def test_beyond_eight_bits_and_a_half_the_faster_is_taken() -> None:
    survey = decoding(survey_of(4000), {"Q4_0": 4.0, "Q8_0": 4.4, "F16": 8.0, "F32": 16.0})
    options = [option(kind) for kind in ("F32", "F16", "Q8_0", "Q4_0")]
    rows = table(survey, options, "quality", (4096,))
    assert best_of(rows) == ["Q8_0"]
    (best,) = (row for row in rows if row.best)
    assert why_best(best, rows, "quality") == (
        "Q8_0 is the most precise that fits, where from 8.5 bits on all count alike"
    )


TEXT, OTHER = OnText("0f12", 512, 8, "engine", "wiki.txt"), OnText("77aa", 512, 8, "engine", "wiki.txt")


def measured(kind: str, values: Mapping[OnText, float]) -> Option:
    return replace(option(kind), perplexities=values)


def test_perplexities_on_one_text_go_before_bits() -> None:
    """But not those on another text of the same name, nor differences that are none."""
    survey, worse = survey_of(3000), measured("Q8_0", {TEXT: 10.0, OTHER: 7.0})
    for better, best in (
        (measured("Q6_K", {TEXT: 9.5}), "Q6_K"),
        (measured("Q6_K", {TEXT: 9.9}), "Q8_0"),
        (measured("Q6_K", {replace(TEXT, text_digest="other"): 9.5}), "Q8_0"),
        (measured("Q6_K", {replace(TEXT, engine="other"): 9.5}), "Q8_0"),
        (measured("Q6_K", {replace(TEXT, text="moved.txt"): 9.5}), "Q6_K"),
    ):
        assert best_of(table(survey, [worse, better], "quality", (4096,))) == [best]
    rows = table(survey, [worse, measured("Q6_K", {TEXT: 9.5}), option("Q4_0")], "quality", (4096,))
    (row,) = (row for row in rows if row.best)
    assert why_best(row, rows, "quality") == "Q6_K is the most precise that fits, by perplexity (9.50)"


def test_compared_is_what_most_were_measured_on() -> None:
    options = [measured("Q8_0", {OTHER: 7.0, TEXT: 10.0}), measured("Q6_K", {TEXT: 9.5}), option("Q4_0")]
    assert compared_on(table(survey_of(3000), options, contexts=(4096,))) == TEXT
    longer, shown = replace(OTHER, chunks=9), survey_of(3000)
    assert compared_on(table(shown, [measured("Q8_0", {OTHER: 7.0, longer: 7.1})], contexts=(4096,))) == longer
    assert compared_on(table(shown, [option("Q4_0")], contexts=(4096,))) is None


def in_both_cache_types() -> dict[tuple[int, CacheType], tuple[ModelMemory, ...]]:
    """At 32768 tokens: 1280 MiB as f16."""
    counted = memories((32768,))[32768]
    half = tuple(
        replace(one, cache_type="q8_0", layer_kv_bytes=tuple(size // 2 for size in one.layer_kv_bytes))
        for one in counted
    )
    return {(32768, "f16"): counted, (32768, "q8_0"): half}


def cached(budget_mib: int, *kinds: str, prefer: Prefer = "quality") -> tuple[Fit, ...]:
    work, options = work_of(make_model("Q4_0", output="Q4_0")), [option(kind) for kind in kinds]
    return fit_all(survey_of(budget_mib), work, options, in_both_cache_types(), LATENCY, prefer)


@pytest.mark.parametrize(
    ("budget_mib", "kinds", "best"),
    [
        (4000, ["Q4_0"], ("Q4_0", "f16")),
        (1500, ["Q4_0"], ("Q4_0", "q8_0")),
        (1950, ["Q8_0", "Q4_0"], ("Q4_0", "f16")),
        (1700, ["Q4_0", "Q2_K"], ("Q4_0", "q8_0")),
        (1700, ["Q2_K"], ("Q2_K", "f16")),
    ],
)
def test_keys_and_values_are_quantised_only_where_f16_lets_nothing_sound_fit(
    budget_mib: int, kinds: list[str], best: tuple[str, str]
) -> None:
    """Also where they let more bits of the weights fit."""
    for prefer in PREFERENCES:
        rows = cached(budget_mib, *kinds, prefer=prefer)
        assert [(row.option.name, row.cache_type) for row in rows if row.best] == [best]


def test_what_was_passed_over_is_told_by_its_kinds() -> None:
    def why(rows: Sequence[Fit]) -> str:
        return why_best(next(row for row in rows if row.best), rows, "balance")

    one = option("Q8_0", "here")
    cases: tuple[tuple[list[Option], str], ...] = (
        ([], ""),
        ([option("Q4_0", lost=("Q8_0",))], ", but for those made of what had lost precision"),
        ([option("Q2_K")], ", but for those with less than 4 bits"),
        (
            [option("Q2_K", lost=("Q8_0",))],
            ", but for those made of what had lost precision or with less than 4 bits",
        ),
    )
    for others, told in cases:
        rows = table(survey_of(3000), [one, *others], contexts=(4096,))
        assert why(rows) == f"Q8_0 is the only one that fits{told}"
    assert why(cached(4000, "Q4_0")) == "Q4_0 is the only one that fits, but for those with a less precise KV cache"


def test_a_cache_type_that_the_engine_refuses_is_a_row_that_says_so() -> None:
    work = work_of(make_model("Q4_0", output="Q4_0"))
    rows = fit_all(survey_of(3000), work, [option("Q4_0")], {(4096, "q8_0"): "no such heads"}, LATENCY, "balance")
    assert [(row.plan, row.short) for row in rows] == [(None, Short("no such heads", refused=True))]


def test_a_speed_by_bytes_is_taken_only_where_there_is_no_other() -> None:
    """Though it is said to be by far the fastest."""
    survey = decoding(survey_of(3000), {"Q4_0": 4.0, "Q8_0": 12.0})
    rows = table(survey, [option("Q8_0"), option("Q6_K")], "speed", contexts=(4096,))
    seconds = {row.option.name: row.plan.goal_s for row in rows if row.plan is not None}
    assert seconds["Q6_K"] < seconds["Q8_0"] / 1.5
    assert [row.speed_from for row in rows] == ["kernels", "bytes"]
    assert best_of(rows) == ["Q8_0"]
    assert "Q8_0 is the only one that fits, but for those whose speed is worked out by bytes" in why_best(
        rows[0], rows, "speed"
    )
    assert best_of(table(survey, [option("Q6_K")], "speed", contexts=(4096,))) == ["Q6_K"]


def test_types_without_a_rate_are_told_and_go_by_bytes() -> None:
    (row,) = table(survey_of(3000), [option("TQ2_0")], contexts=(4096,))
    assert (row.unmeasured, row.speed_from) == (True, "bytes")


def test_a_speed_that_was_timed_with_another_cache_type_says_with_which() -> None:
    rows = cached(4000, "Q8_0", "Q4_0")
    assert {(row.option.name, row.cache_type): row.speed_from for row in rows} == {
        ("Q8_0", "f16"): "kernels",
        ("Q8_0", "q8_0"): "kernels with f16",
        ("Q4_0", "f16"): "timed",
        ("Q4_0", "q8_0"): "timed with f16",
    }


def ran(row: Fit) -> Record:
    """As it has run: at 50 tokens/s."""
    assert row.plan is not None
    (group,) = row.plan.groups
    predicted = Measured(group.token_s, group.step_s, group.prefill_s)
    return Record(group_key(group), group.mode, ("a/cpu",), group.prompt_tokens, predicted, Measured(0.02, 0.02, 2.0))


def test_a_run_of_its_own_is_what_is_shown() -> None:
    survey, one = survey_of(3000), option("Q8_0")
    (row,) = table(survey, [one], contexts=(4096,))
    shown = Experience((ran(row),))
    (row,) = table(survey, [replace(one, experience={"f16": shown})], contexts=(4096,))
    assert row.plan is not None
    assert (row.plan.token_s, row.speed_from) == (0.02, "measured")
    (row,) = table(survey, [replace(one, experience={"f16": shown.of_another()})], contexts=(4096,))
    assert row.speed_from == "kernels, corrected"


def test_what_ran_with_one_cache_type_is_nothing_of_another() -> None:
    first, second = cached(4000, "Q8_0")
    assert (first.cache_type, second.cache_type) == ("f16", "q8_0")
    one = replace(first.option, experience={"f16": Experience((ran(first),))})
    work = work_of(make_model("Q4_0", output="Q4_0"))
    rows = fit_all(survey_of(4000), work, [one], in_both_cache_types(), LATENCY, "balance")
    assert [row.speed_from for row in rows] == ["measured", "kernels with f16"]
    assert rows[1].plan == second.plan


def test_why_the_best_is_the_best_is_one_sentence() -> None:
    survey = decoding(survey_of(3000), {"Q4_0": 4.0, "Q8_0": 4.4, "Q2_K": 3.0, "Q6_K": 8.0})

    def why(prefer: Prefer, *kinds: str) -> str:
        rows = table(survey, [option(kind) for kind in kinds], prefer, (4096,))
        return why_best(next(row for row in rows if row.best), rows, prefer)

    kinds = ("Q4_0", "Q8_0", "Q2_K")
    assert why("quality", *kinds) == "Q8_0 is the most precise that fits"
    assert why("speed", *kinds) == "Q4_0 is the fastest that fits with 4 bits or more: 25.8 tok/s"
    assert why("balance", *kinds) == (
        "Q8_0 is the most precise of those that keep 80% or more of the speed of Q4_0, the fastest with 4 bits or more "
        "(25.8 tok/s)"
    )
    assert why("balance", "Q4_0", "Q6_K") == (
        "Q4_0 is the fastest that fits with 4 bits or more (25.8 tok/s); none more precise keeps 80% of that"
    )


def test_a_dozen_at_three_contexts_on_three_hosts_are_planned_in_seconds() -> None:
    survey, options = survey_of(500, 900, 1500), [option(kind) for kind in KINDS]
    began_s = time.process_time()
    assert len(table(survey, options)) == 36
    assert time.process_time() - began_s < 10
