"""What the engine says while it quantises: recorded with SmolLM2 135M, whose rows have 576 elements."""

from pathlib import Path

from quant.quantising_log import TensorLine, read_fallbacks, read_refusal, read_tensor_line, says_importance_needed

RECORDED = Path(__file__).parent / "recorded"


def lines_of(file: str) -> list[str]:
    return (RECORDED / file).read_text().splitlines()


def test_each_tensor_is_told_with_its_type_and_the_one_it_gets() -> None:
    found = [read_tensor_line(line) for line in lines_of("quantise_q4_k_m.txt")]
    assert [one for one in found if one is not None] == [
        TensorLine(1, 272, "output_norm.weight", "F32", "F32"),
        TensorLine(2, 272, "token_embd.weight", "F16", "Q8_0"),
        TensorLine(3, 272, "blk.0.attn_k.weight", "F16", "Q5_0"),
        TensorLine(4, 272, "blk.0.attn_norm.weight", "F32", "F32"),
        TensorLine(5, 272, "blk.0.attn_output.weight", "F16", "Q5_0"),
        TensorLine(6, 272, "blk.0.attn_q.weight", "F16", "Q5_0"),
    ]


def test_a_dry_run_tells_the_same_in_other_words() -> None:
    found = [read_tensor_line(line) for line in lines_of("dry_run_iq2_xxs.txt")]
    assert [(one.source_type, one.target_type) for one in found if one is not None] == [
        ("F32", "F32"),
        ("Q8_0", "Q8_0"),
        ("Q4_1", "IQ4_NL"),
        ("Q4_1", "IQ2_XXS"),
        ("Q4_1", "IQ4_NL"),
        ("F32", "F32"),
        ("Q4_1", "IQ4_NL"),
    ]


def test_what_the_engine_says_of_the_whole_model_is_read() -> None:
    needs = {file: [says_importance_needed(line) for line in lines_of(file)].count(True) for file in FILES}
    assert needs == {"quantise_q4_k_m.txt": 0, "dry_run_iq2_xxs.txt": 1, "dry_run_q1_0.txt": 0}
    fallbacks = {file: max(read_fallbacks(line) for line in lines_of(file)) for file in FILES}
    assert fallbacks == {"quantise_q4_k_m.txt": 180, "dry_run_iq2_xxs.txt": 180, "dry_run_q1_0.txt": 0}
    refusals = {file: [read_refusal(line) for line in lines_of(file) if read_refusal(line)] for file in FILES}
    assert refusals == {
        "quantise_q4_k_m.txt": [],
        "dry_run_iq2_xxs.txt": [],
        "dry_run_q1_0.txt": ["no tensor type fallback is defined for type q1_0"],
    }


FILES = ("quantise_q4_k_m.txt", "dry_run_iq2_xxs.txt", "dry_run_q1_0.txt")
