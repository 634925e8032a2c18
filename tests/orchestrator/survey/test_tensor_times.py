"""What a failed bench of mode tensor means: these devices cannot, or the engine cannot cut this model at all."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from orchestrator.errors import EngineError, MeshctlError
from orchestrator.inventory import Host
from orchestrator.plan.pools import find_candidates
from orchestrator.plan.tensor import TensorSet, find_tensors
from orchestrator.report import Event, Remark, Report, silent
from orchestrator.survey import tensor_times
from orchestrator.survey.kept import write_kept
from orchestrator.survey.slices import Slice
from orchestrator.survey.tensor_times import measure_tensor, room_bytes, tensor_time, with_kept
from orchestrator.survey.timing import Measuring
from orchestrator.survey.values import Device, Link, PassTime, Survey, TensorTime
from tests.orchestrator.plan.examples import FACTS, make_device, make_gpu, make_memory, make_survey
from tests.orchestrator.survey.test_speeds import SLICES
from workers.budget import MIB
from workers.engine_commands import CACHE_TYPES, CacheType, FlashAttention
from workers.facts import HostFacts
from workers.pass_bench import Timed

SETS = (TensorSet(("a/cpu", "b/cpu"), (2, 1)), TensorSet(("a/cpu", "c/cpu"), (2, 1)))
SURVEY = make_survey([make_device(name, 700) for name in ("a/cpu", "b/cpu", "c/cpu")])
TIME = TensorTime(SETS[1].devices, SETS[1].parts, (), 0.0)
WORDS = "llama_model_load: error loading model: LLAMA_SPLIT_MODE_TENSOR not implemented for architecture 'mamba'"


def agrees(survey: Survey) -> dict[TensorSet, float]:
    return {}


def answer(monkeypatch: pytest.MonkeyPatch, first: MeshctlError, refusal: str) -> None:
    """The first set fails so, the second is timed."""

    async def measure(measuring: Measuring, survey: Survey, one: TensorSet, report: Report) -> TensorTime:
        if one == SETS[0]:
            raise first
        return TIME

    async def ask(measuring: Measuring) -> str:
        return refusal

    monkeypatch.setattr(tensor_times, "_kept_or_measured", measure)
    monkeypatch.setattr(tensor_times, "_refusal", ask)


async def measured() -> tuple[Survey, list[str]]:
    warnings: list[str] = []

    def note(event: Event) -> None:
        if isinstance(event, Remark):
            warnings.append(event.text)

    nothing_known = cast(Measuring, SimpleNamespace(recalibrate=True, parallel=1))
    return await measure_tensor(nothing_known, SURVEY, SETS, Report(note), agrees), warnings


async def test_what_fails_on_the_controller_too_is_the_engines_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, EngineError("the bench failed"), WORDS)
    survey, warnings = await measured()
    assert (survey.tensor, survey.tensor_failed, survey.tensor_refused) == ((), (), WORDS)
    assert warnings == ["mode tensor over a/cpu, b/cpu: the bench failed"]


@pytest.mark.parametrize("error", [EngineError("killed"), MeshctlError("too little memory")])
async def test_what_fails_on_some_devices_only_leaves_the_others_timed(
    monkeypatch: pytest.MonkeyPatch, error: MeshctlError
) -> None:
    answer(monkeypatch, error, "")
    survey, warnings = await measured()
    assert (survey.tensor, survey.tensor_failed, survey.tensor_refused) == ((TIME,), (SETS[0].devices,), "")
    assert warnings == [f"mode tensor over a/cpu, b/cpu: {error}"]


async def test_a_group_without_room_for_slices_has_not_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody tried it: it remains predicted by the formula."""

    async def measure(measuring: Measuring, survey: Survey, one: TensorSet, report: Report) -> TensorTime | None:
        return None if one == SETS[0] else TIME

    monkeypatch.setattr(tensor_times, "_kept_or_measured", measure)
    survey, warnings = await measured()
    assert (survey.tensor, survey.tensor_failed, survey.tensor_refused) == ((TIME,), (), "")
    assert warnings == [
        "mode tensor over a/cpu, b/cpu is not timed: they have too little memory for slices of the model"
    ]


async def test_slices_are_as_large_as_the_parts_of_the_devices_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1,400 MiB are free on each, 28 of them for a worker itself; each of the three has a part."""
    asked: list[int] = []

    def slices(available: int) -> None:
        asked.append(available // MIB)

    here = measuring(tmp_path)
    monkeypatch.setattr(here.slices, "slices", slices, raising=False)
    one = TensorSet(("a/cpu", "b/cpu", "c/cpu"), (1, 1, 1))
    assert (await measure_tensor(here, SURVEY, (one,), silent(), agrees)).tensor_failed == ()
    assert asked == [3 * 1372 + 28]


def test_devices_of_one_machine_have_its_memory_once_and_cards_their_own() -> None:
    cpus = [make_device(f"{host}/cpu", 700) for host in "ab"]
    card = make_gpu("a/cuda0", 100, gib_per_s=10, native_gib_per_s=10)

    def room_mib(devices: Sequence[Device], parts: tuple[int, ...], here: str = "") -> int:
        return room_bytes(devices, parts, here) // MIB

    assert room_mib(cpus, (3, 1)) == 1372 * 4 // 3 + 28
    assert room_mib(cpus, (3, 1), here="ab") == 1344 + 28
    assert room_mib([*cpus, card], (1, 1, 1), here="ab") == 172 * 3 + 28


async def test_a_bench_that_was_killed_on_the_controller_is_no_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what the engine has logged is a word of the engine's."""
    errors = [
        EngineError("ended with status -9", details="load_tensors: 4 of 4 layers"),
        EngineError("1", details=WORDS),
    ]

    async def over(*others: object) -> None:
        raise errors.pop(0)

    store = SimpleNamespace(slices=lambda available: SLICES)
    hosts = SimpleNamespace(controller=SimpleNamespace(facts=FACTS))
    monkeypatch.setattr(tensor_times, "_time_over", over)
    here = cast(Measuring, SimpleNamespace(slices=store, hosts=hosts))
    assert await tensor_times._refusal(here) == ""
    assert await tensor_times._refusal(here) == WORDS


def test_times_known_from_earlier_runs_are_added_and_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not those that failed now, nor those that are there already."""
    third = TensorSet(("b/cpu", "c/cpu"), (1, 1))
    known = {one: TensorTime(one.devices, one.parts, (), 0.0) for one in (*SETS, third)}
    monkeypatch.setattr(tensor_times, "_kept", lambda measuring, survey, one: known[one])
    survey = replace(SURVEY, tensor=(TIME,), tensor_failed=(SETS[0].devices,))
    assert with_kept(cast(Measuring, None), survey, (*SETS, third)).tensor == (TIME, known[third])


def flipped(one: TensorSet) -> TensorSet:
    """The same devices with the same parts, in the other order."""
    return TensorSet(one.devices[::-1], one.parts[::-1])


def test_what_is_there_or_failed_is_so_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_times, "_kept", lambda measuring, survey, one: TIME)
    survey = replace(SURVEY, tensor=(TIME,), tensor_failed=(SETS[0].devices,))
    assert with_kept(cast(Measuring, None), survey, [flipped(one) for one in SETS]) == survey


def test_the_output_layer_is_told_apart_by_its_bytes() -> None:
    """500 bytes at 10 us each; 2 ms for whatever else."""

    def decoded(one: Slice) -> dict[int, Timed]:
        return {1: Timed(1e-5 * one.pass_bytes() + 0.005 + 0.002, 0.01)}

    timed = tensor_time(SETS[0], SLICES, decoded(SLICES.shallow), decoded(SLICES.deep))
    assert timed.output_s == pytest.approx(0.005)
    (one,) = timed.passes
    assert (one.fixed_s, *one.layers_s) == pytest.approx((0.002, 0.022, 0.042))
    assert one.spread == 0.01


def test_where_nothing_is_left_at_no_layer_the_output_layer_costs_nothing() -> None:
    shallow, deep = ({1: Timed(1e-5 * one.pass_bytes(), 0.01)} for one in (SLICES.shallow, SLICES.deep))
    assert tensor_time(SETS[0], SLICES, shallow, deep).output_s == pytest.approx(0.0)


def test_the_engines_words_are_the_first_line_of_its_log_that_is_an_error() -> None:
    log = f"print_info: file type = Q4_1\n{WORDS}\nllama_bench: error: failed to load model\n"
    assert EngineError("ended with status 1", details=log).engine_words == WORDS
    assert EngineError("ended with status 1", details="no word of it").engine_words == "ended with status 1"


PAIR = make_survey([make_device("a/cpu", 700), make_device("b/cpu", 700)])
HALVES = TensorSet(("a/cpu", "b/cpu"), (1, 1))


def test_times_of_made_up_weights_or_with_flash_attention_asked_for_are_others(tmp_path: Path) -> None:
    survey = make_survey([make_device("a/cpu", 700), make_device("b/cpu", 700)])
    one = TensorSet(SETS[0].devices, (1, 1))
    stores = (measuring(tmp_path), measuring(tmp_path, made_up=True), measuring(tmp_path, flash="on"))
    assert len({tensor_times._kept_file(store, survey, one) for store in stores}) == 3


def measuring(
    kept: Path,
    *,
    engine: str = "engine",
    digest: str = "digest",
    made_up: bool = False,
    parallel: int = 1,
    facts: HostFacts = FACTS,
    run_with: tuple[str, ...] = (),
    cache_type: CacheType = "f16",
    flash: FlashAttention = "auto",
    recalibrate: bool = False,
) -> Measuring:
    host = SimpleNamespace(facts=facts, host=Host("a", "local", run_with=run_with), is_local=False)
    return cast(
        Measuring,
        SimpleNamespace(
            engine=SimpleNamespace(manifest=SimpleNamespace(engine=engine)),
            parallel=parallel,
            slices=SimpleNamespace(digest=digest, made_up=made_up),
            hosts=SimpleNamespace(by_name=dict.fromkeys("abc", host)),
            kept=kept,
            cache_type=cache_type,
            flash_attention=flash,
            recalibrate=recalibrate,
        ),
    )


def key(survey: Survey = PAIR, one: TensorSet = HALVES, **how: Any) -> str:
    """The name of the file that a time is kept in."""
    return tensor_times._kept_file(measuring(Path(), **how), survey, one).name


def with_first(**changes: object) -> Survey:
    """The two devices, the first of them changed."""
    first, second = PAIR.devices
    return make_survey([replace(first, **changes), second])  # type: ignore[arg-type] # any field


FAR = Link("tunnel", round_trip_s=0.01, up_bytes_per_s=110 * MIB, down_bytes_per_s=110 * MIB)


@pytest.mark.parametrize(
    "other",
    [
        {"engine": "another build"},
        {"digest": "another model"},
        {"facts": replace(FACTS, hostname="other")},
        {"facts": replace(FACTS, cpu_name="another processor")},
        {"facts": replace(FACTS, cpu_quota=0.5)},
        {"run_with": ("numactl",)},
        {"cache_type": "q8_0"},
        {"one": TensorSet(HALVES.devices, (2, 1))},
        {"survey": with_first(threads=2)},
        {"survey": with_first(kind="cuda", engine_name="CUDA0")},
        {"survey": with_first(link=FAR)},
    ],
    ids=lambda other: " ".join(other),
)
def test_a_time_is_of_these_devices_parts_links_engine_and_model(other: dict[str, Any]) -> None:
    assert key() == key()
    assert key(**other) != key()


def test_a_time_is_known_again_over_a_link_that_is_nearly_the_same_and_in_any_order() -> None:
    a_little = replace(PAIR.devices[0].link, round_trip_s=1.1 * PAIR.devices[0].link.round_trip_s)
    assert key(survey=with_first(link=a_little)) == key()
    assert key(one=TensorSet(HALVES.devices[::-1], (1, 1))) == key()


def test_times_of_another_cache_type_are_other_ones_and_those_of_f16_stay_known() -> None:
    """The file of f16 is as before there were others."""
    names = [key(cache_type=cache_type) for cache_type in CACHE_TYPES]
    assert names[0] == "tensor-bc673a79af04b7401ba8a352.json"
    assert len(set(names)) == 3


def time_of(
    one: TensorSet, passes: Sequence[int], token_s: float = 0.01, output_s: float = 0.0, deep: int = 2000
) -> TensorTime:
    """Layers of 1,000 and `deep` bytes, 2,000 at `token_s` per token."""
    at_bytes = (1000, deep)

    def timed(tokens: int) -> PassTime:
        return PassTime(tokens, 0.0, at_bytes, tuple(tokens * token_s * size / 2000 for size in at_bytes), 0.01)

    return TensorTime(one.devices, one.parts, tuple(map(timed, passes)), output_s)


def measured_by(monkeypatch: pytest.MonkeyPatch, time: Callable[[TensorSet, Sequence[int]], TensorTime]) -> None:
    """What is measured of a set and its passes is what `time` says."""

    async def measure(
        measuring: Measuring, devices: Sequence[Device], one: TensorSet, passes: Sequence[int]
    ) -> TensorTime:
        return time(one, passes)

    monkeypatch.setattr(tensor_times, "_measure_set", measure)


async def test_a_group_is_timed_once_kept_and_timed_again_where_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed: list[TensorSet] = []

    def time(one: TensorSet, passes: Sequence[int]) -> TensorTime:
        timed.append(one)
        return time_of(one, passes)

    measured_by(monkeypatch, time)
    for recalibrate in (False, False, True):
        surveyed = await measure_tensor(measuring(tmp_path, recalibrate=recalibrate), PAIR, (HALVES,), silent(), agrees)
        assert surveyed.tensor == (time_of(HALVES, (1, 64, 256)),)
    assert timed == [HALVES, HALVES]
    with_none = replace(PAIR, tensor=())
    assert with_kept(measuring(tmp_path), with_none, (HALVES,)).tensor == surveyed.tensor
    assert with_kept(measuring(tmp_path, recalibrate=True), with_none, (HALVES,)).tensor == ()


async def test_for_another_number_of_conversations_only_their_steps_are_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a day when all takes twice as long; whichever was timed first, decoding stays what it was."""
    coming, timed, told = iter((0.01, 0.02, 0.02)), list[Sequence[int]](), list[str]()

    def time(one: TensorSet, passes: Sequence[int]) -> TensorTime:
        timed.append(passes)
        return time_of(one, passes, next(coming))

    async def survey_of(parallel: int) -> tuple[TensorTime, ...]:
        here, report = measuring(tmp_path, parallel=parallel), Report(lambda event: told.append(str(event)))
        return (await measure_tensor(here, PAIR, (HALVES,), report, agrees)).tensor

    measured_by(monkeypatch, time)
    eight = (8, (1, 4, 8, 64, 256))
    for parallel, passes in ((1, (1, 64, 256)), eight, (4, (1, 2, 4, 64, 256)), eight):
        assert await survey_of(parallel) == (time_of(HALVES, passes),)
    assert timed == [(1, 64, 256), (1, 4, 8, 64), (1, 2, 64)]
    assert "timing steps of 4 and 8 conversations in layers cut across a/cpu, b/cpu" in told[1]
    assert with_kept(measuring(tmp_path, parallel=2), PAIR, (HALVES,)).tensor == (time_of(HALVES, (1, 2, 64, 256)),)
    assert with_kept(measuring(tmp_path, parallel=16), PAIR, (HALVES,)).tensor == ()


async def test_steps_that_are_timed_on_shallower_slices_count_by_decoding_of_as_many_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    coming = iter((2000, 1500))

    measured_by(monkeypatch, lambda one, passes: time_of(one, passes, deep=next(coming)))
    for parallel in (1, 2):
        here = measuring(tmp_path, parallel=parallel)
        (time,) = (await measure_tensor(here, PAIR, (HALVES,), silent(), agrees)).tensor
    assert {one.tokens: one.layers_s[-1] for one in time.passes} == pytest.approx(
        {1: 0.01, 2: 0.015, 64: 0.64, 256: 2.56}
    )


async def test_a_time_that_lacks_what_all_is_worked_out_from_counts_as_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured_by(monkeypatch, time_of)
    here = measuring(tmp_path)
    write_kept(tensor_times._kept_file(here, PAIR, HALVES), tensor_times._TIME, time_of(HALVES, (64, 256)))
    assert (await measure_tensor(here, PAIR, (HALVES,), silent(), agrees)).tensor == (time_of(HALVES, (1, 64, 256)),)


async def test_a_time_that_was_kept_in_another_order_is_in_the_survey_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after two equal devices were timed again and the other one came out faster: else two plans are the same."""

    measured_by(monkeypatch, time_of)
    first = await measure_tensor(measuring(tmp_path), PAIR, (HALVES,), silent(), agrees)
    again = await measure_tensor(measuring(tmp_path), PAIR, (flipped(HALVES),), silent(), agrees)
    survey = with_kept(measuring(tmp_path), again, (flipped(HALVES),))
    assert survey.tensor == first.tensor
    groups = find_tensors(survey, (make_memory(kv_heads=2),), find_candidates(survey, None))
    assert [one.tensor_split for one in groups] == [(1, 1)]


THREE = TensorSet(("a/cpu", "b/cpu", "c/cpu"), (1, 1, 1))
FORMULA_MS = {(2, 1): 30.0, (1, 1, 1): 20.0}


def off_by_size(survey: Survey) -> dict[TensorSet, float]:
    """As `far_off` has it, with times that are all in the output layer."""
    ratios = {TensorSet(one.devices, one.parts): one.output_s / FORMULA_MS[one.parts] for one in survey.tensor}
    usual = ratios[SETS[0]]
    return {one: max(ratio / usual, usual / ratio) for one, ratio in ratios.items()}


@pytest.mark.parametrize(
    ("times", "kept", "asked"),
    [
        ((30, 30, 26, 21), 21, 4),  # off by 1.3, then by 1.05
        ((30, 30, 26, 27), 26, 4),  # the second is off by more
        ((30, 30, 15, 19), 19, 4),  # too fast is doubted, too
        ((30, 30, 23), 23, 3),  # off by 1.15
    ],
)
async def test_a_time_that_does_not_agree_with_the_others_is_measured_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: tuple[float, ...], kept: float, asked: int
) -> None:
    coming, seen = iter(times), list[TensorSet]()

    def time(one: TensorSet, passes: Sequence[int]) -> TensorTime:
        seen.append(one)
        return time_of(one, passes, output_s=next(coming))

    measured_by(monkeypatch, time)
    here, sets = measuring(tmp_path), (*SETS, THREE)
    survey = await measure_tensor(here, SURVEY, sets, silent(), off_by_size)
    assert [one.output_s for one in survey.tensor] == [30, 30, kept]
    assert len(seen) == asked
    again = await measure_tensor(here, SURVEY, sets, silent(), off_by_size)
    assert (again.tensor, len(seen)) == (survey.tensor, asked)  # kept, and not doubted again


async def test_a_second_time_that_fails_leaves_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    coming = iter((30.0, 30.0, 26.0))

    def time(one: TensorSet, passes: Sequence[int]) -> TensorTime:
        for seconds in coming:
            return time_of(one, passes, output_s=seconds)
        raise EngineError("killed")

    measured_by(monkeypatch, time)
    survey = await measure_tensor(measuring(tmp_path), SURVEY, (*SETS, THREE), silent(), off_by_size)
    assert ([one.output_s for one in survey.tensor], survey.tensor_failed) == ([30, 30, 26], ())
