"""Recorded output of `llama-perplexity` (SmolLM2 135M as F16, four chunks of 512 tokens)."""

from pathlib import Path

import pytest

from workers.errors import FactsError, LostResultsError
from workers.perplexity_output import ChunkCounter, read_perplexity

RECORDED = Path(__file__).parent / "recorded"


def output(file: str) -> str:
    return (RECORDED / file).read_text()


def test_the_result_is_that_of_all_chunks_but_the_last() -> None:
    found = read_perplexity(output("perplexity.txt"), 512)
    assert (found.value, found.chunks, found.context) == (28.0748, 3, 512)
    assert round(found.uncertainty, 4) == 3.1642


def test_the_error_of_a_chunks_line_is_the_one_in_the_engines_final_estimate() -> None:
    """One more chunk: what then stands before the last is what the engine gave as the end."""
    more = output("perplexity.txt").replace("over 4 chunks", "over 5 chunks")
    found = read_perplexity(more, 512)
    assert (found.value, round(found.uncertainty, 3)) == (32.3727, 3.132)
    assert "Final estimate: PPL = 32.3727 +/- 3.13185" in more


def test_lines_that_the_engine_did_not_write_any_more_are_not_missed() -> None:
    """Recorded on a busy machine: of 8 chunks it has written 7."""
    assert "Final estimate" not in output("perplexity_cut_off.txt")
    assert read_perplexity(output("perplexity_cut_off.txt"), 512).value == 48.3928
    with pytest.raises(LostResultsError, match="of 9 chunks the results of 7 have come"):
        read_perplexity(output("perplexity_cut_off.txt").replace("over 8", "over 9"), 512)


def test_chunks_are_counted_as_they_come() -> None:
    counter = ChunkCounter()
    news = [counter.take(line) for line in output("perplexity.txt").splitlines()]
    assert (counter.done, counter.total, news.count(True)) == (4, 4, 5)


def test_a_text_that_is_too_short_is_an_error_although_the_program_ends_well() -> None:
    with pytest.raises(FactsError) as caught:
        read_perplexity(output("perplexity_short_text.txt"), 512)
    assert str(caught.value) == "the text has 119 tokens, and two chunks of 512 are the least"
    assert caught.value.hint == "choose a longer text, or --context 32"


@pytest.mark.parametrize(
    ("tokens", "said", "hint"),
    [
        (1, "1 token", "choose a longer text"),
        (31, "31 tokens", "choose a longer text"),
        (32, "32 tokens", "choose a longer text, or --context 16"),
    ],
)
def test_a_smaller_context_is_proposed_only_where_it_can_be_asked_for(tokens: int, said: str, hint: str) -> None:
    short = output("perplexity_short_text.txt").replace("tokenizes to only 119", f"tokenizes to only {tokens}")
    with pytest.raises(FactsError) as caught:
        read_perplexity(short, 512)
    assert (str(caught.value), caught.value.hint) == (f"the text has {said}, and two chunks of 512 are the least", hint)


def test_what_the_engine_says_last_is_why_it_failed() -> None:
    with pytest.raises(FactsError, match=r"^llama_perplexity: unable to load model$"):
        read_perplexity(output("perplexity_no_model.txt"), 512)


@pytest.mark.parametrize("number", ["nan", "-nan", "inf", "x"])
def test_a_model_of_no_numbers_is_an_error(number: str) -> None:
    with pytest.raises(FactsError, match="probabilities are no numbers"):
        read_perplexity(output("perplexity.txt").replace("28.0748", number), 512)


def test_nothing_at_all_is_an_error() -> None:
    with pytest.raises(FactsError, match="has printed no result"):
        read_perplexity("", 512)
