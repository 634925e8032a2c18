"""The words that time single passes, and the reading of what they print."""

import json

import pytest

from workers.engine_commands import Placement
from workers.errors import FactsError
from workers.pass_bench import Timed, pass_bench_command, read_passes


def test_prompts_are_single_passes_and_one_token_is_decoding() -> None:
    words = pass_bench_command("bench", model="m.gguf", passes=(1, 4, 64), threads=2, placement=None)
    assert words == (
        *("bench", "--model", "m.gguf", "--no-warmup", "--repetitions", "4", "--output", "json", "--verbose"),
        *("--n-prompt", "4,64", "--n-gen", "16", "--ubatch-size", "64", "--threads", "2"),
        *("--cache-type-k", "f16", "--cache-type-v", "f16"),
        *("--device", "none", "--n-gpu-layers", "0"),
    )


def test_a_bench_of_decoding_alone_reads_no_prompt_and_takes_the_placement() -> None:
    one = Placement(("127.0.0.1:20000", "127.0.0.1:20001"), (2, 1), False, False, mode="tensor")
    words = pass_bench_command("bench", model="m.gguf", passes=(1,), threads=1, placement=one)
    assert words[9:15] == ("--n-prompt", "0", "--n-gen", "16", "--ubatch-size", "1")
    assert words[-6:] == ("--n-gpu-layers", "999", "--split-mode", "tensor", "--tensor-split", "2/1")


def rows(*tests: tuple[int, int, list[int]]) -> bytes:
    keys = ("n_prompt", "n_gen", "samples_ns")
    return json.dumps([dict(zip(keys, test, strict=True)) for test in tests]).encode()


def test_a_context_is_read_before_each_pass_and_repetitions_are_as_asked_for() -> None:
    words = pass_bench_command(
        "bench", model="m.gguf", passes=(64,), threads=1, placement=None, repetitions=2, context=512
    )
    assert words[words.index("--repetitions") + 1] == "2"
    assert words[words.index("--n-depth") + 1] == "512"


def test_the_first_repetition_warms_up_and_the_median_of_the_others_counts_for_each_token_decoded() -> None:
    stdout = rows((64, 0, [900, 80, 120, 100]), (0, 8, [9000, 1600, 800, 400]), (256, 0, [900, 500]))
    assert read_passes(stdout, (1, 64, 256)) == {
        64: Timed(100 / 1e9, 0.4),
        1: Timed(100 / 1e9, 1.5),
        256: Timed(500 / 1e9, 0.0),
    }


def test_decoding_may_be_timed_in_several_turns_each_of_which_warms_up() -> None:
    words = pass_bench_command("bench", model="m.gguf", passes=(1, 64), threads=1, placement=None, turns=3)
    assert words[words.index("--n-gen") + 1] == "16,16,16"
    stdout = rows((64, 0, [90, 80]), (0, 8, [9000, 800, 880]), (0, 8, [8000, 720, 960]), (0, 8, [7000, 640, 1600]))
    found = read_passes(stdout, (1, 64))[1]
    assert [found.seconds, found.spread, found.least_s] == pytest.approx([105e-9, 240 / 840, 80e-9])


def test_a_missing_pass_and_what_is_no_json_are_said() -> None:
    with pytest.raises(FactsError, match=r"nothing about passes of \[64\] tokens"):
        read_passes(rows((0, 8, [1, 1])), (1, 64))
    with pytest.raises(FactsError, match="cannot be read"):
        read_passes(b"[", (1,))
