"""Perplexities as they are measured: by the engine, each run by its own log."""

import asyncio
from pathlib import Path

import pytest

from orchestrator import perplexity
from orchestrator.errors import EngineError
from orchestrator.folders import Folders
from orchestrator.perplexity import RUNS, Asked, compare_perplexities
from orchestrator.report import silent
from quant.synthetic import Shape, write_random_model
from workers.errors import LostResultsError
from workers.perplexity_output import Perplexity, read_perplexity

SHAPE = Shape(layers=2, embedding=256, feed_forward=512, heads=4, kv_heads=2, vocabulary=512)
CONTEXT = 64

pytestmark = pytest.mark.engine


def logs(folders: Folders) -> list[str]:
    return sorted(path.suffix for path in (folders.cache / "logs" / "perplexity").rglob("*") if path.is_file())


async def test_runs_of_one_model_beside_each_other_read_their_own_results(folders: Folders, tmp_path: Path) -> None:
    model = tmp_path / "small.gguf"
    write_random_model(model, SHAPE, "F16", reads_text=True)
    texts = []
    for words, name in ((400, "long.txt"), (60, "short.txt")):
        texts.append(tmp_path / name)
        texts[-1].write_text("water " * words)
    asked = [Asked((str(model),), text, CONTEXT, None) for text in texts]
    both = await asyncio.gather(*(compare_perplexities(one, folders, silent()) for one in asked))
    assert [told[0].perplexity.chunks for told in both] == [49, 6]
    assert logs(folders) == []


@pytest.mark.parametrize("times", [RUNS - 1, RUNS])
async def test_what_lost_results_is_run_again_a_few_times(
    folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    model, text = tmp_path / "small.gguf", tmp_path / "short.txt"
    write_random_model(model, SHAPE, "F16", reads_text=True)
    text.write_text("water " * 60)
    losing = [LostResultsError("of 7 chunks the results of 4 have come")] * times

    def read(output: str, context: int) -> Perplexity:
        if losing:
            raise losing.pop()
        return read_perplexity(output, context)

    monkeypatch.setattr(perplexity, "read_perplexity", read)
    asked = Asked((str(model),), text, CONTEXT, None)
    if times == RUNS:
        with pytest.raises(EngineError, match="of 7 chunks the results of 4 have come"):
            await compare_perplexities(asked, folders, silent())
        assert logs(folders).count(".log") == 1
    else:
        (told,) = await compare_perplexities(asked, folders, silent())
        assert told.perplexity.chunks == 6
        assert logs(folders) == []


async def test_the_log_of_a_run_that_failed_stays(folders: Folders, tmp_path: Path) -> None:
    model, text = tmp_path / "small.gguf", tmp_path / "short.txt"
    write_random_model(model, SHAPE, "F16", reads_text=True)
    text.write_text("water")
    with pytest.raises(EngineError, match="its perplexity could not be measured"):
        await compare_perplexities(Asked((str(model),), text, CONTEXT, None), folders, silent())
    assert ".log" in logs(folders)
