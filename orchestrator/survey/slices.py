"""The slices of a model that devices are timed on: which depths, where they lie, what their layers weigh."""

import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock

from orchestrator.survey.values import rate_name
from quant.errors import SliceError
from quant.gguf_file import read_model
from quant.mixture import MATRICES, LayerTypes, Mixture
from quant.model import Model, hidden_bytes, layer_bytes, logits_bytes, output_bytes, worked_part
from quant.slice import SHALLOW, shape_digest, slice_depths, write_slice
from quant.synthetic import (
    ONE_BILLION,
    Shape,
    fitting_types,
    layer_type_bytes,
    like_shape,
    like_work,
    type_bytes,
    write_mixed_model,
    write_random_model,
)
from quant.whole_file import check_room, written_whole
from workers.agent import Recorded, mark_of, read_record, sha256_of, touch, write_record
from workers.budget import MIB

BESIDE_LAYERS_BYTES = 28 * MIB
"""What a worker takes beside layers and output layer while it is timed: itself, buffers, the cache of a few tokens."""

KEPT_S = 24 * 3600.0
"""A slice that nobody asked for in this time is deleted when another is written; writing it again takes seconds."""

KERNEL_WEIGHTS = 250_000_000
"""A model that compares tensor types has so many in its layers: 140 MB as Q4_0, more than most processors' last-level
caches. None has more layers than the model itself."""

KERNEL_VOCABULARY = 256

LEAST_LAYERS = 4
"""A device that holds fewer layers beside the output layer is timed with that on the head, and short prompts only."""


@dataclass(frozen=True)
class Slice:
    """A model file of the first layers. `source` is "slice", "model" (all layers), "made up" (a slice with weights at
    random) or "synthetic"."""

    path: Path
    layers: int
    layers_bytes: tuple[int, ...]
    source: str

    def pass_bytes(self, last_block: float = 1.0) -> int:
        """The weights that a pass works through, of the last block only this part."""
        return sum(self.layers_bytes) - int((1 - last_block) * self.layers_bytes[-1])


@dataclass(frozen=True)
class KernelModel:
    """A model of random weights that types are compared by: a small one of the model's proportions, its layers of these
    types. `rate`: what is compared, as in `KernelRate`."""

    slice: Slice
    shape: Shape
    rate: str
    layers: tuple[LayerTypes, ...]
    output_type: str

    @property
    def size_bytes(self) -> int:
        """Of all that is multiplied by."""
        return sum(self.slice.layers_bytes) + self.shape.vocabulary * type_bytes(self.output_type, self.shape.embedding)

    @property
    def weights(self) -> int:
        """Those that a token is multiplied by."""
        return self.shape.layers * self.shape.layer_weights + self.shape.vocabulary * self.shape.embedding


@dataclass(frozen=True)
class Slices:
    """A shallow and a deep slice, and what of the model counts beside its layers; bytes per token where not said.

    `worked_part`: the part of the layers' bytes that works for a token, all but experts that rest.
    `why_synthetic`: why models of like shapes stand in for slices; "" where they do not.
    """

    shallow: Slice
    deep: Slice
    output_bytes: int
    output_tied: bool
    hidden_bytes: int
    logits_bytes: int
    digest: str
    output_fits: bool = True
    why_synthetic: str = ""
    worked_part: float = 1.0

    @property
    def output_like_bytes(self) -> float:
        """The bytes of layers whose working part is as large as the output layer, all of which works."""
        return self.output_bytes / self.worked_part


class SliceStore:
    """Writes slices of one model into a folder, each once; the deepest may be the model's own file.

    `made_up`: of the model only the header is here, so its slices get weights at random, and what is timed on them
    counts for no model. Hosts are timed at once and ask from threads of their own: one writes, the others wait for it.
    """

    def __init__(self, model: Model, folder: Path, *, made_up: bool = False, engine: str = "") -> None:
        self._model = model
        self._folder = folder
        self.made_up = made_up
        self._digest = shape_digest(model)
        self._writing = Lock()
        # Another engine may load them, and weights at random say nothing of the model's own.
        whose = f"{self._digest}-{engine}{'-made-up' if made_up else ''}"
        self._refused = folder / f"{whose}.refused"

    @property
    def digest(self) -> str:
        return self._digest

    def slices(self, available_bytes: int | None = None) -> Slices | None:
        """The slices for a device with this much memory (None: no limit); None when it holds not even the smallest.

        While a tensor is loaded the worker holds it twice, and the output layer is the largest one.
        """
        model, output = self._model, output_bytes(self._model)
        room = None if available_bytes is None else available_bytes - 2 * output - BESIDE_LAYERS_BYTES
        output_fits = room is None or room >= sum(layer_bytes(model)[:LEAST_LAYERS])
        if available_bytes is not None and not output_fits:
            room = available_bytes - BESIDE_LAYERS_BYTES
        shallow, deep = slice_depths(model, room) if model.block_count > 1 else (1, 2)
        if shallow == deep or (room is not None and sum(layer_bytes(model)[:deep]) > room):
            return None
        with self._writing:
            first, second, why = self._pair(shallow, deep)
        return Slices(
            shallow=first,
            deep=second,
            output_bytes=output_bytes(read_model(second.path)) if why else output,
            output_tied=model.output_tied,
            hidden_bytes=hidden_bytes(model),
            logits_bytes=logits_bytes(model),
            digest=self._digest,
            output_fits=output_fits,
            why_synthetic=why,
            worked_part=worked_part(model, shallow, deep),
        )

    def of_types(self, mixture: Mixture, output_type: str, available_bytes: int) -> KernelModel | None:
        """A model of like proportions, its matrices of these types, to be written first (`write`); None where a device
        with this much memory does not hold two layers of it. An output layer is held twice while it is loaded."""
        most, rate = kernel_shape(self._model), rate_name(mixture.name, output_type)
        output_type = fitting_types(most, (output_type,) * len(MATRICES))[0]
        row_bytes = type_bytes(output_type, most.embedding)
        for count in range(most.layers, SHALLOW - 1, -1):
            shape = kernel_shape(self._model, count)
            layers = tuple(fitting_types(shape, layer) for layer in mixture.of_layers(count))
            sizes = tuple(layer_type_bytes(shape, layer) for layer in layers)
            if sum(sizes) + 2 * shape.vocabulary * row_bytes + BESIDE_LAYERS_BYTES <= available_bytes:
                words = (rate.replace(", ", "-").replace(" ", "-"), *map(str, (*shape.widths, count, shape.vocabulary)))
                path = self._folder / f"kernel-{'-'.join(words)}.gguf"
                return KernelModel(Slice(path, count, sizes, "synthetic"), shape, rate, layers, output_type)
        return None

    def write(self, one: KernelModel) -> None:
        """Where it is not there yet. NoRoomError where the disk has no room, OSError where it cannot be written."""
        path = one.slice.path
        with self._writing:
            self._folder.mkdir(parents=True, exist_ok=True)
            if not _is_whole(path):
                self._delete_old()
                check_room(path.parent, 2 * one.size_bytes, f"a model to compare {one.rate} by")
                write_mixed_model(path, one.shape, one.layers, one.output_type)
                _record(path)

    def use_synthetic(self, why: str) -> None:
        """From now on, also in later runs until `try_again`: the engine does not load slices of this model, and why."""
        with self._writing:
            self._folder.mkdir(parents=True, exist_ok=True)
            with written_whole(self._refused) as part:
                part.write_text(why)

    def try_again(self) -> None:
        """Slices shall be loaded again, whatever the engine made of them before."""
        self._refused.unlink(missing_ok=True)

    def needed_bytes(self) -> int:
        """What a device must have for the smallest pair of slices."""
        return sum(layer_bytes(self._model)[:2]) + BESIDE_LAYERS_BYTES

    def _pair(self, shallow: int, deep: int) -> tuple[Slice, Slice, str]:
        """Both of one kind, since a line through a slice and a synthetic model would mean nothing; and why they are no
        slices, if so."""
        self._folder.mkdir(parents=True, exist_ok=True)
        why = self._refused.read_text() if self._refused.exists() else ""
        if not why:
            try:
                return self._slice(shallow), self._slice(deep), ""
            except (SliceError, ValueError) as error:
                why = str(error)
        return self._synthetic(shallow), self._synthetic(deep), why

    def _slice(self, layers: int) -> Slice:
        model, made_up = self._model, self.made_up
        if layers == model.block_count and len(model.shards) == 1 and not made_up:
            return Slice(model.path, layers, layer_bytes(model), "model")
        path = self._folder / f"{self._digest}-{layers}{'-made-up' if made_up else ''}.gguf"
        if not _is_whole(path):
            self._delete_old()
            write_slice(model, layers, path, made_up=made_up)
            _record(path)
        return Slice(path, layers, layer_bytes(model)[:layers], "made up" if made_up else "slice")

    def _synthetic(self, layers: int) -> Slice:
        """Of experts only what works for a token is in it: its layers count for as many bytes as have that in them."""
        model, path = self._model, self._folder / f"{self._digest}-{layers}-synthetic.gguf"
        if not _is_whole(path):
            self._delete_old()
            shape = like_shape(model, layers) if model.experts_used == 1 else replace(like_work(model), layers=layers)
            write_random_model(path, shape, model.quantisation)
            _record(path)
        worked = worked_part(model, 0, model.block_count)
        return Slice(path, layers, tuple(round(size / worked) for size in layer_bytes(read_model(path))), "synthetic")

    def _delete_old(self) -> None:
        for path in self._folder.glob("*.gguf"):
            mark = Path(mark_of(str(path)))
            with suppress(OSError):
                if time.time() - max(one.stat().st_mtime for one in (path, mark) if one.exists()) > KEPT_S:
                    path.unlink()
                    mark.unlink(missing_ok=True)


def kernel_shape(model: Model, layers: int | None = None) -> Shape:
    """What tensor types are compared at: the model's widths up to those of a model of a billion weights, from which on
    kernels are as fast as in any; layers enough to leave a cache, if the model has them, or so many; and as large an
    output layer beside them as the model has beside its own. So a small model is compared as a whole: what stays in a
    cache, layers and output layer in turn, does so here."""
    own = shape = like_work(model)
    if shape.embedding > ONE_BILLION.embedding:
        shape = replace(ONE_BILLION, feed_forward=shape.feed_forward)
    shape = replace(shape, feed_forward=min(shape.feed_forward, ONE_BILLION.feed_forward))
    enough = -(-KERNEL_WEIGHTS // shape.layer_weights)
    count = max(SHALLOW, min(model.block_count, enough)) if layers is None else layers
    part = count * shape.layer_weights / (model.block_count * own.layer_weights)
    rows = round(model.vocabulary * part * own.embedding / shape.embedding)
    return replace(shape, layers=count, vocabulary=max(KERNEL_VOCABULARY, rows))


def _is_whole(path: Path) -> bool:
    """Whether it is there with the size it was written with; if so it is kept for another while."""
    known = read_record(str(path))
    if not path.is_file() or [one.size_bytes for one in known] != [path.stat().st_size]:
        return False
    touch(mark_of(str(path)))
    return True


def _record(path: Path) -> None:
    write_record(str(path), Recorded("", path.stat().st_size, sha256_of(str(path))))
