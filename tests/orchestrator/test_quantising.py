"""Quantising: what is refused before a byte is written, and what becomes of the file when the work ends early."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from gguf import GGUFWriter

from orchestrator import quantising
from orchestrator.engine.store import Engine
from orchestrator.errors import HostError, UsageError
from orchestrator.folders import Folders
from orchestrator.leash import Exit
from orchestrator.models_quota import write_quota
from orchestrator.quantising import (
    DISK_RESERVE_BYTES,
    Wanted,
    check_disk,
    check_prediction,
    check_target,
    default_target,
    quantise,
)
from orchestrator.report import Event, Progress, Remark, Report, silent
from quant.errors import QuantiseError
from quant.gguf_file import read_model
from quant.made import Made, lost_before, read_made, write_made
from quant.model import Model
from quant.predict import Prediction, predict_quantised
from quant.quantisations import Quantisation, find_quantisation
from quant.synthetic import Shape, write_random_model
from quant.whole_file import files_digest

SHAPE = Shape(layers=4, embedding=512, feed_forward=1024, heads=8, kv_heads=2, vocabulary=256)
LARGE = Shape(layers=3, embedding=2048, feed_forward=8192, heads=16, kv_heads=4, vocabulary=256)
Q4_K_M, IQ2_XXS = find_quantisation("Q4_K_M"), find_quantisation("IQ2_XXS")


@pytest.fixture
def source(tmp_path: Path) -> Model:
    write_random_model(tmp_path / "small-F16.gguf", SHAPE, "F16")
    return read_model(tmp_path / "small-F16.gguf")


def prediction(model: Model, *, needs: bool = False, lossy: tuple[str, ...] = ()) -> Prediction:
    return Prediction(Q4_K_M, model, 1000, needs, lossy)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "SmolLM2-135M-Instruct-Q4_K_M.gguf"),
        ("qwen3-8b-q6_k.gguf", "qwen3-8b-Q4_K_M.gguf"),
        ("llama-70b-BF16-00001-of-00003.gguf", "llama-70b-Q4_K_M.gguf"),
        ("plain.gguf", "plain-Q4_K_M.gguf"),
    ],
)
def test_the_files_name_has_the_type_in_the_place_of_the_old_one(source: Model, file: str, name: str) -> None:
    folders = Folders(Path("/cache"), Path("/state"))
    assert default_target(replace(source, path=Path("/x") / file), Q4_K_M, folders) == Path("/cache/models") / name


@pytest.fixture
def models(tmp_path: Path) -> Folders:
    """Without an engine."""
    found = Folders(tmp_path / "cache", tmp_path / "state")
    (found.cache / "models").mkdir(parents=True)
    return found


def test_a_file_that_was_made_of_another_model_leaves_its_name_to_it(source: Model, models: Folders) -> None:
    usual = default_target(source, Q4_K_M, models)
    usual.write_bytes(b"of nobody knows what")
    own = usual.with_name(f"small-{source.files_digest}-Q4_K_M.gguf")
    assert default_target(source, Q4_K_M, models) == own
    made = Made(str(usual), files_digest((usual,)), "Q4_K_M", str(source.path), source.files_digest)
    write_made(models.cache, made)
    assert default_target(source, Q4_K_M, models) == usual
    assert default_target(replace(source, files_digest="another"), Q4_K_M, models).name == "small-another-Q4_K_M.gguf"


def test_a_file_that_is_there_is_written_over_only_by_force_and_the_model_itself_never(source: Model) -> None:
    there = source.path.with_name("there.gguf")
    there.touch()
    with pytest.raises(UsageError, match="is there already"):
        check_target(source, there, force=False)
    check_target(source, there, force=True)
    with pytest.raises(UsageError, match="is the model itself"):
        check_target(source, source.path, force=True)


def test_what_is_quantised_already_is_refused_with_the_flag_that_allows_it(source: Model) -> None:
    lossy = prediction(source, lossy=("Q8_0", "Q4_K"))
    with pytest.raises(QuantiseError, match=r"is quantised already \(Q8_0, Q4_K\)") as caught:
        check_prediction(Wanted("a", Q4_K_M), source, lossy)
    assert "--allow-requantise" in caught.value.hint
    check_prediction(Wanted("a", Q4_K_M, requantise=True), source, lossy)


def test_types_of_so_few_bits_need_an_importance_matrix(source: Model) -> None:
    needing = prediction(source, needs=True)
    with pytest.raises(QuantiseError, match=r"IQ2_XXS of small-F16\.gguf needs an importance matrix"):
        check_prediction(Wanted("a", IQ2_XXS), source, needing)
    check_prediction(Wanted("a", IQ2_XXS, importance=Path("i.dat")), source, needing)


def test_a_disk_without_room_is_told_with_both_sizes(source: Model, tmp_path: Path) -> None:
    check_disk(prediction(source), tmp_path / "a.gguf", 1000 + DISK_RESERVE_BYTES)
    with pytest.raises(QuantiseError, match=r"a\.gguf takes 1000 B; .* has 64\.0 MiB free"):
        check_disk(prediction(source), tmp_path / "a.gguf", 999 + DISK_RESERVE_BYTES)


@pytest.mark.engine
async def test_the_file_is_as_predicted_and_progress_is_told(source: Model, folders: Folders, engine: Engine) -> None:
    events: list[Event] = []
    predicted = (await predict_quantised(engine.folder, source, (Q4_K_M,)))["Q4_K_M"]
    assert isinstance(predicted, Prediction)
    path = await quantise(Wanted(str(source.path), Q4_K_M), folders, Report(events.append))
    assert path == folders.cache / "models" / "small-Q4_K_M.gguf"
    made = read_model(path)
    types = {tensor.name: (tensor.type, tensor.size_bytes) for tensor in made.tensors}
    assert types == {tensor.name: (tensor.type, tensor.size_bytes) for tensor in predicted.model.tensors}
    assert types["blk.3.ffn_down.weight"][0] == "Q6_K"
    assert abs(path.stat().st_size - predicted.file_bytes) <= 256  # the engine adds two facts to the metadata
    told = [event.text for event in events if isinstance(event, Remark) and event.text.startswith("small-Q4_K_M")]
    assert len(told) == 2
    progress = [event for event in events if isinstance(event, Progress)]
    assert [(one.done, one.total) for one in progress][-1] == (source.size_bytes, source.size_bytes)
    assert len(progress) == len(source.tensors)
    assert [one.name for one in path.parent.iterdir()] == [path.name]


@pytest.mark.engine
async def test_it_is_remembered_what_was_made_of_what_and_what_that_had_lost(
    source: Model, folders: Folders, tmp_path: Path
) -> None:
    """What was made of a lossy file is lossy, also if its own type is not."""
    lossy = await quantise(Wanted(str(source.path), find_quantisation("Q4_1")), folders, silent())
    whole = tmp_path / "whole.gguf"
    await quantise(Wanted(str(lossy), find_quantisation("F16"), whole, requantise=True), folders, silent())
    made, again = read_model(lossy), read_model(whole)
    assert read_made(folders.cache, made.files_digest) == Made(
        str(lossy), made.files_digest, "Q4_1", str(source.path), source.files_digest
    )
    told = read_made(folders.cache, again.files_digest)
    assert told is not None
    assert (told.quantisation, told.source, told.lost[0]) == ("F16", str(lossy), "Q4_1")
    with pytest.raises(QuantiseError, match=r"whole\.gguf is quantised already \(Q4_1"):
        await quantise(Wanted(str(whole), Q4_K_M), folders, silent())
    third = await quantise(Wanted(str(whole), Q4_K_M, requantise=True), folders, silent())
    assert lost_before(folders.cache, read_model(third))[0] == "Q4_1"


def in_shards(engine: Engine, path: Path, prefix: Path) -> Path:
    """The first of its shards, cut by the engine."""
    program = str(engine.program("llama-gguf-split"))
    subprocess.run((program, "--split-max-size", "4M", str(path), str(prefix)), check=True, capture_output=True)
    return next(prefix.parent.glob(f"{prefix.name}-00001-of-*.gguf"))


@pytest.mark.engine
async def test_shards_are_one_model(source: Model, folders: Folders, engine: Engine, tmp_path: Path) -> None:
    first = in_shards(engine, source.path, tmp_path / "s-F16")
    assert len(read_model(first).shards) > 2
    whole = await quantise(Wanted(str(source.path), Q4_K_M), folders, silent())
    path = await quantise(Wanted(str(first), Q4_K_M), folders, silent())
    assert path.name == "s-Q4_K_M.gguf"
    assert read_model(path).tensors == read_model(whole).tensors


def write_matrix(path: Path, model: Model, layers: int = SHAPE.layers) -> Path:
    """Of the first layers' matrices."""
    writer = GGUFWriter(path, "imatrix")
    for tensor in model.tensors:
        if tensor.block is not None and tensor.block < layers and len(tensor.shape) == 2:
            row = np.linspace(0.1, 4.0, tensor.shape[0], dtype=np.float32).reshape(1, -1)
            writer.add_tensor(f"{tensor.name}.in_sum2", row)
            writer.add_tensor(f"{tensor.name}.counts", np.ones((1, 1), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.engine
async def test_an_importance_matrix_changes_the_weights_and_is_named_in_the_file(
    source: Model, folders: Folders, tmp_path: Path
) -> None:
    matrix = write_matrix(tmp_path / "imatrix.gguf", source)
    with pytest.raises(QuantiseError, match="needs an importance matrix"):
        await quantise(Wanted(str(source.path), IQ2_XXS), folders, silent())
    path = await quantise(Wanted(str(source.path), IQ2_XXS, importance=matrix), folders, silent())
    assert read_model(path).quantisation == "IQ2_XXS"
    assert b"quantize.imatrix.file" in path.read_bytes()[:100_000]


@pytest.mark.engine
@pytest.mark.parametrize("kind", [IQ2_XXS, Q4_K_M], ids=lambda kind: kind.name)
async def test_a_matrix_of_another_model_is_refused_and_leaves_nothing(
    source: Model, folders: Folders, tmp_path: Path, kind: Quantisation
) -> None:
    """Also for a type that needs none, which the engine would make as if there were none."""
    (tmp_path / "other.dat").write_bytes(b"\1\0\0\0\1\0\0\0a\1\0\0\0\1\0\0\0\0\0\x80\x3f")
    with pytest.raises(QuantiseError, match=r"other\.dat is the importance matrix of another model: "):
        await quantise(Wanted(str(source.path), kind, importance=tmp_path / "other.dat"), folders, silent())
    assert not (folders.cache / "models").exists()


@pytest.mark.engine
async def test_a_matrix_with_gaps_is_told(source: Model, folders: Folders, tmp_path: Path) -> None:
    warnings: list[str] = []

    def listen(event: Event) -> None:
        if isinstance(event, Remark) and event.level == "warning":
            warnings.append(event.text)

    matrix = write_matrix(tmp_path / "imatrix.gguf", source, layers=SHAPE.layers - 1)
    await quantise(Wanted(str(source.path), Q4_K_M, importance=matrix), folders, Report(listen))
    assert warnings == [
        "the importance matrix has nothing for 7 of its 39 tensors: these are quantised as if there were none"
    ]


@pytest.mark.engine
async def test_of_two_runs_to_one_name_the_later_one_replaces_nothing(
    source: Model, folders: Folders, tmp_path: Path
) -> None:
    """Both have found the name free when they began."""
    out = tmp_path / "out.gguf"
    kinds = (Q4_K_M, find_quantisation("Q8_0"))
    runs = (quantise(Wanted(str(source.path), kind, out), folders, silent()) for kind in kinds)
    first, second = await asyncio.gather(*runs, return_exceptions=True)
    failed = [one for one in (first, second) if isinstance(one, QuantiseError)]
    assert [str(one) for one in failed] == [f"{out} has come to be there while it was made anew"]
    assert failed[0].hint == "write over it: --force; or to another file: --out FILE"
    assert read_model(out).quantisation == ("Q8_0" if isinstance(first, QuantiseError) else "Q4_K")
    assert [path.name for path in tmp_path.glob("out*")] == ["out.gguf"]
    forced = await quantise(Wanted(str(source.path), find_quantisation("Q6_K"), out, force=True), folders, silent())
    assert read_model(forced).quantisation == "Q6_K"


@pytest.mark.engine
async def test_what_comes_into_the_models_folder_makes_its_own_room_in_the_quota(
    source: Model, folders: Folders, tmp_path: Path
) -> None:
    old = folders.cache / "models" / "old.gguf"
    old.parent.mkdir()
    write_random_model(old, SHAPE, "Q8_0")
    os.utime(old, (1000.0, 1000.0))
    write_quota(folders, old.stat().st_size + 1000)
    await quantise(Wanted(str(source.path), Q4_K_M, tmp_path / "elsewhere.gguf"), folders, silent())
    assert old.exists()
    await quantise(Wanted(str(source.path), Q4_K_M), folders, silent())
    assert not old.exists()


@pytest.mark.engine
async def test_work_that_is_given_up_leaves_nothing(folders: Folders, tmp_path: Path) -> None:
    write_random_model(tmp_path / "large.gguf", LARGE, "F16")
    begun = asyncio.Event()

    def listen(event: Event) -> None:
        if isinstance(event, Progress):
            begun.set()

    work = asyncio.create_task(quantise(Wanted(str(tmp_path / "large.gguf"), Q4_K_M), folders, Report(listen)))
    await asyncio.wait_for(begun.wait(), 60)
    assert [path.suffix for path in (folders.cache / "models").iterdir()] == [".partial"]
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert list((folders.cache / "models").iterdir()) == []


@pytest.mark.engine
async def test_a_program_that_is_lost_is_told_so(
    source: Model, folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def end() -> Exit:
        return Exit(None, lost=True, reason="no life sign of it for 14 s")

    async def start(*others: object) -> SimpleNamespace:
        return SimpleNamespace(name="quantising small-F16.gguf", wait=end, stop=end)

    monkeypatch.setattr(quantising, "_start", start)
    with pytest.raises(HostError) as caught:
        await quantise(Wanted(str(source.path), Q4_K_M), folders, silent())
    assert str(caught.value) == "controller: quantising small-F16.gguf: no life sign of it for 14 s"


_KILLED = """
import asyncio, sys
from pathlib import Path
from orchestrator.folders import Folders
from orchestrator.quantising import Wanted, quantise
from orchestrator.report import Progress, Report
from quant.quantisations import find_quantisation

def listen(event):
    if isinstance(event, Progress):
        print("begun", flush=True)

folders = Folders(Path(sys.argv[1]), Path(sys.argv[2]))
asyncio.run(quantise(Wanted(sys.argv[3], find_quantisation("Q4_K_M")), folders, Report(listen)))
"""


@pytest.mark.engine
def test_when_meshctl_itself_is_killed_nothing_stays_and_nothing_runs_on(folders: Folders, tmp_path: Path) -> None:
    write_random_model(tmp_path / "large.gguf", LARGE, "F16")
    words = (sys.executable, "-c", _KILLED, str(folders.cache), str(folders.state), str(tmp_path / "large.gguf"))
    process = subprocess.Popen(words, stdout=subprocess.PIPE, env={"PYTHONPATH": ":".join(sys.path)})
    assert process.stdout is not None
    assert process.stdout.readline() == b"begun\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    deadline = time.monotonic() + 30
    while (left := list((folders.cache / "models").iterdir())) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == []
