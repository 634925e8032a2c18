"""The words for `llama-fit-params` and its recorded answers (SmolLM2 135M, four conversations of 4096 tokens)."""

from pathlib import Path

import pytest

from workers.engine_commands import Placement
from workers.errors import FactsError
from workers.fit_table import FitRow, device_rows, fit_command, read_fit_table, refusal, upper_bytes

RECORDED = Path(__file__).parent / "recorded"


def test_native_words() -> None:
    words = fit_command("fit", model="m.gguf", context=4096, parallel=4, micro_batch=64, placement=None)
    assert words == (
        *("fit", "--model", "m.gguf", "--fit-print", "on", "--ctx-size", "16384", "--parallel", "4"),
        *("--ubatch-size", "64", "--cache-type-k", "f16", "--cache-type-v", "f16"),
        *("--device", "none", "--n-gpu-layers", "0"),
    )


def test_words_for_two_workers_with_the_output_on_the_head() -> None:
    placement = Placement(("127.0.0.1:1", "127.0.0.1:2"), (3, 4), output_on_head=True, output_tied=False)
    words = fit_command("fit", model="m.gguf", context=512, parallel=1, micro_batch=64, placement=placement)
    assert words[words.index("--rpc") :] == (
        *("--rpc", "127.0.0.1:1,127.0.0.1:2", "--device", "RPC0,RPC1", "--n-gpu-layers", "999"),
        *("--split-mode", "layer", "--tensor-split", "3,4", "--override-tensor", r"^output\.weight=CPU"),
    )


ANSWERS = {
    "fit_native.txt": (FitRow("Host", 92, 360, 12),),
    "fit_three_workers.txt": (
        FitRow("RPC0", 21, 120, 4),
        FitRow("RPC1", 21, 120, 4),
        FitRow("RPC2", 49, 120, 15),
        FitRow("Host", 28, 0, 2),
    ),
    "fit_three_workers_output_on_head.txt": (
        FitRow("RPC0", 21, 120, 2),
        FitRow("RPC1", 21, 120, 1),
        FitRow("RPC2", 21, 120, 1),
        FitRow("Host", 28, 0, 12),
    ),
}


@pytest.mark.parametrize(("file", "rows"), ANSWERS.items(), ids=ANSWERS.keys())
def test_recorded_answer_is_read(file: str, rows: tuple[FitRow, ...]) -> None:
    assert read_fit_table((RECORDED / file).read_bytes(), len(rows) - 1) == rows


@pytest.mark.parametrize(
    ("stdout", "found"),
    [(b"", "[]"), (b"RPC0 1 2 3 \n", "['RPC0']"), (b"Host 1 2 3 \n", "['Host']"), (b"RPC0 1 2\nHost x 2 3\n", "[]")],
)
def test_answer_without_the_expected_rows_is_refused(stdout: bytes, found: str) -> None:
    with pytest.raises(FactsError) as caught:
        read_fit_table(stdout, 1)
    assert str(caught.value) == f"llama-fit-params printed {found} instead of 1 devices and Host"


def test_cut_sizes_are_bounded_from_above() -> None:
    assert (upper_bytes(0), upper_bytes(3)) == (1048576, 4 * 1048576)


def test_the_engines_reason_is_the_first_error_of_its_log() -> None:
    """As it wrote it for heads of 48 elements, with lines of a debugger around it."""
    log = (
        "[New LWP 31080]\n"
        "0.00.023.820 I llama_fit_params: printing estimated memory in MiB to stdout (device, model, context) ...\n"
        "0.00.028.829 E llama_init_from_model: K cache type q8_0 with block size 32 does not divide n_embd_head_k=48\n"
        "terminate called after throwing an instance of 'std::runtime_error'\n"
        "  what():  failed to create llama_context from model\n"
    )
    assert refusal(log) == "K cache type q8_0 with block size 32 does not divide n_embd_head_k=48"
    assert refusal("0.00.001.000 I main: nothing is wrong\nKilled\n") == ""


def test_layers_that_are_cut_have_one_row_for_all_devices() -> None:
    tensor = Placement(("127.0.0.1:1", "127.0.0.1:2"), (1, 1), output_on_head=False, output_tied=False, mode="tensor")
    rows = read_fit_table(b"Meta() 70 180 13 \nHost 30 0 2 \n", device_rows(tensor))
    assert rows == (FitRow("Meta()", 70, 180, 13), FitRow("Host", 30, 0, 2))
