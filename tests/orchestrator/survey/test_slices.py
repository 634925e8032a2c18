"""Which files devices are timed on: slices of the model, or synthetic ones where it cannot be cut."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier

import pytest

from orchestrator.survey import slices
from orchestrator.survey.slices import Slices, SliceStore
from quant.errors import SliceError
from quant.gguf_file import read_model
from quant.mixture import Mixture, mixture_of
from quant.model import Model, Tensor, layer_bytes, output_bytes, worked_part
from quant.synthetic import ONE_BILLION, Shape, like_work, write_random_model
from tests.quant.architectures import mixture_of_experts

SHAPE = Shape(layers=6, embedding=256, feed_forward=512, heads=4, kv_heads=2, vocabulary=128)


@pytest.fixture
def model(tmp_path: Path) -> Model:
    write_random_model(tmp_path / "whole.gguf", SHAPE, "Q4_0")
    return read_model(tmp_path / "whole.gguf")


def test_a_small_model_is_timed_whole_beside_a_slice_of_it(model: Model, tmp_path: Path) -> None:
    found = SliceStore(model, tmp_path / "slices").slices()
    assert found is not None
    assert (found.shallow.source, found.deep.source, found.deep.path) == ("slice", "model", model.path)
    assert read_model(found.shallow.path).block_count == found.shallow.layers < found.deep.layers == 6
    assert found.output_bytes == output_bytes(model)


def test_where_one_of_both_cannot_be_cut_both_are_synthetic(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deep one would be the model itself: a line through it and a synthetic one would mean nothing."""

    def refuse(model: Model, layers: int, path: Path, *, made_up: bool) -> None:
        raise SliceError("two stacks of layers")

    monkeypatch.setattr(slices, "write_slice", refuse)
    found = SliceStore(replace(model, vocabulary=512), tmp_path / "slices").slices()
    assert found is not None
    assert (found.shallow.source, found.deep.source) == ("synthetic", "synthetic")
    assert found.why_synthetic == "two stacks of layers"
    assert read_model(found.deep.path).block_count == 6
    assert found.output_bytes == output_bytes(read_model(found.deep.path)) != output_bytes(model)


def test_an_output_layer_is_as_much_work_as_many_experts_that_rest(tmp_path: Path) -> None:
    """Slices of the model, and synthetic ones of as much work for a token, which count for the bytes of all experts."""
    mixed = read_model(mixture_of_experts().write(tmp_path / "experts.gguf"))
    store = SliceStore(mixed, tmp_path / "slices")
    cut = store.slices()
    assert cut is not None
    assert cut.worked_part == worked_part(mixed, 1, 4) < 0.8
    assert cut.output_like_bytes == output_bytes(mixed) / cut.worked_part
    store.use_synthetic("unknown architecture")
    made = store.slices()
    assert made is not None
    work = made.deep.layers_bytes[-1] * cut.worked_part
    assert work == pytest.approx(layer_bytes(read_model(made.deep.path))[-1], rel=0.01)
    assert made.worked_part == cut.worked_part


def test_slices_not_asked_for_in_a_day_are_deleted_when_another_is_written(model: Model, tmp_path: Path) -> None:
    folder = tmp_path / "slices"
    found = SliceStore(model, folder).slices()
    assert found is not None
    old, asked_for = folder / "other-2.gguf", folder / "other-4.gguf"
    for path in (old, asked_for, found.shallow.path):
        path.touch()
        os.utime(path, (0, 0))
    assert SliceStore(model, folder).slices() == found
    assert old.exists()
    os.utime(asked_for)
    larger = replace(SHAPE, layers=8)
    write_random_model(tmp_path / "larger.gguf", larger, "Q4_0")
    SliceStore(read_model(tmp_path / "larger.gguf"), folder).slices()
    assert not old.exists()
    assert asked_for.exists()
    assert found.shallow.path.exists()


def test_a_model_of_one_layer_is_timed_on_others_of_its_shape(tmp_path: Path) -> None:
    write_random_model(tmp_path / "one.gguf", replace(SHAPE, layers=1), "Q4_0")
    found = SliceStore(read_model(tmp_path / "one.gguf"), tmp_path / "slices").slices()
    assert found is not None
    assert [(one.source, one.layers) for one in (found.shallow, found.deep)] == [("synthetic", 1), ("synthetic", 2)]


def test_what_the_engine_refuses_is_replaced_in_later_runs_too(model: Model, tmp_path: Path) -> None:
    store = SliceStore(model, tmp_path / "slices")
    store.use_synthetic("unknown architecture")
    for one in (store, SliceStore(model, tmp_path / "slices")):
        found = one.slices()
        assert found is not None
        assert {found.shallow.source, found.deep.source} == {"synthetic"}
        assert found.why_synthetic == "unknown architecture"
    store.try_again()
    store.try_again()
    found = store.slices()
    assert found is not None
    assert (found.shallow.source, found.deep.source) == ("slice", "model")
    assert found.why_synthetic == ""


def test_hosts_that_ask_at_once_get_the_same_files(model: Model, tmp_path: Path) -> None:
    """Each slice is written once and whole, however many ask for it in the same moment."""
    store, together = SliceStore(model, tmp_path / "slices"), 4
    at_once = Barrier(together)

    def ask(_: int) -> Slices | None:
        at_once.wait(timeout=30)
        return store.slices()

    with ThreadPoolExecutor(together) as pool:
        found = list(pool.map(ask, range(together)))
    assert found[0] is not None
    assert set(found) == {found[0]}
    assert [path.name for path in sorted((tmp_path / "slices").iterdir())] == [
        found[0].shallow.path.name,
        f"{found[0].shallow.path.name}.mark",
    ]


@pytest.mark.parametrize("change", [b"", b"too long"])
def test_a_slice_of_another_size_than_it_was_written_with_is_written_again(
    model: Model, tmp_path: Path, change: bytes
) -> None:
    found = SliceStore(model, tmp_path / "slices").slices()
    assert found is not None
    path = found.shallow.path
    whole = path.read_bytes()
    path.write_bytes(whole + change if change else whole[:-1])
    assert SliceStore(model, tmp_path / "slices").slices() == found
    assert path.read_bytes() == whole


def test_a_device_too_small_for_two_layers_has_no_slices(model: Model, tmp_path: Path) -> None:
    store = SliceStore(model, tmp_path / "slices")
    assert store.slices(store.needed_bytes() - 1) is None
    assert not (tmp_path / "slices").exists()


UNIFORM = Mixture(((("Q6_K", 6),),) * 7)
MIXED = Mixture(((("Q4_K", 6),),) * 6 + ((("Q4_K", 4), ("Q6_K", 2)),))


def test_a_small_model_is_compared_as_a_whole(model: Model, tmp_path: Path) -> None:
    model = replace(model, vocabulary=1000)
    store = SliceStore(model, tmp_path / "slices")
    one = store.of_types(MIXED, "Q8_0", 10**9)
    assert one is not None
    assert not (tmp_path / "slices").exists()
    assert one.shape == replace(SHAPE, vocabulary=1000)
    assert one.rate == f"{MIXED.name}, output Q8_0"
    store.write(one)
    made = read_model(one.slice.path)
    assert mixture_of(made) == MIXED
    assert made.output_tied
    matrices = [tensor for tensor in made.tensors if len(tensor.shape) > 1]
    assert {tensor.type for tensor in matrices if tensor.block is None} == {"Q8_0"}
    assert sum(tensor.parameters for tensor in matrices) == one.weights
    assert sum(tensor.size_bytes for tensor in matrices) == one.size_bytes
    assert sum(one.slice.layers_bytes) == sum(one.size_bytes for one in matrices if one.block is not None)


def large_model(model: Model, *, embedding: int = 8192, feed_forward: int = 28672, layers: int = 80) -> Model:
    """In the proportions of Llama 3 70B; no file has it."""
    shape = Shape(layers, embedding, feed_forward, heads=64, kv_heads=8, vocabulary=128_000)
    wide, narrow = shape.embedding, shape.kv_width
    rows = {"attn_q": (wide, wide), "attn_k": (wide, narrow), "attn_v": (wide, narrow), "attn_output": (wide, wide)}
    rows |= dict.fromkeys(("ffn_gate", "ffn_up"), (wide, feed_forward)) | {"ffn_down": (feed_forward, wide)}
    tensors = tuple(
        Tensor(f"blk.{layer}.{name}.weight", "Q6_K", size, 0, 0)
        for layer in range(layers)
        for name, size in rows.items()
    )
    return replace(
        model,
        embedding_length=embedding,
        block_count=layers,
        head_count=shape.heads,
        head_count_kv=(shape.kv_heads,) * layers,
        vocabulary=shape.vocabulary,
        tensors=tensors,
    )


def test_large_models_of_like_proportions_share_one_comparison(model: Model, tmp_path: Path) -> None:
    """Of widths like those of a model of a billion weights, with layers enough to leave a processor's cache, and an
    output layer that has the part of all weights that it has in the model."""
    large = large_model(model)
    assert like_work(large) == Shape(80, 8192, 28672, 64, 8, 128_000)
    shape = slices.kernel_shape(large)
    assert shape == replace(ONE_BILLION, layers=shape.layers, vocabulary=shape.vocabulary)
    assert shape.layers * shape.layer_weights > slices.KERNEL_WEIGHTS
    assert shape.vocabulary * shape.embedding / (shape.layers * shape.layer_weights) == pytest.approx(
        128_000 * 8192 / (80 * like_work(large).layer_weights), rel=1e-3
    )
    other = SliceStore(replace(large_model(model, layers=160), vocabulary=256_000), tmp_path / "b")
    one = other.of_types(UNIFORM, "Q6_K", 10**9)
    assert one is not None
    assert one.shape == shape
    assert one.slice.path.name == f"kernel-Q6_K-2048-8192-32-8-{shape.layers}-{shape.vocabulary}.gguf"


def test_layers_are_compared_with_as_many_weights_as_work_for_a_token(model: Model) -> None:
    """Of experts a part; of matrices that are joined in one, or are of another kind, all."""
    dense = like_work(model)
    assert dense == SHAPE
    up = next(one for one in model.tensors if one.name == "blk.0.ffn_up.weight")
    others = tuple(one for one in model.tensors if not one.name.endswith((".ffn_up.weight", ".ffn_gate.weight")))
    joined = tuple(
        replace(up, name=f"blk.{layer}.ffn_gate_up.weight", shape=(up.shape[0], 2 * up.shape[1])) for layer in range(6)
    )
    assert like_work(replace(model, tensors=(*others, *joined))) == dense
    experts = tuple(
        replace(one, name=one.name.replace(".weight", "_exps.weight"), shape=(*one.shape, 32))
        if "ffn_" in one.name
        else one
        for one in model.tensors
        if "ffn_norm" not in one.name
    )
    mixed = replace(model, tensors=experts, experts_used=0.25)
    assert like_work(mixed).feed_forward == 8 * dense.feed_forward
    assert slices.kernel_shape(mixed).feed_forward == 8 * dense.feed_forward


def test_types_are_compared_on_fewer_layers_where_a_device_holds_no_more(model: Model, tmp_path: Path) -> None:
    large = replace(large_model(model), vocabulary=100)
    store, shape = SliceStore(large, tmp_path / "slices"), slices.kernel_shape(large)
    layer, output = shape.layer_weights * 210 // 256, 2 * 256 * shape.embedding * 210 // 256
    one = store.of_types(UNIFORM, "Q6_K", slices.BESIDE_LAYERS_BYTES + output + 3 * layer)
    assert one is not None
    assert (one.slice.layers, one.shape.vocabulary) == (3, 256)
    assert store.of_types(UNIFORM, "Q6_K", slices.BESIDE_LAYERS_BYTES + output + 2 * layer - 1) is None


def test_types_that_meshctl_does_not_know_are_told(model: Model, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Q9 is no ggml tensor type"):
        SliceStore(model, tmp_path / "slices").of_types(Mixture(((("Q9", 1),),) * 7), "Q8_0", 10**9)


def test_slices_with_made_up_weights_are_told_from_those_of_the_model(model: Model, tmp_path: Path) -> None:
    """Nothing that was timed of a model that was not here is taken for the model once it is."""
    made_up = SliceStore(model, tmp_path / "slices", made_up=True).slices()
    own = SliceStore(model, tmp_path / "slices").slices()
    assert made_up is not None
    assert own is not None
    assert {made_up.shallow.source, made_up.deep.source} == {"made up"}
    assert len({one.path for found in (made_up, own) for one in (found.shallow, found.deep)}) == 4
    assert read_model(made_up.deep.path).block_count == 6
